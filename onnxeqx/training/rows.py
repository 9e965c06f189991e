"""Opens what networks of tables and of texts are trained on."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from .._errors import DataError
from .array_files import TRAINING_ARRAYS, VALIDATION_ARRAYS, named_pair, read_arrays
from .config import TrainConfig
from .datasets import Dataset, Selection, check_labels
from .errors import ConfigError
from .labels import chosen_column, label_column, label_columns
from .losses import IGNORED
from .registry import registry
from .signature import Signature
from .tables import TABLE_SUFFIXES, Table, features, is_saved_dataset, numeric_columns, open_tables
from .tasks import Task
from .text import Encoded, Tokenizer, blocks, masked, model_inputs, token_labels

TEXT_COLUMNS = ("text", "sentence", "content", "sms", "review", "question")
WORD_COLUMNS = ("tokens", "words")
TAG_COLUMNS = ("ner_tags", "tags", "labels", "label")


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
    - `hide`: `(ids, mask, random)` to ids with masks, and labels.
    - `indices`: the rows that belong to this part.
    """

    ids: np.ndarray
    mask: np.ndarray
    inputs: Callable[[np.ndarray, np.ndarray], Mapping[str, np.ndarray]]
    hide: Callable[[np.ndarray, np.ndarray, np.random.Generator], tuple[np.ndarray, np.ndarray]]
    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.drawn(index, np.random.default_rng(self.indices[index]))  # each time the same, for evaluation

    def drawn(self, index: int, random: np.random.Generator) -> tuple[Any, Any]:
        """The example with tokens masked by chance."""
        row = slice(self.indices[index], self.indices[index] + 1)
        ids, labels = self.hide(self.ids[row], self.mask[row], random)
        return {name: array[0] for name, array in self.inputs(ids, self.mask[row]).items()}, labels[0]


def open_rows(config: TrainConfig, signature: Signature, task: Task) -> Dataset:
    """Opens the data of a network that takes rows of a table, tokens, or other arrays.

    **Raises:** `DataError` if the data is missing, damaged or does not suit network and task; `ConfigError` if an option that it
    needs is missing.
    """
    path = pathlib.Path(config.data)
    selection = Selection(config.validation_share, config.limit, config.seed)
    sources = registry().datasets
    if config.data in sources:
        inputs, labels, names = sources[config.data]()
        return _parts(selection, (inputs.reshape(len(inputs), -1).astype(np.float32), labels), None, tuple(names))
    if path.suffix == ".npz" or (path.is_dir() and any(path.glob("*.npy"))):
        return _from_arrays(config, signature, task, selection, read_arrays(path))
    if path.suffix == ".txt" and path.is_file():
        table = Table(str(path), {"text": path.read_text(encoding="utf-8").splitlines()})
        return _from_texts(config, signature, task, selection, table, None)
    if path.suffix in TABLE_SUFFIXES or path.is_dir() or is_saved_dataset(path):
        training, validation = open_tables(path)
        opener = _from_texts if signature.kind == "tokens" else _from_table
        return opener(config, signature, task, selection, training, validation)
    raise DataError(
        f"There is no data at {config.data}: give a table ({', '.join(TABLE_SUFFIXES)}), a folder of them, an .npz file, or one "
        f"of: {', '.join(sources)}."
    )


def _parts(
    selection: Selection,
    training: tuple[Any, Any],
    validation: tuple[Any, Any] | None,
    names: tuple[str, ...],
    description: Mapping[str, Any] | None = None,
    texts: tuple[Sequence[str] | None, Sequence[str] | None] = (None, None),
) -> Dataset:
    """A data set of whole arrays: its own validation part, or a share of the training part."""
    if validation is None:
        rows = selection.split(list(training[1]))
        held_out, texts = training, (texts[0], texts[0])
    else:
        held_out = validation
        rows = tuple(selection.limited(range(len(part[1]))) for part in (training, held_out))
    return Dataset(
        Rows(*training, rows[0], texts[0]), Rows(*held_out, rows[1], texts[1]), names, dict(description or {})
    )


# --- arrays -----------------------------------------------------------------------------------------------------------


def _from_arrays(
    config: TrainConfig, signature: Signature, task: Task, selection: Selection, arrays: Mapping[str, np.ndarray]
) -> Dataset:
    """Arrays named after the network's inputs and `labels`, or pairs such as `x_train` and `y_train`."""
    inputs = {name: arrays[name] for name in signature.inputs if name in arrays}
    labels = next((arrays[name] for name in ("labels", "label", "y") if name in arrays), None)
    validation = None
    if len(inputs) == len(signature.inputs) and (labels is not None or task.labels in ("tokens", "none")):
        training = (inputs, labels if labels is not None else np.arange(len(next(iter(inputs.values())))))
        if task.name == "causal-lm" and labels is None:
            training = (inputs, _next_tokens(next(array for name, array in inputs.items() if "mask" not in name)))
    elif pair := named_pair(arrays, TRAINING_ARRAYS):
        training, validation = pair, named_pair(arrays, VALIDATION_ARRAYS)
        _check_shape(config, signature, training[0])
    else:
        raise DataError(
            f"{config.data} has {', '.join(arrays)}; name its arrays as the network's inputs ({', '.join(signature.inputs)}) and "
            "labels, or x_train and y_train."
        )
    names = ()
    if task.labels == "class":
        classes = config.classes or int(np.max(training[1])) + 1
        for part in filter(None, (training, validation)):
            check_labels(config.data, np.asarray(part[1]), classes)
        names = tuple(str(label) for label in range(classes))
    elif np.ndim(training[1]) == 2 and task.labels in ("classes", "numbers"):
        names = tuple(str(column) for column in range(np.asarray(training[1]).shape[-1]))
    elif task.labels == "token classes":
        names = tuple(str(label) for label in range(config.classes or int(np.max(training[1])) + 1))
    return _parts(selection, training, validation, names)


def _check_shape(config: TrainConfig, signature: Signature, inputs: np.ndarray) -> None:
    """Refuses an array `x_train` that the network's only input cannot be."""
    name, (_, declared) = next(iter(signature.inputs.items()))
    found = np.shape(inputs)
    if len(found) != len(declared) or any(
        want not in (0, have) for want, have in zip(declared[1:], found[1:], strict=True)
    ):
        shape = ", ".join(["batch", *(str(dim or "any") for dim in declared[1:])])
        raise DataError(
            f"{config.data} has x_train of shape {found}, but {config.model} takes {name} of shape ({shape})."
        )


# --- tables -----------------------------------------------------------------------------------------------------------


def _from_table(
    config: TrainConfig,
    signature: Signature,
    task: Task,
    selection: Selection,
    training: Table,
    validation: Table | None,
) -> Dataset:
    """Numbers in columns, for a network that takes a row of them."""
    columns = list(config.feature_columns) or numeric_columns(training, label_columns(training, config.label_column))
    _, shape = next(iter(signature.inputs.values()))
    if shape[-1] not in (0, len(columns)):
        raise DataError(
            f"The network takes {shape[-1]} features, but {training.origin} has {len(columns)} ({', '.join(columns)}); choose "
            "them by --feature-columns."
        )
    labels, names = label_column(training, config.label_column, task.labels)
    parts = [(features(training, columns), labels)]
    if validation is not None:
        held_out, _ = label_column(validation, config.label_column, task.labels, names)
        parts.append((features(validation, columns), held_out))
    description: dict[str, Any] = {"features": columns}
    if config.standardize:
        mean, deviation = parts[0][0].mean(0), parts[0][0].std(0)
        deviation = np.where(deviation > 0, deviation, 1).astype(np.float32)
        parts = [((values - mean) / deviation, labels) for values, labels in parts]
        description |= {"mean": mean.tolist(), "std": deviation.tolist()}
    return _parts(selection, parts[0], parts[1] if len(parts) > 1 else None, names, description)


# --- texts ------------------------------------------------------------------------------------------------------------


def _from_texts(
    config: TrainConfig,
    signature: Signature,
    task: Task,
    selection: Selection,
    training: Table,
    validation: Table | None,
) -> Dataset:
    """Texts in a column, for a network that takes their tokens."""
    if config.tokenizer is None:
        raise ConfigError("A network of tokens needs the tokenizer.json that belongs to it: --tokenizer FILE.")
    tokenizer = Tokenizer(pathlib.Path(config.tokenizer), config.max_length)
    description = {"tokenizer": "tokenizer.json", "max_length": config.max_length}
    opener = _TEXT_OPENERS.get(task.labels, _labelled_texts)
    parts, names, texts = [], None, []
    for table in filter(None, (training, validation)):
        part, names, shown = opener(config, signature, task, tokenizer, table, names)
        parts.append(part)
        texts.append(shown)
    if task.name == "masked-lm":
        return _masked_dataset(config, signature, tokenizer, selection, parts, description)
    return _parts(
        selection,
        parts[0],
        parts[1] if len(parts) > 1 else None,
        names or (),
        description,
        (texts[0], texts[-1]),
    )


def _labelled_texts(config, signature, task, tokenizer, table, names):
    texts, pairs = _text_columns(config, table)
    labels, names = label_column(table, config.label_column, task.labels, names)
    inputs = model_inputs(list(signature.inputs), tokenizer(texts, pairs))
    return (inputs, labels), names, texts


def _paired_texts(config, signature, task, tokenizer, table, names):
    texts, pairs = _text_columns(config, table)
    if pairs is None:
        raise ConfigError("contrastive takes pairs of texts: name both columns, --text-column first,second.")
    first, second = (model_inputs(list(signature.inputs), tokenizer(part)) for part in (texts, pairs))
    return ({"first": first, "second": second}, np.arange(len(texts), dtype=np.int32)), names, texts


def _token_texts(config, signature, task, tokenizer, table, names):
    """Blocks of text for causal, and whole texts for masked language modelling."""
    texts, _ = _text_columns(config, table)
    if task.name == "masked-lm":
        encoded = tokenizer(texts)
        return (encoded.ids, encoded.mask), names, None
    ids = blocks(tokenizer, texts)
    inputs = model_inputs(list(signature.inputs), _encoded(ids, np.ones_like(ids)))
    return (inputs, _next_tokens(ids)), names, None


def _tagged_texts(config, signature, task, tokenizer, table, names):
    words = table.column(config.text_column or chosen_column(table, WORD_COLUMNS, "--text-column"), "--text-column")
    tags = table.column(config.label_column or chosen_column(table, TAG_COLUMNS, "--label-column"), "--label-column")
    names = names or _tag_names(tags)
    numbers = {name: number for number, name in enumerate(names)}
    unknown = [(row, tag) for row, line in enumerate(tags) for tag in line if str(tag) not in numbers]
    if unknown:
        raise DataError(f"{table.origin}: label {unknown[0][1]!r} of row {unknown[0][0]} is not in the training part.")
    encoded, labels = token_labels(tokenizer, words, [[numbers[str(tag)] for tag in line] for line in tags])
    return (model_inputs(list(signature.inputs), encoded), labels), names, [" ".join(line) for line in words]


_TEXT_OPENERS = {"tokens": _token_texts, "none": _paired_texts, "token classes": _tagged_texts}


def _tag_names(tags: Sequence[Sequence[Any]]) -> tuple[str, ...]:
    found = {tag for line in tags for tag in line}
    if all(isinstance(tag, int | np.integer) for tag in found):
        return tuple(str(number) for number in range(max(found, default=0) + 1))
    return tuple(sorted(map(str, found)))


def _text_columns(config: TrainConfig, table: Table) -> tuple[Any, Any]:
    names = [
        name.strip() for name in (config.text_column or chosen_column(table, TEXT_COLUMNS, "--text-column")).split(",")
    ]
    if len(names) > 2:
        raise ConfigError(f"--text-column is {config.text_column}, but must be one column, or two for pairs of texts.")
    columns = [table.column(name, "--text-column") for name in names]
    return columns[0], columns[1] if len(columns) > 1 else None


def _masked_dataset(config, signature, tokenizer, selection, parts, description) -> Dataset:
    if tokenizer.mask_id is None:
        raise ConfigError(f"{config.tokenizer} has no mask token ([MASK] or <mask>), which masked-lm needs.")

    def hide(ids, mask, random):
        settings = {
            "mask_id": tokenizer.mask_id,
            "vocabulary_size": tokenizer.vocabulary_size,
            "special": tokenizer.special_ids,
        }
        return masked(ids, mask, share=config.mask_share, random=random, **settings)

    def inputs(ids, mask):
        return model_inputs(list(signature.inputs), _encoded(ids, mask))

    rows = (
        selection.split([0] * len(parts[0][0]))
        if len(parts) == 1
        else [selection.limited(range(len(part[0]))) for part in parts]
    )
    training, validation = (
        MaskedRows(ids, mask, inputs, hide, row) for (ids, mask), row in zip((parts[0], parts[-1]), rows, strict=True)
    )
    return Dataset(training, validation, (), description)


def _encoded(ids: np.ndarray, mask: np.ndarray) -> Any:
    return Encoded(ids, mask, np.zeros_like(ids))


def _next_tokens(ids: np.ndarray) -> np.ndarray:
    """The token behind each, which the last of a block does not have."""
    return np.concatenate([ids[:, 1:], np.full_like(ids[:, :1], IGNORED)], 1).astype(np.int32)
