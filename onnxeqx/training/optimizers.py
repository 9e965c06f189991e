"""Optimisers from Optax, with the schedule and the weight-decay mask that fine-tuning wants."""

import jax
import optax
from jaxtyping import PyTree


def warmup_cosine(lr: float, *, steps: int, warmup_steps: int = 0) -> optax.Schedule:
    """A learning rate that rises linearly to `lr` and then falls to zero along a cosine.

    **Arguments:**

    - `lr`: the peak.
    - `steps`: optimiser steps of the whole run, warm-up included.
    - `warmup_steps`: steps of the linear rise; fewer than `steps`.

    **Returns:** an Optax schedule, from the step count to the learning rate.
    """
    # From lr / (warmup_steps + 1): a rate of zero would waste the first step.
    return optax.warmup_cosine_decay_schedule(lr / (warmup_steps + 1), lr, warmup_steps, max(steps, warmup_steps + 1))


def adamw(learning_rate: optax.ScalarOrSchedule, *, weight_decay: float = 0.05) -> optax.GradientTransformation:
    """`optax.adamw` without weight decay on biases and normalisation weights (everything with fewer than two axes).

    **Arguments:**

    - `learning_rate`: a number or an Optax schedule.
    - `weight_decay`: decoupled, multiplied by the learning rate.

    **Returns:** an Optax gradient transformation; its `update` needs the parameters.
    """
    return optax.adamw(learning_rate, weight_decay=weight_decay, mask=decays)


def decays(parameters: PyTree) -> PyTree:
    """Which parameters decay: those with two axes or more. A mask *function*, as Optax wants it.

    A tree of booleans in the shape of a model would not do: it is a Module with a `__call__`, hence callable, and
    Optax would call it.
    """
    return jax.tree.map(lambda leaf: leaf.ndim > 1, parameters)
