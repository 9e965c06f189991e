"""Checkpoints through Orbax: best and last, each whole or not there, and checked on the way back."""

import hashlib
import json
import logging
import pathlib
from collections.abc import Mapping
from typing import Any, Self

import equinox as eqx
import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import Array, PyTree

from .._weights import dotted_path, write_whole
from .errors import CheckpointError
from .loop import EpochDone, Event
from .state import TrainState

logger = logging.getLogger(__name__)


class Checkpoints:
    """Keeps `folder/last/<step>` and `folder/best/<step>`; a callback of `fit`.

    A checkpoint holds what changes: trained leaves, optimiser state and position, each array by its key path, and a
    digest of the frozen weights. A new one is complete before an old one goes; of `last`, two are kept, so that a
    damaged newest one costs an epoch, not the run.

    **Arguments:**

    - `folder`: created when missing.
    - `metric`: the column of the history that decides which is best; larger is better.
    """

    def __init__(self, folder: pathlib.Path, *, metric: str = "val_accuracy"):
        self.metric = metric
        self.folder = folder
        self._managers = {name: _manager(folder / name, kept) for name, kept in (("last", 2), ("best", 1))}
        self._best = self._best_so_far()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_):
        for manager in self._managers.values():
            manager.close()

    def __call__(self, event: Event) -> None:
        if isinstance(event, EpochDone):
            value = event.row[self.metric]
            if value > self._best:
                self.save(event.state, "best", value)
                self._best = value
            self.save(event.state)

    def latest(self) -> int:
        """The step of the newest checkpoint; 0 when there is none."""
        return max(self.steps(), default=0)

    def steps(self, name: str = "last") -> list[int]:
        """The steps of the checkpoints that are there, newest first."""
        return sorted(self._managers[name].all_steps(), reverse=True)

    def save(self, state: TrainState, name: str = "last", metric: float | None = None) -> None:
        """Saves a state under `last` or `best`; a checkpoint of the same step is replaced."""
        arrays = _arrays(state)
        metadata = {
            "metric": metric,
            "leaves": _signature(arrays),
            "frozen_digest": _frozen_digest(state),
        }
        step, manager = int(state.step), self._managers[name]
        if step in manager.all_steps():  # the epoch ends with the step at which Ctrl-C came
            manager.delete(step)
        manager.save(
            step,
            args=ocp.args.Composite(state=ocp.args.StandardSave(arrays), metadata=ocp.args.JsonSave(metadata)),
            force=True,
        )
        # After Orbax's commit: a kill in between leaves a checkpoint that is whole, and only not checked.
        path = self.folder / name / str(step)
        write_whole(path / _CHECKSUMS, json.dumps(_checksums(path)))

    def restore(self, state: TrainState, name: str = "last") -> TrainState:
        """The newest readable checkpoint, in the shape of `state`; `state` itself when there is none yet.

        **Arguments:**

        - `state`: as `TrainState.create` makes it from the same model and optimiser.
        - `name`: `last` or `best`.

        **Raises:** `CheckpointError` if the checkpoint is of another model, or all are damaged.
        """
        arrays = _arrays(state)
        damaged = None
        for step in self.steps(name):
            try:
                self._check(self._metadata(name, step), arrays, state, name)
                return _with_arrays(state, self._read(name, step, arrays))
            except _DamagedError as error:
                logger.warning("%s Falling back to the one before.", error)
                damaged = error
        if damaged is not None:
            raise CheckpointError(f"{damaged} There is no other checkpoint; start the run again with --force.")
        return state

    def _best_so_far(self) -> float:
        for step in self.steps("best"):
            try:
                return self._metadata("best", step)["metric"]
            except _DamagedError as error:
                logger.warning("%s", error)
        return float("-inf")

    def _metadata(self, name: str, step: int) -> dict[str, Any]:
        path = self.folder / name / str(step)
        if (path / _CHECKSUMS).exists() and (path / _CHECKSUMS).read_text() != json.dumps(_checksums(path)):
            raise _DamagedError(path)
        return self._item(name, step, metadata=ocp.args.JsonRestore())

    def _read(self, name: str, step: int, arrays: dict[str, Array]) -> dict[str, Array]:
        targets = {
            key: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding) for key, leaf in arrays.items()
        }
        return self._item(name, step, state=ocp.args.StandardRestore(targets))

    def _item(self, name: str, step: int, **item: ocp.args.CheckpointArgs) -> Any:
        try:
            (restored,) = self._managers[name].restore(step, args=ocp.args.Composite(**item)).values()
        # What Orbax, TensorStore and json raise on truncated or missing files.
        except (ValueError, OSError, KeyError, TypeError, RuntimeError) as error:
            raise _DamagedError(self.folder / name / str(step)) from error
        return restored

    def _check(self, metadata: dict[str, Any], arrays: dict[str, Array], state: TrainState, name: str) -> None:
        saved, expected = metadata["leaves"], _signature(arrays)
        differing = [
            *(f"{key} is only in the checkpoint" for key in saved.keys() - expected.keys()),
            *(f"{key} is only in this run" for key in expected.keys() - saved.keys()),
            *(
                f"{key} is {saved[key]} in the checkpoint and {expected[key]} here"
                for key in saved.keys() & expected.keys()
                if saved[key] != expected[key]
            ),
        ]
        if not differing and metadata["frozen_digest"] != _frozen_digest(state):
            differing = ["the frozen weights have other values"]
        if differing:
            shown = "; ".join(sorted(differing)[:6]) + (
                f"; and {len(differing) - 6} more" if len(differing) > 6 else ""
            )
            raise CheckpointError(f"The checkpoint in {self.folder / name} is of another model or run: {shown}.")


class _DamagedError(Exception):
    """A checkpoint cannot be read, or its values are not those that were saved."""

    def __init__(self, path: pathlib.Path):
        super().__init__(f"The checkpoint {path} is damaged.")


_CHECKSUMS = "checksums.json"


def _checksums(folder: pathlib.Path) -> dict[str, str]:
    """SHA-256 of each file. TensorStore notices most damage by itself, but not all, and not quietly."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != _CHECKSUMS)
    checksums = {}
    for path in files:
        with path.open("rb") as file:
            checksums[str(path.relative_to(folder))] = hashlib.file_digest(file, "sha256").hexdigest()
    return checksums


def _manager(folder: pathlib.Path, kept: int) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(
        max_to_keep=kept, enable_async_checkpointing=False, cleanup_tmp_directories=True, create=True
    )
    return ocp.CheckpointManager(folder.absolute(), options=options, item_names=("state", "metadata"))


def _parts(state: TrainState) -> dict[str, PyTree]:
    names = ("trainable", "opt_state", "step", "epoch", "totals")
    return {name: getattr(state, name) for name in names}


def _arrays(state: TrainState) -> dict[str, Array]:
    """All that changes in a run, by key path: an order of leaves would silently accept another model's."""
    return _named(_parts(state))


def _with_arrays(state: TrainState, arrays: Mapping[str, Array]) -> TrainState:
    parts = jax.tree_util.tree_map_with_path(lambda path, leaf: arrays.get(dotted_path(path), leaf), _parts(state))
    return TrainState(frozen=state.frozen, **parts)


def _named(tree: PyTree) -> dict[str, Array]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {dotted_path(path): leaf for path, leaf in leaves if eqx.is_array(leaf)}


def _signature(arrays: Mapping[str, Array]) -> dict[str, str]:
    return {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in arrays.items()}


def _frozen_digest(state: TrainState) -> str:
    digest = hashlib.sha256()
    for name, leaf in sorted(_named(state.frozen).items()):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{name} {array.dtype} {array.shape};".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
