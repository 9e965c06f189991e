"""What a call reads: values, and dimensions of values that its symbolic operands name."""

from typing import Any

from ._fold import symbol_dims
from ._graph import Call, Value
from ._symbolic import Dim, key


def data_reads(call: Call) -> list[Value]:
    """The values whose data a call reads, stored tensors included."""
    return call.reads


def dim_reads(call: Call) -> list[Dim]:
    """The dimensions a call reads through symbolic operands, and that none of its arrays has."""
    arrays = [value for value in data_reads(call) if value.array is None or value.leaf is not None]
    inner = {value for body in call.bodies.values() for value in body.made()}
    return [
        dim
        for value in data_reads(call)
        for dim in symbol_dims(value)
        if dim.value not in inner and not any(has_dim(array, dim) for array in arrays)
    ]


def reads(call: Call) -> list[Value]:
    """All values a call depends on, in operand order."""
    return [*data_reads(call), *(dim.value for dim in dim_reads(call))]


def has_dim(value: Value, dim: Dim) -> bool:
    """Whether an axis of `value` is known to have the size `dim`."""
    return axis_of(value, dim) is not None


def axis_of(value: Value, dim: Dim) -> int | None:
    """The axis of `value` that has the size `dim`."""
    if value is dim.value:
        return dim.axis
    return next(
        (axis for axis, own in enumerate(value.shape or ()) if isinstance(own, Dim) and key(own) == key(dim)), None
    )


def has_size(value: Value, axis: int, size: Any) -> bool:
    """Whether an axis of `value` is known to have this size, a number or a symbol."""
    if isinstance(size, Dim) and size.value is value:
        return size.axis == axis % len(value.shape or (0,))
    return value.shape is not None and key(value.shape[axis]) == key(size)
