"""Conversions between dtypes; also on the host."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import onnx

from .._registry import op
from ..runtime import array_namespace, canonical_dtype
from .hookspecs import hookimpl


_NARROW_INTEGERS = ("int4", "uint4", "int2", "uint2")


@op("Cast", since=6, on_host=True, converts=True, dtypes=("to",))
def cast(x, *, to, saturate=1, round_mode="up"):
    """`x` in another dtype: `to` is an ONNX integer or a dtype. Any shape. Floats become integers towards zero.

    With `saturate`, values beyond the range of an 8-bit float become its largest; else infinity or NaN.

    https://onnx.ai/onnx/operators/onnx__Cast.html
    """
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(to)) if isinstance(to, int) else np.dtype(to)
    if getattr(x, "dtype", None) == np.object_:
        return _cast_symbols(x, dtype)
    if saturate and "float8" in dtype.name and "e8m0" not in dtype.name:
        x = _saturated(x, dtype)
    if dtype.name in _NARROW_INTEGERS:
        x = cast(x, to=np.int32)  # whose upper bits are then cut off
    if array_namespace(x) is np:
        return np.asarray(x).astype(dtype)
    return x.astype(canonical_dtype(dtype))


@op("Cast", since=1, until=5, on_host=True, converts=True)
def cast_1(x, *, to):
    """`x` in the dtype of this name (`"FLOAT"`). Any shape.

    https://onnx.ai/onnx/operators/onnx__Cast.html
    """
    return cast(x, to=onnx.TensorProto.DataType.Value(to.upper()))


@op("CastLike", since=15, on_host=True)
def cast_like(x, target, *, saturate=1, round_mode="up"):
    """`x` in the dtype of `target`. Any shapes.

    https://onnx.ai/onnx/operators/onnx__CastLike.html
    """
    dtype = target.dtype if hasattr(target, "dtype") else jnp.result_type(target)
    return cast(x, to=dtype, saturate=saturate, round_mode=round_mode)


@op("BitCast", since=26, dtypes=("to",))
def bit_cast(x, *, to):
    """The same bits read as another dtype of equal width: `to` is an ONNX integer or a dtype. Any shape.

    https://onnx.ai/onnx/operators/onnx__BitCast.html
    """
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(to)) if isinstance(to, int) else np.dtype(to)
    if np.bool_ in (dtype, x.dtype):
        return x.astype(dtype)  # JAX holds a bool as a byte that is 0 or 1, and converts rather than reinterprets it
    return jax.lax.bitcast_convert_type(x, canonical_dtype(dtype))


def _cast_symbols(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Symbolic dimensions stay what they are as integers, and are no floats."""
    if dtype.kind not in "iu":
        raise TypeError(f"symbolic dimensions cannot be {dtype}")
    return x


def _saturated(x: Any, dtype: np.dtype) -> Any:
    largest = float(ml_dtypes.finfo(dtype).max)
    xp = array_namespace(x)
    return xp.clip(x, -largest, largest)


@hookimpl
def onnxeqx_register_ops(registry) -> None:
    registry.add_module(__name__)
