"""The training loop: a generator of events, and `fit`, which hands them to callbacks."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from .._select import parameters
from .data import Batch, Data
from .devices import Devices
from .errors import ConfigError, DivergedError
from .forward import Forward, call
from .losses import Values, accuracy, cross_entropy
from .precision import loss_scale
from .state import TrainState, zero_totals
from .step import make_eval_step, make_train_step

SMALLEST_LOSS_SCALE = 2.0**-10
"""Gradients that overflow in float16 at this factor of the loss are not finite for another reason."""


@dataclasses.dataclass(frozen=True)
class Event:
    """Something happened. `state` is valid until the loop goes on: copy what must outlive the callback."""

    state: TrainState
    epoch: int  # the epoch in progress, from 1; 0 is the evaluation before training


@dataclasses.dataclass(frozen=True)
class StepDone(Event):
    """An optimiser step was started; `previous` are the totals of the epoch before it, already computed."""

    step: int
    previous: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class ValidationStep(Event):
    """A validation batch was evaluated; `number` counts from 1."""

    number: int


@dataclasses.dataclass(frozen=True)
class EpochDone(Event):
    """An epoch and its evaluation are complete; `row` is a row of the history."""

    row: dict[str, float]


class Fitted(NamedTuple):
    """What `fit` returns: the model after the last step, and the rows of the history that this call added."""

    model: eqx.Module
    history: list[dict[str, float]]


def fit(
    model: eqx.Module,
    data: Data,
    *,
    optimizer: optax.GradientTransformation,
    loss: Values = cross_entropy,
    metrics: Mapping[str, Values] | None = None,
    trainable: PyTree | str | Sequence[str] | None = None,
    freeze: str | Sequence[str] | None = None,
    epochs: int = 5,
    devices: int | Sequence[Any] | None = None,
    validation_loss: Values | None = None,
    stop: Callable[[], bool] | None = None,
    forward: Forward = call,
    seed: int = 0,
    compute_dtype: Any = None,
    restore: Callable[[TrainState], TrainState] | None = None,
    callbacks: Sequence[Callable[[Event], object]] = (),
) -> Fitted:
    """Trains a model.

    **Arguments:**

    - `model`: any Equinox module that is called with a batch of inputs.
    - `data`: a `Data`, or anything with its methods.
    - `optimizer`: an Optax gradient transformation.
    - `loss`, `metrics`: functions `(outputs, labels)` that give one value for each example; by default softmax cross
      entropy from logits, and accuracy.
    - `trainable`, `freeze`: key-path patterns as in `onnxeqx.parameters`. `trainable` may also be a PyTree of booleans
      in the shape of the model.
    - `epochs`: of the whole run, those before a restored state included.
    - `devices`: so many of the local devices, or these `jax.Device`s: each batch is spread over them. By default all local ones.
    - `validation_loss`: what is reported on the validation part; by default `loss`.
    - `stop`: asked before each epoch; true ends the run.
    - `forward`, `seed`, `compute_dtype`: as of `make_train_step`.
    - `restore`: gives the state to go on from, for instance `Checkpoints(folder).restore`.
    - `callbacks`: called in order with each event; an exception from one ends the run.

    **Returns:** the trained model, of averaged parameters if the optimiser averages them, and the history. The model
    passed in is left as it was.

    **Raises:** `ConfigError` if nothing is trained, `DivergedError` if the training loss or a gradient is not finite.
    """
    metrics = {"accuracy": accuracy} if metrics is None else metrics
    placement = Devices.of(devices, data.batch_size)
    state = placement.replicated(TrainState.create(model, optimizer, _mask(model, trainable, freeze), metrics=metrics))
    if restore is not None:
        state = restore(state)
    history = []
    ways: Any = {"forward": placement.replicated(forward), "compute_dtype": compute_dtype}
    train_step = make_train_step(optimizer, loss, metrics, seed=seed, **ways)
    eval_step = make_eval_step(validation_loss or loss, metrics, **ways)
    for event in training(state, data, train_step, eval_step, epochs=epochs, devices=placement, stop=stop):
        for callback in callbacks:
            callback(event)
        if isinstance(event, EpochDone):
            history.append(event.row)
        state = event.state
    return Fitted(state.evaluated, history)


def training(
    state: TrainState,
    data: Data,
    train_step: Callable[[TrainState, Batch], TrainState],
    eval_step: Callable[[PyTree, dict[str, Array], Batch], dict[str, Array]],
    *,
    epochs: int,
    devices: Devices,
    stop: Callable[[], bool] | None = None,
) -> Iterator[Event]:
    """The loop of `fit` for those who want to stand in its middle.

    **Arguments:**

    - `state`: to go on from, on these devices.
    - `data`, `epochs`, `stop`: as of `fit`.
    - `train_step`, `eval_step`: as `make_train_step` and `make_eval_step` make them.
    - `devices`: over which batches are spread.

    **Raises:** `DivergedError`, which has the last good state, if the loss or a gradient is not finite.
    """
    step, done = int(state.step), int(state.epoch)
    if step == 0:
        yield from _evaluation(state, data, devices, eval_step, 0, {"epoch": 0, "step": 0})
    for epoch in range(done + 1, epochs + 1):
        if stop is not None and stop():
            return
        for batch in data.training_batches(epoch, start=step - (epoch - 1) * data.steps):
            previous = state.totals
            state, step = train_step(state, devices.spread(batch)), step + 1
            # Waits for the step before, while this one runs: the device never idles, and no queue of steps builds up.
            totals = {name: float(total) for name, total in previous.items()}
            _refuse_divergence(state, epoch, totals)
            yield StepDone(state, epoch, step, totals)
        _refuse_divergence(state, epoch, state.totals)
        row = {"epoch": epoch, "step": step} | epoch_means(state.totals, "train_")
        new_epoch = (state.epoch + 1, devices.replicated(_no_totals(state)))
        state = eqx.tree_at(lambda s: (s.epoch, s.totals), state, new_epoch)
        yield from _evaluation(state, data, devices, eval_step, epoch, row)


def _refuse_divergence(state: TrainState, epoch: int, totals: Mapping[str, Any]) -> None:
    """Steps that are not finite change nothing (see `make_train_step`), so that the state is that of before."""
    scale = loss_scale(state.opt_state)
    if not totals["skipped"] or (scale is not None and scale > SMALLEST_LOSS_SCALE):
        return
    step = int(state.step) - int(state.totals["skipped"])
    good = eqx.tree_at(lambda s: (s.step, s.totals["skipped"]), state, (jnp.int32(step), jnp.int32(0)))
    raise DivergedError(
        f"The loss or a gradient of step {step + 1} (epoch {epoch}) is not finite: the weights are still those of step {step}. "
        "Try a lower learning rate (--lr) or clipping (--clip-grad), and look for values that are not finite in the data.",
        good,
    )


def _evaluation(
    state: TrainState, data: Data, devices: Devices, eval_step, epoch: int, row: dict[str, float]
) -> Iterator[Event]:
    totals = devices.replicated(_no_totals(state))
    for number, batch in enumerate(data.validation_batches(), 1):
        totals = jax.block_until_ready(eval_step(state.evaluated, totals, devices.spread(batch)))
        yield ValidationStep(state, epoch, number)
    yield EpochDone(state, epoch, row | epoch_means(totals, "val_"))


def _no_totals(state: TrainState) -> dict[str, Array]:
    """The sums of an epoch that begins, of the metrics that the state has."""
    return zero_totals(_metric_names(state.totals))


def _metric_names(totals: Mapping[str, Array]) -> list[str]:
    return [name for name in totals if name not in ("examples", "loss", "skipped")]


def epoch_means(totals: Mapping[str, Array], prefix: str) -> dict[str, float]:
    """The means over examples of loss and metrics, each under its name with a prefix."""
    names = ["loss", *_metric_names(totals)]  # jit sorts dictionaries
    return {
        prefix + name: float(totals[name]) / int(totals["examples"]) if totals["examples"] else math.nan
        for name in names
    }


def _mask(model: eqx.Module, trainable, freeze) -> PyTree:
    if trainable is None or isinstance(trainable, str | list | tuple):
        return parameters(model, trainable=trainable, freeze=freeze)
    if freeze is not None:
        raise ConfigError("freeze goes with patterns of what is trained; a mask already says all.")
    return trainable
