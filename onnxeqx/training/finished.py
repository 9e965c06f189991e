"""Runs that are there already: their model, and how good it is."""

import pathlib
from typing import Any, NamedTuple

import onnxeqx

from .config import TrainConfig
from .errors import CheckpointError
from .folder import CONFIG, FOLDER
from .loop import epoch_means
from .prepare import Prepared, prepare
from .run import checkpoints_of, new_state, optimizer_of
from .state import zero_totals
from .step import make_eval_step


class Restored(NamedTuple):
    """A run and the model of its best epoch, of plain layers."""

    prepared: Prepared
    model: Any


def restore_run(folder: pathlib.Path, **changes: Any) -> Restored:
    """Opens a run again, finished or not, from its configuration and its checkpoints.

    **Arguments:**

    - `folder`: of the run.
    - `changes`: options that differ now, such as `data`.

    **Raises:** `ConfigError` if it is no run; `CheckpointError` if it has no checkpoint yet.
    """
    config = TrainConfig.read(folder / CONFIG)
    values = {name: getattr(config, name) for name in TrainConfig.__dataclass_fields__} | changes
    prepared = prepare(TrainConfig(**values))
    _, optimizer = optimizer_of(prepared)
    with checkpoints_of(prepared, folder) as checkpoints:
        if not checkpoints.steps("best"):
            raise CheckpointError(f"{folder} has no checkpoint yet: train for an epoch first (onnxeqx train --resume).")
        state = checkpoints.restore(new_state(prepared, optimizer), "best")
    return Restored(prepared, prepared.finished(state.evaluated))


def evaluate_run(folder: pathlib.Path, **changes: Any) -> dict[str, float]:
    """Loss and metrics of a run's best model on the validation part.

    **Arguments:** as of `restore_run`.
    """
    prepared, model = restore_run(folder, **changes)
    eval_step = make_eval_step(
        prepared.validation_loss, prepared.metrics, forward=prepared.forward, compute_dtype=prepared.compute_dtype
    )
    totals = zero_totals(prepared.metrics)
    for batch in prepared.data.validation_batches():
        totals = eval_step(model, totals, batch)
    return {"examples": int(totals["examples"])} | epoch_means(totals, "")


def best_model(folder: pathlib.Path) -> Any:
    """The model of a run's best epoch: as it was left, or, of a run that is not finished, from its checkpoints."""
    if (folder / FOLDER).is_dir():
        return onnxeqx.load(folder / FOLDER)
    return restore_run(folder).model
