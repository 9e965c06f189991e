"""Which block each call belongs to: where its weights are, else where the scope says, else where its neighbours are."""

from collections.abc import Collection, Mapping

from ._graph import Call, Graph, Kind, Value
from ._names import Path, sanitized
from ._reads import reads


def owning_blocks(graph: Graph, blocks: Collection[Path]) -> dict[int, Path]:
    """The block of each call of the graph, by its `id`.

    **Arguments:**

    - `blocks`: the paths of the blocks that may be called; the root, `()`, is one of them.
    """
    owners: dict[int, Path] = {}
    unknown: list[Call] = []
    for call in graph.calls:
        evidence = _evidence(call)
        if evidence is None:
            unknown.append(call)
        else:
            owners[id(call)] = _innermost(evidence, blocks)
    _place_by_neighbours(graph, unknown, owners, blocks)
    _lift_shared(graph, owners, blocks)
    _lift_shared_tables(graph, owners, blocks)
    return owners


def _evidence(call: Call) -> Path | None:
    if call.bodies and (paths := _paths_in_bodies(call)):
        return common_prefix(paths)
    if call.lifted is not None:
        return call.lifted.path[:-1]
    if call.scope:
        return sanitized(call.scope)
    leaves = [value.leaf for value in call.inputs if value is not None and value.leaf is not None]
    return leaves[0].path[:-1] if leaves else None


def _paths_in_bodies(call: Call) -> list[Path]:
    """The blocks of everything that the bodies of a call use: they are printed as functions that see one `self`."""
    inner = [other for body in call.bodies.values() for other in body.all_calls()]
    layers = [other.lifted.path[:-1] for other in inner if other.lifted is not None]
    return [*layers, *(leaf.path[:-1] for body in call.bodies.values() for leaf in body.leaves())]


def _innermost(path: Path, blocks: Collection[Path]) -> Path:
    while path not in blocks:
        path = path[:-1]
    return path


def _place_by_neighbours(graph: Graph, unknown: list[Call], owners: dict[int, Path], blocks: Collection[Path]) -> None:
    users = graph.users()
    for call in unknown:
        near = [
            owners[id(value.producer)]
            for value in call.reads
            if value.producer is not None and id(value.producer) in owners
        ]
        near += [owners[id(user)] for output in call.outputs for user in users.get(output, []) if id(user) in owners]
        owners[id(call)] = _innermost(common_prefix(near), blocks)


def _lift_shared(graph: Graph, owners: dict[int, Path], blocks: Collection[Path]) -> None:
    """Moves what a block computes from outside values only, and others read too, to where those who read it meet.

    Exporters compute what several blocks share (a mask, a rotary table) in the one that reads it first: equal blocks
    would differ.
    """
    users = graph.users()
    outputs = set(graph.outputs)
    for call in graph.calls:
        if call.lifted is not None or call.bodies or any(value.leaf is not None for value in call.reads):
            continue
        own = owners[id(call)]
        readers = [owners[id(user)] for output in call.outputs for user in users.get(output, ())]
        if not outputs.isdisjoint(call.outputs):
            readers.append(())
        meeting = _innermost(common_prefix([own, *readers]), blocks)
        if meeting == own:
            continue
        left = next(own[:size] for size in range(len(meeting) + 1, len(own) + 1) if own[:size] in blocks)
        if not any(_is_made_in(left, value, owners) for value in reads(call)):
            owners[id(call)] = meeting


def _lift_shared_tables(graph: Graph, owners: dict[int, Path], blocks: Collection[Path]) -> None:
    """Moves what a block computes from sizes and weights only, for itself and for others, to where those who read it meet.

    T5's first layer makes the position bias of all layers, with a weight of its own: the weight stays where it is.
    """
    users = graph.users()
    for call in reversed(graph.calls):
        own = owners[id(call)]
        readers = [owners[id(user)] for output in call.outputs for user in users.get(output, ())]
        meeting = _innermost(common_prefix([own, *readers]), blocks)
        if meeting == own or own not in readers:
            continue
        table = _table(call, own, owners, users)
        for made in table or ():
            owners[id(made)] = meeting


def _table(call: Call, own: Path, owners: dict[int, Path], users: Mapping[Value, list[Call]]) -> list[Call] | None:
    """The call, and all in its block that it is computed from; `None` if that needs more than sizes and weights."""
    found: dict[int, Call] = {}
    stack = [call]
    while stack:
        made = stack.pop()
        if made.bodies or made.op.draws:
            return None
        found[id(made)] = made
        for value in made.reads:
            source = value.producer
            if source is not None and owners.get(id(source)) == own:
                stack += [] if id(source) in found else [source]
            elif value.kind is Kind.DEVICE and value.leaf is None:
                return None  # the model's data
    inner = [output for made in found.values() if made is not call for output in made.outputs]
    inner = [value for value in inner if value.kind is Kind.DEVICE]
    weighted = any(made.lifted is not None for made in found.values())
    alone = all(id(user) in found for output in inner for user in users.get(output, ()))
    return list(found.values()) if weighted and alone else None


def _is_made_in(block: Path, value: Value, owners: dict[int, Path]) -> bool:
    return value.producer is not None and owners.get(id(value.producer), ())[: len(block)] == block


def common_prefix(paths: list[Path]) -> Path:
    """The longest common beginning; `()` for none."""
    if not paths:
        return ()
    first, last = min(paths), max(paths)
    size = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[:size]
