"""Optimisers from Optax by name, with the schedules and the weight-decay mask that fine-tuning wants."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import optax
from jaxtyping import Array, Int, PyTree

from .._stacks import of_each_layer, stacks_of
from .._weights import dotted_path
from .errors import ConfigError


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


def warmup_linear(lr: float, *, steps: int, warmup_steps: int = 0) -> optax.Schedule:
    """A learning rate that rises linearly to `lr` and then falls linearly to zero. Arguments as of `warmup_cosine`."""
    return _after_warmup(optax.linear_schedule(lr, 0.0, max(steps - warmup_steps, 1)), lr, warmup_steps)


def warmup_constant(lr: float, *, steps: int, warmup_steps: int = 0) -> optax.Schedule:
    """A learning rate that rises linearly to `lr` and stays there. Arguments as of `warmup_cosine`."""
    del steps
    return _after_warmup(optax.constant_schedule(lr), lr, warmup_steps)


def _after_warmup(schedule: optax.Schedule, lr: float, warmup_steps: int) -> optax.Schedule:
    rise = optax.linear_schedule(lr / (warmup_steps + 1), lr, max(warmup_steps, 1))
    return optax.join_schedules([rise, schedule], [warmup_steps])


SCHEDULES: Mapping[str, Callable[..., optax.Schedule]] = {
    "cosine": warmup_cosine,
    "linear": warmup_linear,
    "constant": warmup_constant,
}

# These ask for the loss in each step, or for a key, or are deprecated.
_LEFT_OUT = ("lbfgs", "polyak_sgd", "noisy_sgd", "optimistic_adam")


def optimizer_names() -> list[str]:
    """The optimisers of Optax that [`onnxeqx.training.optimizer`][] makes."""
    found = {name: getattr(optax, name) for name in dir(optax) if not name.startswith("_")}
    return sorted(
        name
        for name, factory in found.items()
        if inspect.isfunction(factory)
        and name not in _LEFT_OUT
        and not name.startswith("scale_by_")
        and next(iter(inspect.signature(factory).parameters), "") == "learning_rate"
    )


def optimizer(
    name: str,
    learning_rate: optax.ScalarOrSchedule,
    *,
    weight_decay: float = 0.05,
    clip_grad: float | None = None,
    accumulation_steps: int = 1,
    average_decay: float | None = None,
    before: Sequence[optax.GradientTransformation] = (),
    after: Sequence[optax.GradientTransformation] = (),
    arguments: Mapping[str, Any] | None = None,
) -> optax.GradientTransformation:
    """An optimiser of Optax by name, and what goes around it.

    **Arguments:**

    - `name`: a function of Optax that takes a learning rate: `"adamw"`, `"sgd"`, `"lion"`, `"lamb"`, …
    - `learning_rate`: a number or a schedule; it advances once for each update.
    - `weight_decay`: not of biases and normalisation weights (see `decays`). Decoupled where the optimiser has it (AdamW,
      Lion), else added to the gradients, as PyTorch's SGD does.
    - `clip_grad`: the largest norm of all gradients together.
    - `accumulation_steps`: batches whose gradients are averaged for one update. Each counts alike, whatever padding it has.
    - `average_decay`: keeps an average of the weights beside them; see `average_parameters`.
    - `before`, `after`: what is done to the gradients before the optimiser sees them, and to its updates.
    - `arguments`: more arguments of the optimiser: `{"momentum": 0.9, "nesterov": True}`.

    **Raises:** `ConfigError` if Optax has no such optimiser, or that has no such argument.
    """
    names = optimizer_names()
    if name not in names:
        raise ConfigError(f"--opt is {name!r}; Optax has {', '.join(names)}.")
    factory, given = getattr(optax, name), dict(arguments or {})
    known = [parameter for parameter in inspect.signature(factory).parameters if parameter != "learning_rate"]
    if unknown := sorted(given.keys() - set(known)):
        raise ConfigError(f"--opt-args has {unknown[0]!r}, but optax.{name} takes {', '.join(known)}.")
    parts = [*before] if clip_grad is None else [*before, optax.clip_by_global_norm(clip_grad)]
    if {"weight_decay", "mask"} <= set(known):
        given = {"weight_decay": weight_decay, "mask": decays} | given
    elif weight_decay:
        parts.append(optax.add_decayed_weights(weight_decay, decays))
    parts += [factory(learning_rate, **given), *after]
    if average_decay is not None:
        parts.append(average_parameters(average_decay))
    whole = optax.chain(*parts) if len(parts) > 1 else parts[0]
    if accumulation_steps == 1:
        return whole
    steps = optax.MultiSteps(whole, accumulation_steps).gradient_transformation()
    return optax.GradientTransformation(steps.init, steps.update)


def adamw(learning_rate: optax.ScalarOrSchedule, *, weight_decay: float = 0.05) -> optax.GradientTransformation:
    """`optax.adamw` without weight decay on biases and normalisation weights (everything with fewer than two axes).

    **Arguments:**

    - `learning_rate`: a number or an Optax schedule.
    - `weight_decay`: decoupled, multiplied by the learning rate.

    **Returns:** an Optax gradient transformation; its `update` needs the parameters.
    """
    return optimizer("adamw", learning_rate, weight_decay=weight_decay)


def decays(parameters: PyTree) -> PyTree:
    """Which parameters decay: those with two axes or more, that of stacked layers aside. A mask *function*, as Optax wants it.

    A tree of booleans in the shape of a model would not do: it is a Module with a `__call__`, hence callable, and
    Optax would call it.
    """
    stacks = stacks_of(parameters)

    def decays(path: Any, leaf: Array) -> bool:
        layers = len(of_each_layer(dotted_path(path), stacks)) > 1
        return leaf.ndim - layers > 1

    return jtu.tree_map_with_path(decays, parameters)


class AverageState(NamedTuple):
    """State of `average_parameters`: the average, in the shape of the parameters, and the number of updates."""

    average: PyTree
    count: Int[Array, ""]


def average_parameters(decay: float) -> optax.GradientTransformation:
    """Keeps an exponential moving average of the parameters, which often generalises better than the last ones.

    It leaves updates as they are, so it comes last in a chain. `averaged` finds the average in the state. After `n` updates
    the decay is at most `(1 + n) / (10 + n)`, so that short runs are not averages of their beginning
    (https://www.tensorflow.org/api_docs/python/tf/train/ExponentialMovingAverage).

    **Arguments:**

    - `decay`: of the average in one update, below 1.
    """

    def init(params: Any) -> AverageState:
        # A copy: a step that donates its buffers must not be given one twice.
        return AverageState(jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), params), jnp.int32(0))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, AverageState]:
        count = state.count + 1
        rate = jnp.minimum(decay, (1 + count) / (10 + count))

        def mean(old: Array, new: Array) -> Array:
            return (rate * old + (1 - rate) * new).astype(old.dtype)

        return updates, AverageState(jax.tree.map(mean, state.average, optax.apply_updates(params, updates)), count)

    return optax.GradientTransformation(init, update)


def averaged(opt_state: PyTree) -> PyTree | None:
    """The average of the parameters in the state of an optimiser; `None` if it keeps none."""
    found = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, AverageState))
    return next((node.average for node in found if isinstance(node, AverageState)), None)
