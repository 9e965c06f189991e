"""Stacked layers: equal blocks in a row kept as one block whose leaves have a leading axis of layers.

A stacked block has one key path (`encoder.layer`); the layers in it keep the ones that they have when they stand alone
(`encoder.layer.0`, `encoder.layer.1`, …). What is said of a single layer, in a file or by a pattern, is said by these.
"""

import sys
import types
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")

# The key path of each stacked block, and those of its layers in order.
Stacks = dict[str, tuple[str, ...]]

_ATTRIBUTE = "__onnxeqx_stacks__"


def set_stacks(module: types.ModuleType, stacks: Stacks) -> None:
    """Keeps the stacks with the module of the printed source."""
    setattr(module, _ATTRIBUTE, stacks)


def stacks_of(tree: Any) -> Stacks:
    """The stacked blocks of a model, or of a tree of its structure; none for any other tree."""
    return getattr(sys.modules.get(type(tree).__module__), _ATTRIBUTE, {})


def of_each_layer(path: str, stacks: Stacks) -> list[str]:
    """The key paths that a leaf (or layer) stands for: one for each of the stacked layers, or its own."""
    for stack, layers in stacks.items():
        if path.startswith(f"{stack}."):
            return [layer + path[len(stack) :] for layer in layers]
    return [path]


def by_layer(leaves: Mapping[str, T], stacks: Stacks, split: Callable[[T, int], list[T]]) -> dict[str, T]:
    """What stands at the key paths of a model with stacked blocks, by the key paths of single layers.

    `split` takes apart what stands for so many layers.
    """
    found: dict[str, T] = {}
    for path, leaf in leaves.items():
        names = of_each_layer(path, stacks)
        found |= {path: leaf} if names == [path] else dict(zip(names, split(leaf, len(names)), strict=True))
    return found


def by_stack(leaves: Mapping[str, T], stacks: Stacks, join: Callable[[str, list[T]], T]) -> dict[str, T]:
    """What stands at the key paths of single layers, by the key paths of a model with stacked blocks.

    `join` is given a key path and what the layers have there. What only some of them have, the stacked block has not.
    """
    inside = [f"{layer}." for layers in stacks.values() for layer in layers]
    found = {path: leaf for path, leaf in leaves.items() if not path.startswith(tuple(inside))}
    for stack, layers in stacks.items():
        rows = [
            {path[len(layer) :]: leaf for path, leaf in leaves.items() if path.startswith(f"{layer}.")}
            for layer in layers
        ]
        for rest in rows[0]:
            if all(rest in row for row in rows):
                found[stack + rest] = join(stack + rest, [row[rest] for row in rows])
    return found
