"""Conversions between dtypes; also on the host."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import onnx

from .._dtypes import follows_weights
from .._graph import Call, Value
from .._lower import is_floating
from .._printing import Operand
from .._registry import op
from ..runtime import array_namespace, canonical_dtype, host_value
from ._operands import as_array, as_arrays
from .hookspecs import hookimpl

_NARROW_INTEGERS = ("int4", "uint4", "int2", "uint2")


# What NumPy's and JAX's own conversion gives as ONNX wants it, and JAX without 64-bit types under these names.
_PLAIN = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32"),
    *("float16", "bfloat16", "float32", "float64"),
)


def _print_cast(x: Operand, *, to: Any, saturate: int = 1, round_mode: str = "up") -> tuple[str, dict[str, Any]] | None:
    dtype = _dtype(to)
    return ("x.astype(to)", {"to": dtype}) if dtype.name in _PLAIN else None


def _keeps_dtype(call: Call) -> Value | None:
    """The input of a Cast to the dtype that it has, whatever the model is cast to."""
    x = call.operand(0)
    if x.dtype is None or x.dtype != _dtype(call.attributes["to"]):
        return None
    return x if not is_floating(x.dtype) or follows_weights(x) else None


@op(
    "Cast",
    since=6,
    on_host=True,
    converts=True,
    dtypes=("to",),
    passes_through=_keeps_dtype,
    prints=_print_cast,
)
def cast(x, *, to, saturate=1, round_mode="up"):
    """`x` in another dtype: `to` is an ONNX integer or a dtype. Any shape. Floats become integers towards zero.

    With `saturate`, values beyond the range of an 8-bit float become its largest; else infinity or NaN. `round_mode`
    ("up", "down", "nearest") is for powers of two only (float8_e8m0fnu). Strings are numbers in text, on the host: as short
    as they can be without loss.

    https://onnx.ai/onnx/operators/onnx__Cast.html
    """
    xp, x = as_arrays(x)
    dtype = _dtype(to)
    if dtype.kind == "U":
        return host_value(x, "input 'input' of Cast, whose result is text,").astype(np.str_).astype(object)
    if x.dtype == np.object_:
        return _cast_objects(x, dtype)
    if dtype.name == "float8_e8m0fnu":
        return _powers_of_two(x, saturate, round_mode)
    if saturate and dtype.name.startswith("float8"):
        x = _saturated(x, dtype)
    if dtype.name in _NARROW_INTEGERS:
        x = cast(x, to=np.int32)  # whose upper bits are then cut off
    with np.errstate(over="ignore", invalid="ignore"):
        return x.astype(dtype if xp is np else canonical_dtype(dtype))


@op("Cast", since=1, until=5, on_host=True, converts=True)
def cast_1(x, *, to):
    """`x` in another dtype: `to` is ONNX's name of it (`"FLOAT"`) or a dtype. Any shape.

    https://onnx.ai/onnx/operators/onnx__Cast.html
    """
    return cast(x, to=onnx.TensorProto.DataType.Value(to.upper()) if isinstance(to, str) else to)


def _print_cast_like(x: Operand, target: Operand, *, saturate: int, round_mode: str) -> str | None:
    return "x.astype(target.dtype)" if target.dtype is not None and target.dtype.name in _PLAIN else None


def _has_dtype_of_target(call: Call) -> Value | None:
    """The input of a CastLike whose target has the same dtype."""
    x, target = call.operand(0), call.operand(1)
    if x.dtype is None or x.dtype != target.dtype:
        return None
    return x if not is_floating(x.dtype) or (follows_weights(x) and follows_weights(target)) else None


@op("CastLike", since=15, on_host=True, passes_through=_has_dtype_of_target, prints=_print_cast_like)
def cast_like(x, target, *, saturate=1, round_mode="up"):
    """`x` in the dtype of `target`. Any shapes.

    https://onnx.ai/onnx/operators/onnx__CastLike.html
    """
    target = as_array(target, np)
    dtype = target.dtype
    if dtype == np.object_:
        dtype = np.dtype(np.str_ if _is_text(target) else np.int64)  # integers: symbolic dimensions
    return cast(x, to=dtype, saturate=saturate, round_mode=round_mode)


@op("BitCast", since=26, on_host=True, dtypes=("to",))
def bit_cast(x, *, to):
    """The same bits read as another dtype of equal width: `to` is an ONNX integer or a dtype. Any shape.

    https://onnx.ai/onnx/operators/onnx__BitCast.html
    """
    dtype = _dtype(to)
    xp, x = as_arrays(x)
    if np.bool_ in (dtype, x.dtype):
        return x.astype(dtype)  # JAX holds a bool as a byte that is 0 or 1, and converts rather than reinterprets it
    return x.view(dtype) if xp is np else jax.lax.bitcast_convert_type(x, canonical_dtype(dtype))


def _dtype(to: Any) -> np.dtype:
    if not isinstance(to, int):
        return np.dtype(to)
    return np.dtype(np.str_ if to == onnx.TensorProto.STRING else onnx.helper.tensor_dtype_to_np_dtype(to))


def _cast_objects(x: np.ndarray, dtype: np.dtype) -> Any:
    """Strings become numbers. Symbolic dimensions stay what they are as integers; as floats, only JAX has them."""
    items = x.reshape(-1).tolist()
    if _is_text(x):
        return x.astype(np.str_).astype(dtype)
    if dtype.kind in "iu":
        return x
    if all(isinstance(item, int) for item in items):
        return x.astype(np.int64).astype(dtype)
    if any(jax.export.is_symbolic_dim(item) for item in items):
        return as_array(x, jnp).astype(canonical_dtype(dtype))
    raise TypeError(f"symbolic dimensions cannot be {dtype}")


def _is_text(x: np.ndarray) -> bool:
    return any(isinstance(item, str | bytes) for item in x.reshape(-1).tolist())


def _saturated(x: Any, dtype: np.dtype) -> Any:
    """`x` within the range of `dtype`, in a dtype that holds this range."""
    largest = float(ml_dtypes.finfo(dtype).max)
    x = x if jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize > 1 else x.astype(np.float32)
    return array_namespace(x).clip(x, -largest, largest)


def _powers_of_two(x: Any, saturate: int, round_mode: str) -> Any:
    """The exponent of `x`, which is all that float8_e8m0fnu holds; its largest bit pattern is NaN."""
    xp, x = array_namespace(x), x.astype(np.float32)
    bits = x.view(np.uint32)
    exponent, fraction = (bits >> 23) & 0xFF, bits & 0x7FFFFF
    raised = {
        "up": fraction > 0,
        "down": xp.zeros_like(fraction, bool),
        "nearest": (fraction > 0x400000) | ((fraction == 0x400000) & (exponent > 0)),
    }[round_mode]
    result = xp.minimum(exponent + raised.astype(np.uint32), 254 if saturate else 255)
    return xp.where(xp.isnan(x), 255, result).astype(np.uint8).view(ml_dtypes.float8_e8m0fnu)


@hookimpl
def onnxeqx_register_ops(registry) -> None:
    registry.add_module(__name__)
