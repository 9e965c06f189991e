"""Sampling of maps at computed positions: by a grid, in regions of interest, under deformable kernels; and overlap-add."""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax import lax

from .._registry import op
from ..runtime import check_host_size, host_ints
from .hookspecs import hookimpl
from .reduction import widened

_CUBIC_COEFFICIENT = -0.75


@op("GridSample", since=20)
def grid_sample(X, grid, *, align_corners=0, mode="linear", padding_mode="zeros"):
    """Values of X at the positions in `grid`, from -1 to 1, the last axis first. X: (n, c, *d), grid: (n, *o, r) -> (n, c, *o).

    https://onnx.ai/onnx/operators/onnx__GridSample.html
    """
    if padding_mode not in ("zeros", "border", "reflection"):
        raise ValueError(
            f"GridSample has no padding_mode {padding_mode!r}, only zeros, border, reflection; correct the node's attribute."
        )
    positions = [
        _unnormalized(widened(grid[..., -1 - axis]), size, align_corners) for axis, size in enumerate(X.shape[2:])
    ]
    sampled = functools.partial(_sampled, mode=mode, padding=padding_mode, align_corners=align_corners)
    return jax.vmap(sampled)(X if mode == "nearest" else widened(X), positions).astype(X.dtype)


@op("GridSample", since=16, until=19)
def grid_sample_16(X, grid, *, align_corners=0, mode="bilinear", padding_mode="zeros"):
    """Values of X at the positions in `grid`, from -1 to 1, x before y. X: (n, c, h, w), grid: (n, p, q, 2) -> (n, c, p, q).

    https://onnx.ai/onnx/operators/onnx__GridSample.html
    """
    mode = {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode)
    return grid_sample(X, grid, align_corners=align_corners, mode=mode, padding_mode=padding_mode)


def _unnormalized(position: Any, size: int, align_corners: int) -> Any:
    """From -1 ... 1 to elements: -1 and 1 are the centres of the outer elements, or else their outer edges."""
    return (position + 1) / 2 * (size - 1) if align_corners else ((position + 1) * size - 1) / 2


def _sampled(x: Any, positions: Sequence[Any], *, mode: str, padding: str, align_corners: int = 0) -> Any:
    """x: (c, *d) at the positions, one array (*o) for each of *d -> (c, *o)."""
    first, weights = zip(*(_taps(position, mode) for position in positions), strict=True)
    sizes = x.shape[1:]
    y: Any = 0
    for corner in itertools.product(range(len(weights[0])), repeat=len(sizes)):
        weight: Any = 1
        indices = []
        for size, low, tap_weights, tap in zip(sizes, first, weights, corner, strict=True):
            index, inside = _padded_index(low + tap, size, padding, align_corners)
            weight = weight * jnp.where(inside, tap_weights[tap], 0)
            indices.append(index)
        y = y + weight.astype(x.dtype) * x[(slice(None), *indices)]
    return y


def _taps(position: Any, mode: str) -> tuple[Any, list[Any]]:
    """The first of the neighbours that count, as a whole float, and the weights of all of them."""
    if mode == "nearest":
        return jnp.rint(position), [jnp.ones_like(position)]
    low = jnp.floor(position)
    part = position - low
    if mode == "linear":
        return low, [1 - part, part]
    if mode == "cubic":
        return low - 1, [_far(1 + part), _near(part), _near(1 - part), _far(2 - part)]
    raise ValueError(f"GridSample has no mode {mode!r}, only nearest, linear, cubic; correct the node's attribute.")


def _near(distance: Any) -> Any:
    """The cubic kernel of Keys at distances up to 1, https://ieeexplore.ieee.org/document/1163711."""
    a = _CUBIC_COEFFICIENT
    return ((a + 2) * distance - (a + 3)) * distance**2 + 1


def _far(distance: Any) -> Any:
    """The cubic kernel of Keys at distances from 1 to 2."""
    a = _CUBIC_COEFFICIENT
    return ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a


def _padded_index(index: Any, size: int, padding: str, align_corners: int) -> tuple[Any, Any]:
    """An index into the axis for any whole float, and whether it counts."""
    inside = (index >= 0) & (index < size) if padding == "zeros" else True
    if padding == "reflection":
        # About the centres of the outer elements, or else about their outer edges, where these appear twice.
        edge = 1 if align_corners else 0
        period = max(2 * (size - edge), 1)
        index = index % period
        index = jnp.minimum(index, period - 1 + edge - index)
    return jnp.clip(index, 0, size - 1).astype(np.int32), inside


@op("AffineGrid", since=20, host=("size",))
def affine_grid(theta, size, *, align_corners=0):
    """Positions for GridSample: those of an image of `size`, transformed by `theta`. (n, r, r + 1) -> (n, *d, r), float.

    https://onnx.ai/onnx/operators/onnx__AffineGrid.html
    """
    spatial = host_ints(size)[2:]
    check_host_size(*spatial)
    lines = [
        (2 * np.arange(count) - (count - 1)) / (max(count - 1, 1) if align_corners else count) for count in spatial
    ]
    # The last axis comes first in a position.
    points = np.stack([*np.meshgrid(*lines, indexing="ij")[::-1], np.ones(spatial)], axis=-1)
    grid = jnp.tensordot(theta, jnp.asarray(points, theta.dtype), (2, len(spatial)), precision=lax.Precision.HIGHEST)
    return jnp.moveaxis(grid, 1, -1)


@op("Col2Im", since=18, host=("image_shape", "block_shape"))
def col2im(input, image_shape, block_shape, *, dilations=None, pads=None, strides=None):
    """Blocks added up where they lie in an image. input: (n, c * elements of a block, blocks) -> (n, c, *image_shape).

    https://onnx.ai/onnx/operators/onnx__Col2Im.html
    """
    image, block = host_ints(image_shape), host_ints(block_shape)
    ndim = len(image)
    ones = (1,) * ndim
    dilations, pads, strides = dilations or ones, pads or (0,) * 2 * ndim, strides or ones
    axes = list(zip(image, block, dilations, strides, pads[:ndim], pads[ndim:], strict=True))
    counts = [
        (size + low + high - dilation * (elements - 1) - 1) // stride + 1
        for size, elements, dilation, stride, low, high in axes
    ]
    y = input.reshape(input.shape[0], input.shape[1] // math.prod(block), *block, *counts)
    for size, _, dilation, stride, low, _ in axes:
        y = _overlap_added(y, 2 + ndim, size, dilation, stride, low)
    return y


def _overlap_added(y: Any, axis: int, size: int, dilation: int, stride: int, pad: int) -> Any:
    """Sums over the third axis (the elements of a block), each `dilation` further along `axis` (the blocks)."""
    span = (y.shape[axis] - 1) * stride + 1
    zero = jnp.zeros((), y.dtype)
    total = 0
    for element in range(y.shape[2]):
        start = element * dilation - pad
        widths = [(0, 0, 0)] * (y.ndim - 1)
        widths[axis - 1] = (start, size - start - span, stride - 1)
        total = total + lax.pad(y[:, :, element], zero, widths)
    return total


@op("DeformConv", since=19)
def deform_conv(
    X,
    W,
    offset,
    B=None,
    mask=None,
    *,
    dilations=None,
    group=1,
    kernel_shape=None,
    offset_group=1,
    pads=None,
    strides=None,
):
    """Convolution whose taps are moved by `offset` and weighted by `mask`. X: (n, c, *d), W: (o, c / group, *kernel), float.

    `offset`: (n, offset_group * taps * axes, *output), `mask`: (n, offset_group * taps, *output).

    https://onnx.ai/onnx/operators/onnx__DeformConv.html
    """
    kernel, output = W.shape[2:], offset.shape[2:]
    taps, ndim = math.prod(kernel), len(kernel)
    dilations, pads, strides = dilations or (1,) * ndim, pads or (0,) * ndim, strides or (1,) * ndim
    offsets = widened(offset).reshape(X.shape[0], offset_group, taps, ndim, *output)
    positions = []
    for axis in range(ndim):
        tap = np.indices(kernel)[axis].reshape(-1) * dilations[axis] - pads[axis]
        regular = np.add.outer(tap, np.indices(output)[axis] * strides[axis])
        positions.append(offsets[:, :, :, axis] + regular.astype(offsets.dtype))
    maps = widened(X).reshape(X.shape[0], offset_group, X.shape[1] // offset_group, *X.shape[2:])
    sampled = functools.partial(_sampled, mode="linear", padding="zeros")
    columns = jax.vmap(jax.vmap(sampled))(maps, positions)
    if mask is not None:
        columns = columns * widened(mask).reshape(X.shape[0], offset_group, 1, taps, *output)
    columns = columns.astype(X.dtype).reshape(X.shape[0], group, X.shape[1] // group, taps, *output)
    weights = W.reshape(group, W.shape[0] // group, W.shape[1], taps)
    y = jnp.einsum("gock,ngck...->ngo...", weights, columns).reshape(X.shape[0], W.shape[0], *output)
    return y if B is None else y + B.reshape(-1, *(1,) * ndim)


@op("RoiAlign", since=16)
def roi_align(
    X,
    rois,
    batch_indices,
    *,
    coordinate_transformation_mode="half_pixel",
    mode="avg",
    output_height=1,
    output_width=1,
    sampling_ratio=0,
    spatial_scale=1.0,
):
    """The mean or maximum of samples in each bin of each region. X: (n, c, h, w), rois: (r, 4), float -> (r, c, *output).

    A region is `x1, y1, x2, y2`, times `spatial_scale`, in the map with the index in `batch_indices`: (r,). A
    `sampling_ratio` of 0 stands for about one sample for each element.

    https://onnx.ai/onnx/operators/onnx__RoiAlign.html
    """
    reductions = {"avg": _sample_means, "max": _sample_maxima}
    if mode not in reductions:
        raise ValueError(f"RoiAlign has no mode {mode!r}, only avg, max; correct the node's attribute.")
    whole = coordinate_transformation_mode != "half_pixel"
    corners = widened(rois) * spatial_scale - (0 if whole else 0.5)
    taps = []
    for axis, bins, size in ((1, output_height, X.shape[2]), (0, output_width, X.shape[3])):
        extent = corners[:, axis + 2] - corners[:, axis]
        taps.append(
            _bin_taps(corners[:, axis], jnp.maximum(extent, 1) if whole else extent, bins, size, sampling_ratio)
        )

    return _for_each_region(reductions[mode], widened(X), batch_indices, *taps).astype(X.dtype)


@op("RoiAlign", since=10, until=15)
def roi_align_10(
    X, rois, batch_indices, *, mode="avg", output_height=1, output_width=1, sampling_ratio=0, spatial_scale=1.0
):
    """As in opset 16, where elements lie at whole positions and a region has at least the size of one element. Float.

    https://onnx.ai/onnx/operators/onnx__RoiAlign.html
    """
    return roi_align(
        X,
        rois,
        batch_indices,
        coordinate_transformation_mode="output_half_pixel",
        mode=mode,
        output_height=output_height,
        output_width=output_width,
        sampling_ratio=sampling_ratio,
        spatial_scale=spatial_scale,
    )


@functools.partial(jax.jit, static_argnums=0)  # outside of jit, a loop would be compiled anew in every call
def _for_each_region(function: Callable[..., Any], x: Any, batch_indices: Any, *operands: Any) -> Any:
    """The function of each region's map, (h, w, c), and operands. x: (n, c, h, w) -> (r, c, *output).

    One region after the other, as a copy of its map for each would be too large.
    """
    maps = jnp.moveaxis(x, 1, -1)  # what a region reads then lies together

    def of_region(item: tuple[Any, ...]) -> Any:
        index, *rest = item
        return function(maps[index], *rest)

    return jnp.moveaxis(lax.map(jax.checkpoint(of_region), (batch_indices, *operands)), -1, 1)


class _Taps(NamedTuple):
    """What the samples of each bin of an axis take, two elements each; every array begins with the regions.

    - `indices`, `weights`: (bins, taps), of elements; the weight is 0 for samples outside the map.
    - `counted`: (bins, taps), whether there is such a sample.
    - `samples`: how many of them a bin has.
    """

    indices: Any
    weights: Any
    counted: Any
    samples: Any


def _bin_taps(start: Any, extent: Any, bins: int, size: int, sampling_ratio: int) -> _Taps:
    step = extent[:, None, None] / bins
    count = jnp.full_like(step, sampling_ratio) if sampling_ratio > 0 else jnp.ceil(step)
    samples = jnp.maximum(count, 1)
    spacing = step / samples
    first = start[:, None, None] + jnp.arange(bins, dtype=step.dtype)[:, None] * step + spacing / 2
    number = (
        jnp.arange(sampling_ratio, dtype=step.dtype) if sampling_ratio > 0 else _numbers(first, spacing, count, size)
    )
    position = first + number * spacing
    inside = (number < count) & (position >= -1) & (position <= size)
    element = jnp.clip(position, 0, size - 1)
    low = jnp.floor(element)
    weight = jnp.where(inside, element - low, 0)
    indices = jnp.concatenate([low, jnp.minimum(low + 1, size - 1)], axis=-1).astype(np.int32)
    weights = jnp.concatenate([jnp.where(inside, 1 - weight, 0), weight], axis=-1)
    counted = jnp.broadcast_to(number < samples, position.shape)
    return _Taps(indices, weights, jnp.concatenate([counted, counted], axis=-1), samples[:, 0, 0])


def _numbers(first: Any, spacing: Any, count: Any, size: int) -> Any:
    """Numbers of the samples that matter, counted from the first of each bin.

    Their number is data. Samples are at least half an element apart, so while tracing there are enough of them if they
    begin just before the map and end just behind it.
    """
    most = size + 5
    if not isinstance(count, jax.core.Tracer):
        most = min(most, int(np.max(count, initial=1)))
    before = jnp.floor((-1 - first) / jnp.where(spacing > 0, spacing, 1)) - 1
    return jnp.clip(before, 0, jnp.maximum(count - 1, 0)) + jnp.arange(most, dtype=first.dtype)


def _sample_means(x: Any, rows: _Taps, columns: _Taps) -> Any:
    down, across = _mean_weights(rows, x.shape[0]), _mean_weights(columns, x.shape[1])
    y = jnp.einsum("ph,hwc->pwc", down, x, precision=lax.Precision.HIGHEST)
    return jnp.einsum("qw,pwc->pqc", across, y, precision=lax.Precision.HIGHEST)


def _mean_weights(taps: _Taps, size: int) -> Any:
    """The weight of each element of an axis in the mean of each bin: (bins, size)."""
    hit = taps.indices[:, :, None] == jnp.arange(size, dtype=np.int32)
    return jnp.where(hit, taps.weights[:, :, None], 0).sum(1) / taps.samples


def _sample_maxima(x: Any, rows: _Taps, columns: _Taps) -> Any:
    """The maxima of products with weights, as ONNX has it, and not of samples, which are sums of four of them."""
    for axis, taps in enumerate((rows, columns)):
        trailing = (..., *(None,) * (2 - axis))
        products = jnp.take(x, taps.indices, axis=axis) * taps.weights[trailing]
        x = jnp.where(taps.counted[trailing], products, -jnp.inf).max(axis + 1)
    return x


@op("MaxRoiPool", since=1)
def max_roi_pool(X, rois, *, pooled_shape, spatial_scale=1.0):
    """The maximum of each bin of each region, 0 if it is empty. X: (n, c, h, w), rois: (r, 5), float -> (r, c, *pooled_shape).

    A region is the index of its map, then `x1, y1, x2, y2`, which are scaled, rounded and inclusive.

    https://onnx.ai/onnx/operators/onnx__MaxRoiPool.html
    """
    corners = lax.round(widened(rois)[:, 1:] * spatial_scale).astype(np.int32)
    rows = _bin_elements(corners[:, 1], corners[:, 3], pooled_shape[0], X.shape[2])
    columns = _bin_elements(corners[:, 0], corners[:, 2], pooled_shape[1], X.shape[3])

    return _for_each_region(_element_maxima, X, rois[:, 0].astype(np.int32), rows, columns)


def _element_maxima(x: Any, rows: Any, columns: Any) -> Any:
    y = jnp.where(rows[:, :, None, None], x, -jnp.inf).max(1)
    y = jnp.where(columns[:, :, None], y[:, None], -jnp.inf).max(2)
    return jnp.where(rows.any(1)[:, None, None] & columns.any(1)[:, None], y, 0)


def _bin_elements(start: Any, end: Any, bins: int, size: int) -> Any:
    """Which elements of an axis each bin holds: (regions, bins, size). Neighbouring bins may share one."""
    extent = jnp.maximum(end - start + 1, 1)[:, None]
    number = jnp.arange(bins, dtype=np.int32)
    # In integers: ONNX Runtime's float32 sometimes ends a last bin one element behind the region (of 57 in 7 bins).
    first = start[:, None] + number * extent // bins
    behind = start[:, None] - (-(number + 1) * extent // bins)
    elements = jnp.arange(size, dtype=np.int32)
    return (elements >= first[:, :, None]) & (elements < behind[:, :, None])


@hookimpl
def onnxeqx_register_ops(registry) -> None:
    registry.add_module(__name__)
