"""Dropout in a model that has none: exporters leave it out of files for inference."""

from collections.abc import Sequence
from typing import TypeVar

from ._insert import Dropout, droppable
from ._lora import matching_layers
from ._origin import origin_of
from ._reprint import in_source, on_single_layers, printed_anew

Model = TypeVar("Model")


@on_single_layers
def insert_dropout(model: Model, layers: str | Sequence[str], rate: float, *, before: bool = False) -> Model:
    """The model with dropout at some of its layers, for fine-tuning: it drops where it is called with a `key` only.

    ```python
    model = onnxeqx.insert_dropout(model, "*.dense|*.fc1", 0.1)
    logits = model(x, key=jax.random.key(step))  # drops, each layer by a key of its own
    logits = model(x)  # the identity, as before
    ```

    The source is printed anew with the dropouts in it, so that the key reaches every layer as an argument. Leaves, key paths
    and replaced layers stay what they are. [`onnxeqx.save`][] keeps the dropout; [`onnxeqx.save_onnx`][] leaves it out, as
    files for inference do.

    **Arguments:**

    - `model`: a model that came from [`onnxeqx.load`][].
    - `layers`: patterns of the key paths of layers (`onnxeqx inspect` lists them), in a sequence or separated by `|`.
    - `rate`: the share of elements that become zero; the others are divided by `1 - rate`. 0 is the identity. It replaces the
      rate of a dropout that is there already.
    - `before`: drop what the layers take, not what they return.

    **Raises:** `WeightsError` if a pattern matches no layer; `ValueError` if the rate is not in [0, 1); `ConversionError` if the
    source of the model was edited, which printing it anew would undo.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"The rate of a dropout is at least 0 and below 1, not {rate}.")
    wanted = layers.split("|") if isinstance(layers, str) else list(layers)
    dropouts = {(entry.layers, entry.before): entry for entry in origin_of(model).dropouts}
    for pattern in wanted:
        dropouts.pop((pattern, before), None)  # the last that means a place counts
        dropouts[pattern, before] = Dropout(pattern, float(rate), before)
    printed = printed_anew(model, dropouts=tuple(dropouts.values()))
    known = dict.fromkeys(path for call in printed.lifted.all_calls() if (path := droppable(call, before)))
    matching_layers(list(known), wanted, "layer with floating-point numbers")
    return in_source(model, printed)
