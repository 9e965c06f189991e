"""Shapes that ONNX's inference leaves open, from the operator functions themselves.

`jax.eval_shape` runs a function on shapes alone. It needs numbers, so each symbolic dimension is given a sample size,
twice: what differs between the two runs is not fixed by the graph.
"""

import contextlib
import functools
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx

from ._graph import Call, Kind, Value
from ._registry import Op
from ._symbolic import Dim, Symbol, evaluate, key
from .runtime import host_limit

# Highly composite, so that a reshape of a symbolic dimension divides without remainder.
_SAMPLES = (5040 * 11, 5040 * 13)
_MAX_HOST_ELEMENTS = 1 << 24


def infer_call(call: Call) -> None:
    """Sets the shapes of the call's outputs where they are unknown and the inputs' are known."""
    _take_written_sizes(call)
    if call.bodies or all(output.shape is not None for output in call.outputs):
        return
    if any(value is not None and value.shape is None for value in call.inputs) or not _gives_tensors(call.op):
        return
    first, second = (sampled_shapes(call, functools.partial(_sample_of, sample)) for sample in _SAMPLES)
    if first is None or second is None:
        return
    for output, shape, other in zip(call.outputs, first, second, strict=False):
        if output.shape is None and len(shape) == len(other):
            sizes = _known_sizes(call)
            output.shape = tuple(
                a if a == b else sizes.get((a, b), Dim(output, axis))
                for axis, (a, b) in enumerate(zip(shape, other, strict=True))
            )


def _take_written_sizes(call: Call) -> None:
    """ONNX knows the rank of a reshape to a computed shape, but not the sizes that are numbers in it."""
    operand = next(
        (value for position, value in call.host_operands() if call.op.input_name(position) == call.op.sizes), None
    )
    output = call.outputs[0]
    if operand is None or operand.array is None or output.shape is None or operand.array.shape != (len(output.shape),):
        return
    # 1 broadcasts, 0 and -1 say something else.
    output.shape = tuple(
        size if isinstance(size, int) and size > 1 and _is_own(dim, output) else dim
        for dim, size in zip(output.shape, operand.array.tolist(), strict=True)
    )


def _is_own(dim: Any, output: Value) -> bool:
    """Whether a dimension says no more than that it is one of this value."""
    return isinstance(dim, Dim) and dim.value is output


def settle_shape(value: Value) -> None:
    """Puts the sizes that are known by now in the place of dimensions of other values. Changes `value`."""
    if value.shape is not None:
        value.shape = tuple(
            dim if _is_own(dim, value) or not isinstance(dim, Dim) else _settled(dim) for dim in value.shape
        )


def _settled(dim: Dim) -> Any:
    known = dim.value.shape
    return dim if known is None else known[dim.axis]


def _gives_tensors(op: Op) -> bool:
    """Whether an output may be a tensor. An operator that gives a list of rows would make as many as a sample has."""
    if not onnx.defs.has(op.name, op.domain):
        return True
    outputs = onnx.defs.get_schema(op.name, op.since, op.domain).outputs
    return any(text.startswith("tensor(") for output in outputs for text in output.types)


def _known_sizes(call: Call) -> dict[tuple[int, int], Symbol]:
    """Sample sizes of the expressions at hand, to recognise them among the results."""
    symbols = [
        dim for value in call.inputs if value is not None for dim in value.shape or () if isinstance(dim, Symbol)
    ]
    for _, value in call.host_operands():
        if value.array is not None:
            symbols += [item for item in value.array.reshape(-1) if isinstance(item, Symbol)]
    first, second = _SAMPLES
    return {(_size(symbol, first), _size(symbol, second)): symbol for symbol in symbols}


def _size(symbol: Any, sample: int) -> int:
    return evaluate(symbol, functools.partial(_sample_of, sample))


def _sample_of(sample: int, dim: Dim) -> int:
    # Different dimensions get different sizes, so that they cannot be taken for each other.
    return sample * (1 + zlib.crc32(repr(key(dim)).encode()) % 97)


def sampled_shapes(call: Call, size_of: Callable[[Dim], int]) -> list[tuple[int, ...]] | None:
    """The shapes of the call's results where dimensions have these sizes, or `None` if it fails there."""
    host = {position for position, _ in call.host_operands()}
    operands, traced = [], []
    for position, value in enumerate(call.inputs):
        if value is not None and position not in host and value.kind is not Kind.CONST and value.array is None:
            traced.append((position, _struct(value, size_of)))
            operands.append(None)
        else:
            operands.append(_host_operand(value, size_of))

    def function(*arrays: Any) -> Any:
        filled = list(operands)
        for (position, _), array in zip(traced, arrays, strict=True):
            filled[position] = array
        return call.op.function(*filled, **call.attributes)

    with contextlib.suppress(Exception), host_limit(_MAX_HOST_ELEMENTS):
        result = jax.eval_shape(function, *(struct for _, struct in traced))
        return [tuple(array.shape) for array in (result if isinstance(result, tuple) else (result,))]
    return None


def _struct(value: Value, size_of: Callable[[Dim], int]) -> jax.ShapeDtypeStruct:
    assert value.shape is not None, f"{value!r} has no shape to sample"
    shape = tuple(evaluate(dim, size_of) for dim in value.shape)
    return jax.ShapeDtypeStruct(shape, jax.dtypes.canonicalize_dtype(value.dtype or jnp.float32))


def _host_operand(value: Value | None, size_of: Callable[[Dim], int]) -> Any:
    if value is None or value.array is None:
        return None
    if value.array.dtype != object:
        return value.array
    sizes = [evaluate(item, size_of) for item in value.array.reshape(-1)]
    return np.array(sizes, np.int64).reshape(value.array.shape)
