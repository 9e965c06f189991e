"""Padding and cropping. Every operator here also runs on the host."""

from typing import Any

import numpy as np

from .._graph import Call, Kind, Value
from .._printing import Operand
from .._registry import op
from ..runtime import check_host_size, host_ints, normalize_axes
from ._operands import Namespace, as_array, as_arrays
from ._printing import fits_every_float, known_axes, known_ints, scalar
from .hookspecs import hookimpl


def _print_pad(
    data: Operand,
    pads: Any,
    constant_value: Operand | None = None,
    axes: Operand | None = None,
    *,
    mode: str,
    value: float = 0.0,
) -> tuple[str, dict[str, Any]] | None:
    widths, ndim = known_ints(pads), data.ndim or 0
    along = known_axes(range(ndim) if axes is None else axes, data.ndim)
    fill = value if constant_value is None else scalar(constant_value)
    if widths is None or along is None or fill is None or min(widths, default=0) < 0 or not fits_every_float(fill):
        return None
    pairs = dict(zip(along, zip(widths, widths[len(widths) // 2 :], strict=False), strict=False))
    options = ", constant_values=fill" if fill and mode == "constant" else ""
    return f"jnp.pad(data, widths, mode=mode{options})", {
        "widths": tuple(pairs.get(i, (0, 0)) for i in range(ndim)),
        "fill": fill,
    }


def _pads_nothing(call: Call) -> Value | None:
    """The input of a Pad by known widths that are all zero."""
    pads = call.operand(1)
    return call.operand(0) if pads.kind is Kind.CONST and pads.array is not None and not pads.array.any() else None


@op("Pad", since=18, host=("pads", "axes"), on_host=True, passes_through=_pads_nothing, prints=_print_pad)
def pad(data, pads, constant_value=None, axes=None, *, mode="constant"):
    """`pads` elements before and after each of `axes`; negative ones crop. Any shape and dtype.

    https://onnx.ai/onnx/operators/onnx__Pad.html
    """
    pads = host_ints(pads)
    xp, data = as_arrays(data, sizes=pads)
    axes = range(data.ndim) if axes is None else normalize_axes(host_ints(axes), data.ndim)
    before, after = [0] * data.ndim, [0] * data.ndim
    for position, axis in enumerate(axes):
        before[axis], after[axis] = pads[position], pads[position + len(pads) // 2]
    return _padded(xp, data, list(zip(before, after, strict=True)), mode, constant_value)


def _padded(xp: Namespace, data: Any, widths: list[tuple[Any, Any]], mode: str, fill: Any = None) -> Any:
    """Crops by the negative widths, then pads by the others."""
    cropped = [(_negative(low), _negative(high)) for low, high in widths]
    data = data[tuple(slice(-low, size + high) for size, (low, high) in zip(data.shape, cropped, strict=True))]
    widths = [(low - crop[0], high - crop[1]) for (low, high), crop in zip(widths, cropped, strict=True)]
    if xp is np:
        check_host_size(*(low + size + high for size, (low, high) in zip(data.shape, widths, strict=True)))
    if mode != "constant":
        return xp.pad(data, widths, mode=mode)
    fill = xp.zeros((), data.dtype) if fill is None else as_array(fill, xp).reshape(()).astype(data.dtype)
    return xp.pad(data, widths, constant_values=fill)


def _negative(width: Any) -> int:
    """The elements to crop, as a negative number. Symbolic widths pad."""
    return min(width, 0) if isinstance(width, int) else 0


@op("Pad", since=11, until=17, host=("pads",), on_host=True, passes_through=_pads_nothing, prints=_print_pad)
def pad_11(data, pads, constant_value=None, *, mode="constant"):
    """`pads` elements before and after each axis; negative ones crop. Any shape and dtype.

    https://onnx.ai/onnx/operators/onnx__Pad.html
    """
    return pad(data, pads, constant_value, mode=mode)


@op("Pad", since=2, until=10, on_host=True, prints=_print_pad)
def pad_2(data, *, pads, mode="constant", value=0.0):
    """`pads` elements before and after each axis; negative ones crop. Any shape, float.

    https://onnx.ai/onnx/operators/onnx__Pad.html
    """
    return pad(data, pads, value, mode=mode)


@op("Pad", since=1, until=1, on_host=True)
def pad_1(data, *, paddings, mode="constant", value=0.0):
    """`paddings` elements before and after each axis; negative ones crop. Any shape, float.

    https://onnx.ai/onnx/operators/onnx__Pad.html
    """
    return pad(data, paddings, value, mode=mode)


@op("CenterCropPad", since=18, host=("shape",), on_host=True)
def center_crop_pad(input_data, shape, *, axes=None):
    """Cropped or padded with zeros around the centre, to `shape` along `axes`. Any dtype.

    https://onnx.ai/onnx/operators/onnx__CenterCropPad.html
    """
    xp, data = as_arrays(input_data)
    axes = range(data.ndim) if axes is None else normalize_axes(axes, data.ndim)
    widths = [(0, 0)] * data.ndim
    for axis, wanted in zip(axes, host_ints(shape), strict=True):
        missing = wanted - data.shape[axis]
        # An odd number leaves the extra element on the right when padding, and on the left when cropping.
        before = missing // 2 if missing >= 0 else -(-missing // 2)
        widths[axis] = (before, missing - before)
    return _padded(xp, data, widths, "constant")


@hookimpl
def onnxeqx_register_ops(registry):
    registry.add_module(__name__)
