"""Convolutions and their transposes, over any number of spatial axes."""

from typing import Any

from .. import _convolution
from .._registry import op
from .hookspecs import hookimpl


@op("Conv", since=1)
def conv(
    x, w, b=None, *, auto_pad="NOTSET", dilations=None, group=1, kernel_shape=None, pads=None, strides=None
):  # fmt: skip
    """Convolution of x (batch, channels, *spatial) with w (out, channels / group, *kernel), plus b (out,). Float.

    https://onnx.ai/onnx/operators/onnx__Conv.html
    """
    kernel = w.shape[2:]
    strides, dilations = strides or (1,) * len(kernel), dilations or (1,) * len(kernel)
    padding = _convolution.attribute_padding(auto_pad, pads, len(kernel))
    padding = _convolution.resolve_padding(
        padding, sizes=x.shape[2:], kernel=kernel, strides=strides, dilations=dilations
    )
    y = _convolution.convolution(x, w, strides=strides, padding=padding, dilations=dilations, groups=group)
    return _plus_bias(y, b)


@op("ConvTranspose", since=1)
def conv_transpose(
    x,
    w,
    b=None,
    *,
    auto_pad="NOTSET",
    dilations=None,
    group=1,
    kernel_shape=None,
    output_padding=None,
    output_shape=None,
    pads=None,
    strides=None,
):
    """Transposed convolution of x (batch, channels, *spatial) with w (channels, out / group, *kernel), plus b (out,).

    https://onnx.ai/onnx/operators/onnx__ConvTranspose.html
    """
    kernel = w.shape[2:]
    ones, zeros = (1,) * len(kernel), (0,) * len(kernel)
    strides, dilations = strides or ones, dilations or ones
    padding = _convolution.resolve_transposed_padding(
        _convolution.attribute_padding(auto_pad, pads, len(kernel)),
        sizes=x.shape[2:],
        kernel=kernel,
        strides=strides,
        dilations=dilations,
        output_padding=output_padding or zeros,
        output_shape=output_shape[-len(kernel) :] if output_shape else None,
    )
    y = _convolution.convolution_transpose(x, w, strides=strides, padding=padding, dilations=dilations, groups=group)
    return _plus_bias(y, b)


def _plus_bias(y: Any, bias: Any) -> Any:
    return y if bias is None else y + bias.reshape(-1, *(1,) * (y.ndim - 2))


@hookimpl
def onnxeqx_register_ops(registry):
    registry.add_module(__name__)
