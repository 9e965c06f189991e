"""Sparse tensors, which models may store: JAX computes on dense arrays, so they are filled up when they are read."""

import math

import numpy as np
import onnx

from ._errors import ReadError

_MAX_ELEMENTS = 1 << 31


def dense(sparse: onnx.SparseTensorProto) -> np.ndarray:
    """The array that a sparse tensor stands for.

    **Arguments:**

    - `sparse`: its `indices` are positions in the flattened array (shape `(n,)`), or coordinates (shape `(n, rank)`).

    **Raises:** `ReadError` if shape, indices and values do not fit, or if the array has over two billion elements.

    https://onnx.ai/onnx/repo-docs/IR.html#tensor-definition
    """
    shape = tuple(sparse.dims)
    values, indices = onnx.numpy_helper.to_array(sparse.values), onnx.numpy_helper.to_array(sparse.indices)
    if any(size < 0 for size in shape) or math.prod(shape) > _MAX_ELEMENTS:
        raise ReadError(f"Sparse tensor {sparse.values.name[:100]!r} has the impossible shape {shape}.")
    try:
        array = np.zeros(shape, values.dtype)
        array[np.unravel_index(indices, shape) if indices.ndim == 1 else tuple(indices.T)] = values
    except (IndexError, ValueError) as error:
        raise ReadError(
            f"Sparse tensor {sparse.values.name[:100]!r} of shape {shape} is malformed: {error}."
        ) from error
    return array


def with_dense_initializers(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its sparse initializers filled up; `proto` itself, unchanged, if it has none."""
    if not proto.graph.sparse_initializer:
        return proto
    filled = onnx.ModelProto()
    filled.CopyFrom(proto)
    del filled.graph.sparse_initializer[:]
    for sparse in proto.graph.sparse_initializer:
        filled.graph.initializer.append(onnx.numpy_helper.from_array(dense(sparse), sparse.values.name))
    return filled
