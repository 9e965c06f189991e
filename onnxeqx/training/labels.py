"""Labels in a table: which column, and what a task makes of it."""

from collections.abc import Sequence

import numpy as np

from .._errors import DataError
from .errors import ConfigError
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
