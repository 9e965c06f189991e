"""Depthwise convolution by shifted multiply-adds, and its transposes.

XLA:CPU has no fast kernel for one input channel per group, and none at all for its gradients. Elementwise products of
shifted slices fuse into one loop; the gradient by the weight accumulates over the batch in a loop, with the channels last, so
that all of its additions are vectorised, however small the image.
"""

import itertools
import math
from collections.abc import Iterator, Sequence

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from ._window import Shape, Window, accumulator

MAX_TAPS = 128  # beyond, programs grow too large


def fits(weight: Shape, window: Window) -> bool:
    """Whether each channel is a group of its own, with a kernel of moderate size."""
    return window.groups > 1 and weight[1] == 1 and len(weight) > 2 and math.prod(weight[2:]) <= MAX_TAPS


def part(first: Array, second: Array, *, part: str, window: Window, shape: Shape) -> Array:
    """One part of a depthwise convolution, see `_primitive`; computed in float32 at least."""
    dtype = accumulator(first.dtype)
    function = {"output": _output, "input": _input, "weight": _weight}[part]
    return function(first.astype(dtype), second.astype(dtype), window, shape).reshape(shape).astype(first.dtype)


# Below, axes are (batch, groups, multiplier, *spatial): each input channel serves `multiplier` output channels.


def _output(x: Array, weight: Array, window: Window, shape: Shape) -> Array:
    padded = lax.pad(x, _zero(x), ((0, 0, 0), (0, 0, 0), *((*pair, 0) for pair in window.padding)))[:, :, None]
    kernel, taps = weight.shape[2:], _taps(weight, window.groups)
    places = _places(kernel, window.dilations, window.strides, shape[2:])
    return sum((padded[(..., *place)] * tap for place, tap in zip(places, taps, strict=True)), start=_zero(x))


def _input(y: Array, weight: Array, window: Window, shape: Shape) -> Array:
    """The flipped kernel over the output, spread out by the strides."""
    kernel, sizes = weight.shape[2:], shape[2:]
    config = []
    for size, count, k, stride, dilation, (low, _) in zip(
        sizes, y.shape[2:], kernel, window.strides, window.dilations, window.padding, strict=True
    ):
        before, reach = (k - 1) * dilation - low, (k - 1) * dilation
        config.append((before, size + reach - before - ((count - 1) * stride + 1), stride - 1))
    spread = lax.pad(_grouped(y, window.groups), _zero(y), ((0, 0, 0),) * 3 + tuple(config))
    places = _places(kernel, window.dilations, (1,) * len(kernel), sizes)
    flipped = reversed(list(_taps(weight, window.groups)))
    return sum((spread[(..., *place)] * tap for place, tap in zip(places, flipped, strict=True)), start=_zero(y)).sum(2)


def _weight(x: Array, y: Array, window: Window, shape: Shape) -> Array:
    padded = lax.pad(x, _zero(x), ((0, 0, 0), (0, 0, 0), *((*pair, 0) for pair in window.padding)))
    kernel, rows = shape[2:], tuple(range(len(shape) - 2))
    places = list(_places(kernel, window.dilations, window.strides, y.shape[2:]))

    def add_example(total: Array, example: tuple[Array, Array]) -> tuple[Array, None]:
        image, of_output = example  # (*spatial, 1, groups) and (*spatial, multiplier, groups)
        return total + jnp.stack([(image[place] * of_output).sum(rows) for place in places]), None

    images = jnp.moveaxis(padded, 1, -1)[..., None, :]
    outputs = jnp.moveaxis(_grouped(y, window.groups), (2, 1), (-2, -1))
    start = jnp.zeros((math.prod(kernel), shape[0] // window.groups, window.groups), x.dtype)
    total, _ = lax.scan(add_example, start, (images, outputs))
    return total.T


def _zero(x: Array) -> Array:
    return jnp.zeros((), x.dtype)


def _grouped(y: Array, groups: int) -> Array:
    return y.reshape(y.shape[0], groups, y.shape[1] // groups, *y.shape[2:])


def _taps(weight: Array, groups: int) -> Iterator[Array]:
    """The weight's elements at each place of the kernel, to multiply a slice with."""
    flat = weight.reshape(groups, weight.shape[0] // groups, -1)
    ones = (1,) * (weight.ndim - 2)
    return (flat[:, :, i].reshape(*flat.shape[:2], *ones) for i in range(flat.shape[2]))


def _places(
    kernel: Sequence[int], dilations: Sequence[int], strides: Sequence[int], counts: Sequence[int]
) -> Iterator[tuple[slice, ...]]:
    """What lies under each place of the kernel, for every position of the window: a slice of each spatial axis."""
    for place in itertools.product(*map(range, kernel)):
        yield tuple(
            slice(i * dilation, i * dilation + (count - 1) * stride + 1, stride)
            for i, dilation, stride, count in zip(place, dilations, strides, counts, strict=True)
        )
