"""What a training run carries from step to step."""

from typing import Self

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from .errors import ConfigError
from .optimizers import averaged


class TrainState(eqx.Module):
    """The model in two halves, the optimiser's state and the position in the run.

    Frozen leaves are partitioned out (`eqx.partition`), so they have neither gradients nor optimiser state. The
    position is `step` and `epoch` alone: the order of the data follows from the seed and the epoch.

    **Arguments:**

    - `trainable`: the model with `None` in place of all that is not trained.
    - `frozen`: the model with `None` in place of all that is trained; not only arrays.
    - `opt_state`: of the optimiser, for `trainable`.
    - `step`: optimiser steps done, int32.
    - `epoch`: epochs completed, the evaluation included, int32.
    - `totals`: sums over the examples of the present epoch: `examples`, `loss` and each metric; and `skipped`, the steps in
      a row, up to the present one, that changed nothing as their gradients were not finite.
    """

    trainable: PyTree
    frozen: PyTree
    opt_state: PyTree
    step: Int[Array, ""]
    epoch: Int[Array, ""]
    totals: dict[str, Array]

    @classmethod
    def create(cls, model: eqx.Module, optimizer: optax.GradientTransformation, mask: PyTree, *, metrics=()) -> Self:
        """The state before the first step.

        **Arguments:**

        - `model`: any Equinox module.
        - `optimizer`: an Optax gradient transformation.
        - `mask`: a PyTree of booleans in the shape of the model: True for what is trained.
        - `metrics`: names of the metrics that are summed up.

        **Raises:** `ConfigError` if nothing is trained.
        """
        check_mask(mask)
        trainable, frozen = eqx.partition(model, mask)
        # The step donates its buffers; a copy keeps the caller's model alive.
        trainable = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), trainable)
        return cls(trainable, frozen, optimizer.init(trainable), jnp.int32(0), jnp.int32(0), zero_totals(metrics))

    @property
    def model(self) -> eqx.Module:
        """Both halves put together. The next step donates its trained leaves: copy what must outlive it."""
        return eqx.combine(self.trainable, self.frozen)

    @property
    def evaluated(self) -> eqx.Module:
        """The model that is evaluated and kept: of averaged parameters, where the optimiser averages them.

        Statistics that follow the batches are not averaged.
        """
        average = averaged(self.opt_state)
        return self.model if average is None else eqx.combine(average, self.trainable, self.frozen)


def check_mask(mask: PyTree) -> None:
    """**Raises:** `ConfigError` if a mask of what is trained selects nothing."""
    if not any(jax.tree.leaves(mask)):
        raise ConfigError("Nothing is left to train: --freeze and --trainable exclude every parameter.")


def zero_totals(metrics=()) -> dict[str, Array]:
    """The sums at the start of an epoch: `examples` and `skipped` (int32), `loss` and each metric (float32)."""
    return {"examples": jnp.int32(0), "skipped": jnp.int32(0)} | {name: jnp.float32(0) for name in ("loss", *metrics)}
