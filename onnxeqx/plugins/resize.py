"""Resizing by interpolation, one axis at a time; the weights are made on the host, from sizes that are known."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from .._errors import HostValueError
from .._registry import op
from ..runtime import check_host_size, host_ints, normalize_axes
from .hookspecs import hookimpl
from .reduction import widened

_WHOLE = (0.0, 1.0)
_NEAREST = {
    "floor": np.floor,
    "ceil": np.ceil,
    "round_prefer_floor": lambda positions: np.ceil(positions - 0.5),
    "round_prefer_ceil": lambda positions: np.floor(positions + 0.5),
}


@dataclasses.dataclass(frozen=True)
class _Axis:
    """An axis that goes from `old` to `new` elements.

    `length` is the new length before it is rounded, and `crop` the part of the axis that it spans, from 0 to 1.
    """

    axis: int
    old: int
    new: int
    scale: np.float32
    length: np.float32
    crop: tuple[float, float]


@op("Resize", since=18, host=("roi", "scales", "sizes"))
def resize(
    X,
    roi=None,
    scales=None,
    sizes=None,
    *,
    antialias=0,
    axes=None,
    coordinate_transformation_mode="half_pixel",
    cubic_coeff_a=-0.75,
    exclude_outside=0,
    extrapolation_value=0.0,
    keep_aspect_ratio_policy="stretch",
    mode="nearest",
    nearest_mode="round_prefer_floor",
):
    """Interpolation along `axes`, to `sizes` or by `scales`. Any shape and dtype; linear and cubic: numbers.

    `roi` (all starts, then all ends, in parts of the axes) is for the mode `tf_crop_and_resize`.

    https://onnx.ai/onnx/operators/onnx__Resize.html
    """
    axes = tuple(range(X.ndim)) if axes is None else normalize_axes(axes, X.ndim)
    crops = _crops(roi, len(axes)) if coordinate_transformation_mode == "tf_crop_and_resize" else [_WHOLE] * len(axes)
    if sizes is not None and len(sizes):
        targets = _by_sizes(X.shape, axes, host_ints(sizes), crops, keep_aspect_ratio_policy)
    elif scales is not None and len(scales):
        targets = _by_scales(X.shape, axes, host_ints(scales), crops)
    else:
        raise ValueError("Resize has neither scales nor sizes, but needs one of them; give the node that input.")
    positions = [_positions(target, coordinate_transformation_mode) for target in targets]
    if mode == "nearest":
        y = _nearest(X, targets, positions, nearest_mode)
    else:
        a = _chosen({"linear": None, "cubic": cubic_coeff_a}, "mode", mode)
        matrices = [
            _matrix(target, position, a, bool(antialias), bool(exclude_outside))
            for target, position in zip(targets, positions, strict=True)
        ]
        y = _interpolated(X, targets, matrices, rounds_often=bool(antialias), truncates=mode == "linear")
    return _extrapolated(y, targets, positions, extrapolation_value)


@op("Resize", since=11, until=17, host=("roi", "scales", "sizes"))
def resize_11(
    X,
    roi=None,
    scales=None,
    sizes=None,
    *,
    coordinate_transformation_mode="half_pixel",
    cubic_coeff_a=-0.75,
    exclude_outside=0,
    extrapolation_value=0.0,
    mode="nearest",
    nearest_mode="round_prefer_floor",
):
    """Interpolation along all axes, to `sizes` or by `scales`. Any shape and dtype; linear and cubic: numbers.

    https://onnx.ai/onnx/operators/onnx__Resize.html
    """
    return resize(
        X,
        roi,
        scales,
        sizes,
        coordinate_transformation_mode=coordinate_transformation_mode,
        cubic_coeff_a=cubic_coeff_a,
        exclude_outside=exclude_outside,
        extrapolation_value=extrapolation_value,
        mode=mode,
        nearest_mode=nearest_mode,
    )


@op("Resize", since=10, until=10, host=("scales",))
def resize_10(X, scales, *, mode="nearest"):
    """Interpolation along all axes by `scales`, first elements aligned. Any shape and dtype; linear: numbers.

    https://onnx.ai/onnx/operators/onnx__Resize.html
    """
    # This version does not say which element is nearest; ONNX Runtime takes the next one where an axis shrinks.
    smaller = [min(scale, 1.0) for scale in host_ints(scales)]
    larger = [max(scale, 1.0) for scale in host_ints(scales)]
    x = resize(X, scales=smaller, coordinate_transformation_mode="asymmetric", mode=mode, nearest_mode="ceil")
    return upsample(x, larger, mode=mode)


@op("Upsample", since=9, host=("scales",))
def upsample(X, scales, *, mode="nearest"):
    """Interpolation along all axes by `scales`, first elements aligned. Any shape and dtype; linear: numbers.

    https://onnx.ai/onnx/operators/onnx__Upsample.html
    """
    return resize(X, scales=scales, coordinate_transformation_mode="asymmetric", mode=mode, nearest_mode="floor")


@op("Upsample", since=7, until=8)
def upsample_7(X, *, mode="nearest", scales):
    """Interpolation along all axes by `scales`, first elements aligned. Any shape and dtype; linear: numbers.

    https://onnx.ai/onnx/operators/onnx__Upsample.html
    """
    return upsample(X, scales, mode=mode)


@op("Upsample", since=1, until=6)
def upsample_1(X, *, height_scale, mode="nearest", width_scale):
    """Interpolation along the last two of four axes, first elements aligned. X: (n, c, h, w), bool, integer or float.

    https://onnx.ai/onnx/operators/onnx__Upsample.html
    """
    return upsample(X, (1.0, 1.0, height_scale, width_scale), mode="linear" if mode == "bilinear" else mode)


def _chosen(options: dict[str, Any], attribute: str, value: str) -> Any:
    if value not in options:
        raise ValueError(
            f"Resize has no {attribute} {value!r}, only {', '.join(options)}; correct the node's attribute."
        )
    return options[value]


def _crops(roi: Any, count: int) -> list[tuple[float, float]]:
    bounds = () if roi is None else host_ints(roi)
    if len(bounds) != 2 * count:
        raise ValueError(
            f"Resize with tf_crop_and_resize has {len(bounds)} values in roi, but needs a start and an end for each of "
            f"{count} axes; give the node that input."
        )
    return list(zip(bounds[:count], bounds[count:], strict=True))


def _by_scales(shape: Sequence[Any], axes: Sequence[int], scales: Sequence[float], crops: Any) -> list[_Axis]:
    """The axes that change. New sizes do not depend on the crop, whatever the text of ONNX says."""
    targets = []
    for axis, scale, crop in zip(axes, scales, crops, strict=True):
        if scale == 1 and crop == _WHOLE:
            continue
        old = _known_size(shape[axis], axis)
        scale = np.float32(scale)
        # In float32, as in ONNX Runtime and in ONNX's shape inference: 0.7 * 10 is 7.
        length = scale * np.float32(old)
        targets.append(_Axis(axis, old, int(length), scale, length, crop))
    return targets


def _by_sizes(shape: Sequence[Any], axes: Sequence[int], sizes: Sequence[Any], crops: Any, policy: str) -> list[_Axis]:
    """The axes that change. To keep the aspect ratio, one scale is used for all."""
    changed = [
        (axis, _known_size(shape[axis], axis), _known_size(size, axis), crop)
        for axis, size, crop in zip(axes, sizes, crops, strict=True)
        if policy != "stretch" or shape[axis] != size or crop != _WHOLE
    ]
    if policy == "stretch":
        return [
            _Axis(axis, old, new, np.float32(new) / np.float32(old), np.float32(new), crop)
            for axis, old, new, crop in changed
        ]
    fit = _chosen({"not_larger": min, "not_smaller": max}, "keep_aspect_ratio_policy", policy)
    scale = fit(new / old for _, old, new, _ in changed)
    return [
        _Axis(axis, old, math.floor(scale * old + 0.5), np.float32(scale), np.float32(scale * old), crop)
        for axis, old, _, crop in changed
    ]


def _known_size(size: Any, axis: int) -> int:
    if not isinstance(size, int):
        raise HostValueError(
            f"Resize needs to know the size of axis {axis} while tracing, but it is the symbolic dimension {size}; export "
            "the model with a fixed size there."
        )
    return size


def _positions(target: _Axis, mode: str) -> np.ndarray:
    """Where in the old axis each new element lies.

    In float32, like ONNX Runtime: a rounding decides which of two elements is nearest.
    """
    check_host_size(target.new)
    y, scale, last = np.arange(target.new, dtype=np.float32), target.scale, np.float32(target.old - 1)
    match mode:
        case "half_pixel":
            x = (y + 0.5) / scale - 0.5
        case "half_pixel_symmetric":
            x = target.old / 2 * (1 - target.new / target.length) + (y + 0.5) / scale - 0.5
        case "pytorch_half_pixel":
            x = (y + 0.5) / scale - 0.5 if target.new > 1 else y
        case "align_corners":
            x = y * last / (target.length - 1) if target.new > 1 else y
        case "asymmetric":
            x = y / scale
        case "tf_half_pixel_for_nn":
            x = (y + 0.5) / scale
        case "tf_crop_and_resize":
            start, end = map(np.float32, target.crop)
            x = (
                start * last + y * (end - start) * last / (target.new - 1)
                if target.new > 1
                else y + last * (start + end) / 2
            )
        case _:
            raise ValueError(f"Resize has no coordinate_transformation_mode {mode!r}; correct the node's attribute.")
    return x.astype(np.float64)


def _nearest(x: Any, targets: list[_Axis], positions: list[np.ndarray], mode: str) -> Any:
    rounded = _chosen(_NEAREST, "nearest_mode", mode)
    for target, position in zip(targets, positions, strict=True):
        indices = np.clip(rounded(position), 0, target.old - 1).astype(np.int32)
        times = target.new // max(target.old, 1)
        if np.array_equal(indices, np.repeat(np.arange(target.old), times)):
            # The derivative of a repetition is a sum, that of a gather a slow scatter.
            x = jnp.repeat(x, times, axis=target.axis)
        else:
            x = jnp.take(x, indices, axis=target.axis)
    return x


def _matrix(
    target: _Axis, positions: np.ndarray, a: float | None, antialias: bool, exclude_outside: bool
) -> np.ndarray:
    """The weights of the old elements (columns) in the new ones (rows): linear, or cubic with the coefficient `a`."""
    check_host_size(target.new, target.old)
    stretch = min(float(target.scale), 1.0) if antialias else 1.0
    reach = math.ceil((1 if a is None else 2) / stretch)
    taps = np.floor(positions).astype(np.int64)[:, None] + np.arange(1 - reach, reach + 1)
    distances = np.abs(taps - positions[:, None]) * stretch
    weights = np.maximum(1 - distances, 0) if a is None else _cubic(distances, a)
    inside = np.clip(taps, 0, target.old - 1)
    if exclude_outside:
        weights[inside != taps] = 0
    total = weights.sum(1, keepdims=True)
    matrix = np.zeros((target.new, target.old))
    np.add.at(matrix, (np.arange(target.new)[:, None], inside), weights / np.where(total == 0, 1, total))
    return matrix


def _cubic(distances: np.ndarray, a: float) -> np.ndarray:
    """The kernel of Keys, https://ieeexplore.ieee.org/document/1163711."""
    near = ((a + 2) * distances - (a + 3)) * distances**2 + 1
    far = ((a * distances - 5 * a) * distances + 8 * a) * distances - 4 * a
    return np.where(distances <= 1, near, np.where(distances < 2, far, 0))


def _interpolated(
    x: Any, targets: list[_Axis], matrices: list[np.ndarray], *, rounds_often: bool, truncates: bool
) -> Any:
    """Products with the matrices, the last axis first, as it matters where integers are rounded after each axis.

    ONNX does not say how integers are rounded: ONNX Runtime truncates them, but rounds where it uses a filter.
    """
    y = widened(x)
    for target, matrix in reversed(list(zip(targets, matrices, strict=True))):
        weights = jnp.asarray(matrix, y.dtype)
        y = jnp.moveaxis(jnp.tensordot(y, weights, (target.axis, 1), precision=lax.Precision.HIGHEST), -1, target.axis)
        y = _rounded(y, x.dtype) if rounds_often else y
    return (y if truncates else _rounded(y, x.dtype)).astype(x.dtype)


def _rounded(y: Any, dtype: np.dtype) -> Any:
    if jnp.issubdtype(dtype, jnp.floating):
        return y
    bounds = jnp.iinfo(dtype)
    return jnp.clip(lax.round(y), bounds.min, bounds.max)


def _extrapolated(y: Any, targets: list[_Axis], positions: list[np.ndarray], value: float) -> Any:
    """`value` where a crop reaches beyond the axis."""
    for target, position in zip(targets, positions, strict=True):
        outside = (position < 0) | (position > target.old - 1)
        if target.crop != _WHOLE and outside.any():
            column = outside.reshape(-1, *(1,) * (y.ndim - target.axis - 1))
            y = jnp.where(column, jnp.asarray(value, y.dtype), y)
    return y


@hookimpl
def onnxeqx_register_ops(registry) -> None:
    registry.add_module(__name__)
