"""Labels in a table or in an array: which column, and what a task makes of them."""

from collections.abc import Sequence

import numpy as np

from .._errors import DataError
from .errors import ConfigError
from .losses import IGNORED
from .tables import Table, class_labels, multi_labels, targets
from .tasks import UNLABELLED, Labels

LABEL_COLUMNS = ("label", "labels", "target", "targets", "class", "y")


def label_column(
    table: Table, columns: str | None, labels: Labels, names: Sequence[str] | None = None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The labels of a table's rows, and what they are called.

    **Arguments:**

    - `table`: with the labels.
    - `columns`: their column, or several with commas; `None` takes the one that has a usual name.
    - `labels`: `"class"`, `"classes"` or `"numbers"`; for those that are not in the data, all are 0.
    - `names`: of the classes, from the training part.

    **Returns:** shape `(rows,)` and int64 for classes, else `(rows, classes or numbers)` and float32; and the names.

    **Raises:** `DataError` if there is no such column, or it holds something else.
    """
    if labels in UNLABELLED:
        return np.zeros(len(table), np.int32), ()
    column = columns or chosen_column(table, LABEL_COLUMNS, "--label-column")
    if labels == "class":
        return class_labels(table, column, names)
    if labels == "classes":
        return multi_labels(table, column, names)
    if labels == "numbers":
        wanted = [name.strip() for name in column.split(",")]
        return targets(table, wanted), tuple(wanted)
    raise ConfigError(f"The labels of this task ({labels}) cannot come from a column of a table.")


def label_columns(table: Table, columns: str | None, labels: Labels) -> list[str]:
    """The names of the columns that hold labels."""
    if labels in UNLABELLED and columns is None:
        return []
    column = columns or chosen_column(table, LABEL_COLUMNS, "--label-column")
    return [name.strip() for name in column.split(",")]


def chosen_column(table: Table, usual: Sequence[str], option: str) -> str:
    """The first of the usual names that a table has.

    **Raises:** `DataError` if it has none.
    """
    found = next((name for name in usual if name in table.columns), None)
    if found is None:
        raise DataError(
            f"{table.origin} has no column {' or '.join(usual)}; name one of {', '.join(table.columns)} by {option}."
        )
    return found


def label_array(
    origin: str,
    labels: np.ndarray | None,
    kind: Labels,
    *,
    examples: int,
    classes: int | None = None,
    names: Sequence[str] = (),
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The labels of examples that are an array, and what they are called.

    **Arguments:**

    - `origin`: the file, for people.
    - `labels`: the array, whose first axis is the example; `None` if the kind needs none.
    - `kind`: what they are.
    - `examples`: how many there are.
    - `classes`: how many classes there are, of which some may then have no example; otherwise as many as the labels show.
    - `names`: of the classes, such as those of the training part.

    **Returns:** shape `(examples,)` and int64 for one class, which texts may name; `(examples, classes or numbers)` and float32
    for several or for numbers; `(examples, positions)` and int32 for tokens; and the names.

    **Raises:** `DataError`, which names the example, if they are something else.
    """
    labels = np.zeros(examples, np.int64) if labels is None else np.asarray(labels)
    if labels.ndim == 0 or len(labels) != examples:
        raise DataError(f"{origin}: {examples} examples, but labels of shape {labels.shape}; each example needs one.")
    if not examples:
        raise DataError(f"{origin} has no examples.")
    if kind == "class":
        return _one_class(origin, labels, classes, tuple(names))
    if kind in ("classes", "numbers"):
        return _numbers(origin, labels, kind, classes, tuple(names))
    if kind in ("token classes", "next tokens", "masked tokens"):
        return _of_tokens(origin, labels, kind, classes, tuple(names))
    return np.zeros(examples, np.int64), ()


def _one_class(
    origin: str, labels: np.ndarray, classes: int | None, names: tuple[str, ...]
) -> tuple[np.ndarray, tuple[str, ...]]:
    if labels.shape == (len(labels), 1):
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise DataError(
            f"{origin}: {len(labels)} examples, but labels of shape {labels.shape}; one class for each example is needed."
        )
    if labels.dtype.kind in "US":
        return _named(origin, labels.astype(str), names)
    if labels.dtype.kind not in "biuf" or (bad := np.flatnonzero(~np.equal(labels, np.trunc(labels)))).size:
        example = 0 if labels.dtype.kind not in "biuf" else bad[0]
        raise DataError(
            f"{origin}: labels must be whole numbers (0, 1, 2, …) or texts, not {labels.dtype}, such as {labels[example]} of "
            f"example {example}."
        )
    labels = labels.astype(np.int64)
    count = classes or len(names) or int(labels.max()) + 1
    _check_range(origin, labels, count)
    present = np.unique(labels)
    if not (classes or names) and len(present) < count:
        absent = int(np.flatnonzero(present != np.arange(len(present)))[0])
        raise DataError(
            f"{origin}: the labels go up to {count - 1}, but no example has the label {absent}; renumber them, or "
            "say how many classes there are (--classes)."
        )
    return labels, (*names, *(str(label) for label in range(len(names), count)))[:count]


def _named(origin: str, labels: np.ndarray, names: tuple[str, ...]) -> tuple[np.ndarray, tuple[str, ...]]:
    names = names or tuple(np.unique(labels).tolist())
    numbers = {name: number for number, name in enumerate(names)}
    for example, label in enumerate(labels.tolist()):
        if label not in numbers:
            raise DataError(
                f"{origin}: label {label!r} of example {example} is not among the classes {', '.join(names[:10])}."
            )
    return np.asarray([numbers[label] for label in labels.tolist()], np.int64), names


def _numbers(
    origin: str, labels: np.ndarray, kind: Labels, classes: int | None, names: tuple[str, ...]
) -> tuple[np.ndarray, tuple[str, ...]]:
    if labels.ndim > 2 or (kind == "classes" and labels.ndim != 2) or labels.dtype.kind not in "biuf":
        expected = "0 or 1 for each class, shape (n, classes)" if kind == "classes" else "numbers, shape (n, numbers)"
        raise DataError(f"{origin}: labels must be {expected}, not {labels.dtype} of shape {labels.shape}.")
    labels = labels.reshape(len(labels), -1).astype(np.float32)
    if bad := np.flatnonzero(~np.isfinite(labels).all(1)).tolist():
        raise DataError(f"{origin}: the label of example {bad[0]} is not finite.")
    if kind == "classes" and (bad := np.flatnonzero(~np.isin(labels, (0, 1)).all(1)).tolist()):
        raise DataError(f"{origin}: the labels of example {bad[0]} are not all 0 or 1.")
    wanted = classes or len(names) or labels.shape[1]
    if labels.shape[1] != wanted:
        raise DataError(f"{origin}: labels of shape {labels.shape} do not have {wanted} columns (--classes).")
    return labels, names or tuple(str(column) for column in range(wanted))


def _of_tokens(
    origin: str, labels: np.ndarray, kind: Labels, classes: int | None, names: tuple[str, ...]
) -> tuple[np.ndarray, tuple[str, ...]]:
    if labels.ndim != 2 or labels.dtype.kind not in "iu":
        raise DataError(
            f"{origin}: labels of tokens must be whole numbers of shape (n, positions), not {labels.dtype} of shape "
            f"{labels.shape}."
        )
    labels = labels.astype(np.int32)
    count = classes or len(names) or int(labels.max()) + 1
    _check_range(origin, np.where(labels == IGNORED, 0, labels), count)
    return labels, names or (tuple(str(label) for label in range(count)) if kind == "token classes" else ())


def _check_range(origin: str, labels: np.ndarray, classes: int) -> None:
    outside = np.argwhere((labels < 0) | (labels >= classes))
    if outside.size:
        example = int(outside[0, 0])
        raise DataError(
            f"{origin}: label {labels[tuple(outside[0])]} of example {example} is outside 0 to {classes - 1} "
            f"(--classes {classes})."
        )
