"""Quantised numbers: integers (or narrow floats) `q` that stand for `scale * (q - zero_point)`.

Gradients are those of JAX: none through rounding. Products of integers are summed in int32, as ONNX asks.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
import onnx
from jax import lax

from .._registry import op
from ..runtime import canonical_dtype, normalize_axes
from .casting import cast
from .convolution import conv
from .hookspecs import hookimpl


@op("QuantizeLinear", since=23, buffers=("y_scale", "y_zero_point"), dtypes=("output_dtype", "precision"))
def quantize_linear(x, y_scale, y_zero_point=None, *, axis=1, block_size=0, output_dtype=0, precision=0, saturate=1):
    """`x / y_scale`, rounded half to even, plus `y_zero_point`, cut to the range of the output's dtype.

    One scale for all of `x`, one for each index along `axis`, or one for each block of `block_size` along it. The dtype is
    that of `y_zero_point`, `output_dtype`, or uint8; the division is done in `precision`, or in the dtype of `y_scale`.

    https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html
    """
    given = y_zero_point.dtype if y_zero_point is not None else _dtype(output_dtype) if output_dtype else jnp.uint8
    compute = _dtype(precision) if precision else _arithmetic(y_scale.dtype)
    quotient = _divided(x.astype(compute), _spread(y_scale, x, axis, block_size).astype(compute))
    if not jnp.issubdtype(given, jnp.integer):
        return cast(quotient, to=given, saturate=saturate)
    zero = 0 if y_zero_point is None else _spread(y_zero_point, x, axis, block_size)
    return _saturated(quotient, zero, given)


@op("QuantizeLinear", since=21, until=22, buffers=("y_scale", "y_zero_point"), dtypes=("output_dtype",))
def quantize_linear_21(x, y_scale, y_zero_point=None, *, axis=1, block_size=0, output_dtype=0, saturate=1):
    """As the later `quantize_linear`, with the division in the dtype of `y_scale`.

    https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html
    """
    options = {"axis": axis, "block_size": block_size, "output_dtype": output_dtype, "saturate": saturate}
    return quantize_linear(x, y_scale, y_zero_point, **options)


@op("QuantizeLinear", since=19, until=20, buffers=("y_scale", "y_zero_point"))
def quantize_linear_19(x, y_scale, y_zero_point=None, *, axis=1, saturate=1):
    """As the later `quantize_linear`, with one scale for all of `x`, or one for each index along `axis`.

    https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html
    """
    return quantize_linear(x, y_scale, y_zero_point, axis=axis, saturate=saturate)


@op("QuantizeLinear", since=13, until=18, buffers=("y_scale", "y_zero_point"))
def quantize_linear_13(x, y_scale, y_zero_point=None, *, axis=1):
    """As the later `quantize_linear`, to 8-bit integers.

    https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html
    """
    return quantize_linear(x, y_scale, y_zero_point, axis=axis)


@op("QuantizeLinear", since=10, until=12, buffers=("y_scale", "y_zero_point"))
def quantize_linear_10(x, y_scale, y_zero_point=None):
    """As the later `quantize_linear`, to 8-bit integers with one scale.

    https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html
    """
    return quantize_linear(x, y_scale, y_zero_point)


@op("DequantizeLinear", since=23, buffers=("x_scale", "x_zero_point"), dtypes=("output_dtype",))
def dequantize_linear(x, x_scale, x_zero_point=None, *, axis=1, block_size=0, output_dtype=0):
    """`(x - x_zero_point) * x_scale`, in the dtype of `x_scale` or in `output_dtype`. Scales as in `quantize_linear`.

    https://onnx.ai/onnx/operators/onnx__DequantizeLinear.html
    """
    dtype = _dtype(output_dtype) if output_dtype else x_scale.dtype
    compute = _arithmetic(x_scale.dtype)
    if jnp.issubdtype(x.dtype, jnp.integer):
        zero = jnp.int32(0) if x_zero_point is None else _spread(x_zero_point, x, axis, block_size).astype(jnp.int32)
        x = x.astype(jnp.int32) - zero
    return (x.astype(compute) * _spread(x_scale, x, axis, block_size).astype(compute)).astype(dtype)


@op("DequantizeLinear", since=21, until=22, buffers=("x_scale", "x_zero_point"))
def dequantize_linear_21(x, x_scale, x_zero_point=None, *, axis=1, block_size=0):
    """As the later `dequantize_linear`, in the dtype of `x_scale`.

    https://onnx.ai/onnx/operators/onnx__DequantizeLinear.html
    """
    return dequantize_linear(x, x_scale, x_zero_point, axis=axis, block_size=block_size)


@op("DequantizeLinear", since=13, until=20, buffers=("x_scale", "x_zero_point"))
def dequantize_linear_13(x, x_scale, x_zero_point=None, *, axis=1):
    """As the later `dequantize_linear`, with one scale for all of `x`, or one for each index along `axis`.

    https://onnx.ai/onnx/operators/onnx__DequantizeLinear.html
    """
    return dequantize_linear(x, x_scale, x_zero_point, axis=axis)


@op("DequantizeLinear", since=10, until=12, buffers=("x_scale", "x_zero_point"))
def dequantize_linear_10(x, x_scale, x_zero_point=None):
    """As the later `dequantize_linear`, with one scale.

    https://onnx.ai/onnx/operators/onnx__DequantizeLinear.html
    """
    return dequantize_linear(x, x_scale, x_zero_point)


@op("DynamicQuantizeLinear", since=11)
def dynamic_quantize_linear(x, *, n_outputs=1):
    """`x` as uint8, with the scale and zero point that its own range asks for. x: any shape, float32.

    https://onnx.ai/onnx/operators/onnx__DynamicQuantizeLinear.html
    """
    low, high = jnp.minimum(jnp.min(x), 0), jnp.maximum(jnp.max(x), 0)
    scale = (high - low) / 255
    safe = jnp.where(scale == 0, 1, scale)
    zero = jnp.clip(lax.round(-low / safe, lax.RoundingMethod.TO_NEAREST_EVEN), 0, 255).astype(jnp.uint8)
    y = _saturated(_divided(x, safe), zero, jnp.uint8)
    return (y, scale, zero)[:n_outputs] if n_outputs > 1 else y


@op(
    "QLinearMatMul", since=10, buffers=("a_scale", "a_zero_point", "b_scale", "b_zero_point", "y_scale", "y_zero_point")
)
def q_linear_mat_mul(a, a_scale, a_zero_point, b, b_scale, b_zero_point, y_scale, y_zero_point):
    """The product of quantised matrices, quantised. Scales of `a` and `y` may differ by row, those of `b` by column.

    https://onnx.ai/onnx/operators/onnx__QLinearMatMul.html
    """
    product = mat_mul_integer(a, b, a_zero_point, b_zero_point)
    scale = _by_row(a_scale).astype(jnp.float32) * b_scale.astype(jnp.float32) / _by_row(y_scale).astype(jnp.float32)
    return _saturated(product.astype(jnp.float32) * scale, _by_row(y_zero_point), y_zero_point.dtype)


@op("MatMulInteger", since=10, buffers=("a_zero_point", "b_zero_point"))
def mat_mul_integer(a, b, a_zero_point=None, b_zero_point=None):
    """The product of 8-bit matrices less their zero points -> int32. Zero points of `a` by row, of `b` by column.

    https://onnx.ai/onnx/operators/onnx__MatMulInteger.html
    """
    return _centred(a, None if a_zero_point is None else _by_row(a_zero_point)) @ _centred(b, b_zero_point)


@op("QLinearConv", since=10, buffers=("x_scale", "x_zero_point", "w_scale", "w_zero_point", "y_scale", "y_zero_point"))
def q_linear_conv(
    x,
    x_scale,
    x_zero_point,
    w,
    w_scale,
    w_zero_point,
    y_scale,
    y_zero_point,
    B=None,
    *,
    auto_pad="NOTSET",
    dilations=None,
    group=1,
    kernel_shape=None,
    pads=None,
    strides=None,
):
    """A convolution of quantised numbers, quantised; scales of `w` may differ by output channel. B: int32.

    https://onnx.ai/onnx/operators/onnx__QLinearConv.html
    """
    window = {"auto_pad": auto_pad, "dilations": dilations, "group": group, "pads": pads, "strides": strides}
    y = conv_integer(x, w, x_zero_point, w_zero_point, kernel_shape=kernel_shape, **window)
    channels = (-1, *(1,) * (x.ndim - 2))
    y = y if B is None else y + B.reshape(channels)
    scale = (
        x_scale.reshape(())
        * (w_scale.reshape(channels) if w_scale.size > 1 else w_scale.reshape(()))
        / y_scale.reshape(())
    )
    return _saturated(y.astype(jnp.float32) * scale, y_zero_point.reshape(()), y_zero_point.dtype)


@op("ConvInteger", since=10, buffers=("x_zero_point", "w_zero_point"))
def conv_integer(
    x,
    w,
    x_zero_point=None,
    w_zero_point=None,
    *,
    auto_pad="NOTSET",
    dilations=None,
    group=1,
    kernel_shape=None,
    pads=None,
    strides=None,
):
    """A convolution of 8-bit integers less their zero points -> int32; zero points of `w` may differ by output channel.

    https://onnx.ai/onnx/operators/onnx__ConvInteger.html
    """
    if w_zero_point is not None and w_zero_point.size > 1:
        w_zero_point = w_zero_point.reshape(-1, *(1,) * (w.ndim - 1))
    window = {"auto_pad": auto_pad, "dilations": dilations, "group": group, "pads": pads, "strides": strides}
    # What pads the borders is the zero point, which is 0 once it is taken away.
    return conv(_centred(x, x_zero_point), _centred(w, w_zero_point), kernel_shape=kernel_shape, **window)


def _dtype(number: Any) -> np.dtype:
    return canonical_dtype(onnx.helper.tensor_dtype_to_np_dtype(number) if isinstance(number, int) else number)


def _arithmetic(dtype: Any) -> np.dtype:
    """The dtype to divide and multiply in: scales of 8 bits, powers of two, are no arithmetic type."""
    return np.dtype(np.float32) if np.dtype(dtype).itemsize < 2 else np.dtype(dtype)


def _spread(scale: Any, x: Any, axis: int, block_size: int) -> Any:
    """A scale or zero point, shaped to meet `x`."""
    if block_size:
        (axis,) = normalize_axes((axis,), x.ndim)
        return lax.slice_in_dim(jnp.repeat(scale, block_size, axis), 0, x.shape[axis], axis=axis)
    if scale.size == 1:
        return scale.reshape(())
    (axis,) = normalize_axes((axis,), x.ndim)
    return scale.reshape(*(-1 if i == axis else 1 for i in range(x.ndim)))


def _divided(x: Any, scale: Any) -> Any:
    """`x / scale`, to the last bit, on which a rounding may depend.

    XLA divides by one number as it multiplies by its reciprocal, and that is not the same.
    """
    return x / lax.optimization_barrier(jnp.broadcast_to(scale, x.shape))


def _by_row(scale: Any) -> Any:
    """A vector has an element for each row; arrays of more axes have their places already."""
    return scale.reshape(-1, 1) if scale.ndim == 1 and scale.size > 1 else scale


def _saturated(x: Any, zero_point: Any, dtype: Any) -> Any:
    bounds = jnp.iinfo(dtype)
    x = x.astype(jnp.float32)
    zero_point = jnp.asarray(zero_point).astype(jnp.int32).astype(jnp.float32)
    rounded = lax.round(x, lax.RoundingMethod.TO_NEAREST_EVEN) + zero_point
    return jnp.clip(rounded, int(bounds.min), int(bounds.max)).astype(jnp.int32).astype(dtype)


def _centred(x: Any, zero_point: Any) -> Any:
    x = x.astype(jnp.int32)
    return (
        x
        if zero_point is None
        else x - (zero_point.reshape(()) if zero_point.size == 1 else zero_point).astype(jnp.int32)
    )


@hookimpl
def onnxeqx_register_ops(registry):
    registry.add_module(__name__)
