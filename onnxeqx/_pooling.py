"""Windows over the spatial axes: where they lie, their maxima and their sums."""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.core
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

    @property
    def are_known(self) -> bool:
        """Whether no size is symbolic."""
        return all(isinstance(size, int) for size in (*self.sizes, *self.counts))

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
    if not windows.are_known or set(windows.counts) == {1}:
        return _reduced_sums(x, windows)
    return _sums(x, windows)


def window_maxima(x: Array, windows: Windows) -> Array:
    """The maximum of each window; its gradient goes to the first. x: (batch, channels, *spatial) -> (..., *counts)."""
    if not windows.are_known:
        return _reduced_maxima(x, windows)
    if set(windows.dilations) != {1}:  # JAX cannot differentiate the maximum over dilated windows
        return _shifted_maxima(x, windows)
    return _maxima(x, windows)


# Compiled, so that calls outside of `jit` find what earlier ones have traced.
@functools.partial(jax.jit, static_argnums=1)
def _sums(x: Array, windows: Windows) -> Array:
    return lax.platform_dependent(
        x, cpu=lambda x: _shifted_sums(x, windows), default=lambda x: _reduced_sums(x, windows)
    )


@functools.partial(jax.jit, static_argnums=1)
def _maxima(x: Array, windows: Windows) -> Array:
    return lax.platform_dependent(
        x, cpu=lambda x: _shifted_maxima(x, windows), default=lambda x: _reduced_maxima(x, windows)
    )


def _reduced_sums(x: Array, windows: Windows) -> Array:
    return lax.reduce_window(x, np.zeros((), x.dtype), lax.add, **_reduction(windows))


def _reduced_maxima(x: Array, windows: Windows) -> Array:
    # The initial value must be NumPy's: JAX differentiates the maximum only where it knows that value.
    return lax.reduce_window(x, _lowest(x.dtype), lax.max, **_reduction(windows))


def _reduction(windows: Windows) -> dict[str, Any]:
    return {
        "window_dimensions": (1, 1, *windows.kernel),
        "window_strides": (1, 1, *windows.strides),
        "padding": ((0, 0), (0, 0), *windows.padding),
        "window_dilation": (1, 1, *windows.dilations),
    }


# XLA:CPU walks through windows element by element, and back through their maxima slower still. Shifted slices, combined
# along one axis at a time, are vectorised and cost the sum of the kernel's sizes, not their product.


def _shifted_sums(x: Array, windows: Windows) -> Array:
    for axis in reversed(range(len(windows.kernel))):
        x = functools.reduce(lax.add, _along_axis(x, windows, axis, 0))
    return x


def _shifted_maxima(x: Array, windows: Windows) -> Array:
    for axis in reversed(range(len(windows.kernel))):
        best, *others = _along_axis(x, windows, axis, _lowest(x.dtype))
        for value in others:
            best = jnp.where(_is_larger(value, best), value, best)
        x = best
    return x


def window_arg_maxima(x: Array, windows: Windows) -> tuple[Array, Array]:
    """The maximum of each window and where its first one lies.

    **Arguments:**

    - `x`: shape (batch, channels, *spatial).

    **Returns:** two arrays of shape `(batch, channels, *counts)`: the maxima, and for each its position in one flattened
    spatial map, an integer (row by row).
    """
    positions = jnp.broadcast_to(jnp.arange(math.prod(windows.sizes)).reshape(windows.sizes), x.shape)
    for axis in reversed(range(len(windows.kernel))):
        values = _along_axis(x, windows, axis, _lowest(x.dtype))
        places = _along_axis(positions, windows, axis, -1)
        x, positions = next(values), next(places)
        for value, place in zip(values, places, strict=True):
            larger = _is_larger(value, x) | ((positions < 0) & (place >= 0))
            x, positions = jnp.where(larger, value, x), jnp.where(larger, place, positions)
    return x, positions


def _is_larger(value: Array, best: Array) -> Array:
    return (value > best) | (value != value)  # NaN is larger than every number


def _along_axis(x: Array, windows: Windows, axis: int, fill: Any) -> Iterator[Array]:
    """For each element of the kernel along one spatial axis, what lies under it in all windows."""
    stride, dilation, count = windows.strides[axis], windows.dilations[axis], windows.counts[axis]
    config = [(0, 0, 0)] * x.ndim
    config[2 + axis] = (*windows.padding[axis], 0)
    padded = lax.pad(x, jnp.asarray(fill, x.dtype), config)
    for start in range(0, windows.kernel[axis] * dilation, dilation):
        yield lax.slice_in_dim(padded, start, start + (count - 1) * stride + 1, stride, 2 + axis)


def _lowest(dtype: Any) -> np.ndarray:
    return np.array(jnp.iinfo(dtype).min if jnp.issubdtype(dtype, jnp.integer) else -np.inf, dtype)
