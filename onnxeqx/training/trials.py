"""Short trials before a run, which keep nothing: a dry run, one batch by heart, a search for a learning rate."""

import dataclasses
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import rich.console

from .checkpoint import Checkpoints
from .config import TrainConfig
from .devices import Devices
from .errors import DivergedError
from .prepare import Prepared, prepare
from .run import new_state, optimizer_of
from .state import TrainState
from .step import make_eval_step, make_train_step

OVERFIT_STEPS, FINDER_STEPS = 100, 100
_LOWEST, _HIGHEST = 1e-7, 1.0


def dry_run(config: TrainConfig, *, console: rich.console.Console) -> None:
    """Reads every example once, takes one step and one evaluation, and saves and restores a checkpoint in a temporary folder.

    **Raises:** whatever the run itself would raise later: a damaged image, a batch that does not fit.
    """
    prepared = prepare(config)
    console.print(prepared.summary, highlight=False, soft_wrap=True)
    training = sum(int(batch.mask.sum()) for batch in prepared.data.training_batches(1))
    validation = sum(int(batch.mask.sum()) for batch in prepared.data.validation_batches())
    console.print(f"read {training:,} training and {validation:,} validation {prepared.unit}", highlight=False)
    _, optimizer = optimizer_of(prepared)
    state = next(iter(_steps(prepared, optimizer, 1)))
    eval_step = make_eval_step(
        prepared.validation_loss, prepared.metrics, forward=prepared.forward, compute_dtype=prepared.compute_dtype
    )
    batch = next(iter(prepared.data.validation_batches()))
    jax.block_until_ready(eval_step(state.evaluated, state.totals, _devices(prepared).spread(batch)))
    with (
        tempfile.TemporaryDirectory() as folder,
        Checkpoints(pathlib.Path(folder), prepared.monitor) as checkpoints,
    ):
        checkpoints.save(state)
        checkpoints.restore(state)
    console.print(
        f"one step: loss {_mean_loss(state):.4f}; evaluation and checkpoint work; nothing was kept", highlight=False
    )


def overfit_one_batch(config: TrainConfig, *, console: rich.console.Console, steps: int = OVERFIT_STEPS) -> list[float]:
    """Trains on the first batch alone at a constant learning rate: a loss that stays high tells of a fault in data or model.

    **Returns:** the loss of each step.
    """
    prepared = prepare(config)
    _, optimizer = optimizer_of(prepared, optax.constant_schedule(config.lr))
    losses = _differences(_steps(prepared, optimizer, steps))
    console.print(f"one batch, {steps} steps: loss {losses[0]:.4f} → {losses[-1]:.4f}", highlight=False)
    return losses


def find_lr(config: TrainConfig, *, console: rich.console.Console, steps: int = FINDER_STEPS) -> float:
    """Raises the learning rate from step to step until the loss grows, and suggests one: https://arxiv.org/abs/1506.01186.

    **Returns:** the rate at which the smoothed loss fell fastest.
    """
    prepared = prepare(dataclasses.replace(config, grad_accum_steps=1))  # so that each step has a rate of its own
    schedule, optimizer = optimizer_of(prepared, optax.exponential_decay(_LOWEST, steps, _HIGHEST / _LOWEST))
    losses = _differences(_steps(prepared, optimizer, steps, fresh=True))
    smoothed = _smoothed(losses)
    # The first tenth is noise: rates so low change nothing.
    start, end = len(losses) // 10, _end_of_fall(smoothed)
    suggestion = _rate(schedule, start + int(np.argmin(np.diff(smoothed[start : end + 1]))) if end > start + 1 else end)
    for step in range(0, len(losses), max(steps // 10, 1)):
        console.print(f"lr {_rate(schedule, step):.1e}  loss {losses[step]:.4f}", highlight=False)
    console.print(f"the loss falls fastest at --lr {suggestion:.1e}", highlight=False)
    return suggestion


def _steps(
    prepared: Prepared, optimizer: optax.GradientTransformation, steps: int, *, fresh: bool = False
) -> Iterator[TrainState]:
    """States after each step, on the first batch again and again, or on fresh ones; ends where the loss is not finite."""
    devices = _devices(prepared)
    state = devices.replicated(new_state(prepared, optimizer))
    train_step = make_train_step(
        optimizer,
        prepared.loss,
        prepared.metrics,
        forward=devices.replicated(prepared.forward),
        seed=prepared.config.seed,
        compute_dtype=prepared.compute_dtype,
    )
    batches = _endless(prepared, fresh=fresh)
    for step in range(steps):
        state = train_step(state, devices.spread(next(batches)))
        if int(state.totals["skipped"]) and prepared.config.precision != "float16":
            if step == 0:
                raise DivergedError(
                    "The loss or a gradient of the first step is not finite; look at data and model.", state
                )
            return
        yield state


def _endless(prepared: Prepared, *, fresh: bool) -> Iterator[Any]:
    epoch = 1
    while True:
        for batch in prepared.data.training_batches(epoch):
            yield batch
            while not fresh:
                yield batch
        epoch += 1


def _devices(prepared: Prepared) -> Devices:
    return Devices.of(prepared.config.devices, prepared.config.batch_size)


def _mean_loss(state: TrainState) -> float:
    return float(state.totals["loss"]) / max(int(state.totals["examples"]), 1)


def _differences(states: Iterator[TrainState]) -> list[float]:
    """The mean loss of each step, from sums that grow; a step that was skipped has that of the one before."""
    sums = np.array([(0, 0), *((float(state.totals["loss"]), int(state.totals["examples"])) for state in states)])
    steps = np.diff(sums, axis=0)
    losses = steps[:, 0] / np.maximum(steps[:, 1], 1)
    taken = np.maximum.accumulate(np.where(steps[:, 1] > 0, np.arange(len(losses)), 0))
    return losses[taken].tolist()


def _rate(schedule: optax.Schedule, step: int) -> float:
    return float(jnp.asarray(schedule(step)))


def _smoothed(losses: list[float], decay: float = 0.9) -> np.ndarray:
    """An exponential moving average without its bias towards the start."""
    mean, found = 0.0, []
    for count, loss in enumerate(losses, 1):
        mean = decay * mean + (1 - decay) * loss
        found.append(mean / (1 - decay**count))
    return np.array(found)


def _end_of_fall(smoothed: np.ndarray) -> int:
    """The step with the smallest loss, before it grows beyond four times that."""
    beyond = np.flatnonzero(smoothed > 4 * np.minimum.accumulate(smoothed))
    return int(np.argmin(smoothed[: beyond[0] if len(beyond) else len(smoothed)]))
