"""The two jitted functions of a run: one optimiser step, and the evaluation of one batch."""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from .data import Batch
from .state import TrainState

Values = Callable[[Any, Array], Array]
"""A loss or a metric: `(outputs, labels)` of a batch to one value for each example, shape `(batch,)`."""


def make_train_step(
    optimizer: optax.GradientTransformation, loss: Values, metrics: Mapping[str, Values]
) -> Callable[[TrainState, Batch], TrainState]:
    """A jitted optimiser step that reuses (donates) the buffers of all it changes.

    **Arguments:**

    - `optimizer`: an Optax gradient transformation.
    - `loss`: what is minimised, as the mean over the examples of a batch; padding does not count.
    - `metrics`: by name; summed into the state's `totals` beside the loss.

    **Returns:** a function from state and batch to the next state. The old state must not be used again.
    """

    def objective(trainable: PyTree, frozen: PyTree, batch: Batch):
        outputs = eqx.combine(trainable, frozen)(batch.inputs)
        losses = jnp.where(batch.mask, loss(outputs, batch.labels), 0)
        return losses.sum() / jnp.maximum(batch.mask.sum(), 1), outputs

    # The first argument is kept, all others are donated: frozen leaves still belong to the caller's model, and the
    # loop reads the totals of one step while the next one runs.
    @eqx.filter_jit(donate="all-except-first")
    def update(kept, trainable, opt_state, step):
        frozen, totals, batch = kept
        (_, outputs), gradients = eqx.filter_value_and_grad(objective, has_aux=True)(trainable, frozen, batch)
        updates, opt_state = optimizer.update(gradients, opt_state, trainable)
        totals = _add(totals, outputs, batch, {"loss": loss, **metrics})
        return eqx.apply_updates(trainable, updates), opt_state, step + 1, totals

    def train_step(state: TrainState, batch: Batch) -> TrainState:
        changed = update((state.frozen, state.totals, batch), state.trainable, state.opt_state, state.step)
        trainable, opt_state, step, totals = changed
        return TrainState(trainable, state.frozen, opt_state, step, state.epoch, totals)

    return train_step


def make_eval_step(
    loss: Values, metrics: Mapping[str, Values]
) -> Callable[[PyTree, dict[str, Array], Batch], dict[str, Array]]:
    """A jitted function that adds the loss and the metrics of one batch to `totals`; padding does not count.

    **Arguments:** as those of `make_train_step`.

    **Returns:** a function `(model, totals, batch) -> totals`.
    """

    @eqx.filter_jit
    def eval_step(model: PyTree, totals: dict[str, Array], batch: Batch) -> dict[str, Array]:
        return _add(totals, model(batch.inputs), batch, {"loss": loss, **metrics})

    return eval_step


def _add(totals: dict[str, Array], outputs: Any, batch: Batch, functions: Mapping[str, Values]) -> dict[str, Array]:
    sums = {
        name: totals[name] + jnp.where(batch.mask, function(outputs, batch.labels), 0).sum(dtype=jnp.float32)
        for name, function in functions.items()
    }
    return {"examples": totals["examples"] + batch.mask.sum(dtype=jnp.int32), **sums}
