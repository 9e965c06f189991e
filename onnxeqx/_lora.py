"""Low-rank adaptation (LoRA): a few small matrices are trained beside the frozen weights of linear layers and convolutions.

https://arxiv.org/abs/2106.09685
"""

import fnmatch
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.tree_util as jtu
from jaxtyping import PRNGKeyArray

from ._errors import WeightsError
from ._reprint import on_single_layers, single_layers
from ._weights import arrays, bind, dotted_path, read_weights, save_weights
from .nn import Conv, LoRAConv, LoRALinear

Tree = TypeVar("Tree")

_PLAIN, _ADAPTED = (eqx.nn.Linear, Conv), (LoRALinear, LoRAConv)


@on_single_layers
def lora(
    model: Tree, layers: str | Sequence[str], *, rank: int = 8, alpha: float | None = None, key: PRNGKeyArray
) -> Tree:
    """The model with low-rank updates beside the weights of some layers; it computes the same at first.

    ```python
    model = onnxeqx.lora(model, "*.query|*.value", rank=8, key=jax.random.key(0))
    mask = onnxeqx.parameters(model, trainable="*.lora_*")
    ```

    **Arguments:**

    - `model`: a model with `eqx.nn.Linear` or [`onnxeqx.nn.Conv`][] layers. Key paths stay: each layer gains `lora_down` and
      `lora_up`.
    - `layers`: patterns of the layers' key paths, in a sequence or separated by `|`.
    - `rank`: of each update.
    - `alpha`: the updates are scaled by `alpha / rank`; by default by 1.
    - `key`: for the initial `lora_down`.

    **Raises:** `WeightsError` if a pattern matches no such layer; `ValueError` if the rank is below 1.
    """
    if rank < 1:
        raise ValueError(f"The rank of an update is at least 1, not {rank}.")
    known = adaptable_layers(model)
    chosen = matching_layers(list(known), layers)
    keys = jax.random.split(key, len(chosen))
    scale = 1.0 if alpha is None else alpha / rank
    replacements = {path: _adapted(known[path], rank, scale, key) for path, key in zip(chosen, keys, strict=True)}
    return _with(model, _PLAIN, replacements)


@on_single_layers
def merge_lora(model: Tree) -> Tree:
    """The model with its low-rank updates added to the weights: plain layers, as [`onnxeqx.save_onnx`][] takes them."""
    return _with(model, _ADAPTED, {path: layer.merged() for path, layer in _layers(model, _ADAPTED).items()})


def save_lora(model: Any, path: str | os.PathLike[str]) -> None:
    """Writes the low-rank updates alone to a safetensors file, by key path.

    **Raises:** `WeightsError` if the model has none.
    """
    model = single_layers(model)
    layers = _layers(model, _ADAPTED)
    if not layers:
        raise WeightsError("The model has no low-rank updates; add them with onnxeqx.lora.")
    updates = {name: leaf for name, leaf in arrays(model).items() if _layer_of(name) in layers and _is_update(name)}
    save_weights(updates, path, metadata={path: repr(layer.scale) for path, layer in layers.items()})


@on_single_layers
def load_lora(model: Tree, path: str | os.PathLike[str]) -> Tree:
    """The model with the low-rank updates that [`onnxeqx.save_lora`][] wrote.

    **Arguments:**

    - `model`: the base model, with plain layers.
    - `path`: the file.

    **Raises:** `WeightsError` if the file does not fit the model.
    """
    updates, scales = read_weights(path)
    known = adaptable_layers(model)
    missing = sorted(set(scales) - set(known))
    if missing or not scales:
        problem = f"the model has no layer {missing[0]!r}" if missing else "it holds no low-rank updates"
        raise WeightsError(
            f"{str(path)!r} does not fit the model: {problem}; give the model that they were trained for."
        )
    replacements = {
        name: _adapted(known[name], updates[f"{name}.lora_down"].shape[0], float(scale), jax.random.key(0))
        for name, scale in scales.items()
    }
    adapted = _with(model, _PLAIN, replacements)
    return bind(adapted, arrays(adapted) | updates, f"{str(path)!r}")


def adaptable_layers(model: Any) -> dict[str, Any]:
    """The layers that can have low-rank updates, by key path."""
    return _layers(model, _PLAIN)


def _adapted(layer: Any, rank: int, scale: float, key: PRNGKeyArray) -> LoRALinear | LoRAConv:
    adapted: Any = LoRAConv if isinstance(layer, Conv) else LoRALinear
    return adapted(layer, rank, scale, key=key)


def _layers(model: Any, kind: type | tuple[type, ...]) -> dict[str, Any]:
    """The layers of some classes by key path."""
    found = jtu.tree_leaves_with_path(model, is_leaf=_is(kind))
    return {dotted_path(path): layer for path, layer in found if isinstance(layer, kind)}


def _with(model: Tree, kind: type | tuple[type, ...], replacements: Mapping[str, Any]) -> Tree:
    def replaced(path: Sequence[Any], layer: Any) -> Any:
        return replacements.get(dotted_path(path), layer)

    return jtu.tree_map_with_path(replaced, model, is_leaf=_is(kind))


def _is(kind: type | tuple[type, ...]) -> Callable[[Any], bool]:
    return lambda item: isinstance(item, kind)


def matching_layers(
    paths: list[str], patterns: str | Sequence[str], kind: str = "linear layer or convolution"
) -> list[str]:
    """The layers that patterns choose: a sequence of them, or several separated by `|`.

    **Raises:** `WeightsError` if a pattern matches none.
    """
    chosen: dict[str, None] = {}
    for pattern in patterns.split("|") if isinstance(patterns, str) else patterns:
        found = [path for path in paths if fnmatch.fnmatchcase(path, pattern)]
        if not found:
            shown = ", ".join(paths[:5]) + (", …" if len(paths) > 5 else "")
            raise WeightsError(f"Pattern {pattern!r} matches no {kind}; the model has {shown or 'none'}.")
        chosen |= dict.fromkeys(found)
    return list(chosen)


def _layer_of(name: str) -> str:
    return name.rpartition(".")[0]


def _is_update(name: str) -> bool:
    return name.rpartition(".")[2] in ("lora_down", "lora_up")
