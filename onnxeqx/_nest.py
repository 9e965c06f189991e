"""Nesting: from a flat list of calls to a tree of blocks.

The tree of fields comes from the key paths. A block becomes callable where its calls can be contracted into one without a
cycle; where they cannot, its fields stay at their paths and its lines are written in the parent. Key paths never depend on
the outcome.
"""

import collections
import dataclasses
from collections.abc import Iterable

from ._graph import Call, Graph, Kind, Leaf, Lifted, Value
from ._names import MAX_INDEX, Path
from ._owners import owning_blocks
from ._reads import data_reads, dim_reads, has_dim, reads
from ._symbolic import Dim


@dataclasses.dataclass(eq=False)
class Block:
    """A class of the printed model, or a tuple of blocks and layers.

    **Fields:**

    - `children`: fields by name, or the members of a tuple by index.
    - `items`: the lines of `__call__`, for a callable block.
    - `inputs`, `outputs`: its arguments and results.
    - `class_name`: the exporter's class, where known.
    """

    path: Path
    children: dict[str, "Block | Lifted | Leaf"] = dataclasses.field(default_factory=dict)
    items: "list[Call | BlockCall] | None" = None
    inputs: list[Value] = dataclasses.field(default_factory=list)
    outputs: list[Value] = dataclasses.field(default_factory=list)
    class_name: str | None = None

    @property
    def draws(self) -> bool:
        """Whether a call in it draws random numbers, so that it takes a key."""
        return any(item.block.draws if isinstance(item, BlockCall) else _draws(item) for item in self.items or ())

    @property
    def is_tuple(self) -> bool:
        return bool(self.children) and all(name.isdecimal() for name in self.children)


@dataclasses.dataclass(eq=False)
class BlockCall:
    """One call of a block from its parent (or a further ancestor)."""

    block: Block

    @property
    def inputs(self) -> list[Value]:
        return self.block.inputs

    @property
    def outputs(self) -> list[Value]:
        return self.block.outputs


def _draws(call: Call) -> bool:
    return call.op.draws or any(inner.op.draws for body in call.bodies.values() for inner in body.all_calls())


def nest(graph: Graph) -> Block:
    """The tree of blocks of a lifted graph whose paths are assigned."""
    root = _tree(graph)
    blocks = dict(_blocks(root))
    owners = owning_blocks(graph, {path for path, block in blocks.items() if not block.is_tuple})
    for call in graph.all_calls():
        for prefix, name in call.class_names.items():
            if prefix in blocks and blocks[prefix].class_name is None:
                blocks[prefix].class_name = name
    _Nesting(graph, blocks, owners).fill(root, graph.calls)
    root.inputs, root.outputs = graph.inputs, graph.outputs
    return root


def _tree(graph: Graph) -> Block:
    root = Block(())
    owned = {
        id(leaf) for call in graph.all_calls() if call.lifted is not None for leaf, _ in call.lifted.weights.values()
    }
    placed: set[Path] = set()
    for call in graph.all_calls():
        items: list[Lifted | Leaf] = [call.lifted] if call.lifted is not None else []
        items += [
            value.leaf
            for value in call.inputs
            if value is not None and value.leaf is not None and id(value.leaf) not in owned
        ]
        for item in items:
            if item.path not in placed:
                placed.add(item.path)
                _place(root, item)
    for value in [value for body in graph.graphs() for value in body.outputs]:
        if value.leaf is not None and value.leaf.path not in placed and id(value.leaf) not in owned:
            placed.add(value.leaf.path)
            _place(root, value.leaf)
    _repair_indices(root)
    return root


def _place(root: Block, item: Lifted | Leaf) -> None:
    block = root
    for position, part in enumerate(item.path[:-1]):
        child = block.children.setdefault(part, Block(item.path[: position + 1]))
        assert isinstance(child, Block), f"{item.path} lies below a layer"
        block = child
    block.children[item.path[-1]] = item


def _repair_indices(root: Block) -> None:
    """Numbers become tuple indices only where all siblings are numbers and few are missing; else they become names."""
    for _, block in list(_blocks(root)):
        numbers = [int(name) for name in block.children if name.isdecimal()]
        sparse = numbers and max(numbers) >= min(MAX_INDEX, 8 * len(numbers) + 64)
        if numbers and (block is root or sparse or len(numbers) < len(block.children)):
            block.children = {
                f"layer_{name}" if name.isdecimal() else name: child for name, child in block.children.items()
            }
        elif numbers:
            block.children = {str(i): block.children[str(i)] for i in sorted(numbers)}
    _set_paths(root, ())


def _set_paths(block: Block, path: Path) -> None:
    stack: list[tuple[Block, Path]] = [(block, path)]
    while stack:
        block, path = stack.pop()
        block.path = path
        for name, child in block.children.items():
            if isinstance(child, Block):
                stack.append((child, (*path, name)))
            else:
                child.path = (*path, name)
                if isinstance(child, Lifted):
                    for field, (leaf, _) in child.weights.items():
                        leaf.path = (*child.path, field)


def _blocks(root: Block) -> Iterable[tuple[Path, Block]]:
    stack = [root]
    while stack:
        block = stack.pop()
        yield block.path, block
        stack.extend(child for child in block.children.values() if isinstance(child, Block))


class _Nesting:
    def __init__(self, graph: Graph, blocks: dict[Path, Block], owners: dict[int, Path]) -> None:
        self.blocks, self.owners = blocks, owners
        self.order = {id(call): position for position, call in enumerate(graph.calls)}
        self.producer = {output: call for call in graph.calls for output in call.outputs}
        self.readers: dict[Value, list[Call]] = collections.defaultdict(list)
        for call in graph.calls:
            for value in reads(call):
                self.readers[value].append(call)
        self.graph_outputs = set(graph.outputs)

    def fill(self, root: Block, calls: list[Call]) -> None:
        stack = [(root, calls)]
        while stack:
            block, calls = stack.pop()
            groups, keys = self._contract(block, calls)
            block.items = []
            done: set[Path] = set()
            for call in calls:
                path = keys[id(call)]
                if path == block.path:
                    block.items.append(call)
                elif path not in done:
                    done.add(path)
                    child = self.blocks[path]
                    child.inputs, child.outputs = self._interface(child, groups[path], block)
                    block.items.append(BlockCall(child))
                    stack.append((child, groups[path]))

    def _contract(self, block: Block, calls: list[Call]) -> tuple[dict[Path, list[Call]], dict[int, Path]]:
        """Groups calls by child block; children that lie on a cycle of the contracted graph are dissolved."""
        dissolved: set[Path] = set()
        adopted: dict[int, Path] = {}
        while True:
            keys = {
                id(call): adopted.get(id(call)) or self._child(block, self.owners[id(call)], dissolved)
                for call in calls
            }
            groups: dict[Path, list[Call]] = collections.defaultdict(list)
            for call in calls:
                groups[keys[id(call)]].append(call)
            groups.pop(block.path, None)
            cycle = self._find_cycle(block, calls, keys)
            if not cycle:
                return groups, keys
            if not self._adopt(block, cycle, keys, adopted):
                dissolved.add(
                    min((path for path in cycle if isinstance(path, tuple)), key=lambda path: (len(groups[path]), path))
                )
                adopted = {call: path for call, path in adopted.items() if path not in dissolved}

    def _child(self, block: Block, owner: Path, dissolved: set[Path]) -> Path:
        for size in range(len(block.path) + 1, len(owner) + 1):
            path = owner[:size]
            if path not in dissolved and not self.blocks[path].is_tuple:
                return path
        return block.path

    def _adopt(self, block: Block, cycle: list[Path | int], keys: dict[int, Path], adopted: dict[int, Path]) -> bool:
        """Moves parameter-free calls whose neighbours all lie in one group into that group."""
        moved = False
        by_id = {id(call): call for value in self.producer for call in [self.producer[value]]}
        for node in cycle:
            if isinstance(node, tuple) or by_id[node].lifted is not None or by_id[node].bodies:
                continue
            call = by_id[node]
            neighbours = [self.producer[value] for value in reads(call) if value in self.producer]
            neighbours += [user for output in call.outputs for user in self.readers[output]]
            near = {keys[id(other)] for other in neighbours if id(other) in keys}
            leaves = any(value.leaf is not None for value in reads(call))
            if len(near) == 1 and not leaves and (path := next(iter(near))) != block.path and node not in adopted:
                adopted[node] = path
                moved = True
        return moved

    def _find_cycle(self, block: Block, calls: list[Call], keys: dict[int, Path]) -> list[Path | int]:
        """The first strongly connected component with several members, in the graph with groups contracted."""

        def node_of(call: Call) -> Path | int:
            return keys[id(call)] if keys[id(call)] != block.path else id(call)

        successors: dict[Path | int, dict[Path | int, None]] = {node_of(call): {} for call in calls}
        for call in calls:
            target = node_of(call)
            for value in reads(call):
                producer = self.producer.get(value)
                if producer is not None and id(producer) in keys and (source := node_of(producer)) != target:
                    successors[source][target] = None
        return _strongly_connected(successors)

    def _interface(self, block: Block, calls: list[Call], around: Block) -> tuple[list[Value], list[Value]]:
        inside = {id(call) for call in calls}
        outputs = self._outputs(calls, inside)
        inputs: dict[Value, None] = {}
        wanted: dict[Value, list[Dim]] = {}
        for call in self._depth_first(outputs, calls, inside):
            for value in data_reads(call):
                foreign_leaf = value.leaf is not None and value.leaf.path[: len(block.path)] != block.path
                foreign = (
                    value.leaf is None
                    and id(self.producer.get(value)) not in inside
                    and value.kind is not Kind.CONST
                    and value.array is None
                )
                if foreign_leaf or foreign:
                    inputs.setdefault(value)
            for dim in dim_reads(call):
                wanted.setdefault(dim.value, []).append(dim)
        produced = {output for call in calls for output in call.outputs}
        for value, dims in wanted.items():
            for dim in dims if value not in produced else ():
                if not any(has_dim(known, dim) for known in inputs):
                    inputs.setdefault(self._holder(dim, around))
        return list(inputs), outputs

    def _holder(self, dim: Dim, block: Block) -> Value:
        """The value from which a block inside of `block` is told a size: one that `block` has, too."""
        if dim.value in block.inputs or self.producer.get(dim.value) is not None:
            return dim.value
        return next((value for value in block.inputs if has_dim(value, dim)), dim.value)

    def _depth_first(self, outputs: list[Value], calls: list[Call], inside: set[int]) -> list[Call]:
        """The calls as they are needed for the outputs, in operand order, so that equal blocks have equal arguments."""
        order: dict[int, Call] = {}
        seen: set[int] = set()
        stack = [(self.producer[value], False) for value in reversed(outputs)]
        while stack:
            call, done = stack.pop()
            if done:
                order[id(call)] = call
            elif id(call) not in seen:
                seen.add(id(call))
                stack.append((call, True))
                sources = [self.producer.get(value) for value in reads(call)]
                stack += [
                    (source, False) for source in reversed(sources) if source is not None and id(source) in inside
                ]
        return [*order.values(), *(call for call in calls if id(call) not in order)]

    def _outputs(self, calls: list[Call], inside: set[int]) -> list[Value]:
        """What others read: the last result, other data, then the shapes that no such value tells."""

        def is_read(value: Value) -> bool:
            readers = [user for user in self.readers[value] if id(user) not in inside]
            return value in self.graph_outputs or any(value in data_reads(user) for user in readers)

        produced = [output for call in calls for output in call.outputs]
        *others, last = [value for value in produced if is_read(value)] or [None]
        outputs = [value for value in (last, *others) if value is not None]
        for value in produced:
            dims = [
                dim
                for user in self.readers[value]
                if id(user) not in inside
                for dim in dim_reads(user)
                if dim.value is value
            ]
            if value not in outputs and any(not any(has_dim(known, dim) for known in outputs) for dim in dims):
                outputs.append(value)
        return outputs


def _strongly_connected(successors: dict) -> list:
    """Tarjan's algorithm without recursion: the first component of more than one node, or `[]`."""
    index: dict = {}
    low: dict = {}
    on_stack: set = set()
    path: list = []
    for start in successors:
        if start in index:
            continue
        work = [(start, iter(successors[start]))]
        index[start] = low[start] = len(index)
        path.append(start)
        on_stack.add(start)
        while work:
            node, rest = work[-1]
            for other in rest:
                if other not in index:
                    index[other] = low[other] = len(index)
                    path.append(other)
                    on_stack.add(other)
                    work.append((other, iter(successors[other])))
                    break
                if other in on_stack:
                    low[node] = min(low[node], index[other])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == index[node]:
                    component = path[path.index(node) :]
                    del path[-len(component) :]
                    on_stack -= set(component)
                    if len(component) > 1:
                        return component
    return []
