"""A convolution as one primitive, so that each platform lowers it, and either of its gradients, as it runs fastest.

A convolution is bilinear, and so are its two gradients. All three are parts of one trilinear form, `sum(y * conv(x, w))`:

| part       | operands       | result                      |
|------------|----------------|-----------------------------|
| `"output"` | input, weight  | the convolution             |
| `"input"`  | output, weight | its transpose in the input  |
| `"weight"` | input, output  | its transpose in the weight |

The transposes of every part are parts again, so that derivatives of any order, forward and reverse, stay inside this
primitive. `jax.lax.platform_dependent` over plain operations would do without a primitive. But differentiation then keeps
every shifted slice of the input for the backward pass, and their counterparts for all other platforms; and
`jax.custom_vjp` would give up forward mode.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array

from . import _cpu, _general
from ._window import Shape, Window

_convolution_p = Primitive("onnxeqx_convolution")


def bind(first: Array, second: Array, *, part: str, window: Window, shape: Shape) -> Array:
    """One part of a convolution (see the module).

    **Arguments:**

    - `first`, `second`: input and output as (batch, channels, *spatial), weight as (out, channels / groups, *kernel).
    - `shape`: of the result.
    """
    return _convolution_p.bind(first, second, part=part, window=window, shape=shape)


_run = jax.jit(bind, static_argnames=("part", "window", "shape"))
_convolution_p.def_impl(lambda first, second, **params: _run(first, second, **params))
_convolution_p.def_abstract_eval(lambda first, second, *, part, window, shape: first.update(shape=shape))

mlir.register_lowering(_convolution_p, mlir.lower_fun(_general.part, multiple_results=False))
mlir.register_lowering(_convolution_p, mlir.lower_fun(_cpu.part, multiple_results=False), platform="cpu")


# For each part: the part that is its transpose, and that one's operands, "c" being the cotangent.
_BY_FIRST = {"output": ("input", "cb"), "input": ("output", "cb"), "weight": ("input", "bc")}
_BY_SECOND = {"output": ("weight", "ac"), "input": ("weight", "ca"), "weight": ("output", "ac")}


def _transpose_first(cotangent: Array, first: Any, second: Array, *, part: str, window: Window, shape: Shape) -> Array:
    transposed, order = _BY_FIRST[part]
    operands = (cotangent, second) if order == "cb" else (second, cotangent)
    return bind(*operands, part=transposed, window=window, shape=first.aval.shape)


def _transpose_second(cotangent: Array, first: Array, second: Any, *, part: str, window: Window, shape: Shape) -> Array:
    transposed, order = _BY_SECOND[part]
    operands = (cotangent, first) if order == "ca" else (first, cotangent)
    return bind(*operands, part=transposed, window=window, shape=second.aval.shape)


ad.defbilinear(_convolution_p, _transpose_first, _transpose_second)


def _batch(operands: Any, axes: Any, *, part: str, window: Window, shape: Shape) -> tuple[Array, int]:
    """`jax.vmap`: the new axis joins the batch, the output channels of every group, or the groups."""
    if axes[1] is None and part != "weight":
        return _batch_examples(operands, axes[0], part, window, shape)
    if axes[0] is None and part != "input":
        return _batch_outputs(operands, axes[1], part, window, shape)
    return _batch_groups(operands, axes, part, window, shape)


def _batch_examples(operands: Any, axis: int, part: str, window: Window, shape: Shape) -> tuple[Array, int]:
    """Many inputs, or outputs, for one weight."""
    examples, weight = jnp.moveaxis(operands[0], axis, 0), operands[1]
    count = examples.shape[0]
    joined = examples.reshape(-1, *examples.shape[2:])
    result = bind(joined, weight, part=part, window=window, shape=(count * shape[0], *shape[1:]))
    return result.reshape(count, *shape), 0


def _batch_outputs(operands: Any, axis: int, part: str, window: Window, shape: Shape) -> tuple[Array, int]:
    """Many weights, or outputs, for one input."""
    given, wanted = (0, 1) if part == "output" else (1, 0)  # the axes of the output channels
    many = jnp.moveaxis(operands[1], axis, given)
    count, channels = many.shape[given : given + 2]
    split = (window.groups, channels // window.groups)
    by_group = many.reshape(*many.shape[:given], count, *split, *many.shape[given + 2 :])
    before, after = many.shape[:given], many.shape[given + 2 :]
    joined = jnp.swapaxes(by_group, given, given + 1).reshape(*before, count * channels, *after)
    before, after = shape[:wanted], shape[wanted + 1 :]
    result = bind(operands[0], joined, part=part, window=window, shape=(*before, count * channels, *after))
    by_group = jnp.swapaxes(result.reshape(*before, split[0], count, split[1], *after), wanted, wanted + 1)
    return by_group.reshape(*before, count, channels, *after), wanted


def _batch_groups(operands: Any, axes: Any, part: str, window: Window, shape: Shape) -> tuple[Array, int]:
    """Convolutions that share nothing."""
    (count,) = {operand.shape[axis] for operand, axis in zip(operands, axes, strict=True) if axis is not None}
    first, second, at = {"output": (1, 0, 1), "input": (1, 0, 1), "weight": (1, 1, 0)}[part]  # the axes of channels
    joined = [_joined(x, axis, count, to) for x, axis, to in zip(operands, axes, (first, second), strict=True)]
    wider = dataclasses.replace(window, groups=count * window.groups)
    result = bind(*joined, part=part, window=wider, shape=(*shape[:at], count * shape[at], *shape[at + 1 :]))
    return result.reshape(*shape[:at], count, *shape[at:]), at


def _joined(x: Array, axis: int | None, count: int, to: int) -> Array:
    """The axis to vectorise over, of size `count`, made one with the axis `to`."""
    if axis is None:
        moved = jnp.broadcast_to(jnp.expand_dims(x, to), (*x.shape[:to], count, *x.shape[to:]))
    else:
        moved = jnp.moveaxis(x, axis, to)
    return moved.reshape(*moved.shape[:to], -1, *moved.shape[to + 2 :])


batching.primitive_batchers[_convolution_p] = _batch
