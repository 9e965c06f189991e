"""Finds the classification head of a network, and replaces it by one for another number of classes."""

import inspect
from typing import Any

import equinox as eqx
import jax
from jaxtyping import PRNGKeyArray

from .. import nn
from .._weights import dotted_path
from .errors import HeadError


def find_head(model: eqx.Module, inputs: jax.ShapeDtypeStruct, *, head: str | None = None) -> str:
    """The key path of the classification head: the last layer whose width is that of the model's output.

    **Arguments:**

    - `model`: called with one batch.
    - `inputs`: shape and dtype of that batch.
    - `head`: a key path, to choose the layer instead: of the layer itself, or of a block (then its last layer).

    **Returns:** the dotted key path of an `eqx.nn.Linear` or an `onnxeqx.nn.Conv`.

    **Raises:** `HeadError`, which lists the candidates.
    """
    layers = _layers(model)
    if head is not None:
        inside = [path for path in layers if path == head or path.startswith(head + ".")]
        if not inside:
            raise HeadError(f"There is no Linear or Conv layer at --head {head}; {_listed(layers)}.")
        return inside[-1]
    classes = output_width(model, inputs)
    heads = [path for path, layer in layers.items() if _width(layer) == classes]
    if not heads:
        raise HeadError(f"No layer has the output's {classes} classes; name one with --head: {_listed(layers)}.")
    return heads[-1]


def replace_head(model: eqx.Module, head: str, classes: int, *, key: PRNGKeyArray) -> eqx.Module:
    """The model with a new, randomly initialised layer in place of its head; a key-path keeps its name.

    **Arguments:**

    - `model`: the model.
    - `head`: a key path that `find_head` returned.
    - `classes`: the new width.
    - `key`: for the initialisation (Equinox's default: uniform, by the number of inputs).

    **Returns:** a new model; the old one is left as it was.

    **Raises:** `HeadError` if the layer is a grouped convolution.
    """
    old = _layers(model)[head]
    if getattr(old, "groups", 1) != 1:
        raise HeadError(f"The layer at --head {head} is a grouped convolution, which cannot get another width.")
    # The constructor's arguments are the fields of the same names, for Equinox's layers and for ours.
    parameters = inspect.signature(type(old)).parameters
    arguments = {name: getattr(old, name) for name in parameters if hasattr(old, name)}
    width = "out_features" if isinstance(old, eqx.nn.Linear) else "out_channels"
    arguments |= {width: classes, "use_bias": True, "dtype": old.weight.dtype, "key": key}
    return eqx.tree_at(lambda tree: _layers(tree)[head], model, type(old)(**arguments))


def output_width(model: Any, inputs: jax.ShapeDtypeStruct) -> int:
    """The number of classes of a classifier's output, of shape `(batch, classes)` or `(batch, classes, 1, 1)`.

    **Raises:** `HeadError` if the output has another shape, or the model has several outputs.
    """
    outputs = eqx.filter_eval_shape(model, inputs)
    shape = getattr(outputs, "shape", None)
    if shape is None:
        raise HeadError(f"The model has {len(outputs)} outputs; a classifier has one.")
    if len(shape) < 2 or shape[0] != inputs.shape[0] or any(size != 1 for size in shape[2:]):
        raise HeadError(f"The model's output has shape {shape}; a classifier's is (batch, classes).")
    return shape[1]


def _is_layer(node: Any) -> bool:
    """A linear layer or a convolution, Equinox's or ours."""
    return isinstance(node, eqx.nn.Linear | eqx.nn.Conv | nn.Conv)


def _width(layer: Any) -> int:
    return layer.weight.shape[0]


def _layers(model: eqx.Module) -> dict[str, Any]:
    """All linear layers and convolutions by key path, in the order of the model's fields."""
    nodes = jax.tree_util.tree_leaves_with_path(model, is_leaf=_is_layer)
    return {dotted_path(path): node for path, node in nodes if _is_layer(node)}


def _listed(layers: dict[str, Any]) -> str:
    last = list(layers.items())[-8:]
    listed = ", ".join(f"{path} ({type(layer).__name__}, {_width(layer)} wide)" for path, layer in last)
    return f"the last layers are {listed}" if listed else "the model has no Linear or Conv layer"
