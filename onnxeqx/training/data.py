"""Batches of fixed shape from random-access examples, through Grain; the held-out share."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import grain
import numpy as np
from jaxtyping import Bool, Int

from .._errors import DataError

PREFETCHED_BATCHES = 4


class Batch(NamedTuple):
    """A batch of fixed size; the last one of an epoch is padded, so that nothing recompiles and nothing is dropped.

    - `inputs`: shape `(batch, ...)`, what the model is called with.
    - `labels`: shape `(batch,)`, int32.
    - `mask`: shape `(batch,)`, False for padding.
    """

    inputs: Any
    labels: Int[Any, " batch"]
    mask: Bool[Any, " batch"]


class Examples(Protocol):
    """Random access to examples `(input, label)`: an array of shape `(...)` and an integer."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]: ...


@dataclasses.dataclass(frozen=True)
class Data:
    """What `fit` trains on and evaluates with.

    The order of the training examples follows from seed and epoch alone, so a run resumes at any step exactly.

    **Arguments:**

    - `training`, `validation`: examples by index; see `Examples`.
    - `batch_size`: of both parts.
    - `seed`: of the shuffling, 0 or above.
    - `workers`: threads that read examples ahead.
    """

    training: Examples
    validation: Examples
    batch_size: int = 32
    seed: int = 0
    workers: int = 2

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
        # Grain wants one 32-bit seed; a SeedSequence mixes both numbers so that no two epochs of two seeds coincide.
        (seed,) = np.random.SeedSequence([self.seed, epoch]).generate_state(1)
        return self._batches(grain.MapDataset.source(self.training).shuffle(seed=int(seed)), start)

    def validation_batches(self) -> Iterator[Batch]:
        """All validation examples, in their order, each exactly once."""
        return self._batches(grain.MapDataset.source(self.validation))

    def _batches(self, examples: grain.MapDataset, start: int = 0) -> Iterator[Batch]:
        batches = examples.batch(self.batch_size, drop_remainder=False, batch_fn=self._stack)[start:]
        options = grain.ReadOptions(num_threads=self.workers, prefetch_buffer_size=PREFETCHED_BATCHES)
        return iter(batches.to_iter_dataset(options))

    def _stack(self, examples: Sequence[tuple[np.ndarray, int]]) -> Batch:
        inputs, labels = zip(*examples, strict=True)
        padding = self.batch_size - len(examples)
        # The last example repeated, not zeros: whatever the model does to real data, it does to padding.
        inputs = np.stack([*inputs, *[inputs[-1]] * padding])
        labels = np.asarray([*labels, *[labels[-1]] * padding], np.int32)
        return Batch(inputs, labels, np.arange(self.batch_size) < len(examples))


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
    validation = sorted(validation) or [int(random.integers(len(labels)))]
    return sorted(set(range(len(labels))) - set(validation)), validation


def limited(indices: Sequence[int], limit: int | None, seed: int) -> list[int]:
    """At most `limit` of the indices, drawn by seed; in their order."""
    if limit is None or limit >= len(indices):
        return list(indices)
    return sorted(np.random.default_rng(seed).choice(np.asarray(indices), limit, replace=False).tolist())
