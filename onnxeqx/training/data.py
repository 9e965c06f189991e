"""Batches of fixed shape from random-access examples, through Grain; the held-out share."""

import dataclasses
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import grain
import jax
import numpy as np
from absl import flags
from jaxtyping import Bool

from .._errors import DataError
from .augment import Mixing

PREFETCHED_BATCHES = 4


class Batch(NamedTuple):
    """A batch of fixed size; the last one of an epoch is padded, so that nothing recompiles and nothing is dropped.

    - `inputs`: what the model is called with: an array of shape `(batch, ...)`, or a tuple or a mapping of several.
    - `labels`: what loss and metrics compare with; arrays whose first axis is the batch.
    - `mask`: shape `(batch,)`, False for padding.
    """

    inputs: Any
    labels: Any
    mask: Bool[Any, " batch"]


class Examples(Protocol):
    """Random access to examples `(inputs, labels)`: of each, an array or a number, or a tuple or a mapping of several."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Any, Any]: ...


@runtime_checkable
class DrawnExamples(Protocol):
    """Examples that are another time each time, as augmented images are: training uses `drawn`, evaluation indexes."""

    def drawn(self, index: int, random: np.random.Generator) -> tuple[Any, Any]: ...


@dataclasses.dataclass(frozen=True)
class Data:
    """What `fit` trains on and evaluates with.

    The order of the training examples, and what is drawn, follow from seed, epoch and step alone, so a run resumes at any step
    exactly.

    **Arguments:**

    - `training`, `validation`: examples by index; see `Examples`.
    - `batch_size`: of both parts, of all processes together.
    - `seed`: of the shuffling, 0 or above.
    - `workers`: threads that read batches ahead.
    - `worker_processes`: processes that do, instead of threads.
    - `mixing`: blends the examples of a training batch.
    - `shard`: the number of this process and that of all: each reads its share of every batch.
    """

    training: Examples
    validation: Examples
    batch_size: int = 32
    seed: int = 0
    workers: int = 2
    worker_processes: int = 0
    mixing: Mixing | None = None
    shard: tuple[int, int] = (0, 1)

    @property
    def steps(self) -> int:
        """Batches in an epoch of training; the last one may be padded."""
        return -(-len(self.training) // self.batch_size)

    @property
    def validation_steps(self) -> int:
        """Batches in an evaluation."""
        return -(-len(self.validation) // self.batch_size)

    def training_batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, shuffled, from batch `start` on (the ones before are not read)."""
        # A SeedSequence mixes both numbers, so that no two epochs of two seeds coincide.
        order, draws = np.random.SeedSequence([self.seed, epoch]).generate_state(2)
        batches = _Batches(
            self.training,
            np.random.default_rng(order).permutation(len(self.training)),
            self.batch_size,
            self.shard,
            self.mixing,
        )
        return self._read(grain.MapDataset.range(self.steps).seed(int(draws)).random_map(batches)[start:])

    def validation_batches(self) -> Iterator[Batch]:
        """All validation examples, in their order, each exactly once."""
        order = np.arange(len(self.validation))
        batches = _Batches(self.validation, order, self.batch_size, self.shard)
        return self._read(grain.MapDataset.range(self.validation_steps).map(batches))

    def _read(self, batches: grain.MapDataset) -> Iterator[Batch]:
        options = grain.ReadOptions(num_threads=self.workers, prefetch_buffer_size=PREFETCHED_BATCHES)
        read = batches.to_iter_dataset(options)
        if self.worker_processes:
            if not flags.FLAGS.is_parsed():  # Grain reads flags of its own, which nobody has parsed outside of absl.app
                flags.FLAGS.mark_as_parsed()
            options = grain.MultiprocessingOptions(num_workers=self.worker_processes)
            read = read.mp_prefetch(options, worker_init_fn=_begin_worker)
        return iter(read)


def _begin_worker(number: int, count: int) -> None:
    """Makes a worker leave Ctrl-C to the process that trains, and end with it, even if that is killed."""
    del number, count
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@dataclasses.dataclass(frozen=True)
class _Batches:
    """From the number of a batch to the batch: what a worker does."""

    examples: Examples
    order: np.ndarray
    batch_size: int
    shard: tuple[int, int]
    mixing: Mixing | None = None

    def __call__(self, step: int, random: np.random.Generator | None = None) -> Batch:
        (part, parts), size = self.shard, self.batch_size
        rows = np.arange(step * size + part * size // parts, step * size + (part + 1) * size // parts)
        # The last example repeated, not zeros: whatever the model does to real data, it does to padding.
        mask, rows = rows < len(self.order), np.minimum(rows, len(self.order) - 1)
        read = self._drawn(random) if random is not None else self.examples.__getitem__
        inputs, labels = jax.tree.map(_stack, *(read(index) for index in self.order[rows].tolist()))
        if self.mixing and random is not None:
            inputs, labels = self.mixing(inputs, labels, mask, random)
        return Batch(inputs, labels, mask)

    def _drawn(self, random: np.random.Generator) -> Callable[[int], tuple[Any, Any]]:
        examples = self.examples
        if isinstance(examples, DrawnExamples):
            return lambda index: examples.drawn(index, random)
        return examples.__getitem__


def _stack(*values: Any) -> np.ndarray:
    """One array of the values of all examples; labels given as Python's numbers become 32-bit."""
    stacked = np.stack(values)
    narrow = {"i": np.int32, "f": np.float32}.get(stacked.dtype.kind) if isinstance(values[0], int | float) else None
    return stacked if narrow is None else stacked.astype(narrow)


def hold_out(labels: Sequence[int], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Splits examples into a training and a validation part, each class by the same share.

    **Arguments:**

    - `labels`: the class of each example.
    - `share`: of each class that is held out, rounded; at least one example overall.
    - `seed`: the same seed gives the same split.

    **Returns:** the indices of the training part and of the validation part, both ascending.

    **Raises:** `DataError` if there are fewer than two examples.
    """
    if len(labels) < 2:
        raise DataError(f"A split into training and validation needs at least 2 examples, not {len(labels)}.")
    random = np.random.default_rng(seed)
    classes = np.asarray(labels)
    validation: list[int] = []
    for label in np.unique(classes):
        members = random.permutation(np.flatnonzero(classes == label))
        validation.extend(members[: min(round(share * len(members)), len(members) - 1)].tolist())
    if len(validation) < share * len(labels) / 2:  # many classes of a few examples each, of which rounding leaves none
        validation.extend(_of_small_classes(classes, validation, round(share * len(labels)), random))
    validation = sorted(validation) or [int(random.integers(len(labels)))]
    return sorted(set(range(len(labels))) - set(validation)), validation


def _of_small_classes(
    classes: np.ndarray, validation: list[int], wanted: int, random: np.random.Generator
) -> list[int]:
    """One example more of as many classes as are needed; none loses its last one."""
    _, inverse, counts = np.unique(classes, return_inverse=True, return_counts=True)
    left = counts - np.bincount(inverse[validation], minlength=len(counts))
    chosen: dict[int, int] = {}  # by class
    for index in random.permutation(np.setdiff1d(np.arange(len(classes)), validation)).tolist():
        if len(validation) + len(chosen) >= wanted:
            break
        if left[inverse[index]] > 1:
            chosen.setdefault(int(inverse[index]), index)
    return list(chosen.values())


def limited(indices: Sequence[int], limit: int | None, seed: int) -> list[int]:
    """At most `limit` of the indices, drawn by seed; in their order."""
    if limit is None or limit >= len(indices):
        return list(indices)
    return sorted(np.random.default_rng(seed).choice(np.asarray(indices), limit, replace=False).tolist())
