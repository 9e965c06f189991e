"""Tables as training data: CSV, TSV, Parquet, JSON lines, and what Hugging Face `datasets` saved."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from .._errors import DataError

if TYPE_CHECKING:
    import pyarrow

TABLE_SUFFIXES = (".csv", ".tsv", ".parquet", ".jsonl")

# Names of the parts, as people and the Hugging Face hub call them.
TRAINING_PART = "train"
VALIDATION_PARTS = ("val", "valid", "validation", "dev", "test")

LABEL_OPTION = "--label-column"
FEATURE_OPTION = "--feature-columns"

LARGEST_BLOCK = 2**31 - 1
"""Bytes that pyarrow can take as one block, of which it guesses the types of the columns."""


@dataclasses.dataclass(frozen=True)
class Table:
    """Columns of equal length by name, and where they came from.

    **Arguments:**

    - `origin`: the file or folder, for people.
    - `columns`: numbers as arrays of shape `(rows,)` and of dtype float64 (NaN where one is missing), int64 or bool; texts as a
        list of `str`; all else, such as lists of numbers or texts, as a list of what it is. `None` in a list is missing.
    - `class_names`: what the whole numbers of a column stand for, if the file says so.
    """

    origin: str
    columns: Mapping[str, np.ndarray | list[Any]]
    class_names: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def column(self, name: str, option: str) -> np.ndarray | list[Any]:
        """One column.

        **Arguments:**

        - `name`: of the column.
        - `option`: by which the user chose the name.

        **Raises:** `DataError` if there is no such column.
        """
        if name not in self.columns:
            raise DataError(f"{self.origin} has no column {name!r} ({option}); it has {', '.join(self.columns)}.")
        return self.columns[name]


# --- reading ----------------------------------------------------------------------------------------------------------


def read_table(path: pathlib.Path) -> Table:
    """Reads a table with [pyarrow](https://arrow.apache.org/docs/python/).

    An empty field of a CSV or TSV file is missing; in a column of numbers, so is what pyarrow knows as null, such as `NA`.

    **Arguments:**

    - `path`: a file whose name ends in one of `TABLE_SUFFIXES`. CSV and TSV have the names of the columns in the first line;
        JSON lines have one object in each line.

    **Raises:** `DataError` if the file is missing, damaged or empty, if two columns have one name, or if pyarrow is not
    installed.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path} is no table; its name must end in {', '.join(TABLE_SUFFIXES)}.")
    with _readable(path):
        return _table(str(path), reader(path))


def read_lines(path: pathlib.Path) -> Table:
    """Reads a text file as a table of one column `text`, a line in each row; blank lines are left out.

    **Raises:** `DataError` if it is not in UTF-8, or has no text.
    """
    try:
        lines = [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except ValueError as error:
        raise DataError(f"{path} is not in UTF-8: {error}; convert it.") from error
    if not lines:
        raise DataError(f"{path} has no text.")
    return Table(str(path), {"text": lines})


def is_table(path: pathlib.Path) -> bool:
    """Whether `open_tables` is for this: a table, a folder with a training table, or what `datasets` saved."""
    if path.is_dir():
        return is_saved_dataset(path) or any((path / f"{TRAINING_PART}{suffix}").is_file() for suffix in TABLE_SUFFIXES)
    return path.suffix.lower() in TABLE_SUFFIXES


def is_saved_dataset(folder: pathlib.Path) -> bool:
    """Whether Hugging Face `datasets` wrote the folder by `save_to_disk`."""
    files = {name for name in ("dataset_dict.json", "state.json", "dataset_info.json") if (folder / name).is_file()}
    return "dataset_dict.json" in files or len(files) == 2


def read_saved_dataset(folder: pathlib.Path) -> dict[str, Table]:
    """Reads what Hugging Face [`datasets`](https://huggingface.co/docs/datasets) wrote by `save_to_disk`.

    **Arguments:**

    - `folder`: holds a `Dataset` or a `DatasetDict`.

    **Returns:** a table for each split, with the names of its classes; a `Dataset` is the split `"train"`.

    **Raises:** `DataError` if the folder is damaged, if a split is empty, or if `datasets` is not installed.
    """
    try:
        import datasets
    except ImportError:
        raise DataError(f"Reading {folder} needs datasets; install it with: pip install 'onnxeqx[hf]'.") from None
    with _readable(folder):
        saved = datasets.load_from_disk(str(folder))
        if isinstance(saved, datasets.DatasetDict):
            return {str(split): _saved_table(folder / str(split), part) for split, part in saved.items()}
        return {TRAINING_PART: _saved_table(folder, saved)}


def open_tables(path: pathlib.Path) -> tuple[Table, Table | None]:
    """Opens a training table, and a validation table if there is one.

    **Arguments:**

    - `path`: a table; a folder with `train.csv` (or another of `TABLE_SUFFIXES`) and possibly a table named after one of
        `VALIDATION_PARTS`, of which the first counts; or what `datasets` saved, with splits of these names.

    **Raises:** `DataError` if there is no training table, if there are two, or if one cannot be read.
    """
    if is_saved_dataset(path):
        parts = read_saved_dataset(path)
        if TRAINING_PART not in parts:
            raise DataError(f"{path} has the splits {', '.join(parts)}, but must have {TRAINING_PART!r}.")
        return parts[TRAINING_PART], next((parts[name] for name in VALIDATION_PARTS if name in parts), None)
    if not path.is_dir():
        return read_table(path), None
    training = _part_file(path, TRAINING_PART)
    if training is None:
        names = ", ".join(TRAINING_PART + suffix for suffix in TABLE_SUFFIXES)
        raise DataError(f"{path} has no training table; it must be called one of {names}.")
    validation = next(filter(None, (_part_file(path, name) for name in VALIDATION_PARTS)), None)
    return read_table(training), None if validation is None else read_table(validation)


def _part_file(folder: pathlib.Path, name: str) -> pathlib.Path | None:
    found = [file for suffix in TABLE_SUFFIXES if (file := folder / f"{name}{suffix}").is_file()]
    if len(found) > 1:
        raise DataError(f"{folder} has {' and '.join(file.name for file in found)}; keep one of them.")
    return found[0] if found else None


@contextlib.contextmanager
def _readable(path: pathlib.Path) -> Iterator[None]:
    """Turns what goes wrong while a table is read into `DataError`."""
    try:
        import pyarrow
    except ImportError:
        raise DataError(f"Reading {path} needs pyarrow; install it with: pip install 'onnxeqx[tables]'.") from None
    try:
        yield
    # Damaged JSON and text that is not UTF-8 are ValueErrors; `datasets` misses keys of its own files.
    except (OSError, ValueError, KeyError, TypeError, pyarrow.ArrowException) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise DataError(f"{path} cannot be read as a table: {reason}; repair or replace it.") from error


def _separated(path: pathlib.Path, delimiter: str) -> "pyarrow.Table":
    from pyarrow import compute, csv, types

    table = csv.read_csv(
        path,
        csv.ReadOptions(use_threads=False, block_size=_block_size(path)),  # threads do not know the row of an error
        csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
    )
    for place, field in enumerate(table.schema):
        if types.is_binary(field.type):
            raise ValueError(f"column {field.name!r} is not in UTF-8")
        if types.is_string(field.type):
            texts = table.column(place)
            blank = compute.call_function("equal", [texts, ""])
            table = table.set_column(place, field, compute.call_function("if_else", [blank, None, texts]))
    return table


def _json_lines(path: pathlib.Path) -> "pyarrow.Table":
    from pyarrow import json

    return json.read_json(path, json.ReadOptions(use_threads=False, block_size=_block_size(path)))


def _parquet(path: pathlib.Path) -> "pyarrow.Table":
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        return file.read()


def _block_size(path: pathlib.Path) -> int:
    """The whole file: types are guessed from all of it, and no row is longer than a block."""
    return min(path.stat().st_size + 1, LARGEST_BLOCK)


_READERS: Mapping[str, Callable[[pathlib.Path], "pyarrow.Table"]] = {
    ".csv": lambda path: _separated(path, ","),
    ".tsv": lambda path: _separated(path, "\t"),
    ".parquet": _parquet,
    ".jsonl": _json_lines,
}


def _saved_table(origin: pathlib.Path, part: Any) -> Table:
    # A list of classes has the names within.
    kinds = {name: getattr(kind, "feature", kind) for name, kind in part.features.items()}
    class_names = {name: tuple(kind.names) for name, kind in kinds.items() if hasattr(kind, "names")}
    return dataclasses.replace(_table(str(origin), part.with_format("arrow")[:]), class_names=class_names)


def _table(origin: str, read: "pyarrow.Table") -> Table:
    names = read.column_names
    if twice := [name for name in names if names.count(name) > 1]:
        raise DataError(f"{origin} has two columns called {twice[0]!r}; rename one of them.")
    if not read.num_rows:
        raise DataError(f"{origin} has no rows.")
    return Table(origin, {name: _values(column) for name, column in zip(names, read.columns, strict=True)})


def _values(column: "pyarrow.ChunkedArray") -> np.ndarray | list[Any]:
    """NumPy's of numbers, a list of everything else; see `Table`."""
    import pyarrow
    from pyarrow import types

    kind = column.type
    whole = types.is_boolean(kind) or (types.is_integer(kind) and not types.is_uint64(kind))
    if whole and not column.null_count:
        return column.to_numpy().astype(bool if types.is_boolean(kind) else np.int64)
    if whole or types.is_uint64(kind) or types.is_floating(kind) or types.is_decimal(kind):
        return column.cast(pyarrow.float64(), safe=False).to_numpy()
    if types.is_date(kind) or types.is_timestamp(kind) or types.is_time(kind):
        column = column.cast(pyarrow.string())
    return column.to_pylist()


# --- numbers ----------------------------------------------------------------------------------------------------------


def numeric_columns(table: Table, without: Collection[str]) -> list[str]:
    """The names of the columns of numbers, in the table's order.

    **Arguments:**

    - `table`: any.
    - `without`: names that are left out, such as that of the labels.
    """
    return [name for name, values in table.columns.items() if isinstance(values, np.ndarray) and name not in without]


def features(table: Table, names: Sequence[str]) -> Float[np.ndarray, "rows features"]:
    """Columns of numbers, side by side.

    **Arguments:**

    - `table`: with the columns.
    - `names`: of the columns, in the order of the network's features.

    **Returns:** shape `(rows, features)`, float32.

    **Raises:** `DataError` if a column is not there or not of numbers, or if a number is missing or not finite in float32.
    """
    return _side_by_side(table, names, FEATURE_OPTION)


def standardization(table: Table, names: Sequence[str], rows: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """The mean and the standard deviation of columns; a column that does not vary has the deviation 1.

    **Arguments:**

    - `table`, `names`: as of `features`.
    - `rows`: those that count.

    **Returns:** two arrays of shape `(features,)`, float64: sums in float32 are wrong by far after 100,000 rows.
    """
    features(table, names)  # which refuses what is missing or not finite
    chosen = [np.asarray(table.column(name, FEATURE_OPTION), np.float64)[list(rows)] for name in names]
    mean, deviation = np.array([column.mean() for column in chosen]), np.array([column.std() for column in chosen])
    return mean, np.where(deviation > 1e-10 * np.abs(mean), deviation, 1.0)


def standardized(
    table: Table, names: Sequence[str], mean: np.ndarray, deviation: np.ndarray
) -> Float[np.ndarray, "rows features"]:
    """`features` without their mean, divided by their deviation; rounded to float32 only then."""
    features(table, names)  # which refuses what is missing or not finite
    columns = zip(names, np.asarray(mean), np.asarray(deviation), strict=True)
    parts = [(np.asarray(table.column(name, FEATURE_OPTION), np.float64) - m) / d for name, m, d in columns]
    return np.stack(parts, 1).astype(np.float32)


def targets(table: Table, columns: Sequence[str]) -> Float[np.ndarray, "rows targets"]:
    """Labels for regression. Arguments, result and errors as of [`onnxeqx.training.tables.features`][]."""
    return _side_by_side(table, columns, LABEL_OPTION)


def _side_by_side(table: Table, names: Sequence[str], option: str) -> np.ndarray:
    if not names:
        raise DataError(f"{table.origin} has no column of numbers to take; name columns by {option}.")
    return np.stack([_finite(table, name, option) for name in names], 1)


def _finite(table: Table, name: str, option: str) -> np.ndarray:
    values = table.column(name, option)
    if isinstance(values, list):
        row = next((row for row, value in enumerate(values) if not _reads_as_number(value)), 0)
        raise DataError(
            f"{table.origin}: column {name!r} ({option}) must hold numbers, but is {values[row]!r} in {_nth(row)}; leave the "
            "column out, or write it as numbers."
        )
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float32)
    if (bad := np.flatnonzero(~np.isfinite(narrow))).size:
        found = "missing" if np.isnan(values[bad[0]]) else f"{values[bad[0]]}, which is not finite in float32"
        raise DataError(
            f"{table.origin}: column {name!r} ({option}) is {found} in {_nth(bad[0])}; correct or remove the row."
        )
    return narrow


def _reads_as_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _nth(row: int) -> str:
    return f"row {row} (the first is 0)"


# --- classes ----------------------------------------------------------------------------------------------------------


def class_labels(
    table: Table, column: str, names: Sequence[str] | None = None
) -> tuple[Int[np.ndarray, " rows"], tuple[str, ...]]:
    """One class for each row.

    **Arguments:**

    - `table`: with the labels.
    - `column`: of text, whose distinct values in their order are the classes; of bool, whose classes are `"False"` and
        `"True"`; or of whole numbers, which are the classes 0 to n - 1, each there at least once if nothing names them.
    - `names`: of the classes, such as those of the training part. Whole numbers are looked up among them if one of them is a
        number itself, and are their indices otherwise.

    **Returns:** class indices of shape `(rows,)`, int64; and the names of the classes.

    **Raises:** `DataError` if there is no such column, or if a label is missing or of none of the classes.
    """
    values = table.column(column, LABEL_OPTION)
    own = table.class_names.get(column)
    if isinstance(values, list):
        labels = [_checked_label(table, column, row, value) for row, value in enumerate(values)]
        names = tuple(names or map(str, sorted(set(labels))))
    elif values.dtype == bool:
        labels = values.tolist()
        names = tuple(names or ("False", "True"))
    else:
        labels = _whole_numbers(table, column, values)
        names = tuple(names or own or _counted_names(table, column, labels))
        # Names such as "1" and "2" were numbers themselves; others, given for numbers, are in the order of these.
        own = own or (None if any(name.isdecimal() for name in names) else names)
    first_rows = {label: row for row, label in reversed(list(enumerate(labels)))}
    indices = _class_indices(table, column, first_rows, names, own)
    return np.asarray([indices[label] for label in labels], np.int64), names


def multi_labels(
    table: Table, column: str, names: Sequence[str] | None = None, *, separator: str = ";"
) -> tuple[Float[np.ndarray, "rows classes"], tuple[str, ...]]:
    """Any number of classes for each row.

    **Arguments:**

    - `table`: with the labels.
    - `column`: of lists of labels, or of text with separators between labels (missing is none); or several columns with commas
        between, each of 0 and 1 and named after its class.
    - `names`: of the classes, such as those of the training part; otherwise the distinct labels in their order.
    - `separator`: between the labels of a text.

    **Returns:** 0 or 1 in shape `(rows, classes)`, float32; and the names of the classes.

    **Raises:** `DataError` if there is no such column, if a label is of none of the classes, or if there is none at all.
    """
    values = table.columns.get(column)
    if not isinstance(values, list):
        columns = [column] if values is not None else [name.strip() for name in column.split(",")]
        return _indicators(table, columns), tuple(columns)
    labels = [_listed(table, column, row, value, separator) for row, value in enumerate(values)]
    own = table.class_names.get(column)
    names = tuple(names or own or map(str, sorted({label for line in labels for label in line})))
    if not names:
        raise DataError(f"{table.origin}: column {column!r} ({LABEL_OPTION}) has no label in any row.")
    first_rows = {label: row for row, line in reversed(list(enumerate(labels))) for label in line}
    indices = _class_indices(table, column, first_rows, names, own)
    chosen = np.zeros((len(labels), len(names)), np.float32)
    for row, line in enumerate(labels):
        chosen[row, [indices[label] for label in line]] = 1
    return chosen, names


def _class_indices(
    table: Table, column: str, first_rows: Mapping[Any, int], names: tuple[str, ...], own: tuple[str, ...] | None
) -> dict[Any, int]:
    """The index among `names` of each label, of which the first row is given; whole numbers may stand for `own` names."""
    indices = {name: index for index, name in enumerate(names)}
    texts = {label: str(label) for label in first_rows} if own is None else dict(enumerate(own))
    for label, row in first_rows.items():
        if texts.get(label) not in indices:
            listed = ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
            raise DataError(
                f"{table.origin}: column {column!r} ({LABEL_OPTION}) is {label!r} in {_nth(row)}, but the classes are {listed}; "
                "correct the row, or use the label in the training part too."
            )
    return {label: indices[texts[label]] for label in first_rows}


def _whole_numbers(table: Table, column: str, values: np.ndarray) -> list[int]:
    if (bad := np.flatnonzero(~np.isfinite(values) | (values != np.floor(values)))).size:
        found = "missing" if np.isnan(values[bad[0]]) else str(values[bad[0]])
        raise DataError(
            f"{table.origin}: column {column!r} ({LABEL_OPTION}) is {found} in {_nth(bad[0])}, but must be the whole number or "
            "the name of a class."
        )
    return values.astype(np.int64).tolist()


def _counted_names(table: Table, column: str, labels: Sequence[int]) -> Sequence[str]:
    distinct = sorted(set(labels))
    if distinct != list(range(len(distinct))):
        odd = next(label for index, label in enumerate(distinct) if label != index)
        raise DataError(
            f"{table.origin}: column {column!r} ({LABEL_OPTION}) has {len(distinct)} classes, which must be the numbers 0 to "
            f"{len(distinct) - 1}, but one is {odd}; renumber them, or write their names."
        )
    return [str(label) for label in distinct]


def _checked_label(table: Table, column: str, row: int, value: Any) -> str | int:
    if not isinstance(value, str | int):
        found = "missing" if value is None else repr(value)
        raise DataError(
            f"{table.origin}: column {column!r} ({LABEL_OPTION}) is {found} in {_nth(row)}, but must name a class; correct or "
            "remove the row."
        )
    return value


def _listed(table: Table, column: str, row: int, value: Any, separator: str) -> list[str | int]:
    if isinstance(value, str):
        return [label.strip() for label in value.split(separator) if label.strip()]
    labels = value if isinstance(value, list) else [] if value is None else [value]
    return [_checked_label(table, column, row, label) for label in labels]


def _indicators(table: Table, columns: Sequence[str]) -> np.ndarray:
    values = _side_by_side(table, columns, LABEL_OPTION)
    if (bad := np.argwhere((values != 0) & (values != 1))).size:
        row, place = bad[0]
        raise DataError(
            f"{table.origin}: column {columns[place]!r} ({LABEL_OPTION}) is {values[row, place]:g} in {_nth(row)}, but must be 0 "
            "or 1; for labels of many classes, give one column of lists, or of texts with ';' between."
        )
    return values
