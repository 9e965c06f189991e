"""Runs that are there already: their model, and how good it is."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import onnxeqx

from .config import TrainConfig
from .data import Examples
from .errors import CheckpointError
from .folder import CHECKPOINTS, CONFIG, FOLDER, PREPROCESSING
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
    if changes.get("data", config.data) != config.data:
        changes |= {"limit": None}  # which was of the run's own data
    # One device is everywhere.
    prepared = prepare(dataclasses.replace(config, **({"devices": 1} | changes)), left=_left(folder))
    _, optimizer = optimizer_of(prepared)
    if not (folder / CHECKPOINTS / "best").is_dir():
        raise CheckpointError(f"{folder} has no checkpoint yet: train for an epoch first (onnxeqx train --resume).")
    with checkpoints_of(prepared, folder, read_only=True) as checkpoints:
        if not checkpoints.steps("best"):
            raise CheckpointError(f"{folder} has no checkpoint yet: train for an epoch first (onnxeqx train --resume).")
        state = checkpoints.restore(new_state(prepared, optimizer), "best")
    return Restored(prepared, prepared.finished(state.evaluated))


def _left(folder: pathlib.Path) -> Mapping[str, Any]:
    """What the run wrote about its data: its classes and features hold for other data too."""
    path = folder / PREPROCESSING
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


@dataclasses.dataclass(frozen=True)
class _Both:
    """The examples of two parts, one part behind the other."""

    first: Examples
    second: Examples

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.first[index] if index < len(self.first) else self.second[index - len(self.first)]


def evaluate_run(folder: pathlib.Path, **changes: Any) -> dict[str, float]:
    """Loss and metrics of a run's best model on the validation part; on all of other data that has no such part.

    **Arguments:** as of `restore_run`.
    """
    prepared, model = restore_run(folder, **changes)
    data = prepared.data
    if prepared.dataset.held_out and changes.get("data") is not None:
        data = dataclasses.replace(data, validation=_Both(data.training, data.validation))
    eval_step = make_eval_step(
        prepared.validation_loss, prepared.metrics, forward=prepared.forward, compute_dtype=prepared.compute_dtype
    )
    totals = zero_totals(prepared.metrics)
    for batch in data.validation_batches():
        totals = eval_step(model, totals, batch)
    return {"examples": int(totals["examples"])} | epoch_means(totals, "")


def best_model(folder: pathlib.Path) -> Any:
    """The model of a run's best epoch: as it was left, or, of a run that is not finished, from its checkpoints."""
    if (folder / FOLDER).is_dir():
        return onnxeqx.load(folder / FOLDER)
    return restore_run(folder).model
