"""Tensors from nothing but sizes and attributes: NumPy arrays, computed while tracing, wherever the sizes are known."""

import math
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import onnx

from .._printing import Operand
from .._registry import op
from .._sparse import dense
from ..runtime import canonical_dtype, check_host_size, host_ints
from ._operands import as_arrays
from ._printing import fits_every_float, is_floating, known
from .hookspecs import hookimpl


@op("Constant", since=12, on_host=True, stores=True)
def constant(
    *,
    value=None,
    sparse_value=None,
    value_float=None,
    value_floats=None,
    value_int=None,
    value_ints=None,
    value_string=None,
    value_strings=None,
):
    """The tensor of the one attribute that is given -> NumPy array. Floats are float32, integers int64.

    https://onnx.ai/onnx/operators/onnx__Constant.html
    """
    if value is not None:
        return np.asarray(value)
    if sparse_value is not None:
        return dense(sparse_value)
    for given, dtype in (
        (value_float, np.float32),
        (value_floats, np.float32),
        (value_int, np.int64),
        (value_ints, np.int64),
    ):
        if given is not None:
            return np.array(given, dtype)
    return np.array(_text(value_strings if value_string is None else value_string), np.str_)


def _text(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_text(item) for item in value]
    return value.decode() if isinstance(value, bytes) else value


@op("Constant", since=11, until=11, on_host=True, stores=True)
def constant_11(*, value=None, sparse_value=None):
    """The tensor of the one attribute that is given -> NumPy array.

    https://onnx.ai/onnx/operators/onnx__Constant.html
    """
    return constant(value=value, sparse_value=sparse_value)


@op("Constant", since=1, until=10, on_host=True, stores=True)
def constant_1(*, value):
    """The tensor of the attribute -> NumPy array.

    https://onnx.ai/onnx/operators/onnx__Constant.html
    """
    return constant(value=value)


_FILLED = {0: "jnp.zeros(input, dtype)", 1: "jnp.ones(input, dtype)"}


def _print_constant_of_shape(input: Operand, *, value: Any = None) -> tuple[str, dict[str, Any]] | None:
    fill = np.zeros((), np.float32) if value is None else np.asarray(value)
    number = fill.reshape(-1)[0].item()
    if known(input) is None or not (is_floating(fill.dtype) or fill.dtype in (np.bool_, np.int32, np.int64)):
        return None
    if not fits_every_float(number):
        return None
    return _FILLED.get(number, "jnp.full(input, number, dtype)"), {"number": number, "dtype": fill.dtype}


@op("ConstantOfShape", since=9, host=("input",), on_host=True, stores=True, prints=_print_constant_of_shape)
def constant_of_shape(input, *, value=None):
    """`value` (one element, float32 zero by default) in the given shape -> NumPy array of the dtype of `value`.

    https://onnx.ai/onnx/operators/onnx__ConstantOfShape.html
    """
    fill = np.zeros((), np.float32) if value is None else np.asarray(value).reshape(())
    dims = host_ints(input)
    if _symbolic(*dims):
        return jnp.full(dims, fill, canonical_dtype(fill.dtype))
    check_host_size(*dims)
    # A view of one element: networks that keep only the shapes of their weights take no memory until these are bound.
    return np.broadcast_to(fill, dims)


def _symbolic(*sizes: Any) -> bool:
    """Whether some of the sizes are symbolic dimensions of `jax.export`, which JAX takes and NumPy does not.

    **Raises:** `TypeError` if a size is neither that nor a number: it is not known yet.
    """
    for size in sizes:
        if not (isinstance(size, int | float | np.generic) or jax.export.is_symbolic_dim(size)):
            raise TypeError(f"{size!r} is not known before the model is called")
    return any(jax.export.is_symbolic_dim(size) for size in sizes)


def _print_range(
    start: Operand, limit: Operand, delta: Operand, *, stash_type: int = 1
) -> tuple[str, dict[str, Any]] | None:
    bounds = [known(operand) for operand in (start, limit, delta)]
    if start.dtype not in (np.int32, np.int64) or None in bounds:
        return None
    first, _, step = bounds
    numbers = "start, limit, delta" if step != (1,) else "limit" if first == (0,) else "start, limit"
    dtype = "" if start.dtype == np.int64 else ", dtype=dtype"  # JAX's own is that of int64
    return f"jnp.arange({numbers}{dtype})", {"dtype": start.dtype}


@op("Range", since=27, host=("start", "limit", "delta"), on_host=True, dtypes=("stash_type",), prints=_print_range)
def range_(start, limit, delta, *, stash_type=onnx.TensorProto.FLOAT):
    """`start`, `start + delta`, … before `limit` -> NumPy vector of their dtype. 16-bit floats count in `stash_type`.

    https://onnx.ai/onnx/operators/onnx__Range.html
    """
    numbers = tuple(number for bound in (start, limit, delta) for number in host_ints(bound))
    if _symbolic(*numbers):
        return jnp.arange(*numbers)
    dtypes = [bound.dtype for bound in (start, limit, delta) if hasattr(bound, "dtype") and bound.dtype.kind != "O"]
    whole = all(isinstance(number, int) for number in numbers)
    dtype = dtypes[0] if dtypes else np.dtype(np.int64 if whole else np.float32)
    stash = _numpy_dtype(stash_type) if dtype in (jnp.float16, jnp.bfloat16) else dtype
    return _spaced(*numbers, dtype=dtype, stash=stash)


def _spaced(start: Any, limit: Any, delta: Any, *, dtype: np.dtype, stash: np.dtype) -> np.ndarray:
    count = max(math.ceil((limit - start) / delta), 0)
    check_host_size(count)
    steps = np.arange(count).astype(stash)
    return (np.asarray(start, stash) + steps * np.asarray(delta, stash)).astype(dtype)


def _numpy_dtype(dtype: Any) -> np.dtype:
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(dtype) if isinstance(dtype, int) else dtype)


@op("Range", since=11, until=26, host=("start", "limit", "delta"), on_host=True, prints=_print_range)
def range_11(start, limit, delta):
    """`start`, `start + delta`, … before `limit` -> NumPy vector of their dtype.

    https://onnx.ai/onnx/operators/onnx__Range.html
    """
    return range_(start, limit, delta)


@op("EyeLike", since=9, on_host=True, dtypes=("dtype",))
def eye_like(input, *, dtype=None, k=0):
    """Ones on diagonal `k`, zeros elsewhere. input: two axes -> same shape, its dtype or `dtype`.

    https://onnx.ai/onnx/operators/onnx__EyeLike.html
    """
    xp, input = as_arrays(input)
    dtype = input.dtype if dtype is None else _numpy_dtype(dtype)
    return xp.eye(*input.shape, k=k, dtype=dtype if xp is np else canonical_dtype(dtype))


@op("HannWindow", since=17, host=("size",), on_host=True, dtypes=("output_datatype",))
def hann_window(size, *, output_datatype=onnx.TensorProto.FLOAT, periodic=1):
    """The Hann window of `size` points -> NumPy vector.

    https://onnx.ai/onnx/operators/onnx__HannWindow.html
    """
    return _window(size, (0.5, 0.5, 0.0), output_datatype, periodic)


@op("HammingWindow", since=17, host=("size",), on_host=True, dtypes=("output_datatype",))
def hamming_window(size, *, output_datatype=onnx.TensorProto.FLOAT, periodic=1):
    """The Hamming window of `size` points -> NumPy vector.

    https://onnx.ai/onnx/operators/onnx__HammingWindow.html
    """
    return _window(size, (25 / 46, 21 / 46, 0.0), output_datatype, periodic)


@op("BlackmanWindow", since=17, host=("size",), on_host=True, dtypes=("output_datatype",))
def blackman_window(size, *, output_datatype=onnx.TensorProto.FLOAT, periodic=1):
    """The Blackman window of `size` points -> NumPy vector.

    https://onnx.ai/onnx/operators/onnx__BlackmanWindow.html
    """
    return _window(size, (0.42, 0.5, 0.08), output_datatype, periodic)


def _window(size: Any, cosines: tuple[float, float, float], dtype: Any, periodic: int) -> Any:
    """A sum of cosines over `size` intervals (periodic) or `size - 1` (symmetric)."""
    (count,) = host_ints(size)
    symbolic = _symbolic(count)
    xp, wide = (jnp, np.float32) if symbolic else (np, np.float64)
    intervals = xp.maximum(xp.asarray(count if periodic else count - 1), 1)
    angles = xp.arange(count).astype(wide) / intervals.astype(wide) * wide(2 * math.pi)
    constant, first, second = (wide(cosine) for cosine in cosines)
    window = constant - first * xp.cos(angles) + second * xp.cos(wide(2) * angles)
    return window.astype(canonical_dtype(_numpy_dtype(dtype)) if symbolic else _numpy_dtype(dtype))


@hookimpl
def onnxeqx_register_ops(registry):
    registry.add_module(__name__)
