"""Checkpoints through Orbax: best and last, each whole or not there, and checked on the way back."""

import errno
import hashlib
import json
import logging
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import Array, PyTree

from .._weights import dotted_path, write_whole
from .errors import CheckpointError
from .loop import EpochDone, Event, StepDone
from .monitor import Monitor
from .precision import loss_scale
from .state import TrainState

logger = logging.getLogger(__name__)


class Checkpoints:
    """Keeps `folder/last/<step>` and `folder/best/<step>`; a callback of `fit`.

    A checkpoint holds what changes: trained leaves, optimiser state and position, each array by its key path, and a
    digest of the frozen weights. It is written while training goes on. A new one is complete before an old one goes; of `last`,
    two are kept, so that a damaged newest one costs an epoch, not the run.

    **Arguments:**

    - `folder`: created when missing.
    - `monitor`: decides which epoch is best.
    - `keep_best`: how many of the best epochs are kept.
    - `every_steps`: save after so many steps too, beside after each epoch.
    - `facts`: what else a run that goes on must have in common with the one that saved, by name, such as the number of examples.
    - `read_only`: for a look at a run that may be going on: nothing in the folder is touched.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        monitor: Monitor = Monitor("val_accuracy"),  # noqa: B008  (it is frozen)
        *,
        keep_best: int = 1,
        every_steps: int | None = None,
        facts: Mapping[str, Any] | None = None,
        read_only: bool = False,
    ):
        self.monitor = monitor
        self.keep_best = keep_best
        self.every_steps = every_steps
        self.folder = folder
        self.facts = dict(facts or {})
        self._managers = {
            name: _manager(folder / name, kept, read_only=read_only) for name, kept in (("last", 2), ("best", None))
        }
        self._unchecked: dict[str, list[int]] = {"last": [], "best": []}
        self._scores = self._known_scores()
        self._digested: tuple[list[Array], str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_):
        for name, manager in self._managers.items():
            self._finish(name)
            manager.close()

    def __call__(self, event: Event) -> None:
        if isinstance(event, StepDone) and self.every_steps and event.step % self.every_steps == 0:
            self.save(event.state)
        elif isinstance(event, EpochDone):
            self._keep_if_good(event)
            self.save(event.state)

    def latest(self) -> int:
        """The step of the newest checkpoint; 0 when there is none."""
        return max(self.steps(), default=0)

    def steps(self, name: str = "last") -> list[int]:
        """The steps of the checkpoints: of `last`, the newest first; of `best`, the best first (of equal ones, the older)."""
        steps = sorted(self._managers[name].all_steps(), reverse=True)
        if name == "last":
            return steps
        return sorted(steps, key=lambda step: (-self._scores.get(step, float("-inf")), step))

    def save(self, state: TrainState, name: str = "last", score: float | None = None) -> None:
        """Saves a state under `last` or `best`, there with its score; a checkpoint of the same step is replaced.

        Returns when the state has been copied; the copy is written while training goes on. A state whose last step was not finite
        is not saved: the run would end there again each time it is resumed.

        **Raises:** `OSError` if the disk has no room for it.
        """
        if int(state.totals.get("skipped", 0)) and loss_scale(state.opt_state) is None:
            return
        # The next step reuses the buffers of this state.
        arrays = {key: jnp.array(leaf, copy=True) for key, leaf in _arrays(state).items()}
        metadata = {
            "score": score,
            "facts": self.facts,
            "leaves": _signature(arrays),
            "frozen_digest": self._digest(state),
        }
        step, manager = int(state.step), self._managers[name]
        self._finish(name)
        self._refuse_full_disk(sum(leaf.nbytes for leaf in arrays.values()))
        if step in manager.all_steps():  # the epoch ends with the step at which Ctrl-C came
            manager.delete(step)
        manager.save(
            step,
            args=ocp.args.Composite(state=ocp.args.StandardSave(arrays), metadata=ocp.args.JsonSave(metadata)),
            force=True,
        )
        self._unchecked[name].append(step)

    def _digest(self, state: TrainState) -> str:
        """Of the frozen weights: of the same arrays as before, it is known already."""
        arrays = _named(state.frozen)
        leaves = list(arrays.values())
        if self._digested is None or not _are_same(self._digested[0], leaves):
            self._digested = leaves, _sha256(arrays)
        return self._digested[1]

    def _refuse_full_disk(self, size: int) -> None:
        """Before Orbax begins: what its threads meet when they cannot write, they print as well."""
        if shutil.disk_usage(self.folder).free < size + _OTHER_FILES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.folder))

    def _keep_if_good(self, event: EpochDone) -> None:
        score = self.monitor.score(event.row)
        kept = self.steps("best")
        if len(kept) < self.keep_best or score > self._scores.get(kept[self.keep_best - 1], float("-inf")):
            self._scores[int(event.state.step)] = score
            self.save(event.state, "best", score)
            self._finish("best")  # the new one is whole before the worst goes
        for worse in self.steps("best")[self.keep_best :]:
            self._managers["best"].delete(worse)

    def _finish(self, name: str) -> None:
        """Waits for what is being written, and adds checksums to it.

        They come after Orbax's commit: a kill in between leaves a checkpoint that is whole, and only not checked.
        """
        self._managers[name].wait_until_finished()
        for step in self._unchecked[name]:
            path = self.folder / name / str(step)
            if path.is_dir():  # a newer one may have taken its place
                write_whole(path / _CHECKSUMS, json.dumps(_checksums(path)))
        self._unchecked[name].clear()

    def restore(self, state: TrainState, name: str = "last") -> TrainState:
        """The newest readable checkpoint, in the shape of `state`; `state` itself when there is none yet.

        **Arguments:**

        - `state`: as `TrainState.create` makes it from the same model and optimiser.
        - `name`: `last` or `best`.

        **Raises:** `CheckpointError` if the checkpoint is of another model, or all are damaged.
        """
        self._finish(name)
        arrays = _arrays(state)
        damaged = None
        for step in self.steps(name):
            try:
                self._check(self._metadata(name, step), arrays, state, name)
                return _with_arrays(state, self._read(name, step, arrays))
            except _DamagedError as error:
                if not (self.folder / name / str(step)).is_dir():  # a run that is going on has replaced it
                    self._managers[name].reload()
                    return self.restore(state, name)
                logger.warning("%s Falling back to the one before.", error)
                damaged = error
        if damaged is not None:
            raise CheckpointError(f"{damaged} There is no other checkpoint; start the run again with --force.")
        return state

    def _known_scores(self) -> dict[int, float]:
        scores = {}
        for step in self._managers["best"].all_steps():
            try:
                scores[step] = self._metadata("best", step)["score"]
            except _DamagedError as error:
                logger.warning("%s", error)
        return scores

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
        if self.facts:
            differing += [
                f"the run had {metadata.get('facts', {}).get(fact)} {fact}, and there are {value} now"
                for fact, value in self.facts.items()
                if metadata.get("facts", {}).get(fact) != value
            ]
        if not differing and metadata["frozen_digest"] != self._digest(state):
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
_OTHER_FILES = 2**20  # bytes of what Orbax writes beside the arrays


def _checksums(folder: pathlib.Path) -> dict[str, str]:
    """SHA-256 of each file. TensorStore notices most damage by itself, but not all, and not quietly."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != _CHECKSUMS)
    checksums = {}
    for path in files:
        with path.open("rb") as file:
            checksums[str(path.relative_to(folder))] = hashlib.file_digest(file, "sha256").hexdigest()
    return checksums


def _manager(folder: pathlib.Path, kept: int | None, *, read_only: bool) -> ocp.CheckpointManager:
    if read_only:
        options = ocp.CheckpointManagerOptions(read_only=True, save_interval_steps=0, create=False)
    else:
        options = ocp.CheckpointManagerOptions(
            max_to_keep=kept, enable_async_checkpointing=True, cleanup_tmp_directories=True, create=True
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


def _are_same(some: list[Array], others: list[Array]) -> bool:
    return len(some) == len(others) and all(a is b for a, b in zip(some, others, strict=True))


def _sha256(arrays: Mapping[str, Array]) -> str:
    digest = hashlib.sha256()
    for name, leaf in sorted(arrays.items()):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{name} {array.dtype} {array.shape};".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
