"""Learning rates of their own for parts of a model: by pattern, by depth, or zero until an epoch."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import jax.tree_util as jtu
import optax
from jaxtyping import Array, Int

from .._select import matching_parameters
from .._stacks import of_each_layer, stacks_of
from .._weights import dotted_path, key_paths

Factors = Mapping[str, float]
"""A factor of the learning rate for each parameter, by the key path of a single layer's."""


def scale_rates(factors: Callable[[Any], Factors]) -> optax.GradientTransformation:
    """Multiplies updates, and so learning rates: put it behind an optimiser.

    **Arguments:**

    - `factors`: gives them for the parameters; what it leaves out keeps its rate. See `by_pattern` and `by_depth`.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        return _scaled(updates, factors(updates)), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def by_pattern(patterns: Mapping[str, float]) -> Callable[[Any], Factors]:
    """Factors by patterns of key paths, as [`onnxeqx.parameters`][] takes them; the last that fits counts.

    Its result raises `WeightsError` if a pattern matches no parameter.
    """

    def factors(params: Any) -> Factors:
        return {name: factor for pattern, factor in patterns.items() for name in matching_parameters(params, pattern)}

    return factors


def by_depth(decay: float) -> Callable[[Any], Factors]:
    """Factors that fall by `decay` from each block to the one before; the last, the head, keeps its rate.

    Layer-wise learning-rate decay: https://arxiv.org/abs/1801.06146, https://arxiv.org/abs/2003.10555. A block is an entry of
    a tuple of layers (`encoder.layer.3`), or what a field of the model has before, between or behind such layers.
    """

    def factors(params: Any) -> Factors:
        blocks = _blocks(_single_paths(params))
        order = {block: number for number, block in enumerate(dict.fromkeys(blocks.values()))}
        return {name: decay ** (len(order) - 1 - order[block]) for name, block in blocks.items()}

    return factors


class HeldState(NamedTuple):
    """State of `hold_until`: the number of updates so far."""

    count: Int[Array, ""]


def hold_until(updates_by_pattern: Mapping[str, int]) -> optax.GradientTransformation:
    """Sets updates to zero until so many are done: gradual unfreezing (https://arxiv.org/abs/1801.06146).

    Put it behind an optimiser, whose averages of gradients are then those of the held weights when their time comes. Gradients
    set to zero before it would leave Adam's second moment at zero, and its first updates would be several times too large.

    **Arguments:**

    - `updates_by_pattern`: for patterns of key paths, the number of updates; the last that fits counts.
    """
    starts = by_pattern(updates_by_pattern)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, HeldState]:
        del params
        factors = {name: (state.count >= start) for name, start in starts(updates).items()}
        return _scaled(updates, factors), HeldState(state.count + 1)

    return optax.GradientTransformation(lambda params: HeldState(jnp.int32(0)), update)


def _scaled(updates: Any, factors: Mapping[str, Any]) -> Any:
    stacks = stacks_of(updates)

    def scaled(path: Any, leaf: Array) -> Array:
        rows = [factors.get(name, 1.0) for name in of_each_layer(dotted_path(path), stacks)]
        if len(rows) == 1:
            return leaf * jnp.asarray(rows[0], leaf.dtype)
        return leaf * jnp.stack([jnp.asarray(row, leaf.dtype) for row in rows]).reshape(-1, *(1,) * (leaf.ndim - 1))

    return jtu.tree_map_with_path(scaled, updates)


def _single_paths(params: Any) -> list[str]:
    stacks = stacks_of(params)
    return [name for path in key_paths(params) for name in of_each_layer(path, stacks)]


def _blocks(names: list[str]) -> dict[str, tuple[int, str]]:
    """The block of each: by the layers met before it, and the key path up to the first number, or the first field."""
    layers: dict[str, None] = {}
    blocks = {}
    for name in names:
        if found := re.match(r"(.*?\.\d+)(\.|$)", name):
            layers[found[1]] = None
            blocks[name] = (list(layers).index(found[1]), found[1])
        else:
            blocks[name] = (len(layers), name.split(".")[0])
    return blocks
