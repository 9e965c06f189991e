"""Mixed precision: 16-bit computation with float32 parameters (https://arxiv.org/abs/1710.03740)."""

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from ..nn import TrainingBatchNorm

Tree = TypeVar("Tree")

PRECISIONS: Mapping[str, Any] = {"float32": None, "bfloat16": jnp.bfloat16, "float16": jnp.float16}
"""By name, the dtype of a computation; `None` leaves every array in its own."""


def in_dtype(tree: Tree, dtype: Any) -> Tree:
    """A tree with its floating-point arrays in another dtype; `None` changes nothing.

    Batch normalisation that is trained keeps its own: its statistics follow those of the batches in small steps.
    """
    if dtype is None:
        return tree

    def is_kept(node: Any) -> bool:
        return isinstance(node, TrainingBatchNorm)

    def cast(leaf: Any) -> Any:
        floating = eqx.is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.floating)
        return leaf.astype(dtype) if floating else leaf

    return jax.tree.map(cast, tree, is_leaf=is_kept)


class LossScaleState(NamedTuple):
    """State of `scale_loss`: the factor of the loss, and the updates since it changed."""

    scale: Float[Array, ""]
    updates: Int[Array, ""]


def scale_loss(initial: float = 2.0**15, *, growth_interval: int = 2000) -> optax.GradientTransformation:
    """Keeps the factor that holds float16's small gradients above zero; it leaves updates as they are.

    The step multiplies the loss by `loss_scale` of the optimiser's state and divides the gradients by it. After
    `growth_interval` updates the factor doubles; `backed_off` halves it when gradients overflow.

    **Arguments:**

    - `initial`: the first factor.
    - `growth_interval`: in updates.
    """

    def init(params: Any) -> LossScaleState:
        del params
        return LossScaleState(jnp.float32(initial), jnp.int32(0))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, LossScaleState]:
        del params
        grows = state.updates + 1 >= growth_interval
        return updates, LossScaleState(
            jnp.where(grows, state.scale * 2, state.scale), jnp.where(grows, 0, state.updates + 1)
        )

    return optax.GradientTransformation(init, update)


def loss_scale(opt_state: PyTree) -> Float[Array, ""] | None:
    """The factor of the loss in the state of an optimiser; `None` if it keeps none."""
    return next((node.scale for node in _nodes(opt_state) if isinstance(node, LossScaleState)), None)


def backed_off(opt_state: Tree) -> Tree:
    """The state of an optimiser after gradients that overflowed: half the factor, all else as it was."""

    def halved(node: Any) -> Any:
        return (
            LossScaleState(node.scale / 2, jnp.zeros_like(node.updates)) if isinstance(node, LossScaleState) else node
        )

    return jax.tree.map(halved, opt_state, is_leaf=lambda node: isinstance(node, LossScaleState))


def _nodes(opt_state: PyTree) -> list[Any]:
    return jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, LossScaleState))
