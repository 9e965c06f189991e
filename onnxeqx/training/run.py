"""A whole fine-tuning run, from the configuration to the files it leaves: what `onnxeqx train` calls."""

import contextlib
import dataclasses
import pathlib
import statistics
import time
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import optax
import rich.console

from .._weights import write_whole
from .checkpoint import Checkpoints
from .config import TrainConfig
from .errors import DivergedError
from .folder import (
    CHECKPOINTS,
    EVENTS,
    HISTORY,
    PREPROCESSING,
    TIMINGS,
    alone_in,
    check_folder,
    open_folder,
    storage_errors,
)
from .interrupt import stopping_on_signals
from .leave import leave
from .loop import Fitted, fit
from .prepare import Prepared, prepare
from .report import History, Progress, TensorBoard, Timings, json_lines
from .state import TrainState
from .statistics import following_statistics, statistics_paths


@dataclasses.dataclass(frozen=True)
class RunResult:
    """What a run gave.

    - `model`: of the best epoch, as plain layers.
    - `history`: all rows.
    - `folder`: with all files.
    - `monitor`: the column that decided which epoch is best.
    - `best`: its value there.
    """

    model: Any
    history: list[dict[str, float]]
    folder: pathlib.Path
    monitor: str
    best: float


def run(
    config: TrainConfig,
    *,
    resume: bool = False,
    force: bool = False,
    console: rich.console.Console | None = None,
) -> RunResult:
    """Fine-tunes a network and writes the folder `config.output`.

    The folder holds `config.json` (resolved), `history.jsonl`, `timings.jsonl`, `checkpoints/best`, `checkpoints/last`, and in
    the end the model of the best epoch as `weights.safetensors`, `model/` (a converted folder), `model.onnx`, and
    `preprocessing.json` (what inputs need, and class names; also in the metadata of `model.onnx`); `results.png`,
    `confusion_matrix.png` and `report.html` for people.

    **Arguments:**

    - `config`: the options.
    - `resume`: go on from `checkpoints/last` of that folder; a run that has none yet starts from the beginning.
    - `force`: replace the run in that folder. Files that are not of a run stay. With `resume`, no effect.
    - `console`: where progress goes; by default the standard output.

    **Raises:** `OnnxeqxError`, as one sentence, on anything wrong with model, data, options, checkpoint or disk;
    `OutputExistsError` if the folder is not empty; `TrainingInterrupted` after Ctrl-C.
    """
    console = console or rich.console.Console()
    folder = pathlib.Path(config.output)
    check_folder(folder, resume=resume, force=force)
    started = time.perf_counter()
    prepared = prepare(config)
    opened = time.perf_counter()
    console.print(prepared.summary, highlight=False, soft_wrap=True, markup=False)
    with alone_in(folder), storage_errors(folder):
        open_folder(folder, prepared.config, clear=force and not resume)
        write_whole(folder / PREPROCESSING, prepared.description + "\n")
        fitted, best, history = _trained(prepared, folder, console)
        del fitted
        rows = history.rows()
        timings = {"opening model and data": opened - started, "training and evaluation": time.perf_counter() - opened}
        if epochs := [row["seconds"] for row in json_lines(folder / TIMINGS) if row["epoch"]]:
            timings["median epoch"] = statistics.median(epochs)
        model = leave(prepared, best, rows, folder, timings=timings)
    monitor = prepared.monitor
    return RunResult(model, rows, folder, monitor.column, monitor.best(rows)[monitor.column])


def _trained(prepared: Prepared, folder: pathlib.Path, console: rich.console.Console) -> tuple[Fitted, Any, History]:
    """What `fit` returns, and the model of the best epoch."""
    config, data = prepared.config, prepared.data
    schedule, optimizer = optimizer_of(prepared)
    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(checkpoints_of(prepared, folder))
        done = checkpoints.latest()
        unit, units = prepared.speed_unit
        progress = Progress(console, data, epochs=config.epochs, done=done, unit=unit, units=units)
        stack.enter_context(progress)
        timings = Timings(folder / TIMINGS, progress.examples_per_second)

        def learning_rate(row: dict[str, float]) -> dict[str, float]:
            return {"lr": _last_rate(row, config, schedule)}

        history = History(folder / HISTORY, extra=learning_rate)
        events = [stack.enter_context(TensorBoard(folder / EVENTS, extra=learning_rate))] if config.tensorboard else []
        stop = stack.enter_context(stopping_on_signals(checkpoints.save, console.print))
        with _keeping_the_last_good_state(checkpoints):
            fitted = fit(
                prepared.model,
                data,
                optimizer=optimizer,
                loss=prepared.loss,
                metrics=prepared.metrics,
                trainable=prepared.mask,
                epochs=config.epochs,
                devices=config.devices,
                validation_loss=prepared.validation_loss,
                stop=lambda: _is_patient_no_more(history.rows(), prepared),
                forward=prepared.forward,
                seed=config.seed,
                compute_dtype=prepared.compute_dtype,
                restore=lambda state: history.rewind(checkpoints.restore(state)),
                callbacks=(progress, history, timings, *events, checkpoints, stop),
            )
        best = checkpoints.restore(new_state(prepared, optimizer), "best").evaluated
    return fitted, best, history


def optimizer_of(
    prepared: Prepared, schedule: optax.Schedule | None = None
) -> tuple[optax.Schedule, optax.GradientTransformation]:
    """The learning rate by the number of updates (that of the run, or another), and the optimiser with all that is around it."""
    config, steps = prepared.config, prepared.data.steps
    schedule = schedule or config.schedule(config.epochs * steps)
    head = f"{prepared.head}.*" if prepared.head else "head"
    optimizer = config.optimizer(schedule, epoch_updates=steps / config.grad_accum_steps, head=head)
    return schedule, following_statistics(optimizer, statistics_paths(prepared.model))


def new_state(prepared: Prepared, optimizer: optax.GradientTransformation) -> TrainState:
    """The state of a run before its first step."""
    return TrainState.create(prepared.model, optimizer, prepared.mask, metrics=prepared.metrics)


def checkpoints_of(prepared: Prepared, folder: pathlib.Path, *, read_only: bool = False) -> Checkpoints:
    """The checkpoints in the folder of a run; to read them only, with whatever data."""
    return Checkpoints(
        folder / CHECKPOINTS,
        prepared.monitor,
        keep_best=prepared.config.keep_best,
        every_steps=prepared.config.checkpoint_steps,
        facts=None if read_only else prepared.facts,
        read_only=read_only,
    )


def _last_rate(row: dict[str, float], config: TrainConfig, schedule: optax.Schedule) -> float:
    """The learning rate of an epoch's last update."""
    return float(jnp.asarray(schedule(max(int(row["step"]) // config.grad_accum_steps - 1, 0))))


def _is_patient_no_more(rows: list[dict[str, float]], prepared: Prepared) -> bool:
    """Whether the best epoch is `patience` epochs ago."""
    patience = prepared.config.patience
    return patience is not None and bool(rows) and rows[-1]["epoch"] - prepared.monitor.best(rows)["epoch"] >= patience


@contextlib.contextmanager
def _keeping_the_last_good_state(checkpoints: Checkpoints) -> Iterator[None]:
    try:
        yield
    except DivergedError as error:
        checkpoints.save(error.state)
        raise
