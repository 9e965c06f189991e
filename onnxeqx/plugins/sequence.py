"""Sequences are Python lists, optionals their element or `None`: both exist while tracing only, and are never changed."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from .._registry import op
from ..runtime import host_ints, normalize_axes
from .hookspecs import hookimpl


@op("SequenceConstruct", since=11)
def sequence_construct(*inputs):
    """The sequence of the inputs, any arrays.

    https://onnx.ai/onnx/operators/onnx__SequenceConstruct.html
    """
    return list(inputs)


@op("SequenceEmpty", since=11, dtypes=("dtype",))
def sequence_empty(*, dtype=None):
    """A sequence of nothing; a Python list needs no dtype.

    https://onnx.ai/onnx/operators/onnx__SequenceEmpty.html
    """
    return []


@op("SequenceAt", since=11, host=("position",))
def sequence_at(input_sequence, position):
    """The element at `position`, which counts from the end if negative.

    https://onnx.ai/onnx/operators/onnx__SequenceAt.html
    """
    return input_sequence[_index(position, len(input_sequence))]


@op("SequenceErase", since=11, host=("position",))
def sequence_erase(input_sequence, position=None):
    """The sequence without the element at `position`, by default the last.

    https://onnx.ai/onnx/operators/onnx__SequenceErase.html
    """
    index = _index(-1 if position is None else position, len(input_sequence))
    return [*input_sequence[:index], *input_sequence[index + 1 :]]


@op("SequenceInsert", since=11, host=("position",))
def sequence_insert(input_sequence, tensor, position=None):
    """The sequence with `tensor` before the element at `position`, by default at the end.

    https://onnx.ai/onnx/operators/onnx__SequenceInsert.html
    """
    # A new place is one more than there are elements.
    index = len(input_sequence) if position is None else _index(position, len(input_sequence), places=1)
    return [*input_sequence[:index], tensor, *input_sequence[index:]]


def _index(position: Any, length: int, places: int = 0) -> int:
    (index,) = host_ints(position)
    if not -length <= index < length + places:
        raise IndexError(f"position {index} is outside a sequence of {length} elements")
    return index + length if index < 0 else index


@op("SequenceLength", since=11)
def sequence_length(input_sequence):
    """The number of elements, a NumPy int64 scalar: it is known while tracing.

    https://onnx.ai/onnx/operators/onnx__SequenceLength.html
    """
    return np.array(len(input_sequence), np.int64)


@op("SplitToSequence", since=11, host=("split",))
def split_to_sequence(input, split=None, *, axis=0, keepdims=1):
    """Pieces of `input` along `axis`: of the sizes `split`, or of one size, or single slices (without the axis, on request).

    https://onnx.ai/onnx/operators/onnx__SplitToSequence.html
    """
    (axis,) = normalize_axes((axis,), input.ndim)
    size = input.shape[axis]
    if split is None:
        pieces = jnp.split(input, size, axis)
        return pieces if keepdims else [jnp.squeeze(piece, axis) for piece in pieces]
    if np.ndim(split):
        return jnp.split(input, np.cumsum(host_ints(split))[:-1], axis)
    (length,) = host_ints(split)
    return jnp.split(input, [*range(length, size, length)], axis)


@op("ConcatFromSequence", since=11)
def concat_from_sequence(input_sequence, *, axis, new_axis=0):
    """The elements joined along `axis`, which is a new one on request.

    https://onnx.ai/onnx/operators/onnx__ConcatFromSequence.html
    """
    return jnp.stack(input_sequence, axis) if new_axis else jnp.concatenate(input_sequence, axis)


@op("Optional", since=15)
def optional(input=None, *, type=None):
    """The optional that holds `input`, or nothing.

    https://onnx.ai/onnx/operators/onnx__Optional.html
    """
    return input


@op("OptionalGetElement", since=15)
def optional_get_element(input):
    """What the optional holds.

    https://onnx.ai/onnx/operators/onnx__OptionalGetElement.html
    """
    if input is None:
        raise ValueError("OptionalGetElement was given an empty optional; ask OptionalHasElement first")
    return input


@op("OptionalHasElement", since=15)
def optional_has_element(input=None):
    """Whether the optional holds something, a NumPy bool: it is known while tracing.

    https://onnx.ai/onnx/operators/onnx__OptionalHasElement.html
    """
    return np.array(input is not None)


@hookimpl
def onnxeqx_register_ops(registry):
    registry.add_module(__name__)
