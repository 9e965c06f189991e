"""Opens what networks of tables and of tokens are trained on; texts are in `text_data`."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from .._errors import DataError
from .array_files import TRAINING_ARRAYS, VALIDATION_ARRAYS, are_arrays, named_pair, read_arrays
from .config import TrainConfig
from .datasets import Dataset, Selection, check_labels
from .labels import label_column, label_columns
from .registry import registry
from .rows import dataset_of_rows
from .signature import Signature
from .tables import TABLE_SUFFIXES, Table, features, is_saved_dataset, numeric_columns, open_tables
from .tasks import UNLABELLED, Task
from .text_data import next_tokens, open_texts


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
        return dataset_of_rows(
            selection, (inputs.reshape(len(inputs), -1).astype(np.float32), labels), None, tuple(names)
        )
    if are_arrays(path):
        return _from_arrays(config, signature, task, selection, read_arrays(path))
    if path.suffix == ".txt" and path.is_file():
        table = Table(str(path), {"text": path.read_text(encoding="utf-8").splitlines()})
        return open_texts(config, signature, task, selection, table, None)
    if path.suffix in TABLE_SUFFIXES or path.is_dir() or is_saved_dataset(path):
        training, validation = open_tables(path)
        opener = open_texts if signature.kind == "tokens" else _from_table
        return opener(config, signature, task, selection, training, validation)
    raise DataError(
        f"There is no data at {config.data}: give a table ({', '.join(TABLE_SUFFIXES)}), a folder of them, an .npz file, or one "
        f"of: {', '.join(sources)}."
    )


# --- arrays -----------------------------------------------------------------------------------------------------------


def _from_arrays(
    config: TrainConfig, signature: Signature, task: Task, selection: Selection, arrays: Mapping[str, np.ndarray]
) -> Dataset:
    """Arrays named after the network's inputs and `labels`, or pairs such as `x_train` and `y_train`."""
    inputs = {name: arrays[name] for name in signature.inputs if name in arrays}
    labels = next((arrays[name] for name in ("labels", "label", "y") if name in arrays), None)
    validation = None
    if len(inputs) == len(signature.inputs) and (labels is not None or task.labels in UNLABELLED):
        training = (inputs, labels if labels is not None else np.arange(len(next(iter(inputs.values())))))
        if task.labels == "next tokens" and labels is None:
            training = (inputs, next_tokens(next(array for name, array in inputs.items() if "mask" not in name)))
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
    return dataset_of_rows(selection, training, validation, names)


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
    columns = list(config.feature_columns) or numeric_columns(
        training, label_columns(training, config.label_column, task.labels)
    )
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
    return dataset_of_rows(selection, parts[0], parts[1] if len(parts) > 1 else None, names, description)
