"""Scopes: where the exporter says that each node belongs, brought in line with the names of the stored tensors.

Key paths come from the names of the tensors first; a scope that names the same place otherwise would split a block in two.
"""

import collections
import re
from collections.abc import Callable, Iterable

from ._graph import Call, Graph

Path = tuple[str, ...]

# So many numbered siblings are a sequence, fewer are names that people know (`layer1` to `layer4`).
_SEQUENCE = 6
_NUMBERED = re.compile(r"^(.*[^\d_])_?(\d+)$")


def move_scopes(graph: Graph, moved: Callable[[Path], Path]) -> None:
    """Replaces the scope of every call, and the prefixes for which classes are known."""
    for call in graph.all_calls():
        call.scope = moved(call.scope)
        call.class_names = {moved(prefix): name for prefix, name in call.class_names.items()}


def align_scopes(graph: Graph, weight_path: Callable[[str], Path | None]) -> None:
    """Puts all scopes below the prefix that the names of the tensors have and the scopes lack.

    An exporter that is given a wrapper around a model names tensors by their place in the wrapper
    (`mods.0.encoder.layers.0.fc1.weight`), and nodes by the modules that were called (`encoder.layers.0.fc1`).

    **Arguments:**

    - `weight_path`: the parts of a tensor's dotted name, or `None` for one that has no such name.
    """
    missing: collections.Counter[Path] = collections.Counter()
    for call in graph.all_calls():
        for name in _tensor_names(call) if call.scope else ():
            *prefix, _ = weight_path(name) or ("",)
            size = len(call.scope)
            if tuple(prefix[-size:]) == call.scope:
                missing[tuple(prefix[:-size])] += 1
    if missing and (prefix := missing.most_common(1)[0][0]):
        move_scopes(graph, lambda scope: prefix + scope if scope else scope)


def _tensor_names(call: Call) -> list[str]:
    if call.lifted is not None:
        return [leaf.initializer for leaf, _ in call.lifted.weights.values()]
    return [value.leaf.initializer for value in call.inputs if value is not None and value.leaf is not None]


def sequences(paths: Iterable[Path]) -> Callable[[Path], Path]:
    """Turns long runs of equal blocks that are numbered by name into tuples: `encoder_layer_0`, … become `encoder_layer[0]`, ….

    A run is all siblings of one stem; they hold the same fields, and there are at least six of them, here or elsewhere in
    the model.

    **Arguments:**

    - `paths`: of all layers and stored tensors.

    **Returns:** a function from old paths to new ones, for these paths and for scopes.
    """
    fields: dict[Path, set[Path]] = collections.defaultdict(set)
    for path in paths:
        for size in range(1, len(path)):
            fields[path[:size]].add(path[size:])
    runs: dict[tuple[Path, str], list[Path]] = collections.defaultdict(list)
    for block in fields:
        if match := _NUMBERED.match(block[-1]):
            runs[block[:-1], match[1]].append(block)
    equal = {
        key: blocks
        for key, blocks in runs.items()
        if (*key[0], key[1]) not in fields
        and _are_consecutive(blocks)
        and len({frozenset(fields[b]) for b in blocks}) == 1
    }
    long = {(stem, frozenset(fields[blocks[0]])) for (_, stem), blocks in equal.items() if len(blocks) >= _SEQUENCE}
    parts = {
        block: (stem, str(_number(block)))
        for (_, stem), blocks in equal.items()
        if (stem, frozenset(fields[blocks[0]])) in long
        for block in blocks
    }
    return lambda path: tuple(
        part for size in range(1, len(path) + 1) for part in parts.get(path[:size], (path[size - 1],))
    )


def _number(block: Path) -> int:
    match = _NUMBERED.match(block[-1])
    assert match is not None
    return int(match[2])


def _are_consecutive(blocks: list[Path]) -> bool:
    numbers = sorted(_number(block) for block in blocks)
    return numbers[0] in (0, 1) and numbers == list(range(numbers[0], numbers[0] + len(numbers)))
