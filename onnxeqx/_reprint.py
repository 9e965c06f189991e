"""Printing a model once more, and putting what it holds by now into the new source."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

import equinox as eqx
import jax.tree_util as jtu
import onnx
import onnx_ir as ir

from ._convert import Printed, convert
from ._errors import ConversionError, NothingToStackError
from ._insert import Dropout
from ._module import import_source
from ._origin import Origin, known_origin, origin_of, set_origin, single_arrays
from ._outputs import cut, value_names
from ._save_onnx import resized
from ._stacks import by_layer, by_stack, stacks_of
from ._stand_ins import with_stand_ins
from ._weights import dotted_path
from .plugins.manager import host
from .runtime import split_layers, stacked

Model = TypeVar("Model")
P = ParamSpec("P")


def skeleton(printed: Printed, origin: Origin) -> Any:
    """The model of a converted graph without its weights: its source imported, its leaves shapes."""
    module = import_source(printed.source)
    set_origin(module, origin)
    return eqx.filter_eval_shape(module.Model)


def title_of(origin: Origin) -> str:
    """The title of a printed file, from its first line."""
    return origin.source.split(",", 1)[0].strip('"')


def cut_to(reading: Callable[[], ir.Model], outputs: Sequence[str] | None) -> ir.Model:
    """A model, with other outputs if some are given. `reading` gives it anew each time."""
    model = reading()
    if outputs:
        cut(model, value_names(reading(), outputs, host()))
    return model


def printed_with_heads(model: Any, outputs: Sequence[str] | None = None) -> Printed:
    """The graph of a model, its heads of their present widths, printed as the first time, but for other outputs."""
    origin = origin_of(model)
    proto, leaves = resized(model, origin), single_arrays(model)
    graph = cut_to(lambda: with_stand_ins(proto, origin.provenance, leaves), outputs)
    return convert(
        graph,
        title_of(origin),
        patterns=origin.patterns,
        dropouts=origin.dropouts,
        scan_layers=bool(origin.stacks),
        remat=origin.remat,
    )


def printed_anew(
    model: Any, *, dropouts: tuple[Dropout, ...] | None = None, scan_layers: bool = False, remat: bool = False
) -> Printed:
    """The graph that a model came from, printed in another way.

    **Raises:** `ConversionError` if the source of the model was edited, which printing it anew would undo.
    """
    origin = origin_of(model)
    if origin.edited:
        raise ConversionError(
            "The source of this model was edited, which printing it anew would undo; do by hand in model.py what this would do."
        )
    graph = with_stand_ins(onnx.ModelProto.FromString(origin.graph), origin.provenance, single_arrays(model))
    return convert(
        graph,
        title_of(origin),
        patterns=origin.patterns,
        dropouts=origin.dropouts if dropouts is None else dropouts,
        scan_layers=scan_layers,
        remat=remat,
        weightless=origin.graph,
    )


def in_source(model: Model, printed: Printed) -> Model:
    """A model in the classes of another source for its graph."""
    fresh = dataclasses.replace(Origin.of(printed), provenance=origin_of(model).provenance)
    return transplanted(model, skeleton(printed, fresh))


def transplanted(model: Any, printed: Any, added: Mapping[str, Any] | None = None) -> Any:
    """The classes of a printed model around the layers and leaves that `model` has at its key paths, whatever they are by now.

    `added` are layers that only the printed model has, by key path.

    **Raises:** `ConversionError` if `model` does not have them all.
    """
    kept, _ = _flatten(model)
    wanted, structure = _flatten(printed)
    if stacks_of(model) != stacks_of(printed):
        kept = by_stack(by_layer(kept, stacks_of(model), split_layers), stacks_of(printed), _join)
    kept |= added or {}
    missing = next((path for path in wanted if path not in kept), None)
    if missing is not None:
        raise ConversionError(
            f"The model has other blocks than its ONNX graph is printed with (no {missing}): one was replaced, or another "
            "version of onnxeqx converted it; do this before replacing blocks, or convert the file again."
        )
    return jtu.tree_unflatten(structure, [kept[path] for path in wanted])


def _flatten(model: Any) -> tuple[dict[str, Any], Any]:
    """What stands in the fields of printed classes, by key path, and the classes around."""

    def is_kept(node: Any) -> bool:
        return node is not None and not isinstance(node, tuple) and type(node).__module__ != type(model).__module__

    found, structure = jtu.tree_flatten_with_path(model, is_leaf=is_kept)
    return {dotted_path(path): node for path, node in found}, structure


def _join(path: str, layers: list[Any]) -> Any:
    try:
        return stacked(layers)
    except ValueError as error:
        raise ConversionError(
            f"The layers cannot be stacked: what stands at {path} is not of one kind and shape in all of them; change all of "
            "them alike, or keep the model unstacked."
        ) from error


def on_single_layers(function: Callable[Concatenate[Model, P], Model]) -> Callable[Concatenate[Model, P], Model]:
    """Decorates a function that changes layers of a model: of a model with stacked layers, it gets the single ones."""

    @functools.wraps(function)
    def changed(model: Model, *args: P.args, **kwargs: P.kwargs) -> Model:
        origin = known_origin(model)
        if origin is None or not origin.stacks:
            return function(model, *args, **kwargs)
        result = function(unstack(model), *args, **kwargs)
        try:
            return stack(result, remat=origin.remat)
        except NothingToStackError:  # too few layers are left
            return result

    return changed


def stack(model: Model, *, remat: bool = False) -> Model:
    """The model with equal layers in a row as one block under `jax.lax.scan`, so that compile time does not grow with depth.

    ```python
    model = onnxeqx.stack(onnxeqx.load("bert.onnx"))
    model.encoder.layer.output.dense.weight  # shape (12, 768, 3072)
    ```

    Key paths stay, without the number of the layer; leaves gain a leading axis of layers. Call the model under `jit`: each
    eager call compiles the scan anew. [`onnxeqx.save_onnx`][] writes single layers as before.

    **Arguments:**

    - `model`: a model that came from [`onnxeqx.load`][], perhaps with replaced layers or LoRA.
    - `remat`: compute the inside of each layer again in the backward pass, which saves the memory of its activations.

    **Returns:** a model in which four or more layers that are equal but for the values of their leaves, of which each takes
    what the one before returns, are one. If only the last layers of a sequence are, `block.1` stands for all from there on.

    **Raises:** `ConversionError` if there are no such layers, if some of them were replaced by others, or if the model's source
    was edited.
    """
    origin = origin_of(model)
    if origin.stacks and origin.remat == remat:
        return model
    return in_source(model, printed_anew(model, scan_layers=True, remat=remat))


def unstack(model: Model) -> Model:
    """The model with each layer by itself: the inverse of [`onnxeqx.stack`][]. A model without stacked layers stays as it is.

    **Raises:** `ConversionError` if the source of the model was edited, or if leaves of stacked layers lost their axis of layers.
    """
    return in_source(model, printed_anew(model)) if origin_of(model).stacks else model


def single_layers(model: Model) -> Model:
    """As [`onnxeqx.unstack`][], for any model: one that did not come from an ONNX file has no stacked layers."""
    return model if known_origin(model) is None else unstack(model)


@on_single_layers
def truncate(model: Any, at: str | Sequence[str]) -> Any:
    """The part of a model up to a layer or block: it returns what that returns. For features, and for style transfer.

    ```python
    features = onnxeqx.truncate(model, at="layer4")
    ```

    **Arguments:**

    - `model`: a model that came from [`onnxeqx.load`][]. Its present weights are kept.
    - `at`: key paths of layers or blocks, or ONNX names of values; several make a tuple.

    **Returns:** a model whose key paths are those of `model`, as far as they are needed. It can be saved like any other.

    **Raises:** `ConversionError` if there is nothing of that name.
    """
    printed = printed_with_heads(model, [at] if isinstance(at, str) else list(at))
    return transplanted(model, skeleton(printed, Origin.of(printed)))
