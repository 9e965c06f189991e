"""Calls that hand one of their inputs on, unchanged: rules for `Op.passes_through`. The printed model leaves them out."""

from collections.abc import Callable
from typing import Any

from .._graph import Call, Kind, Value
from ._printing import same


def neutral(number: Any, *positions: int) -> Callable[[Call], Value | None]:
    """The rule of an operator for which this number, as one of the operands at `positions`, leaves the other as it is."""

    def rule(call: Call) -> Value | None:
        for position in positions:
            constant, other = call.operand(position), call.operand(1 - position)
            if _is_everywhere(constant, number) and _have_one_shape(other, call.outputs[0]):
                return other
        return None

    return rule


def _is_everywhere(value: Value, number: Any) -> bool:
    return value.kind is Kind.CONST and value.array is not None and bool((value.array == number).all())


def _have_one_shape(value: Value, result: Value) -> bool:
    if value.shape is None or result.shape is None or len(value.shape) != len(result.shape):
        return False
    return all(map(same, value.shape, result.shape))


def keeps_shape(call: Call) -> Value | None:
    """The first input of an operator that changes nothing but its shape, and that neither."""
    return call.operand(0) if _have_one_shape(call.operand(0), call.outputs[0]) else None


def keeps_order(call: Call) -> Value | None:
    """The input of a Transpose that leaves the axes in their order."""
    perm = tuple(call.attributes.get("perm") or ())
    return call.operand(0) if perm and perm == tuple(range(len(perm))) else None


def only_input(call: Call) -> Value | None:
    """The input of a variadic operator that has one."""
    return call.operand(0) if len(call.inputs) == 1 else None
