"""Elements by position: gathering, scattering, selecting, sorting. Every operator here also runs on the host."""

from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from .._printing import Operand
from .._registry import op
from ..runtime import array_namespace, canonical_dtype, host_ints, normalize_axes
from ._operands import Namespace, as_array, as_arrays, known
from ._printing import same, scalar, subscript
from .hookspecs import hookimpl

_REDUCTIONS = {
    "add": ("add", np.add),
    "mul": ("multiply", np.multiply),
    "min": ("min", np.minimum),
    "max": ("max", np.maximum),
}


def _print_gather(data: Operand, indices: Operand, *, axis: int) -> str | None:
    if axis < 0 and data.ndim is None:
        return None
    axis = axis + data.ndim if axis < 0 and data.ndim is not None else axis
    if scalar(indices) is not None:
        return f"data{subscript({axis: str(scalar(indices))}, data.ndim)}"
    is_table = indices.value is not None and indices.value.dtype != object and indices.value.ndim > 0
    return f"data{subscript({axis: 'indices'}, data.ndim)}" if indices.on_device or is_table else None


@op("Gather", since=1, on_host=True, prints=_print_gather)
def gather(data, indices, *, axis=0):
    """Slices of `data` at `indices` (negative ones count from the end) along `axis`. Any dtype; integer indices.

    https://onnx.ai/onnx/operators/onnx__Gather.html
    """
    data = as_array(data, array_namespace(data, indices))
    (axis,) = normalize_axes((axis,), data.ndim)
    # With an ellipsis NumPy returns an array, even where nothing is left of the shape.
    return data[(slice(None),) * axis + (_index(indices), ...)]


def _index(indices: Any) -> Any:
    """A host scalar as an integer, which makes a static slice; anything else as an integer array."""
    if isinstance(indices, jax.Array):
        return indices
    indices = as_array(indices, np)
    if indices.ndim:
        return indices.astype(np.int64)
    index = indices.item()
    return jnp.asarray(index) if jax.export.is_symbolic_dim(index) else index


def _print_gather_elements(data: Operand, indices: Operand, *, axis: int) -> str | None:
    if data.shape is None or indices.shape is None or not indices.on_device:
        return None
    along = axis % len(data.shape)
    others = [i for i in range(len(data.shape)) if i != along]
    if not all(same(data.shape[i], indices.shape[i]) for i in others):
        return None
    return "jnp.take_along_axis(data, indices, axis=axis)"


@op("GatherElements", since=11, on_host=True, prints=_print_gather_elements)
def gather_elements(data, indices, *, axis=0):
    """`out[i, j] = data[indices[i, j], j]` (for `axis` 0). The shape of `indices`, the dtype of `data`.

    https://onnx.ai/onnx/operators/onnx__GatherElements.html
    """
    xp, data, indices = as_arrays(data, indices)
    (axis,) = normalize_axes((axis,), data.ndim)
    # ONNX reads from the start of the other axes, where NumPy would broadcast.
    extent = tuple(slice(None) if i == axis else slice(dim) for i, dim in enumerate(indices.shape))
    return xp.take_along_axis(data[extent], indices, axis=axis)


def _print_gather_nd(data: Operand, indices: Operand, *, batch_dims: int = 0) -> str | None:
    count = indices.shape[-1] if indices.shape else None
    if batch_dims or not indices.on_device or not isinstance(count, int) or not 0 < count <= 4:
        return None
    return f"data[{', '.join(f'indices[..., {i}]' for i in range(count))}]"


@op("GatherND", since=12, on_host=True, prints=_print_gather_nd)
def gather_nd(data, indices, *, batch_dims=0):
    """Slices of `data` at the coordinates in the last axis of `indices`. The dtype of `data`.

    https://onnx.ai/onnx/operators/onnx__GatherND.html
    """
    xp, data, indices = as_arrays(data, indices)
    batch = xp.ix_(*(xp.arange(size, dtype=indices.dtype) for size in indices.shape[:batch_dims]))
    batch = (_with_axes_after(coordinates, indices.ndim - 1) for coordinates in batch)
    return data[(*batch, *_coordinates(indices), ...)]


def _coordinates(indices: Any) -> tuple[Any, ...]:
    """The coordinates in the last axis, one array for each."""
    return tuple(indices[..., i] for i in range(indices.shape[-1]))


def _with_axes_after(array: Any, ndim: int) -> Any:
    return array.reshape(array.shape + (1,) * (ndim - array.ndim))


@op("GatherND", since=11, until=11, on_host=True, prints=_print_gather_nd)
def gather_nd_11(data, indices):
    """Slices of `data` at the coordinates in the last axis of `indices`. The dtype of `data`.

    https://onnx.ai/onnx/operators/onnx__GatherND.html
    """
    return gather_nd(data, indices)


@op("ScatterElements", since=16, on_host=True)
def scatter_elements(data, indices, updates, *, axis=0, reduction="none"):
    """`out[indices[i, j], j] = updates[i, j]` (for `axis` 0), or combined by `reduction`. Shape and dtype of `data`.

    https://onnx.ai/onnx/operators/onnx__ScatterElements.html
    """
    xp, data, indices, updates = as_arrays(data, indices, updates)
    (axis,) = normalize_axes((axis,), data.ndim)
    where = list(xp.ix_(*(xp.arange(size, dtype=indices.dtype) for size in indices.shape)))
    where[axis] = indices
    return _scattered(xp, data, tuple(where), updates, reduction)


def _scattered(xp: Namespace, data: Any, where: tuple[Any, ...], updates: Any, reduction: str) -> Any:
    device, host = _REDUCTIONS.get(reduction, ("set", None))
    if xp is jnp:
        return getattr(data.at[where], device)(updates)
    result = data.astype(np.result_type(data.dtype, updates.dtype))  # symbolic updates make it symbolic
    if host is None:
        result[where] = updates
    else:
        host.at(result, where, updates)
    return result


@op("ScatterElements", since=11, until=15, on_host=True)
def scatter_elements_11(data, indices, updates, *, axis=0):
    """`out[indices[i, j], j] = updates[i, j]` (for `axis` 0). Shape and dtype of `data`.

    https://onnx.ai/onnx/operators/onnx__ScatterElements.html
    """
    return scatter_elements(data, indices, updates, axis=axis)


@op("Scatter", since=9, on_host=True)
def scatter(data, indices, updates, *, axis=0):
    """The former name of ScatterElements.

    https://onnx.ai/onnx/operators/onnx__Scatter.html
    """
    return scatter_elements(data, indices, updates, axis=axis)


@op("ScatterND", since=16, on_host=True)
def scatter_nd(data, indices, updates, *, reduction="none"):
    """`data` with `updates` at (or combined at) the coordinates in the last axis of `indices`. Shape, dtype of `data`.

    https://onnx.ai/onnx/operators/onnx__ScatterND.html
    """
    xp, data, indices, updates = as_arrays(data, indices, updates)
    if updates.ndim == 0:  # may have been a Python number
        updates = updates.astype(updates.dtype if updates.dtype == object else data.dtype)
    return _scattered(xp, data, _coordinates(indices), updates, reduction)


@op("ScatterND", since=11, until=15, on_host=True)
def scatter_nd_11(data, indices, updates):
    """`data` with `updates` at the coordinates in the last axis of `indices`. Shape and dtype of `data`.

    https://onnx.ai/onnx/operators/onnx__ScatterND.html
    """
    return scatter_nd(data, indices, updates)


@op("TensorScatter", since=24, on_host=True)
def tensor_scatter(past_cache, update, write_indices=None, *, axis=-2, mode="linear"):
    """`past_cache` with `update` written along `axis`, from `write_indices` (one an example) on. Same shape, any dtype.

    https://onnx.ai/onnx/operators/onnx__TensorScatter.html
    """
    first = np.zeros(1, np.int64) if write_indices is None else write_indices
    xp, cache, update, first = as_arrays(past_cache, update, first)
    (axis,) = normalize_axes((axis,), cache.ndim)
    steps = first[:, None] + xp.arange(update.shape[axis], dtype=first.dtype)
    if mode == "circular":
        steps = steps % cache.shape[axis]
    steps = steps.reshape(steps.shape[0], *(1,) * (axis - 1), steps.shape[1], *(1,) * (cache.ndim - axis - 1))
    where = list(xp.ix_(*(xp.arange(size, dtype=first.dtype) for size in update.shape)))
    where[axis] = steps
    return _scattered(xp, cache, tuple(where), update, "none")


@op("OneHot", since=9, host=("depth",), on_host=True)
def one_hot(indices, depth, values, *, axis=-1):
    """`values[1]` where the new `axis` of size `depth` equals the index, `values[0]` elsewhere. The dtype of `values`.

    https://onnx.ai/onnx/operators/onnx__OneHot.html
    """
    (count,) = host_ints(depth)
    xp, indices, values = as_arrays(indices, values, sizes=(count,))
    count = int(count) if isinstance(count, float) else count
    dtype = np.dtype(np.int64) if xp is np else canonical_dtype(np.int64)
    (axis,) = normalize_axes((axis,), indices.ndim + 1)
    classes = xp.arange(count, dtype=dtype).reshape(-1, *(1,) * (indices.ndim - axis))
    indices = xp.expand_dims(indices.astype(dtype), axis)
    hit = (indices == classes) | (indices + classes.shape[0] == classes)
    return xp.where(hit, values[1], values[0])


@op("TopK", since=11, host=("K",), on_host=True)
def top_k(X, K, *, axis=-1, largest=1, sorted=1, n_outputs=1):
    """The `K` largest (or smallest) elements along `axis`, in order, and their positions (int64). Any numeric dtype.

    https://onnx.ai/onnx/operators/onnx__TopK.html
    """
    xp, x = as_arrays(X)
    (count,) = host_ints(K)
    (axis,) = normalize_axes((axis,), x.ndim)
    rows = xp.moveaxis(x, axis, -1)
    if xp is np:
        positions = np.argsort(_reversed_order(rows) if largest else rows, axis=-1, stable=True)[..., :count]
    else:
        positions = jax.lax.top_k(rows if largest else _reversed_order(rows), count)[1]
        positions = positions.astype(canonical_dtype(np.int64))
    positions = xp.moveaxis(positions, -1, axis)
    values = xp.take_along_axis(x, positions, axis=axis)
    return (values, positions) if n_outputs > 1 else values


def _reversed_order(x: Any) -> Any:
    # Negation would overflow integers; their complement reverses the order of all of them.
    return ~x if np.issubdtype(x.dtype, np.integer) else -x


@op("TopK", since=10, until=10, host=("K",), on_host=True)
def top_k_10(X, K, *, axis=-1, n_outputs=1):
    """The `K` largest elements along `axis`, in order, and their positions (int64). Float.

    https://onnx.ai/onnx/operators/onnx__TopK.html
    """
    return top_k(X, K, axis=axis, n_outputs=n_outputs)


@op("TopK", since=1, until=9, on_host=True)
def top_k_1(X, *, k, axis=-1, n_outputs=1):
    """The `k` largest elements along `axis`, in order, and their positions (int64). Float.

    https://onnx.ai/onnx/operators/onnx__TopK.html
    """
    return top_k(X, k, axis=axis, n_outputs=n_outputs)


@op("NonZero", since=9, on_host=True)
def non_zero(X):
    """The positions of all elements that are not zero -> (rank, count), int64. Not under `jit`: the shape is data.

    https://onnx.ai/onnx/operators/onnx__NonZero.html
    """
    return as_array(np.stack(np.nonzero(np.atleast_1d(known(X, "NonZero")))), array_namespace(X))


@op("Compress", since=9, host=("condition",), on_host=True)
def compress(input, condition, *, axis=None):
    """The slices along `axis` (or the elements) for which the Boolean vector `condition` holds. Any dtype.

    https://onnx.ai/onnx/operators/onnx__Compress.html
    """
    _, input = as_arrays(input)
    chosen = np.flatnonzero(known(condition, "Compress"))
    return gather(input.reshape(-1), chosen) if axis is None else gather(input, chosen, axis=axis)


@op("Unique", since=11, on_host=True)
def unique(X, *, axis=None, sorted=1, n_outputs=1):
    """Different elements (or slices along `axis`), where each is first, which each element is, and counts (int64).

    Sorted, or in the order of appearance. Not under `jit`: the shape is data.

    https://onnx.ai/onnx/operators/onnx__Unique.html
    """
    xp, x = as_arrays(X)
    _, first, inverse, counts = np.unique(known(x, "Unique"), True, True, True, axis=axis)
    order = np.arange(first.size) if sorted else np.argsort(first)
    first, counts, inverse = first[order], counts[order], np.argsort(order)[inverse.reshape(-1)]
    values = gather(x.reshape(-1), first) if axis is None else gather(x, first, axis=axis)
    outputs = (values, *(as_array(positions, xp) for positions in (first, inverse, counts)))
    return outputs[:n_outputs] if n_outputs > 1 else values


@hookimpl
def onnxeqx_register_ops(registry):
    registry.add_module(__name__)
