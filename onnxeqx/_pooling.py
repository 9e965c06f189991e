"""Windows over the spatial axes: where they lie, their maxima and their sums."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from ._convolution import attribute_padding, resolve_padding


@dataclasses.dataclass(frozen=True)
class Windows:
    """The windows of a pooling operator, one entry for each spatial axis. Sizes may be symbolic under `jax.export`.

    **Fields:**

    - `sizes`: of the input; `counts`: how many windows.
    - `kernel`, `strides`, `dilations`: of the windows.
    - `declared`: the padding that the operator asks for, as pairs.
    - `padding`: what the windows reach over: less at the end where they do not fill it, more under `ceil_mode`.
    """

    sizes: tuple[Any, ...]
    counts: tuple[Any, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    declared: tuple[tuple[Any, Any], ...]
    padding: tuple[tuple[Any, Any], ...]

    @classmethod
    def of(
        cls,
        x: Array,
        kernel: Sequence[int],
        strides: Sequence[int] | None,
        dilations: Sequence[int] | None,
        auto_pad: str,
        pads: Sequence[int] | None,
        ceil_mode: int,
    ) -> "Windows":
        """From ONNX's attributes, for x of shape (batch, channels, *spatial)."""
        sizes, kernel, ones = x.shape[2:], tuple(kernel), (1,) * len(kernel)
        strides, dilations = tuple(strides or ones), tuple(dilations or ones)
        declared = resolve_padding(
            attribute_padding(auto_pad, pads, len(kernel)),
            sizes=sizes,
            kernel=kernel,
            strides=strides,
            dilations=dilations,
        )
        counts, padding = [], []
        for size, k, stride, dilation, (low, high) in zip(sizes, kernel, strides, dilations, declared, strict=True):
            extent = (k - 1) * dilation + 1
            count = _count(size, extent, stride, low, high, ceil_mode)
            counts.append(count)
            padding.append((low, jax.core.max_dim((count - 1) * stride + extent - size - low, 0)))
        return cls(sizes, tuple(counts), kernel, strides, dilations, declared, tuple(padding))

    def elements(self, dtype: Any, *, include_pad: bool) -> Array:
        """How many elements each window holds, shape `counts`: those of the input, or of the declared padding too.

        What `ceil_mode` adds beyond the declared padding never counts.
        """
        total = jnp.ones((), dtype)
        for axis, (size, count, k, stride, dilation, (low, high)) in enumerate(
            zip(self.sizes, self.counts, self.kernel, self.strides, self.dilations, self.declared, strict=True)
        ):
            xp = np if isinstance(count, int) else jnp
            at = (xp.arange(count) * stride)[:, None] + xp.arange(k) * dilation
            inside = at < low + size + high if include_pad else (at >= low) & (at < low + size)
            of_axis = jnp.asarray(inside.sum(1), dtype)
            total = total[..., None] * of_axis.reshape(-1) if axis else of_axis
        return total


def _count(size: Any, extent: int, stride: int, low: Any, high: Any, ceil_mode: int) -> Any:
    room = size + low + high - extent
    if not ceil_mode:
        return room // stride + 1
    count = -(-room // stride) + 1
    # A window that would start beyond the input and its leading padding is dropped.
    return jax.core.min_dim(count, (size + low - 1) // stride + 1)


def window_sums(x: Array, windows: Windows) -> Array:
    """The sum of each window. x: float (batch, channels, *spatial) -> (batch, channels, *counts)."""
    return lax.reduce_window(x, np.zeros((), x.dtype), lax.add, **_reduction(windows))


def window_maxima(x: Array, windows: Windows) -> Array:
    """The maximum of each window; its gradient goes to the first. x: (batch, channels, *spatial) -> (..., *counts)."""
    return lax.reduce_window(x, np.array(_lowest(x.dtype)), lax.max, **_reduction(windows))


def _reduction(windows: Windows) -> dict[str, Any]:
    return {
        "window_dimensions": (1, 1, *windows.kernel),
        "window_strides": (1, 1, *windows.strides),
        "padding": ((0, 0), (0, 0), *windows.padding),
        "window_dilation": (1, 1, *windows.dilations),
    }


def window_arg_maxima(x: Array, windows: Windows) -> tuple[Array, Array]:
    """The maximum of each window and where its first one lies.

    **Arguments:**

    - `x`: shape (batch, channels, *spatial).

    **Returns:** two arrays of shape `(batch, channels, *counts)`: the maxima, and for each its position in one flattened
    spatial map, an integer (row by row).
    """
    positions = jnp.arange(int(np.prod(windows.sizes))).reshape(1, 1, *windows.sizes)
    best, where = None, None
    for value, position in zip(_taps(x, windows, _lowest(x.dtype)), _taps(positions, windows, -1), strict=True):
        if best is None:
            best, where = value, jnp.broadcast_to(position, value.shape)
            continue
        larger = (value > best) | ((where < 0) & (position >= 0))
        best, where = jnp.where(larger, value, best), jnp.where(larger, position, where)
    return best, where


def _taps(x: Array, windows: Windows, fill: Any) -> list[Array]:
    """For each element of the kernel, what lies under it in all windows."""
    padded = lax.pad(x, jnp.asarray(fill, x.dtype), ((0, 0, 0), (0, 0, 0), *((*pair, 0) for pair in windows.padding)))
    taps = []
    for offset in np.ndindex(*windows.kernel):
        starts = [i * dilation for i, dilation in zip(offset, windows.dilations, strict=True)]
        slices = tuple(
            slice(start, start + (count - 1) * stride + 1, stride)
            for start, count, stride in zip(starts, windows.counts, windows.strides, strict=True)
        )
        taps.append(padded[(slice(None), slice(None), *slices)])
    return taps


def _lowest(dtype: Any) -> np.generic:
    if jnp.issubdtype(dtype, jnp.integer):
        return np.array(jnp.iinfo(dtype).min, dtype)
    return np.array(-np.inf, dtype)
