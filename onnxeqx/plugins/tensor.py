"""Shape and layout of tensors: reshaping, slicing, joining, repeating. Every operator here also runs on the host."""

import itertools
import math
from typing import Any

import numpy as np

from .._graph import Call, Kind, Value
from .._printing import Operand
from .._registry import op
from ..runtime import check_host_size, host_ints, normalize_axes
from ._operands import as_array, as_arrays, shape_array
from ._printing import is_known_size, known, known_axes, known_ints, same, subscript
from ._unchanged import keeps_order, keeps_shape, only_input
from .hookspecs import hookimpl

# At and beyond this, ONNX files mean "to the end": both the 32-bit and the 64-bit maximum are in use.
_TO_THE_END = 2**31 - 1


@op("Identity", since=1, on_host=True, passes_through=True)
def identity(input):
    """The input, unchanged. input: a tensor of any shape and dtype, a sequence or an optional.

    https://onnx.ai/onnx/operators/onnx__Identity.html
    """
    return input


@op("Shape", since=15, on_host=True, from_shapes=True)
def shape(data, *, start=0, end=None):
    """The dimensions `start` to `end` of any array -> NumPy int64 vector (`dtype=object` under symbolic dimensions).

    https://onnx.ai/onnx/operators/onnx__Shape.html
    """
    return shape_array(_shape_of(data)[start:end])


@op("Shape", since=1, until=14, on_host=True, from_shapes=True)
def shape_1(data):
    """The dimensions of any array -> NumPy int64 vector (`dtype=object` under symbolic dimensions).

    https://onnx.ai/onnx/operators/onnx__Shape.html
    """
    return shape(data)


@op("Size", since=1, on_host=True, from_shapes=True)
def size(data):
    """The number of elements of any array -> NumPy int64 without axes (`dtype=object` under symbolic dimensions).

    https://onnx.ai/onnx/operators/onnx__Size.html
    """
    return shape_array((math.prod(_shape_of(data)),)).reshape(())


def _shape_of(data: Any) -> tuple[Any, ...]:
    return tuple(data.shape) if hasattr(data, "shape") else as_array(data, np).shape


def _print_reshape(data: Operand, shape: Operand, *, allowzero: int = 0) -> str | None:
    dims = known(shape)
    if dims is None:
        return None
    zeros = [] if allowzero else [i for i, dim in enumerate(dims) if isinstance(dim, int) and dim == 0]
    if not zeros:
        return "data.reshape(*shape)"
    return f"data.reshape({', '.join(f'data.shape[{i}]' if i in zeros else f'shape[{i}]' for i in range(len(dims)))})"


@op(
    "Reshape",
    since=14,
    host=("shape",),
    on_host=True,
    converts=True,
    passes_through=keeps_shape,
    prints=_print_reshape,
    sizes="shape",
)
def reshape(data, shape, *, allowzero=0):
    """The same elements in another shape; -1 is inferred, 0 copies a dimension unless `allowzero`. Any dtype.

    https://onnx.ai/onnx/operators/onnx__Reshape.html
    """
    dims = host_ints(shape)
    _, data = as_arrays(data, sizes=dims)
    if not allowzero:
        dims = tuple(data.shape[i] if isinstance(dim, int) and dim == 0 else dim for i, dim in enumerate(dims))
    return data.reshape(dims)


@op(
    "Reshape",
    since=5,
    until=13,
    host=("shape",),
    on_host=True,
    converts=True,
    passes_through=keeps_shape,
    prints=_print_reshape,
    sizes="shape",
)
def reshape_5(data, shape):
    """The same elements in another shape; -1 is inferred, 0 copies a dimension. Any dtype.

    https://onnx.ai/onnx/operators/onnx__Reshape.html
    """
    return reshape(data, shape)


@op("Reshape", since=1, until=4, on_host=True, converts=True)
def reshape_1(data, *, shape=None, consumed_inputs=None):
    """The same elements in the attribute's shape; -1 is inferred, 0 copies a dimension. Float.

    https://onnx.ai/onnx/operators/onnx__Reshape.html
    """
    return reshape(data, shape or ())


def _print_flatten(input: Operand, *, axis: int) -> str | None:
    if axis == 0:
        return "input.reshape(1, -1)"
    if axis == input.ndim:
        return "input.reshape(-1, 1)"
    return "jax.lax.collapse(input, 1)" if axis == 1 and input.on_device else None


@op("Flatten", since=1, on_host=True, converts=True, passes_through=keeps_shape, prints=_print_flatten)
def flatten(input, *, axis=1):
    """Two axes: those before `axis` and those from `axis` on. Any shape and dtype. Negative axes exist since 11.

    https://onnx.ai/onnx/operators/onnx__Flatten.html
    """
    _, input = as_arrays(input)
    axis = axis + input.ndim if axis < 0 else axis
    return input.reshape(math.prod(input.shape[:axis]), math.prod(input.shape[axis:]))


def _print_squeeze(data: Operand, axes: Operand | tuple[int, ...] | None = None) -> tuple[str, dict[str, Any]] | None:
    dims = known_ints(axes)
    return ("jnp.squeeze(data, axis=axis)", {"axis": dims[0] if len(dims) == 1 else dims}) if dims else None


@op("Squeeze", since=13, host=("axes",), on_host=True, converts=True, prints=_print_squeeze)
def squeeze(data, axes=None):
    """Without `axes`, or without any axis of size 1 where none are given. Any dtype.

    https://onnx.ai/onnx/operators/onnx__Squeeze.html
    """
    xp, data = as_arrays(data)
    axes = () if axes is None else normalize_axes(host_ints(axes), data.ndim)
    return xp.squeeze(data, axis=axes or tuple(i for i, dim in enumerate(data.shape) if dim == 1))


@op("Squeeze", since=1, until=12, on_host=True, converts=True, prints=_print_squeeze)
def squeeze_1(data, *, axes=None):
    """Without `axes`, or without any axis of size 1 where none are given. Any dtype.

    https://onnx.ai/onnx/operators/onnx__Squeeze.html
    """
    return squeeze(data, axes)


def _print_unsqueeze(data: Operand, axes: Operand | tuple[int, ...]) -> str | None:
    inserted = known_ints(axes)
    if not inserted:
        return None
    if inserted == (-1,):
        return "data[..., None]"
    if data.ndim is None:
        return f"data{subscript(dict.fromkeys(inserted, 'None'), None)}" if min(inserted) >= 0 else None
    ndim = data.ndim + len(inserted)
    entries = dict.fromkeys((axis % ndim for axis in inserted), "None")
    if data.ndim == 1:  # a vector shows where its axis is
        entries |= {axis: ":" for axis in range(ndim) if axis not in entries}
    return f"data{subscript(entries, ndim)}"


@op("Unsqueeze", since=13, host=("axes",), on_host=True, converts=True, prints=_print_unsqueeze)
def unsqueeze(data, axes):
    """With axes of size 1 inserted, so that they stand at `axes` of the output. Any dtype.

    https://onnx.ai/onnx/operators/onnx__Unsqueeze.html
    """
    xp, data = as_arrays(data)
    return xp.expand_dims(data, host_ints(axes))


@op("Unsqueeze", since=1, until=12, on_host=True, converts=True, prints=_print_unsqueeze)
def unsqueeze_1(data, *, axes):
    """With axes of size 1 inserted, so that they stand at `axes` of the output. Any dtype.

    https://onnx.ai/onnx/operators/onnx__Unsqueeze.html
    """
    return unsqueeze(data, axes)


def _print_transpose(data: Operand, *, perm: tuple[int, ...] | None) -> str:
    return "data.T" if perm is None or tuple(perm) == (1, 0) else "data.transpose(*perm)"


@op("Transpose", since=1, on_host=True, passes_through=keeps_order, prints=_print_transpose)
def transpose(data, *, perm=None):
    """Axes in the order `perm`, reversed by default. Any shape and dtype.

    https://onnx.ai/onnx/operators/onnx__Transpose.html
    """
    xp, data = as_arrays(data)
    return xp.transpose(data, perm)


_CONCATENATE = "jnp.concatenate([*inputs], axis=axis)"


@op("Concat", since=4, on_host=True, passes_through=only_input, prints=_CONCATENATE)
def concat(*inputs, axis):
    """The inputs one after another along `axis`; other axes and the dtype are equal.

    https://onnx.ai/onnx/operators/onnx__Concat.html
    """
    xp, *inputs = as_arrays(*inputs)
    return xp.concatenate(inputs, axis=axis)


@op("Concat", since=1, until=3, on_host=True, passes_through=only_input, prints=_CONCATENATE)
def concat_1(*inputs, axis=1):
    """The inputs one after another along `axis`, 1 by default; other axes and the dtype are equal.

    https://onnx.ai/onnx/operators/onnx__Concat.html
    """
    return concat(*inputs, axis=axis)


def _print_split(
    input: Operand,
    split: Operand | tuple[int, ...] | None = None,
    *,
    axis: int,
    num_outputs: int | None = None,
    n_outputs: int,
) -> tuple[str, dict[str, Any]] | None:
    sizes = known_ints(split)
    if input.ndim is None or input.shape is None or n_outputs == 1 or (num_outputs or n_outputs) != n_outputs:
        return None
    total = input.shape[axis]
    if split is None and isinstance(total, int) and total % n_outputs == 0:
        sizes = (total // n_outputs,) * n_outputs
    if sizes is None or len(sizes) != n_outputs:
        return None
    equal = isinstance(total, int) and set(sizes) == {total // n_outputs} and sum(sizes) == total
    parts = n_outputs if equal else tuple(itertools.accumulate(sizes[:-1]))
    return "jnp.split(input, parts, axis=axis)", {"parts": parts}


@op("Split", since=18, host=("split",), on_host=True, prints=_print_split)
def split(input, split=None, *, axis=0, num_outputs=None, n_outputs=1):
    """Parts along `axis`: of the sizes `split`, or of equal size (the last may be smaller). Any dtype.

    https://onnx.ai/onnx/operators/onnx__Split.html
    """
    return _parts(input, split, axis, num_outputs or n_outputs, n_outputs)


def _parts(input: Any, lengths: Any, axis: int, count: int, n_outputs: int) -> Any:
    lengths = None if lengths is None else host_ints(lengths)
    _, input = as_arrays(input, sizes=lengths or ())
    (axis,) = normalize_axes((axis,), input.ndim)
    ends = _part_ends(input.shape[axis], lengths, count)
    before = (slice(None),) * axis
    parts = tuple(input[(*before, slice(*bounds))] for bounds in zip((0, *ends), ends, strict=False))
    return parts if n_outputs > 1 else parts[0]


def _part_ends(size: Any, lengths: tuple[Any, ...] | None, count: int) -> tuple[Any, ...]:
    """Where the parts end: at the running sums of `lengths`, or at equal distances (the last part may be smaller)."""
    if lengths is None:
        part = -(-size // count)
        return *(part * i for i in range(1, count)), size
    return tuple(itertools.accumulate(lengths))


@op("Split", since=13, until=17, host=("split",), on_host=True, prints=_print_split)
def split_13(input, split=None, *, axis=0, n_outputs=1):
    """Parts along `axis`: of the sizes `split`, or of equal size. Any dtype.

    https://onnx.ai/onnx/operators/onnx__Split.html
    """
    return _parts(input, split, axis, n_outputs, n_outputs)


@op("Split", since=2, until=12, on_host=True, prints=_print_split)
def split_2(input, *, split=None, axis=0, n_outputs=1):
    """Parts along `axis`: of the sizes `split`, or of equal size. Any dtype.

    https://onnx.ai/onnx/operators/onnx__Split.html
    """
    return _parts(input, split, axis, n_outputs, n_outputs)


@op("Split", since=1, until=1, host=("lengths",), on_host=True)
def split_1(input, lengths=None, *, split=None, axis=None, n_outputs=1):
    """Parts along `axis`, of the sizes `lengths` (ONNX calls this input `split`, too) or `split`, or of equal size.

    https://onnx.ai/onnx/operators/onnx__Split.html
    """
    return _parts(input, split if lengths is None else lengths, axis or 0, n_outputs, n_outputs)


def _print_slice(data: Operand, starts: Any, ends: Any, axes: Any = None, steps: Any = None) -> str | None:
    first, last = known(starts), known(ends)
    if first is None or last is None:
        return None
    along = known_axes(range(len(first)) if axes is None else axes, data.ndim)
    strides = (1,) * len(first) if steps is None else known(steps)
    if along is None or strides is None or len(set(along)) < len(along):
        return None
    entries = {}
    for i, (axis, start, end, step) in enumerate(zip(along, first, last, strides, strict=True)):
        entry = _slice_text(i, start, end, step)
        if entry is None:
            return None
        if entry != ":":
            entries[axis] = entry
    return f"data{subscript(entries, data.ndim)}" if entries else "data"


def _slice_text(i: int, start: Any, end: Any, step: Any) -> str | None:
    """The `i`-th slice in Python. Beyond the ends of an axis, Python and ONNX differ for negative steps."""
    if not isinstance(step, int):
        return None
    if step < 0:
        is_whole = isinstance(start, int) and isinstance(end, int) and end <= -_TO_THE_END
        return f"::{step}" if is_whole and (start == -1 or start >= _TO_THE_END) else None
    low = "" if isinstance(start, int) and (start == 0 or start <= -_TO_THE_END) else f"starts[{i}]"
    high = "" if isinstance(end, int) and end >= _TO_THE_END else f"ends[{i}]"
    if any(isinstance(bound, int) and abs(bound) >= _TO_THE_END for bound in (start if low else 0, end if high else 0)):
        return None
    return f"{low}:{high}" + (f":{step}" if step != 1 else "")


def _takes_all(call: Call) -> Value | None:
    """The input of a Slice from the beginning to the end of every axis."""
    constants = [value.array if value is not None and value.kind is Kind.CONST else None for value in call.inputs[1:]]
    starts, ends, steps = constants[0], constants[1], constants[3] if len(call.inputs) > 4 else np.ones(1)
    if starts is None or ends is None or steps is None:
        return None
    return call.operand(0) if not starts.any() and (ends >= _TO_THE_END).all() and (steps == 1).all() else None


@op(
    "Slice",
    since=10,
    host=("starts", "ends", "axes", "steps"),
    on_host=True,
    passes_through=_takes_all,
    prints=_print_slice,
)
def slice_(data, starts, ends, axes=None, steps=None):
    """Every `steps`-th element from `starts` to before `ends`, clamped, along `axes`. Any shape and dtype.

    https://onnx.ai/onnx/operators/onnx__Slice.html
    """
    starts, ends = host_ints(starts), host_ints(ends)
    _, data = as_arrays(data, sizes=(*starts, *ends))
    axes = range(len(starts)) if axes is None else normalize_axes(host_ints(axes), data.ndim)
    steps = (1,) * len(starts) if steps is None else host_ints(steps)
    window = [slice(None)] * data.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        window[axis] = _slice_of_axis(data.shape[axis], start, end, step)
    return data[tuple(window)]


def _slice_of_axis(size: Any, start: Any, end: Any, step: int) -> slice:
    """A Python slice, which clamps as ONNX does. The ends of the axis become `None`.

    Nothing then compares a symbolic size with a sentinel, and no 64-bit sentinel reaches JAX, which would wrap it.
    """
    first, last = (-_TO_THE_END, _TO_THE_END) if step > 0 else (_TO_THE_END, -_TO_THE_END)
    if step < 0 and isinstance(start, int) and isinstance(size, int) and start < 0:
        start = max(start + size, 0)  # Python would begin before the first element and take none
    start, end = (clamped(bound) for bound in (start, end))
    return slice(None if start == first else start, None if end == last else end, step)


def clamped(number: Any) -> Any:
    """A plain integer within 32 bits; symbolic ones are nowhere near the limits."""
    return max(-_TO_THE_END, min(number, _TO_THE_END)) if isinstance(number, int) else number


@op("Slice", since=1, until=9, on_host=True, prints=_print_slice)
def slice_1(data, *, starts, ends, axes=None):
    """The elements from `starts` to before `ends`, clamped, along `axes`. Any shape and dtype.

    https://onnx.ai/onnx/operators/onnx__Slice.html
    """
    return slice_(data, starts, ends, axes)


def _print_expand(input: Operand, shape: Operand) -> str | None:
    wanted, present = known(shape), input.shape
    if wanted is None or present is None:
        return None
    ndim = max(len(wanted), len(present))
    missing = ndim - len(present)
    dims = []
    for axis in range(ndim):
        want = wanted[axis - ndim + len(wanted)] if axis >= ndim - len(wanted) else 1
        have = present[axis - missing] if axis >= missing else 1
        if same(want, 1) and not is_known_size(have):
            dims.append(f"input.shape[{axis - missing}]")
        elif not same(want, 1) and (is_known_size(want) or same(have, 1) or same(want, have)):
            dims.append(f"shape[{axis - ndim + len(wanted)}]")
        elif is_known_size(have):
            dims.append(str(have))  # a wanted size that is not known yet is this or one
        else:
            return None
    return f"jnp.broadcast_to(input, ({''.join(f'{dim}, ' for dim in dims)}))"


@op("Expand", since=8, host=("shape",), on_host=True, passes_through=keeps_shape, prints=_print_expand)
def expand(input, shape):
    """Broadcast against `shape` in both directions. Any dtype.

    https://onnx.ai/onnx/operators/onnx__Expand.html
    """
    wanted = host_ints(shape)
    xp, input = as_arrays(input, sizes=wanted)
    rank = max(len(wanted), input.ndim)
    present = (1,) * (rank - input.ndim) + input.shape
    wanted = (1,) * (rank - len(wanted)) + wanted
    dims = tuple(
        have if isinstance(want, int) and want == 1 else want for have, want in zip(present, wanted, strict=True)
    )
    return xp.broadcast_to(input, dims)


@op("Tile", since=6, host=("repeats",), on_host=True, prints="jnp.tile(input, repeats)")
def tile(input, repeats):
    """The input `repeats[i]` times along axis `i`. Any shape and dtype.

    https://onnx.ai/onnx/operators/onnx__Tile.html
    """
    repeats = host_ints(repeats)
    xp, input = as_arrays(input, sizes=repeats)
    if xp is np:
        check_host_size(*input.shape, *repeats)
    return xp.tile(input, repeats)


@op("Tile", since=1, until=5, host=("tiles", "axis"), on_host=True)
def tile_1(input, tiles, axis):
    """The input `tiles` times along `axis`. Any shape, float; `tiles` and `axis` are float scalars there, too.

    https://onnx.ai/onnx/operators/onnx__Tile.html
    """
    xp, input = as_arrays(input)
    (count,), (axis,) = host_ints(tiles), host_ints(axis)
    repeats = [1] * input.ndim
    repeats[int(axis)] = int(count)
    return xp.tile(input, tuple(repeats))


@op("SpaceToDepth", since=28, on_host=True)
def space_to_depth(input, *, blocksize, mode="DCR"):
    """Blocks of the last two axes to channels. input: (N, C, H, W) -> (N, C * b * b, H / b, W / b), any dtype.

    https://onnx.ai/onnx/operators/onnx__SpaceToDepth.html
    """
    xp, input = as_arrays(input)
    n, c, h, w = input.shape
    blocks = input.reshape(n, c, h // blocksize, blocksize, w // blocksize, blocksize)
    blocks = xp.transpose(blocks, (0, 1, 3, 5, 2, 4) if mode == "CRD" else (0, 3, 5, 1, 2, 4))
    return blocks.reshape(n, c * blocksize**2, h // blocksize, w // blocksize)


@op("SpaceToDepth", since=1, until=27, on_host=True)
def space_to_depth_1(input, *, blocksize):
    """Blocks of the last two axes to channels. input: (N, C, H, W) -> (N, C * b * b, H / b, W / b), any dtype.

    https://onnx.ai/onnx/operators/onnx__SpaceToDepth.html
    """
    return space_to_depth(input, blocksize=blocksize)


@op("DepthToSpace", since=11, on_host=True)
def depth_to_space(input, *, blocksize, mode="DCR"):
    """Channels to blocks of the last two axes. input: (N, C, H, W) -> (N, C / b / b, H * b, W * b), any dtype.

    https://onnx.ai/onnx/operators/onnx__DepthToSpace.html
    """
    xp, input = as_arrays(input)
    n, c, h, w = input.shape
    depth = c // blocksize**2
    if mode == "CRD":
        blocks = xp.transpose(input.reshape(n, depth, blocksize, blocksize, h, w), (0, 1, 4, 2, 5, 3))
    else:
        blocks = xp.transpose(input.reshape(n, blocksize, blocksize, depth, h, w), (0, 3, 4, 1, 5, 2))
    return blocks.reshape(n, depth, h * blocksize, w * blocksize)


@op("DepthToSpace", since=1, until=10, on_host=True)
def depth_to_space_1(input, *, blocksize):
    """Channels to blocks of the last two axes. input: (N, C, H, W) -> (N, C / b / b, H * b, W * b), any dtype.

    https://onnx.ai/onnx/operators/onnx__DepthToSpace.html
    """
    return depth_to_space(input, blocksize=blocksize)


def _print_trilu(input: Operand, k: Operand | None = None, *, upper: int) -> tuple[str, dict[str, Any]] | None:
    diagonal = (0,) if k is None else known_ints(k)
    if diagonal is None:
        return None
    return f"jnp.{'triu' if upper else 'tril'}(input, k=diagonal)", {"diagonal": clamped(diagonal[0])}


@op("Trilu", since=14, host=("k",), on_host=True, prints=_print_trilu)
def trilu(input, k=None, *, upper=1):
    """Zero below (or, unless `upper`, above) diagonal `k` of the last two axes. Any dtype.

    https://onnx.ai/onnx/operators/onnx__Trilu.html
    """
    xp, input = as_arrays(input)
    (diagonal,) = (0,) if k is None else host_ints(k)
    return (xp.triu if upper else xp.tril)(input, clamped(diagonal))


@op("ReverseSequence", since=10, on_host=True)
def reverse_sequence(input, sequence_lens, *, batch_axis=1, time_axis=0):
    """The first `sequence_lens[i]` steps of example `i` in reverse. input: any dtype, two axes or more; lengths: (N,).

    https://onnx.ai/onnx/operators/onnx__ReverseSequence.html
    """
    xp, input, sequence_lens = as_arrays(input, sequence_lens)
    lengths = xp.expand_dims(sequence_lens, tuple(i for i in range(input.ndim) if i != batch_axis))
    steps = xp.arange(input.shape[time_axis], dtype=lengths.dtype)
    steps = xp.expand_dims(steps, tuple(i for i in range(input.ndim) if i != time_axis))
    order = xp.where(steps < lengths, lengths - 1 - steps, steps)
    return xp.take_along_axis(input, order, axis=time_axis)


@hookimpl
def onnxeqx_register_ops(registry):
    registry.add_module(__name__)
