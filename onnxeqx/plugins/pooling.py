"""Pooling over windows and over whole maps, channels first, over any number of spatial axes."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .._convolution import accumulator
from .._pooling import Windows, window_arg_maxima, window_maxima, window_sums
from .._printing import Operand
from .._registry import op
from ..runtime import host_ints
from ._printing import axis_keyword
from .hookspecs import hookimpl


@op("MaxPool", since=10)
def max_pool(
    x,
    *,
    auto_pad="NOTSET",
    ceil_mode=0,
    dilations=None,
    kernel_shape,
    pads=None,
    storage_order=0,
    strides=None,
    n_outputs=1,
):
    """The maximum of each window, and where it lies. x: (batch, channels, *spatial), float or 8-bit integer.

    https://onnx.ai/onnx/operators/onnx__MaxPool.html
    """
    windows = Windows.of(x, kernel_shape, strides, dilations, auto_pad, pads, ceil_mode)
    if n_outputs == 1:
        return window_maxima(x, windows)
    y, positions = window_arg_maxima(x, windows)
    return y, _indices(positions, windows.sizes, storage_order)


def _indices(positions: Any, sizes: Sequence[int], storage_order: int) -> Any:
    """Positions in one map as ONNX's indices into the flattened input; column by column for `storage_order` 1."""
    if storage_order:
        coordinates = jnp.unravel_index(positions, sizes)
        positions = jnp.ravel_multi_index(coordinates[::-1], sizes[::-1], mode="clip")
    maps = jnp.arange(math.prod(positions.shape[:2])).reshape(*positions.shape[:2], *(1,) * len(sizes))
    return maps * math.prod(sizes) + positions


@op("MaxPool", since=8, until=9)
def max_pool_8(x, *, auto_pad="NOTSET", kernel_shape, pads=None, storage_order=0, strides=None, n_outputs=1):
    """The maximum of each window, and where it lies. x: (batch, channels, *spatial), float.

    https://onnx.ai/onnx/operators/onnx__MaxPool.html
    """
    options = {"kernel_shape": kernel_shape, "pads": pads, "strides": strides, "storage_order": storage_order}
    return max_pool(x, auto_pad=auto_pad, n_outputs=n_outputs, **options)


@op("MaxPool", since=1, until=7)
def max_pool_1(x, *, auto_pad="NOTSET", kernel_shape, pads=None, strides=None):
    """The maximum of each window. x: (batch, channels, *spatial), float.

    https://onnx.ai/onnx/operators/onnx__MaxPool.html
    """
    return max_pool(x, auto_pad=auto_pad, kernel_shape=kernel_shape, pads=pads, strides=strides)


@op("AveragePool", since=19)
def average_pool(
    x,
    *,
    auto_pad="NOTSET",
    ceil_mode=0,
    count_include_pad=0,
    dilations=None,
    kernel_shape,
    pads=None,
    strides=None,
):
    """The mean of each window, over the padding too if `count_include_pad`. x: (batch, channels, *spatial), float.

    https://onnx.ai/onnx/operators/onnx__AveragePool.html
    """
    windows = Windows.of(x, kernel_shape, strides, dilations, auto_pad, pads, ceil_mode)
    sums = window_sums(x.astype(accumulator(x.dtype)), windows)
    return (sums / windows.elements(sums.dtype, include_pad=bool(count_include_pad))).astype(x.dtype)


@op("AveragePool", since=10, until=18)
def average_pool_10(
    x, *, auto_pad="NOTSET", ceil_mode=0, count_include_pad=0, kernel_shape, pads=None, strides=None
):  # fmt: skip
    """The mean of each window, over the padding too if `count_include_pad`. x: (batch, channels, *spatial), float.

    https://onnx.ai/onnx/operators/onnx__AveragePool.html
    """
    options = {"kernel_shape": kernel_shape, "pads": pads, "strides": strides, "ceil_mode": ceil_mode}
    return average_pool(x, auto_pad=auto_pad, count_include_pad=count_include_pad, **options)


@op("AveragePool", since=7, until=9)
def average_pool_7(x, *, auto_pad="NOTSET", count_include_pad=0, kernel_shape, pads=None, strides=None):
    """The mean of each window, over the padding too if `count_include_pad`. x: (batch, channels, *spatial), float.

    https://onnx.ai/onnx/operators/onnx__AveragePool.html
    """
    options = {"kernel_shape": kernel_shape, "pads": pads, "strides": strides}
    return average_pool(x, auto_pad=auto_pad, count_include_pad=count_include_pad, **options)


@op("AveragePool", since=1, until=6)
def average_pool_1(x, *, auto_pad="NOTSET", kernel_shape, pads=None, strides=None):
    """The mean of each window, without the padding. x: (batch, channels, *spatial), float.

    https://onnx.ai/onnx/operators/onnx__AveragePool.html
    """
    return average_pool(x, auto_pad=auto_pad, kernel_shape=kernel_shape, pads=pads, strides=strides)


@op("LpPool", since=18)
def lp_pool(x, *, auto_pad="NOTSET", ceil_mode=0, dilations=None, kernel_shape, p: float = 2, pads=None, strides=None):
    """The `p`-norm of each window. x: (batch, channels, *spatial), float.

    https://onnx.ai/onnx/operators/onnx__LpPool.html
    """
    windows = Windows.of(x, kernel_shape, strides, dilations, auto_pad, pads, ceil_mode)
    return _root(window_sums(_powers(x, p), windows), p).astype(x.dtype)


@op("LpPool", since=2, until=17)
def lp_pool_2(x, *, auto_pad="NOTSET", kernel_shape, p=2, pads=None, strides=None):
    """The `p`-norm of each window. x: (batch, channels, *spatial), float.

    https://onnx.ai/onnx/operators/onnx__LpPool.html
    """
    return lp_pool(x, auto_pad=auto_pad, kernel_shape=kernel_shape, p=p, pads=pads, strides=strides)


@op("LpPool", since=1, until=1)
def lp_pool_1(x, *, auto_pad="NOTSET", kernel_shape=None, p=2.0, pads=None, strides=None):
    """The `p`-norm of each window, which is the whole map without a `kernel_shape`. x: (batch, channels, *spatial), float.

    https://onnx.ai/onnx/operators/onnx__LpPool.html
    """
    return lp_pool(x, auto_pad=auto_pad, kernel_shape=kernel_shape or x.shape[2:], p=p, pads=pads, strides=strides)


def _print_over_map(function: str) -> Callable[[Operand], str | None]:
    """The printing rule of a reduction over all spatial axes."""

    def rule(x: Operand) -> str | None:
        ndim = x.ndim or 0
        return f"{function}(x{axis_keyword(range(2, ndim))}, keepdims=True)" if ndim > 2 else None

    return rule


@op("GlobalAveragePool", since=1, prints=_print_over_map("jnp.mean"))
def global_average_pool(x):
    """The mean of each map. x: (batch, channels, *spatial), float -> (batch, channels, 1, ..., 1).

    https://onnx.ai/onnx/operators/onnx__GlobalAveragePool.html
    """
    return jnp.mean(x, axis=_spatial(x), keepdims=True)


@op("GlobalMaxPool", since=1, prints=_print_over_map("jnp.max"))
def global_max_pool(x):
    """The maximum of each map. x: (batch, channels, *spatial), float -> (batch, channels, 1, ..., 1).

    https://onnx.ai/onnx/operators/onnx__GlobalMaxPool.html
    """
    return jnp.max(x, axis=_spatial(x), keepdims=True)


@op("GlobalLpPool", since=2)
def global_lp_pool(x, *, p: float = 2):
    """The `p`-norm of each map. x: (batch, channels, *spatial), float -> (batch, channels, 1, ..., 1).

    https://onnx.ai/onnx/operators/onnx__GlobalLpPool.html
    """
    return _root(jnp.sum(_powers(x, p), axis=_spatial(x), keepdims=True), p).astype(x.dtype)


@op("GlobalLpPool", since=1, until=1)
def global_lp_pool_1(x, *, p=2.0):
    """The `p`-norm of each map. x: (batch, channels, *spatial), float -> (batch, channels, 1, ..., 1).

    https://onnx.ai/onnx/operators/onnx__GlobalLpPool.html
    """
    return global_lp_pool(x, p=p)


def _spatial(x: Any) -> tuple[int, ...]:
    return tuple(range(2, x.ndim))


def _powers(x: Any, p: float) -> Any:
    magnitudes = jnp.abs(x.astype(accumulator(x.dtype)))
    return magnitudes ** int(p) if p == int(p) else magnitudes**p


def _root(sums: Any, p: float) -> Any:
    """The `p`-th root, whose gradient is zero, not NaN, where a window holds only zeros."""
    positive = sums > 0
    roots = jnp.where(positive, sums, 1)
    return jnp.where(positive, lax.sqrt(roots) if p == 2 else roots ** (1 / p), 0)


@op("MaxUnpool", since=9, host=("output_shape",))
def max_unpool(x, i, output_shape=None, *, kernel_shape, pads=None, strides=None):
    """Each maximum of a MaxPool back at its index, among zeros. x: float, i: integer, both (batch, channels, *spatial).

    Indices count in the shape that the attributes imply; a larger `output_shape` appends zeros.

    https://onnx.ai/onnx/operators/onnx__MaxUnpool.html
    """
    ndim = len(kernel_shape)
    strides, pads = strides or (1,) * ndim, pads or (0,) * (2 * ndim)
    padding = zip(pads[:ndim], pads[ndim:], strict=True)
    sizes = [
        (count - 1) * stride + size - low - high
        for count, stride, size, (low, high) in zip(x.shape[2:], strides, kernel_shape, padding, strict=True)
    ]
    implied = (*x.shape[:2], *sizes)
    flat = jnp.zeros(math.prod(implied), x.dtype).at[i.reshape(-1)].set(x.reshape(-1))
    return _resized(flat.reshape(implied), output_shape)


def _resized(y: Any, output_shape: Any) -> Any:
    if output_shape is None:
        return y
    ends = [wanted - size for wanted, size in zip(host_ints(output_shape), y.shape, strict=True)]
    return jax.lax.pad(y, jnp.zeros((), y.dtype), [(0, end, 0) for end in ends])


@hookimpl
def onnxeqx_register_ops(registry):
    registry.add_module(__name__)
