"""What the printing rules of operators have in common: known integers, axes, subscripts."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .._printing import Operand
from .._symbolic import Symbol, key

# The dtypes whose reductions JAX keeps in them, with and without 64-bit types. (It sums other integers as wider ones.)
_OWN_SUM = ("float16", "bfloat16", "float32", "float64", "int64")


def known(items: Operand | Sequence[Any] | None) -> tuple[Any, ...] | None:
    """A shape-like operand or attribute as a tuple of integers and symbols, if it is known at load."""
    if isinstance(items, Operand):
        return None if items.value is None else tuple(items.value.reshape(-1).tolist())
    return None if items is None else tuple(items)


def known_ints(items: Operand | Sequence[Any] | None) -> tuple[int, ...] | None:
    """A shape-like operand or attribute as a tuple of integers, if none of them is a symbol."""
    found = known(items)
    return found if found is not None and all(isinstance(item, int) for item in found) else None


def known_axes(axes: Operand | Sequence[int] | None, ndim: int | None) -> tuple[int, ...] | None:
    """Axes counted from the front, if they and the rank are known."""
    found = known_ints(axes)
    if found is None or ndim is None or not all(-ndim <= axis < ndim for axis in found):
        return None
    return tuple(axis % ndim for axis in found)


def same(a: Any, b: Any) -> bool:
    """Whether two sizes, integers or symbols, are certainly equal."""
    return key(a) == key(b)


def is_known_size(size: Any) -> bool:
    """Whether a size is an integer, not a symbol."""
    return not isinstance(size, Symbol)


def axis_keyword(axes: Sequence[int] | None) -> str:
    """`, axis=1`, `, axis=(1, 2)`, or nothing for all axes."""
    if axes is None:
        return ""
    return f", axis={axes[0]}" if len(axes) == 1 else f", axis={tuple(axes)}"


def subscript(entries: Mapping[int, str], ndim: int | None) -> str:
    """The subscript with these entries at their axes, and all of the other axes: `[:, 1:]`, `[..., None]`."""
    parts = [entries.get(axis, ":") for axis in range(max(entries) + 1)]
    before = min(entries)
    after = None if ndim is None else ndim - len(parts)
    if before > 1 and after is not None and after < before:
        parts = ["...", *parts[before:], *[":"] * after]
    return f"[{', '.join(parts)}]"


def sums_to_itself(dtype: np.dtype | None) -> bool:
    """Whether JAX gives sums and products of this dtype in it."""
    return dtype is not None and dtype.name in _OWN_SUM


def is_floating(dtype: np.dtype | None) -> bool:
    """Whether this is a floating dtype of 16 bits or more."""
    return dtype is not None and dtype.name in ("float16", "bfloat16", "float32", "float64")


def is_number(dtype: np.dtype | None) -> bool:
    """Whether this is a dtype of numbers with which JAX computes as they are."""
    return dtype is not None and (is_floating(dtype) or dtype.kind in "iu")


def fits_every_float(number: float) -> bool:
    """Whether a number is finite or infinite in every floating dtype alike."""
    return abs(number) <= 65504 or abs(number) == float("inf")


def scalar(operand: Operand | None) -> Any:
    """The Python number that an operand without axes is, if it is known; else `None`."""
    if operand is None or operand.value is None or operand.value.ndim > 0 or operand.value.dtype == object:
        return None
    return operand.value.item()
