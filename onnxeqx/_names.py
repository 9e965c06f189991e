"""Key paths: the place of every layer and stored tensor in the model, from what the exporter wrote down.

The dotted name of the initializer comes first (`encoder.layer.0.dense.weight`); where an exporter dropped it
(`onnx::MatMul_123`), the scope of the node (`pkg.torch.onnx.name_scopes`, slash names); then names of the tensors around.
Paths are computed before nesting and do not depend on it.
"""

import ast
import collections
import contextlib
import keyword
import re
from typing import Any

import onnx_ir as ir

from ._graph import Call, Graph, Leaf, Lifted
from ._repetition import name_repetitions
from ._scopes import Path, align_scopes, move_scopes, sequences

# Goes up when a release gives any model other key paths: see docs/stability.md.
NAMING_VERSION = 1

_SCOPES = "pkg.torch.onnx.name_scopes"
_CLASSES = "pkg.torch.onnx.class_hierarchy"
_ANONYMOUS = re.compile(r"^(val|const|constant|node|tensor|v|t|p|x)?_?\d+$|::", re.IGNORECASE)
_DOTTED = re.compile(r"^[A-Za-z_]\w*(\.\w+)+$|^\d+(\.\w+)+$")
# What a tensor's name adds to that of its layer.
_WEIGHT = re.compile(r"[._/](w|weight|weights|kernel|filter)(_\d+)?$", re.IGNORECASE)
# Names that Equinox or a printed model gives a meaning of its own.
_RESERVED = {"input_names", "output_names", "inference"}
# Beyond this index a number in a name is an identifier, not a position in a tuple.
MAX_INDEX = 10_000


def scope_of(node: ir.Node) -> tuple[Path, dict[Path, str]]:
    """Where the exporter places a node, and its class for each prefix of that place.

    https://docs.pytorch.org/docs/stable/onnx_export.html (metadata of the dynamo exporter)
    """
    scopes = _literal_list(node.metadata_props.get(_SCOPES))
    if scopes:
        classes = _literal_list(node.metadata_props.get(_CLASSES))
        names = {split(scope): cls.rsplit(".", 1)[-1] for scope, cls in zip(scopes[:-1], classes, strict=False)}
        inner = [scope for scope in scopes[:-1] if not scope.startswith("_empty_nn_module_stack")]
        return split(inner[-1]) if inner else (), names
    if node.name and "/" in node.name:
        return _slash_scope(node.name.split("/")[:-1]), {}
    return (), {}


def split(name: str) -> Path:
    return tuple(part for part in name.split(".") if part)


def _literal_list(text: str | None) -> list[str]:
    with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
        value = ast.literal_eval(text) if text else []
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return value
    return []


def _slash_scope(parts: list[str]) -> Path:
    """`layer1/layer1.0/conv1` is `layer1.0.conv1`: TorchScript repeats the container's name in its children's."""
    path: list[str] = []
    for part in parts:
        pieces = [piece for piece in part.split(".") if piece]
        shared = next((k for k in range(len(pieces) - 1, 0, -1) if path[-k:] == pieces[:k]), 0)
        path += pieces[shared:]
    return tuple(path)


def identifier(text: str) -> str:
    """`text` as a Python identifier that shadows nothing: the one place where names of a file become names in code."""
    name = re.sub(r"\W", "_", text, flags=re.ASCII).strip() or "_"
    name = re.sub(r"^__+|__+$", "_", name)[:80]
    if name[0].isdigit():
        name = f"_{name}"
    return f"{name}_" if keyword.iskeyword(name) or name in _RESERVED else name


def assign_paths(graph: Graph) -> None:
    """Sets `path` on every lifted layer and every stored tensor of the graph, and brings the scopes of calls in line."""
    align_scopes(graph, lambda name: split(name) if is_dotted(name) else None)
    has_names = _has_names(graph)
    folder = None
    if not has_names:
        name_repetitions(graph)
        named = [leaf.initializer for leaf in graph.leaves() if not is_anonymous(leaf.initializer)]
        folder = _common_prefix(named).rpartition("/")[0] + "/" if named else "/"
    layers = _distinct_layers(graph)
    in_layers = {id(leaf) for lifted, _ in layers for leaf, _ in lifted.weights.values()}
    loose = [leaf for leaf in graph.leaves() if id(leaf) not in in_layers]
    readers = _first_readers(graph)
    wishes: list[tuple[Any, list[Path]]] = [(lifted, _layer_wishes(lifted, call, folder)) for lifted, call in layers]
    wishes += [(leaf, _leaf_wishes(leaf, readers.get(id(leaf)), has_names)) for leaf in loose]
    settled = _settle(wishes)
    moved = sequences(path for _, path in settled)
    move_scopes(graph, lambda scope: moved(sanitized(scope)))
    for item, path in settled:
        item.path = path = moved(path)
        if isinstance(item, Lifted):
            for field, (leaf, _) in item.weights.items():
                leaf.path = (*path, field)


def _has_names(graph: Graph) -> bool:
    """Whether the exporter wrote down where things belong, in the names of tensors or the scopes of nodes."""
    scoped = any(len(call.scope) > 1 for call in graph.calls)
    return scoped or any(is_dotted(leaf.initializer) for leaf in graph.leaves())


def _distinct_layers(graph: Graph) -> list[tuple[Lifted, Call]]:
    found: dict[int, tuple[Lifted, Call]] = {}
    for call in graph.all_calls():
        if call.lifted is not None:
            found.setdefault(id(call.lifted), (call.lifted, call))
    return list(found.values())


def _first_readers(graph: Graph) -> dict[int, Call]:
    readers: dict[int, Call] = {}
    for call in graph.all_calls():
        for value in call.inputs:
            if value is not None and value.leaf is not None:
                readers.setdefault(id(value.leaf), call)
    return readers


def _layer_wishes(lifted: Lifted, call: Call, folder: str | None) -> list[Path]:
    """Paths for a layer, the best first. `folder` is what all names begin with in a file without scopes."""
    wishes: list[Path] = []
    for field, (leaf, _) in lifted.weights.items():
        if is_dotted(leaf.initializer) and leaf.reader is None:
            *prefix, last = split(leaf.initializer)
            if last == field:
                wishes.append(tuple(prefix))
            elif last.endswith(f"_{field}"):
                wishes.append((*prefix, last.removesuffix(f"_{field}")))
            else:
                wishes += [tuple(prefix), (*prefix, last)]
    name = call.op.name.lower()
    if call.scope:
        wishes += [call.scope, (*call.scope, name)]
    names = [leaf.stored_as or leaf.initializer for leaf, _ in lifted.weights.values()]
    if not any(is_anonymous(text) for text in names) and all(
        leaf.reader is None for leaf, _ in lifted.weights.values()
    ):
        # What the names of a layer's tensors have in common: `conv1` of `conv1_w_0` and `conv1_b_0`.
        stem = re.sub(r"[^A-Za-z0-9]+$", "", _common_prefix(names)) if len(names) > 1 else ""
        stem = stem or names[0]
        if folder is None:
            wishes.append(_slash_scope(stem.split("/")))
        else:
            wishes.append((_WEIGHT.sub("", stem.removeprefix(folder)).replace("/", "_"),))
    return [*(wish for wish in wishes if wish), (*call.scope, name)]


def _common_prefix(texts: list[str]) -> str:
    first, last = min(texts), max(texts)
    return first[: next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))]


def _leaf_wishes(leaf: Leaf, reader: Call | None, has_names: bool) -> list[Path]:
    if is_dotted(leaf.initializer):
        return [split(leaf.initializer)]
    name = reader.op.name.lower() if reader is not None else leaf.role.value
    if not has_names:
        block = max(reader.class_names, key=len, default=()) if reader is not None else ()
        return [(*block, name)]
    scope = reader.scope if reader is not None else ()
    if not is_anonymous(leaf.initializer) and not leaf.folded:
        last = leaf.initializer.rsplit("/", 1)[-1]
        return [(*scope, last) if scope else _slash_scope(leaf.initializer.split("/")), (*scope, name)]
    return [(*scope, name)]


def is_anonymous(name: str) -> bool:
    """Whether an exporter made the name up: `val_12`, `onnx::MatMul_123`."""
    return bool(_ANONYMOUS.search(name))


def is_dotted(name: str) -> bool:
    """Whether the name says where in a tree of modules a tensor belongs: `encoder.layer.0.weight`."""
    return bool(_DOTTED.match(name)) and not is_anonymous(name)


def _settle(wishes: list[tuple[Any, list[Path]]]) -> list[tuple[Any, Path]]:
    """Gives everyone its best wish that nobody else shares and that is not the place of a block."""
    wishes = [(item, [sanitized(path) for path in paths]) for item, paths in wishes]
    claims = collections.Counter(paths[0] for _, paths in wishes)
    inner = {path[:k] for _, paths in wishes for path in paths[:1] for k in range(1, len(path))}
    taken: set[Path] = set()
    settled = []
    for item, paths in wishes:
        free = (
            path
            for path in paths
            if path not in taken and path not in inner and (claims[path] <= 1 or path is not paths[0])
        )
        path = next(free, None) or _numbered(paths[-1], taken | inner)
        if any(path[:k] in taken for k in range(1, len(path))):
            path = _numbered(("_".join(path),), taken | inner)
        taken.add(path)
        inner |= {path[:k] for k in range(1, len(path))}
        settled.append((item, path))
    return settled


def sanitized(path: Path) -> Path:
    """The path with every part an identifier or a tuple index."""
    return tuple(
        part
        if part.isdecimal() and part.isascii() and int(part) <= MAX_INDEX and str(int(part)) == part
        else identifier(part)
        for part in path
    )


def _numbered(path: Path, taken: set[Path]) -> Path:
    *prefix, last = path
    if last.isdecimal():
        prefix, last = [*prefix, last], "layer"
    counter = 1
    while (candidate := (*prefix, last if counter == 1 else f"{last}_{counter}")) in taken:
        counter += 1
    return candidate
