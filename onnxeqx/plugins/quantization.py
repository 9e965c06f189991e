"""Quantised numbers: integers (or narrow floats) `q` that stand for `scale * (q - zero_point)`.

Gradients are those of JAX: none through rounding. Products of integers are summed in int32, as ONNX asks. Scales and zero
points may be Python numbers, as printed models hold constants without axes.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
import onnx
from jax import lax

from .. import _convolution
from .._registry import op
from ..runtime import canonical_dtype, normalize_axes
from .casting import cast
from .hookspecs import hookimpl
from .reduction import widened


@op("QuantizeLinear", since=23, buffers=("y_scale", "y_zero_point"), dtypes=("output_dtype", "precision"))
def quantize_linear(x, y_scale, y_zero_point=None, *, axis=1, block_size=0, output_dtype=0, precision=0, saturate=1):
    """`x / y_scale`, rounded half to even, plus `y_zero_point`, cut to the range of the output's dtype.

    One scale for all of `x`, one for each index along `axis`, or one for each block of `block_size` along it. The dtype is
    that of `y_zero_point`, `output_dtype`, or uint8; the division is done in `precision`, or in the dtype of `y_scale`.

    https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html
    """
    scale = _spread(_array(y_scale, x.dtype), x, axis, block_size)
    compute = _dtype(precision) if precision else _arithmetic(scale.dtype)
    quotient = _divided(x.astype(compute), scale.astype(compute))
    if y_zero_point is None:
        return _quantized(quotient, None, _dtype(output_dtype or jnp.uint8), saturate)
    zero = _spread(jnp.asarray(y_zero_point), x, axis, block_size)
    return _quantized(quotient, zero, zero.dtype, saturate)


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
    x_scale = _array(x_scale, jnp.float32)
    dtype = _dtype(output_dtype) if output_dtype else x_scale.dtype
    # As in ONNX Runtime and ONNX's reference, whatever the output: float16 cannot even hold every 16-bit integer.
    scale = widened(_spread(x_scale, x, axis, block_size))
    wide = x.astype(scale.dtype)
    if x_zero_point is not None:
        wide = wide - _spread(_array(x_zero_point, x.dtype), x, axis, block_size).astype(scale.dtype)
    return (wide * scale).astype(dtype)


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
    low, high = jnp.min(x, initial=0), jnp.max(x, initial=0)
    # For nothing but zeros, ONNX's function body divides by a scale of 0; ONNX Runtime's scale is 1.
    scale = jnp.where(low == high, 1, _divided(high - low, jnp.asarray(255, x.dtype)))
    zero = _quantized(_divided(-low, scale), None, jnp.uint8)
    y = _quantized(_divided(x, scale), zero, jnp.uint8)
    return (y, scale, zero)[:n_outputs] if n_outputs > 1 else y


@op(
    "QLinearMatMul", since=10, buffers=("a_scale", "a_zero_point", "b_scale", "b_zero_point", "y_scale", "y_zero_point")
)
def q_linear_mat_mul(a, a_scale, a_zero_point, b, b_scale, b_zero_point, y_scale, y_zero_point):
    """The product of quantised matrices, quantised. Scales of `a` and `y` may differ by row, those of `b` by column.

    https://onnx.ai/onnx/operators/onnx__QLinearMatMul.html
    """
    product = mat_mul_integer(a, b, a_zero_point, b_zero_point).astype(jnp.float32)
    a_scale, b_scale, y_scale = (jnp.asarray(scale, jnp.float32) for scale in (a_scale, b_scale, y_scale))
    zero = _array(y_zero_point, a.dtype)
    return _quantized(product * (_by_row(a_scale) * b_scale / _by_row(y_scale)), _by_row(zero), zero.dtype)


@op("MatMulInteger", since=10, buffers=("a_zero_point", "b_zero_point"))
def mat_mul_integer(a, b, a_zero_point=None, b_zero_point=None):
    """The product of 8-bit matrices less their zero points -> int32. Zero points of `a` by row, of `b` by column.

    https://onnx.ai/onnx/operators/onnx__MatMulInteger.html
    """
    return _centred(a, None if a_zero_point is None else _by_row(_array(a_zero_point, a.dtype))) @ _centred(
        b, b_zero_point
    )


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
    y = y if B is None else y + _spread(jnp.asarray(B), y, axis=1)
    x_scale, w_scale, y_scale = (
        _spread(jnp.asarray(scale, jnp.float32), y, axis=1) for scale in (x_scale, w_scale, y_scale)
    )
    zero = _array(y_zero_point, x.dtype).reshape(())
    return _quantized(y.astype(jnp.float32) * (x_scale * w_scale / y_scale), zero, zero.dtype)


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
    if w_zero_point is not None:
        w_zero_point = _spread(_array(w_zero_point, w.dtype), w, axis=0)
    ndim = x.ndim - 2
    strides, dilations = strides or (1,) * ndim, dilations or (1,) * ndim
    pairs = _convolution.resolve_padding(
        _convolution.attribute_padding(auto_pad, pads, ndim),
        sizes=x.shape[2:],
        kernel=w.shape[2:],
        strides=strides,
        dilations=dilations,
    )
    # What pads the borders is the zero point, which is 0 once it is taken away.
    padded = lax.pad(_centred(x, x_zero_point), jnp.int32(0), [(0, 0, 0), (0, 0, 0), *((*pair, 0) for pair in pairs)])
    return lax.conv_general_dilated(
        padded,
        _centred(w, w_zero_point),
        strides,
        "VALID",
        rhs_dilation=dilations,
        feature_group_count=group,
        preferred_element_type=jnp.int32,
    )


def _dtype(number: Any) -> np.dtype:
    return canonical_dtype(onnx.helper.tensor_dtype_to_np_dtype(number) if isinstance(number, int) else number)


def _array(value: Any, dtype: Any) -> Any:
    """An operand as an array; a Python number is one of this dtype."""
    return jnp.asarray(value, None if hasattr(value, "dtype") else dtype)


def _arithmetic(dtype: Any) -> np.dtype:
    """The dtype to divide in: scales of 8 bits, powers of two, are no arithmetic type."""
    return np.dtype(np.float32) if np.dtype(dtype).itemsize < 2 else np.dtype(dtype)


def _spread(scale: Any, x: Any, axis: int, block_size: int = 0) -> Any:
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

    XLA divides by one number as it multiplies by its reciprocal, and keeps more bits of a 16-bit quotient than its dtype has.
    """
    quotient = x / lax.optimization_barrier(jnp.broadcast_to(scale, x.shape))
    bits = jnp.finfo(quotient.dtype)
    return lax.reduce_precision(quotient, bits.nexp, bits.nmant)


def _by_row(scale: Any) -> Any:
    """A vector has an element for each row; arrays of more axes have their places already."""
    return scale.reshape(-1, 1) if scale.ndim == 1 and scale.size > 1 else scale


def _quantized(x: Any, zero_point: Any, dtype: Any, saturate: int = 1) -> Any:
    """`x` plus the zero point in a narrow dtype: as an integer rounded half to even and cut to its range."""
    if not jnp.issubdtype(dtype, jnp.integer):
        return cast(x if zero_point is None else x + zero_point.astype(x.dtype), to=dtype, saturate=saturate)
    rounded = lax.round(x, lax.RoundingMethod.TO_NEAREST_EVEN).astype(jnp.float32)
    if zero_point is not None:
        rounded = rounded + zero_point.astype(jnp.float32)
    bounds = jnp.iinfo(dtype)
    return jnp.clip(rounded, int(bounds.min), int(bounds.max)).astype(jnp.int32).astype(dtype)


def _centred(x: Any, zero_point: Any) -> Any:
    """`x` less its zero point, in the dtype to add up products in."""
    wide = jnp.int32 if jnp.issubdtype(x.dtype, jnp.integer) else jnp.float32
    return x.astype(wide) if zero_point is None else x.astype(wide) - _array(zero_point, x.dtype).astype(wide)


@hookimpl
def onnxeqx_register_ops(registry):
    registry.add_module(__name__)
