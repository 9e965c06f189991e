"""Every part of a convolution by `lax.conv_general_dilated`: what TPU and GPU like, and CPU for dense kernels."""

from collections.abc import Callable

import jax
from jax import lax
from jaxtyping import Array

from ._window import Shape, Window

Output = Callable[[Array, Array, Window], Array]


def output(x: Array, weight: Array, window: Window) -> Array:
    """The convolution itself."""
    return lax.conv_general_dilated(
        x,
        weight,
        window.strides,
        window.padding,
        rhs_dilation=window.dilations,
        feature_group_count=window.groups,
    )


def part(first: Array, second: Array, *, part: str, window: Window, shape: Shape) -> Array:
    """One part of a convolution, see `_primitive`."""
    return by_transposing(output, first, second, part=part, window=window, shape=shape)


def by_transposing(function: Output, first: Array, second: Array, *, part: str, window: Window, shape: Shape) -> Array:
    """One part of a convolution, from a function that computes the output and that JAX can transpose."""
    result = jax.ShapeDtypeStruct(shape, first.dtype)
    if part == "output":
        return function(first, second, window)
    if part == "input":
        return jax.linear_transpose(lambda x: function(x, second, window), result)(first)[0]
    return jax.linear_transpose(lambda weight: function(first, weight, window), result)(second)[0]
