"""The two jitted functions of a run: one optimiser step, and the evaluation of one batch."""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PRNGKeyArray, PyTree

from .._weights import dotted_path
from .data import Batch
from .forward import Forward, call
from .losses import Values
from .precision import backed_off, in_dtype, loss_scale
from .state import TrainState
from .statistics import statistics_paths


def make_train_step(
    optimizer: optax.GradientTransformation,
    loss: Values,
    metrics: Mapping[str, Values],
    *,
    forward: Forward = call,
    seed: int = 0,
    compute_dtype: Any = None,
) -> Callable[[TrainState, Batch], TrainState]:
    """A jitted optimiser step that reuses (donates) the buffers of all it changes.

    A step whose loss or gradients are not finite changes no weights, nor do those after it; `totals["skipped"]` counts them. With
    loss scaling (see `scale_loss`), it only halves the factor.

    **Arguments:**

    - `optimizer`: an Optax gradient transformation.
    - `loss`: what is minimised, as the mean over the examples of a batch; padding does not count.
    - `metrics`: by name; summed into the state's `totals` beside the loss.
    - `forward`: from model, inputs and key to outputs.
    - `seed`: of the keys that models which draw random numbers, as by dropout, are called with: one for each step.
    - `compute_dtype`: what the forward and backward pass compute in; by default in the dtypes of parameters and inputs.
      Loss and update are in the parameters' own.

    **Returns:** a function from state and batch to the next state. The old state must not be used again.
    """

    def objective(trainable: PyTree, kept: Any, key: PRNGKeyArray, scale: Array | None):
        frozen, _, batch, forward = kept
        model = in_dtype(eqx.combine(trainable, frozen), compute_dtype)
        outputs = forward(model, in_dtype(batch.inputs, compute_dtype), key)
        outputs = in_dtype(outputs, compute_dtype and jnp.float32)
        losses = jnp.where(batch.mask, loss(outputs, batch.labels), 0)
        mean = losses.sum() / jnp.maximum(batch.mask.sum(), 1)
        return mean * (1 if scale is None else scale), (mean, outputs)

    # The first argument is kept, all others are donated: frozen leaves still belong to the caller's model, and the
    # loop reads the totals of one step while the next one runs.
    @eqx.filter_jit(donate="all-except-first")
    def update(kept, trainable, opt_state, step):
        _, totals, batch, _ = kept
        scale = loss_scale(opt_state)
        key = jax.random.fold_in(jax.random.key(seed), step)
        differentiate = eqx.filter_value_and_grad(objective, has_aux=True)
        (_, (mean, outputs)), gradients = differentiate(trainable, kept, key, scale)
        gradients = _unscaled(gradients, scale)
        finite = jnp.isfinite(mean) & _all_finite(gradients)
        # After one bad step, weights stay what they were before it, until the loop has noticed.
        good = finite & (totals["skipped"] == 0) if scale is None else finite
        updates, new_opt_state = optimizer.update(gradients, opt_state, trainable)
        added = _add(totals, outputs, batch, {"loss": loss, **metrics})
        return (
            _chosen(good, eqx.apply_updates(trainable, updates), trainable),
            _chosen(good, new_opt_state, backed_off(opt_state)),
            step + 1,
            _chosen(good, added | {"skipped": jnp.int32(0)}, totals | {"skipped": totals["skipped"] + 1}),
        )

    def train_step(state: TrainState, batch: Batch) -> TrainState:
        kept = state.frozen, state.totals, batch, forward
        changed = update(kept, state.trainable, state.opt_state, state.step)
        trainable, opt_state, step, totals = changed
        return TrainState(trainable, state.frozen, opt_state, step, state.epoch, totals)

    return train_step


def make_eval_step(
    loss: Values, metrics: Mapping[str, Values], *, forward: Forward = call, compute_dtype: Any = None
) -> Callable[[PyTree, dict[str, Array], Batch], dict[str, Array]]:
    """A jitted function that adds the loss and the metrics of one batch to `totals`; padding does not count.

    Models are called without a key, in inference mode (`eqx.nn.inference_mode`).

    **Arguments:** as those of `make_train_step`.

    **Returns:** a function `(model, totals, batch) -> totals`.
    """
    predict = make_predict_step(forward=forward, compute_dtype=compute_dtype)

    @eqx.filter_jit
    def add(totals: dict[str, Array], outputs: Any, batch: Batch) -> dict[str, Array]:
        return _add(totals, outputs, batch, {"loss": loss, **metrics})

    return lambda model, totals, batch: add(totals, predict(model, batch.inputs), batch)


def make_predict_step(*, forward: Forward = call, compute_dtype: Any = None) -> Callable[[PyTree, Any], Any]:
    """A jitted function from model and inputs to outputs, as `make_eval_step` computes them."""

    @eqx.filter_jit
    def predict(forward: Forward, model: PyTree, inputs: Any) -> Any:
        model = in_dtype(eqx.nn.inference_mode(model), compute_dtype)
        return in_dtype(forward(model, in_dtype(inputs, compute_dtype), None), compute_dtype and jnp.float32)

    return lambda model, inputs: predict(forward, model, inputs)


def _add(totals: dict[str, Array], outputs: Any, batch: Batch, functions: Mapping[str, Values]) -> dict[str, Array]:
    sums = {
        name: totals[name] + jnp.where(batch.mask, function(outputs, batch.labels), 0).sum(dtype=jnp.float32)
        for name, function in functions.items()
    }
    return totals | {"examples": totals["examples"] + batch.mask.sum(dtype=jnp.int32)} | sums


def _unscaled(gradients: PyTree, scale: Array | None) -> PyTree:
    """Gradients of the loss itself. Statistics of BatchNorm pass for gradients, but were never scaled."""
    if scale is None:
        return gradients
    kept = set(statistics_paths(gradients))
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf if dotted_path(path) in kept else leaf / scale.astype(leaf.dtype), gradients
    )


def _all_finite(tree: PyTree) -> Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def _chosen(condition: Array, new: PyTree, old: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b) if eqx.is_array(a) else a, new, old)
