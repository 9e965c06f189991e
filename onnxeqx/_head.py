"""Finds the head of a network, the layer that gives its output's width, and replaces it by one of another width."""

import inspect
from collections.abc import Sequence
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.tree_util as jtu
import numpy as np
import onnx
from jaxtyping import PRNGKeyArray

from . import nn
from ._errors import HeadError
from ._origin import Origin, known_origin, origin_of
from ._read import graph_protos
from ._stacks import of_each_layer, stacks_of
from ._weights import dotted_path
from .runtime import canonical_dtype

Model = TypeVar("Model")
Inputs = jax.ShapeDtypeStruct | Sequence[jax.ShapeDtypeStruct]

# What free dimensions of an input are tried with: only shapes are computed, so large images cost nothing.
_BATCH, _SIZES = 2, (8, 64, 224, 1)


def replace_head(
    model: Model, classes: int, *, key: PRNGKeyArray, head: str | None = None, inputs: Inputs | None = None
) -> Model:
    """The model with a new, randomly initialised head for another number of classes.

    ```python
    model = onnxeqx.replace_head(onnxeqx.load("resnet50.onnx"), 10, key=jax.random.key(0))
    ```

    **Arguments:**

    - `model`: its output is `(batch, classes)`, `(batch, positions, classes)` or `(batch, classes, 1, 1)`. With `head`, it may
      have any outputs.
    - `classes`: the new width.
    - `key`: for the initialisation (Equinox's default: uniform, by the number of inputs).
    - `head`: the key path of the layer to replace, an `eqx.nn.Linear` or a convolution, or of a block (then its last layer). By
      default the last layer that is as wide as the output.
    - `inputs`: shapes and dtypes to call the model with. By default those that its ONNX file declares.

    **Returns:** a new model with the same key paths, its head in the old dtype and with a bias; the old one is left as it was.

    **Raises:** `HeadError` if no layer or no such layer is found (it lists the candidates), if the head is tied to another
    layer (a new one would silently untie them), or if the model does not run with it.
    """
    if inputs is None:
        inputs = declared_inputs(model)
    path = find_head(model, inputs, head=head)
    _refuse_tie(model, path)
    old = _layers(model)[path]
    new = eqx.tree_at(lambda tree: _layers(tree)[path], model, _of_width(old, path, classes, key))
    _check(model, new, inputs, path, classes)
    return new


def find_head(model: Any, inputs: Inputs, *, head: str | None = None) -> str:
    """The key path of the head: the last layer whose width is that of the model's output.

    **Arguments:**

    - `model`, `inputs`, `head`: as in [`onnxeqx.replace_head`][].

    **Returns:** the dotted key path of an `eqx.nn.Linear` or a convolution.

    **Raises:** `HeadError`, which lists the candidates.
    """
    layers = _layers(model)
    if head is not None:
        inside = [path for path in layers if path == head or path.startswith(head + ".")]
        if not inside:
            raise HeadError(f"There is no Linear or Conv layer at {head!r} (head, --head); {_listed(layers)}.")
        return inside[-1]
    classes = output_width(model, inputs)
    heads = [path for path, layer in layers.items() if _width(layer) == classes]
    if not heads:
        _refuse_tied_embedding(model, classes)
        raise HeadError(f"No layer has the output's {classes} classes; name one with head (--head): {_listed(layers)}.")
    return heads[-1]


def output_width(model: Any, inputs: Inputs) -> int:
    """The number of classes of the model's output.

    **Raises:** as [`onnxeqx._head.output_shape`][].
    """
    shape = output_shape(model, inputs)
    return shape[2] if len(shape) == 3 else shape[1]


def output_shape(model: Any, inputs: Inputs) -> tuple[int, ...]:
    """The shape of a classifier's output: `(batch, classes)`, `(batch, positions, classes)` or `(batch, classes, 1, 1)`.

    **Raises:** `HeadError` if the output has another shape, or the model has several outputs.
    """
    given = _sequence(inputs)
    outputs = eqx.filter_eval_shape(model, *given)
    shape = getattr(outputs, "shape", None)
    if shape is None:
        raise HeadError(
            f"The model has {len(outputs)} outputs; a classifier has one. Name the layer to replace (head, --head)."
        )
    if len(shape) < 2 or shape[0] != given[0].shape[0] or any(size != 1 for size in shape[3:]):
        raise HeadError(f"The model's output has shape {shape}; a classifier's is (batch, classes).")
    return shape


def declared_inputs(model: Any) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Shapes and dtypes that the model can be called with: those that its ONNX file declares, free dimensions small.

    **Raises:** `HeadError` if it does not run on any; `ConversionError` if it did not come from an ONNX file.
    """
    graph = onnx.ModelProto.FromString(origin_of(model).graph).graph
    errors = []
    for size in _SIZES:
        inputs = _declared(graph, size)
        try:
            eqx.filter_eval_shape(model, *inputs)
        except Exception as error:  # noqa: BLE001  whatever the model raises, other sizes may do
            errors.append(error)
        else:
            return inputs
    text = ", ".join(f"{struct.dtype}{struct.shape}" for struct in _declared(graph, _SIZES[0]))
    raise HeadError(
        f"The model does not run on inputs as its file declares them ({text}); give the shapes that it takes as inputs."
    ) from errors[0]


def _declared(graph: onnx.GraphProto, size: int) -> tuple[jax.ShapeDtypeStruct, ...]:
    stored = {tensor.name for tensor in graph.initializer}
    tensors = [value.type.tensor_type for value in graph.input if value.name not in stored]
    batches = {dim.dim_param for tensor in tensors for dim in tensor.shape.dim[:1]}
    structs = []
    for tensor in tensors:
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        if dtype.kind == "O":
            raise HeadError("The model takes text, whose shapes cannot be computed alone; give other inputs.")
        shape = [
            dim.dim_value or (_BATCH if axis == 0 or (dim.dim_param and dim.dim_param in batches) else size)
            for axis, dim in enumerate(tensor.shape.dim)
        ]
        structs.append(jax.ShapeDtypeStruct(tuple(shape), canonical_dtype(dtype)))
    return tuple(structs)


def _sequence(inputs: Inputs) -> Sequence[jax.ShapeDtypeStruct]:
    return [inputs] if isinstance(inputs, jax.ShapeDtypeStruct) else inputs


# Layers.


def _is_layer(node: Any) -> bool:
    """A linear layer or a convolution, Equinox's or ours."""
    return isinstance(node, eqx.nn.Linear | eqx.nn.Conv | nn.Conv)


def _width(layer: Any) -> int:
    return layer.weight.shape[0]


def _layers(model: Any) -> dict[str, Any]:
    """All linear layers and convolutions by key path, in the order of the model's fields; none of stacked layers."""
    nodes = [(dotted_path(path), node) for path, node in jtu.tree_leaves_with_path(model, is_leaf=_is_layer)]
    stacks = stacks_of(model)
    return {path: node for path, node in nodes if _is_layer(node) and of_each_layer(path, stacks) == [path]}


def _of_width(old: Any, path: str, classes: int, key: PRNGKeyArray) -> Any:
    """A new layer like the old one, of another output width."""
    if getattr(old, "groups", 1) != 1:
        raise HeadError(f"The layer at {path} is a grouped convolution, which cannot get another width.")
    # The constructor's arguments are the fields of the same names, for Equinox's layers and for ours.
    parameters = inspect.signature(type(old)).parameters
    arguments = {name: getattr(old, name) for name in parameters if hasattr(old, name)}
    width = "out_features" if isinstance(old, eqx.nn.Linear) else "out_channels"
    return type(old)(**arguments | {width: classes, "use_bias": True, "dtype": old.weight.dtype, "key": key})


def _listed(layers: dict[str, Any]) -> str:
    last = list(layers.items())[-8:]
    listed = ", ".join(f"{path} ({type(layer).__name__}, {_width(layer)} wide)" for path, layer in last)
    return f"the last layers are {listed}" if listed else "the model has no Linear or Conv layer"


def _check(old: Any, new: Any, inputs: Inputs, path: str, classes: int) -> None:
    before = jax.tree.leaves(eqx.filter_eval_shape(old, *_sequence(inputs)))
    try:
        after = jax.tree.leaves(eqx.filter_eval_shape(new, *_sequence(inputs)))
    except (TypeError, ValueError) as error:  # what JAX raises on shapes that do not fit
        raise HeadError(
            f"The network does not run with {classes} classes at {path}; choose another head (--head)."
        ) from error
    changed = [b.shape for a, b in zip(before, after, strict=True) if a.shape != b.shape]
    if classes != _width(_layers(old)[path]) and not any(classes in shape for shape in changed):
        shapes = ", ".join(str(struct.shape) for struct in after)
        raise HeadError(
            f"With {classes} classes at {path}, the output still has shape {shapes}; choose another head (--head)."
        )


# Ties.


def _refuse_tie(model: Any, path: str) -> None:
    """A head whose weight another operator reads too, as an embedding does, stays: a new one would untie them."""
    readers = _readers(known_origin(model), f"{path}.weight")
    if len(readers) > 1:
        raise HeadError(
            f"The weight of the head at {path} is tied: {' and '.join(sorted(readers))} nodes read it, and a new head would "
            "silently untie them; give another head (--head), or untie them in model.py (onnxeqx.convert)."
        )


def _refuse_tied_embedding(model: Any, classes: int) -> None:
    nodes = jtu.tree_leaves_with_path(model, is_leaf=lambda node: isinstance(node, eqx.nn.Embedding))
    for path, layer in ((dotted_path(path), node) for path, node in nodes if isinstance(node, eqx.nn.Embedding)):
        if layer.num_embeddings == classes and len(_readers(known_origin(model), f"{path}.weight")) > 1:
            raise HeadError(
                f"The head is tied to the embedding at {path}: the output is computed with its weight, and a new head would "
                "silently untie them; untie them in model.py (onnxeqx.convert), or give another head (--head)."
            )


def _readers(origin: Origin | None, leaf: str) -> set[str]:
    """The operators that read a leaf; a layer that is called several times reads its own by one."""
    entry = None if origin is None else origin.provenance.get(leaf)
    if origin is None or entry is None or entry.reader is not None:
        return set()
    graphs = graph_protos(onnx.ModelProto.FromString(origin.graph).graph)
    return {node.op_type for graph in graphs for node in graph.node if entry.initializer in node.input}
