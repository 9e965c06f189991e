"""Opens texts in tables: whole texts with labels, pairs, tagged words, and texts to continue or to complete."""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .._errors import DataError
from .config import TrainConfig
from .datasets import Dataset, Selection
from .errors import ConfigError
from .labels import chosen_column, label_column
from .losses import IGNORED
from .rows import MaskedRows, NextTokens, dataset_of_rows
from .signature import Signature
from .tables import Table
from .tasks import Task
from .text import Encoded, Tokenizer, blocks, masked, model_inputs, token_input, token_labels

TEXT_COLUMNS = ("text", "sentence", "content", "sms", "review", "question")
WORD_COLUMNS = ("tokens", "words")
TAG_COLUMNS = ("ner_tags", "tags", "labels", "label")


def open_texts(
    config: TrainConfig,
    signature: Signature,
    task: Task,
    selection: Selection,
    training: Table,
    validation: Table | None,
    classes: tuple[str, ...] = (),
) -> Dataset:
    """Texts in a column, for a network that takes their tokens; `classes` are those of an earlier run."""
    if config.tokenizer is None:
        raise ConfigError("A network of tokens needs the tokenizer.json that belongs to it: --tokenizer FILE.")
    _, (_, fixed) = signature.inputs[token_input(tuple(signature.inputs))]
    if fixed not in (0, config.max_length):
        raise ConfigError(f"--max-length is {config.max_length}, but {config.model} takes {fixed} tokens.")
    tokenizer = Tokenizer(pathlib.Path(config.tokenizer), config.max_length)
    texts = _Texts(config, signature, task, tokenizer)
    description = {"tokenizer": "tokenizer.json", "max_length": config.max_length}
    if task.labels == "masked tokens":
        return texts.masked(selection, training, validation, description)
    first = texts.part(training, classes)
    second = None if validation is None else texts.part(validation, first.names)
    return dataset_of_rows(
        selection,
        (first.inputs, first.labels),
        None if second is None else (second.inputs, second.labels),
        first.names,
        description,
        (first.shown, first.shown if second is None else second.shown),
    )


class _Part(NamedTuple):
    """A table as arrays; the names of its classes; what people are shown of each row."""

    inputs: Any
    labels: Any
    names: tuple[str, ...]
    shown: Sequence[str] | None


@dataclasses.dataclass(frozen=True)
class _Texts:
    """From tables to arrays.

    **Arguments:**

    - `config`: names the columns.
    - `signature`: of the network.
    - `task`, `tokenizer`: what is made of the texts.
    """

    config: TrainConfig
    signature: Signature
    task: Task
    tokenizer: Tokenizer

    def part(self, table: Table, names: tuple[str, ...] = ()) -> _Part:
        """The training part, or another one with the names of its classes."""
        openers = {"next tokens": self._blocks, "pairs": self._pairs, "token classes": self._tagged}
        return openers.get(self.task.labels, self._labelled)(table, names)

    def masked(
        self, selection: Selection, training: Table, validation: Table | None, description: Mapping[str, Any]
    ) -> Dataset:
        """Whole texts, some of whose tokens are hidden, others each time."""
        tokenizer = self.tokenizer
        if tokenizer.mask_id is None:
            raise ConfigError(
                f"{self.config.tokenizer} has no mask token ([MASK] or <mask>), which --task {self.task.name} needs."
            )
        names = tuple(self.signature.inputs)
        vocabulary = self.signature.embeddings.get(token_input(names), tokenizer.vocabulary_size)
        if tokenizer.mask_id >= vocabulary:
            raise ConfigError(
                f"The mask token of {self.config.tokenizer} is number {tokenizer.mask_id}, but the network knows {vocabulary:,}; "
                "give the tokenizer that belongs to it."
            )
        hide = functools.partial(
            masked,
            share=self.config.mask_share,
            mask_id=tokenizer.mask_id,
            vocabulary_size=min(vocabulary, tokenizer.vocabulary_size),
            special=tokenizer.special_ids,
        )
        parts = [tokenizer(self._columns(table)[0]) for table in (training, validation) if table is not None]
        special = list(tokenizer.special_ids)
        kept = [np.flatnonzero(((part.mask != 0) & ~np.isin(part.ids, special)).any(1)) for part in parts]
        if not all(map(len, kept)):
            raise DataError(f"{training.origin} has no text with a token to hide.")
        if len(parts) == 1:
            rows = [kept[0][part].tolist() for part in selection.split([0] * len(kept[0]))]
        else:
            rows = [selection.limited(part.tolist()) for part in kept]
        for table, part in zip((training, validation), parts, strict=False):
            assert table is not None
            self._inputs(table, part)  # which refuses tokens that the network does not know
        inputs = functools.partial(_masked_inputs, names)
        first, second = (
            MaskedRows(part.ids, part.mask, inputs, hide, row)
            for part, row in zip((parts[0], parts[-1]), rows, strict=True)
        )
        return Dataset(first, second, (), description, held_out=len(parts) == 1)

    def _labelled(self, table: Table, names: tuple[str, ...]) -> _Part:
        texts, pairs = self._columns(table)
        encoded = self.tokenizer(texts, pairs)
        if self.task.labels == "teacher":  # of a model that gives something for each token, padding does not count
            labels = np.where(encoded.mask, 0, IGNORED).astype(np.int32)
        else:
            labels, names = label_column(table, self.config.label_column, self.task.labels, names or None)
        return _Part(self._inputs(table, encoded), labels, names, texts)

    def _pairs(self, table: Table, names: tuple[str, ...]) -> _Part:
        texts, others = self._columns(table)
        if others is None:
            raise ConfigError(
                f"--task {self.task.name} takes pairs of texts: name both columns, --text-column first,second."
            )
        first, second = (self._inputs(table, self.tokenizer(part)) for part in (texts, others))
        return _Part({"first": first, "second": second}, np.arange(len(texts), dtype=np.int32), names, texts)

    def _blocks(self, table: Table, names: tuple[str, ...]) -> _Part:
        ids = blocks(self.tokenizer, self._columns(table)[0])
        return _Part(
            self._inputs(table, Encoded(ids, np.ones_like(ids), np.zeros_like(ids))), NextTokens(ids), names, None
        )

    def _tagged(self, table: Table, names: tuple[str, ...]) -> _Part:
        column = self.config.label_column or chosen_column(table, TAG_COLUMNS, "--label-column")
        word_column = self.config.text_column or chosen_column(table, WORD_COLUMNS, "--text-column")
        words = _word_lists(table, word_column, "--text-column")
        own = table.class_names.get(column)
        tags = [
            [_tag(table, column, row, tag, own) for tag in line]
            for row, line in enumerate(_word_lists(table, column, "--label-column"))
        ]
        names = names or own or _tag_names(tags)
        numbers: dict[str | None, int] = {None: IGNORED, **{name: number for number, name in enumerate(names)}}
        for row, line in enumerate(tags):
            if unknown := [tag for tag in line if tag not in numbers]:
                raise DataError(
                    f"{table.origin}: label {unknown[0]!r} of row {row} is not in the training part, which has "
                    f"{', '.join(names)}."
                )
        encoded, labels = token_labels(self.tokenizer, words, [[numbers[tag] for tag in line] for line in tags])
        return _Part(self._inputs(table, encoded), labels, names, [" ".join(line) for line in words])

    def _inputs(self, table: Table, encoded: Encoded) -> dict[str, np.ndarray]:
        arrays = model_inputs(tuple(self.signature.inputs), encoded)
        for name, array in arrays.items():
            self.signature.check_ids(table.origin, name, array)
        return arrays

    def _columns(self, table: Table) -> tuple[Any, Any]:
        """The column of texts, and of those that belong to them, if any."""
        chosen = self.config.text_column or chosen_column(table, TEXT_COLUMNS, "--text-column")
        names = [name.strip() for name in chosen.split(",")]
        if len(names) > 2:
            raise ConfigError(
                f"--text-column is {self.config.text_column}, but must be one column, or two for pairs of texts."
            )
        columns = [table.column(name, "--text-column") for name in names]
        return columns[0], columns[1] if len(columns) > 1 else None


def _word_lists(table: Table, column: str, option: str) -> list[list[Any]]:
    """A column of lists, or of texts with spaces between the words."""
    lines = []
    for row, value in enumerate(table.column(column, option)):
        line = value.split() if isinstance(value, str) else value
        if not isinstance(line, list):
            raise DataError(
                f"{table.origin}: column {column!r} ({option}) is {'missing' if line is None else repr(line)} in row {row} (the "
                "first is 0), but must be a list, or a text with spaces between the words; correct or remove the row."
            )
        lines.append(line)
    return lines


def _tag(table: Table, column: str, row: int, tag: Any, own: Sequence[str] | None) -> str | None:
    """The name of a word's class; `None` for -100, which does not count."""
    if tag in (IGNORED, str(IGNORED)):
        return None
    if isinstance(tag, str):
        return tag
    if not isinstance(tag, int) or tag < 0 or (own is not None and tag >= len(own)):
        raise DataError(
            f"{table.origin}: a label in column {column!r} (--label-column) is {'missing' if tag is None else tag} in row {row} "
            "(the first is 0), but must be the name or the number of a class, or -100; correct or remove the row."
        )
    return str(tag) if own is None else own[tag]


def _tag_names(tags: Sequence[Sequence[str | None]]) -> tuple[str, ...]:
    """All that occur, in their order; whole numbers are the classes from 0 on."""
    found = {tag for line in tags for tag in line if tag is not None}
    if all(tag.isdecimal() for tag in found):
        return tuple(str(number) for number in range(max(map(int, found), default=0) + 1))
    return tuple(sorted(found))


def _masked_inputs(names: Sequence[str], ids: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
    return model_inputs(names, Encoded(ids, mask, np.zeros_like(ids)))
