import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from . import _cpu, _general, _primitive
from ._window import Window, is_known


def convolution(
    x: Array,
    weight: Array,
    *,
    strides: Sequence[int],
    padding: Sequence[tuple[Any, Any]],
    dilations: Sequence[int],
    groups: int,
) -> Array:
    """Cross-correlation, channels first, as the platform runs it fastest.

    On TPU and GPU that is `lax.conv_general_dilated`, always. On CPU it depends on the shapes, which must be known: a
    program with symbolic dimensions holds `lax.conv_general_dilated`, too.

    **Arguments:**

    - `x`: float, shape `(batch, channels, *spatial)`.
    - `weight`: of the same dtype, shape `(out_channels, channels / groups, *kernel)`.
    - `strides`, `padding` (pairs), `dilations`: one for each spatial axis.

    **Returns:** shape `(batch, out_channels, *spatial)`, dtype of `x`.
    """
    window = Window(tuple(strides), tuple(map(tuple, padding)), tuple(dilations), groups)
    if not is_known(*window.padding):  # which lax refuses
        x, window = _padded(x, window)
    if not _vary_equally(x, weight) or not is_known(x.shape) or not _cpu.is_faster(weight.shape, window):
        return _general.output(x, weight, window)
    _check(x, weight, window)
    shape = (x.shape[0], weight.shape[0], *window.output_sizes(x.shape[2:], weight.shape[2:]))
    return _primitive.bind(x, weight, part="output", window=window, shape=shape)


def _padded(x: Array, window: Window) -> tuple[Array, Window]:
    config = ((0, 0, 0), (0, 0, 0), *((low, high, 0) for low, high in window.padding))
    padded = lax.pad(x, jnp.zeros((), x.dtype), config)
    return padded, dataclasses.replace(window, padding=((0, 0),) * len(window.padding))


def _vary_equally(x: Array, weight: Array) -> bool:
    """Under `jax.shard_map`, whether both differ between the same devices; `lax` knows how to make it so."""
    types = jax.typeof(x), jax.typeof(weight)
    attribute = "manual_axis_type" if hasattr(types[0], "manual_axis_type") else "vma"  # the name until JAX 0.9
    return getattr(types[0], attribute) == getattr(types[1], attribute)


def _check(x: Array, weight: Array, window: Window) -> None:
    """What `lax.conv_general_dilated` would refuse."""
    if x.dtype != weight.dtype:
        raise TypeError(f"input and weight must have equal dtypes, not {x.dtype} and {weight.dtype}")
    if x.ndim != weight.ndim or x.shape[1] != weight.shape[1] * window.groups or weight.shape[0] % window.groups:
        raise ValueError(f"weight {weight.shape} with {window.groups} groups does not fit the input {x.shape}")
