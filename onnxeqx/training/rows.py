"""Examples that are rows of arrays: of tables, and of tokens."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import numpy as np

from .datasets import Dataset, Selection
from .losses import IGNORED


@dataclasses.dataclass(frozen=True)
class Rows:
    """Examples from arrays in memory (or memory maps).

    **Arguments:**

    - `inputs`: an array, or a tree of several, of which each row is an example.
    - `labels`: as many rows.
    - `indices`: the rows that belong to this part.
    - `texts`: what people are shown of them, if anything.
    """

    inputs: Any
    labels: Any
    indices: Sequence[int]
    texts: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        row = self.indices[index]
        return jax.tree.map(lambda array: np.asarray(array[row]), (self.inputs, self.labels))

    def origin(self, index: int) -> str:
        """Where an example comes from, for people."""
        return f"row {self.indices[index]}"

    def text(self, index: int) -> str | None:
        """The text of an example."""
        return None if self.texts is None else self.texts[self.indices[index]]


@dataclasses.dataclass(frozen=True)
class MaskedRows:
    """Token examples of which some tokens are masked, others each time they are drawn.

    **Arguments:**

    - `ids`, `mask`: shape `(rows, positions)`.
    - `inputs`: makes the model's inputs of ids.
    - `hide`: `(ids, mask, *, random)` to ids with masks, and labels.
    - `indices`: the rows that belong to this part.
    """

    ids: np.ndarray
    mask: np.ndarray
    inputs: Callable[[np.ndarray, np.ndarray], Mapping[str, np.ndarray]]
    hide: Callable[..., tuple[np.ndarray, np.ndarray]]
    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.drawn(index, np.random.default_rng(self.indices[index]))  # each time the same, for evaluation

    def drawn(self, index: int, random: np.random.Generator) -> tuple[Any, Any]:
        """The example with tokens masked by chance."""
        row = slice(self.indices[index], self.indices[index] + 1)
        ids, labels = self.hide(self.ids[row], self.mask[row], random=random)
        return {name: array[0] for name, array in self.inputs(ids, self.mask[row]).items()}, labels[0]


@dataclasses.dataclass(frozen=True)
class NextTokens:
    """Labels of tokens: the one behind each, which the last does not have. Made where they are read, as `ids` may be large.

    **Arguments:**

    - `ids`: shape `(rows, positions)`, in memory or mapped into it.
    """

    ids: Any
    ndim: ClassVar[int] = 2

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> np.ndarray:
        return np.append(np.asarray(self.ids[row])[1:], IGNORED).astype(np.int32)


def _counted(labels: Any) -> np.ndarray:
    """The rows that have something to learn: of token labels, those that are not ignored throughout."""
    if isinstance(labels, np.ndarray) and labels.ndim == 2 and labels.dtype.kind == "i":
        return np.flatnonzero((labels != IGNORED).any(1))
    return np.arange(len(labels))


def dataset_of_rows(
    selection: Selection,
    training: tuple[Any, Any],
    validation: tuple[Any, Any] | None,
    names: tuple[str, ...],
    description: Mapping[str, Any] | None = None,
    texts: tuple[Sequence[str] | None, Sequence[str] | None] = (None, None),
) -> Dataset:
    """A data set of whole arrays: its own validation part, or a share of the training part."""
    if validation is None:
        kept, labels = _counted(training[1]), training[1]
        parts = selection.split(labels if np.ndim(labels) == 1 else np.zeros(len(kept)))
        rows = [kept[part].tolist() for part in parts]
        held_out, texts = training, (texts[0], texts[0])
    else:
        held_out = validation
        rows = [selection.limited(_counted(part[1]).tolist()) for part in (training, held_out)]
    return Dataset(
        Rows(*training, rows[0], texts[0]),
        Rows(*held_out, rows[1], texts[1]),
        names,
        dict(description or {}),
        held_out=validation is None,
    )
