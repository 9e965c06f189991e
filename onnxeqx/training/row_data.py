"""Opens what networks of tables and of tokens are trained on; texts are in `text_data`."""

import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from .._errors import DataError
from .array_files import TRAINING_ARRAYS, VALIDATION_ARRAYS, are_arrays, blocks, named_pair, read_arrays
from .config import TrainConfig
from .datasets import Dataset, Selection
from .errors import ConfigError
from .labels import label_array, label_column, label_columns
from .registry import registry
from .rows import NextTokens, dataset_of_rows
from .signature import Signature
from .tables import (
    TABLE_SUFFIXES,
    Table,
    features,
    is_table,
    numeric_columns,
    open_tables,
    read_lines,
    standardization,
    standardized,
)
from .tasks import UNLABELLED, Task
from .text import token_input
from .text_data import open_texts


def open_rows(config: TrainConfig, signature: Signature, task: Task, left: Mapping[str, Any]) -> Dataset:
    """Opens the data of a network that takes rows of a table, tokens, or other arrays.

    **Arguments:**

    - `config`, `signature`, `task`: of the run.
    - `left`: what an earlier run has left in its `preprocessing.json`, whose classes and features are then taken.

    **Raises:** `DataError` if the data is missing, damaged or does not suit network and task; `ConfigError` if an option that it
    needs is missing.
    """
    path = pathlib.Path(config.data)
    selection = Selection(config.validation_share, config.limit, config.seed)
    sources = registry().datasets
    classes = tuple(left.get("class_names", ()))
    if config.data in sources:
        inputs, labels, names = sources[config.data]()
        rows = {name: np.reshape(inputs, (len(inputs), -1)).astype(np.float32) for name in list(signature.inputs)[:1]}
        return _from_arrays(config, signature, task, selection, {**rows, "labels": labels}, classes or tuple(names))
    if are_arrays(path):
        return _from_arrays(config, signature, task, selection, read_arrays(path), classes)
    if path.suffix.lower() == ".txt" and path.is_file():
        return open_texts(config, signature, task, selection, read_lines(path), None, classes)
    if is_table(path) or path.is_dir():
        training, validation = open_tables(path)
        if signature.kind == "tokens":
            return open_texts(config, signature, task, selection, training, validation, classes)
        return _from_table(config, signature, task, selection, training, validation, left)
    raise DataError(
        f"There is no data at {config.data}: give a table ({', '.join(TABLE_SUFFIXES)}), a folder of them, an .npz file, or one "
        f"of: {', '.join(sources)}."
    )


# --- arrays -----------------------------------------------------------------------------------------------------------

Named = tuple[dict[str, Any], np.ndarray | None]
"""The arrays of a network's inputs, by its names, and labels if there are any."""


def _from_arrays(
    config: TrainConfig,
    signature: Signature,
    task: Task,
    selection: Selection,
    arrays: Mapping[str, np.ndarray],
    names: tuple[str, ...] = (),
) -> Dataset:
    """Arrays named after the network's inputs and `labels`, or pairs such as `x_train` and `y_train`."""
    if task.labels == "pairs":
        raise ConfigError(
            f"--task {task.name} takes images, or pairs of texts in a table (--text-column first,second); {config.data} holds "
            "arrays."
        )
    if config.standardize or config.feature_columns:
        raise ConfigError(f"--standardize and --feature-columns are of tables; {config.data} holds arrays.")
    parts = []
    for inputs, labels in _named_parts(config, signature, task, arrays):
        origin = f"{config.data} (validation part)" if parts else config.data
        examples = _checked_inputs(origin, config, signature, inputs)
        classes = config.classes if task.labels not in UNLABELLED else None
        if task.labels == "next tokens" and labels is None:
            found: Any = NextTokens(inputs[token_input(tuple(inputs))])
        else:
            found, names = label_array(origin, labels, task.labels, examples=examples, classes=classes, names=names)
        parts.append((inputs if len(inputs) > 1 or signature.kind == "tokens" else next(iter(inputs.values())), found))
    return dataset_of_rows(selection, parts[0], parts[1] if len(parts) > 1 else None, names)


def _named_parts(
    config: TrainConfig, signature: Signature, task: Task, arrays: Mapping[str, np.ndarray]
) -> list[Named]:
    """The training part, and the validation part if there is one.

    **Raises:** `DataError` if arrays are missing.
    """
    unlabelled = task.labels in ("next tokens", "teacher")  # which tokens were masked is not to be seen
    if len(signature.inputs) == 1:
        (name,) = signature.inputs
        pairs = [named_pair(arrays, names, unlabelled=unlabelled) for names in (TRAINING_ARRAYS, VALIDATION_ARRAYS)]
        if pairs[0] is not None:
            return [({name: pair[0]}, pair[1]) for pair in pairs if pair is not None]
    inputs = {name: arrays[name] for name in signature.inputs if name in arrays}
    labels = next((arrays[name] for name in ("labels", "label", "y") if name in arrays), None)
    if len(inputs) < len(signature.inputs) or (labels is None and not unlabelled):
        raise DataError(
            f"{config.data} has {', '.join(arrays)}; name its arrays as the network's inputs ({', '.join(signature.inputs)}) and "
            "labels, or x_train and y_train."
        )
    return [(inputs, labels)]


def _checked_inputs(origin: str, config: TrainConfig, signature: Signature, inputs: Mapping[str, Any]) -> int:
    """How many examples there are.

    **Raises:** `DataError` if an array is not what the network takes, or holds numbers that are not finite.
    """
    counts = {name: len(array) for name, array in inputs.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{count} of {name}" for name, count in counts.items())
        raise DataError(f"{origin} has {listed}; each example needs one of each.")
    for name, array in inputs.items():
        dtype, declared = signature.inputs[name]
        found = tuple(array.shape)
        if len(found) != len(declared) or any(
            want not in (0, have) for want, have in zip(declared[1:], found[1:], strict=True)
        ):
            shape = ", ".join(["batch", *(str(dim or "any") for dim in declared[1:])])
            raise DataError(f"{origin}: {name} has the shape {found}, but {config.model} takes ({shape}).")
        if (array.dtype.kind in "biu") != (dtype.kind in "biu") or array.dtype.kind not in "biuf":
            raise DataError(f"{origin}: {name} is {array.dtype}, but {config.model} takes {dtype}.")
        _refuse_not_finite(f"{origin}: {name}", array)
        signature.check_ids(origin, name, array)
    return next(iter(counts.values()))


def _refuse_not_finite(origin: str, array: Any) -> None:
    if array.dtype.kind != "f":
        return
    for first, rows in blocks(array):
        if (bad := np.flatnonzero(~np.isfinite(rows).reshape(len(rows), -1).all(1))).size:
            raise DataError(
                f"{origin} has values that are not finite in example {first + bad[0]}; correct or remove it."
            )


# --- tables -----------------------------------------------------------------------------------------------------------


def _from_table(
    config: TrainConfig,
    signature: Signature,
    task: Task,
    selection: Selection,
    training: Table,
    validation: Table | None,
    left: Mapping[str, Any],
) -> Dataset:
    """Numbers in columns, for a network that takes a row of them."""
    columns = list(left.get("features") or config.feature_columns) or numeric_columns(
        training, label_columns(training, config.label_column, task.labels)
    )
    _, shape = next(iter(signature.inputs.values()))
    if shape[-1] not in (0, len(columns)):
        raise DataError(
            f"The network takes {shape[-1]} features, but {training.origin} has {len(columns)} ({', '.join(columns)}); choose "
            "them by --feature-columns."
        )
    labels, names = label_column(training, config.label_column, task.labels, left.get("class_names"))
    description: dict[str, Any] = {"features": columns}
    values = features
    if config.standardize:
        rows = range(len(training)) if validation is not None else selection.split(labels)[0]
        numbers = (left["mean"], left["std"]) if left else standardization(training, columns, rows)
        mean, deviation = map(np.asarray, numbers)
        description |= {"mean": mean.tolist(), "std": deviation.tolist()}
        values = functools.partial(standardized, mean=mean, deviation=deviation)
    parts = [(values(training, columns), labels)]
    if validation is not None:
        held_out, _ = label_column(validation, config.label_column, task.labels, names)
        parts.append((values(validation, columns), held_out))
    return dataset_of_rows(selection, parts[0], parts[1] if len(parts) > 1 else None, names, description)
