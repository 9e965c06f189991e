"""Which formulation XLA:CPU runs fastest; `benchmarks/convolution.py` measures each against `lax`.

`lax` itself is best for dense kernels of several elements, channels first or last: gathering patches into one matrix
product, or moving the channels, gains nothing.
"""

import functools
import math
from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from . import _depthwise, _general
from ._window import Shape, Window

# Channels in one block of a grouped convolution: fewer leave the vector units idle and make long programs, more multiply
# too many zeros.
_BLOCK = 32
_MAX_BLOCKS = 64  # each is a convolution of its own in the program


def is_faster(weight: Shape, window: Window) -> bool:
    """Whether XLA:CPU has a faster formulation than `lax.conv_general_dilated`. weight: its shape."""
    return _formulation(weight, window) is not _general.part


def _formulation(weight: Shape, window: Window) -> Callable[..., Array]:
    if _depthwise.fits(weight, window):
        return _depthwise.part
    if window.groups > 1:
        few = window.groups // _together(weight, window) <= _MAX_BLOCKS
        return functools.partial(_general.by_transposing, _grouped) if few else _general.part
    pointwise = math.prod(weight[2:]) == 1
    return functools.partial(_general.by_transposing, _pointwise) if pointwise else _general.part


def part(first: Array, second: Array, *, part: str, window: Window, shape: Shape) -> Array:
    """One part of a convolution, see `_primitive`."""
    weight = shape if part == "weight" else second.shape
    return _formulation(weight, window)(first, second, part=part, window=window, shape=shape)


def _pointwise(x: Array, weight: Array, window: Window) -> Array:
    """A kernel of one element: a matrix product over what the strides leave."""
    padded = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (0, 0, 0), *((*pair, 0) for pair in window.padding)))
    left = padded[(slice(None), slice(None), *(slice(None, None, stride) for stride in window.strides))]
    matrix = weight.reshape(weight.shape[:2])
    return jnp.moveaxis(lax.dot_general(matrix, left, (((1,), (1,)), ((), ()))), 0, 1)


def _grouped(x: Array, weight: Array, window: Window) -> Array:
    """One dense convolution for each block of groups, whose weight is block-diagonal.

    Infinities and NaN thereby spread over a block, as 0 * inf is NaN.
    """
    together = _together(weight.shape, window)
    blocks = window.groups // together
    dense = Window(window.strides, window.padding, window.dilations, 1)
    xs, weights = jnp.split(x, blocks, axis=1), jnp.split(_block_diagonal(weight, blocks, together), blocks)
    output = _pointwise if math.prod(weight.shape[2:]) == 1 else _general.output
    return jnp.concatenate([output(x, w, dense) for x, w in zip(xs, weights, strict=True)], axis=1)


def _block_diagonal(weight: Array, blocks: int, together: int) -> Array:
    """(out, in, *kernel) with `together` groups side by side in each block: (out, in * together, *kernel)."""
    channels, *kernel = weight.shape[1:]
    by_group = weight.reshape(blocks, together, -1, 1, channels, *kernel)
    diagonal = jnp.eye(together, dtype=bool).reshape(together, 1, together, *(1,) * (1 + len(kernel)))
    return jnp.where(diagonal, by_group, 0).reshape(-1, together * channels, *kernel)


def _together(weight: Shape, window: Window) -> int:
    """How many groups make a block."""
    limit = max(_BLOCK // weight[1], 1)
    return max(divisor for divisor in range(1, limit + 1) if window.groups % divisor == 0)
