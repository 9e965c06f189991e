"""What the arguments of a printed `__call__` are called."""

import re
from collections.abc import Iterator, Sequence

import numpy as np

from .._graph import Value
from .._lower import is_floating
from .._nest import Block

# Names of activations, where nothing better is known.
GENERIC = ("x", "y", "z", "u", "v", "w")
# Operators whose result is named after what they are given.
_VIEWS = ("Unsqueeze", "Squeeze", "Reshape", "Transpose", "Expand", "Cast", "Flatten")


def generic_names(block: Block) -> list[str]:
    """Names that tell nothing of where the values come from: those of blocks that do the same are equal."""
    letters = iter(GENERIC)
    return [_generic(value, letters) for value in block.inputs]


def agreed_names(blocks: Sequence[Block]) -> list[str]:
    """Names that fit all blocks of one class, and the generic one where they differ. The first activation is `x`."""
    columns = list(zip(*(_names(block) for block in blocks), strict=True))
    names = [column[0] if len(set(column)) == 1 else None for column in columns]
    values = list(zip(*(block.inputs for block in blocks), strict=True))
    activations = [position for position, column in enumerate(values) if _is_activation(column[0])]
    if activations and not all(value.producer is None for value in values[activations[0]]):
        names[activations[0]] = None
    letters = iter(letter for letter in GENERIC if letter not in names)
    return [name or _generic(column[0], letters) for name, column in zip(names, values, strict=True)]


def _generic(value: Value, letters: Iterator[str]) -> str:
    if value.dtype == np.bool_:
        return "mask"
    if value.leaf is None and not is_floating(value.dtype):
        return "index"
    return next(letters, "x")


def _is_activation(value: Value) -> bool:
    return value.leaf is None and is_floating(value.dtype)


def _names(block: Block) -> list[str | None]:
    """What is known of where the arguments come from: `past_key` for `past_key_3`, if no other is called so."""
    full = [None if (name := _name(value)) in block.children else name for value in block.inputs]
    if not any(part.isdecimal() for part in block.path):
        return full
    short = [name and _without_numbers(name) for name in full]
    return [one if short.count(one) == 1 else name for name, one in zip(full, short, strict=True)]


def _name(value: Value) -> str | None:
    if value.leaf is not None:
        return value.leaf.path[-1]
    call = value.producer
    if call is None:
        return value.name
    if call.lifted is not None:
        return next((part for part in reversed(call.lifted.path) if not part.isdecimal()), None)
    return result_name(value)


def result_name(value: Value) -> str | None:
    """What the operator that made a value calls it: `cos`; `mask` for a choice between two numbers."""
    call = value.producer
    if call is None or call.lifted is not None or not call.inputs:
        return None
    if call.op.result is not None:
        return call.op.result
    condition, *others = call.inputs
    if condition is not None and condition.dtype == np.bool_ and is_floating(value.dtype) and others:
        return "mask" if all(other is not None and _is_number(other) for other in others) else None
    return result_name(condition) if call.op_type in _VIEWS and condition is not None else None


def _is_number(value: Value) -> bool:
    return value.array is not None and value.array.size == 1


def _without_numbers(name: str) -> str:
    return re.sub(r"[\W_]*\d+(?=\W|_|$)", "", name) or name
