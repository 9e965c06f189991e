"""ArrayRecord files (https://github.com/google/array_record) whose records are `.npz` archives, one for each example."""

import dataclasses
import io
import pathlib
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import grain
import numpy as np

from .._errors import DataError

RECORD_SUFFIX = ".array_record"
_LABELS = ("y", "label", "labels")
_PARTS = {"train": ("train",), "test": ("val", "validation", "test")}


@dataclasses.dataclass(frozen=True)
class RecordedArray:
    """One array of all records, read where it is indexed: what a memory map is for `.npy` files.

    **Arguments:**

    - `path`: of the file, for people.
    - `source`: gives the bytes of a record by its number.
    - `name`: of the array in each record.
    - `shape`, `dtype`: of all; those of the first record hold for the others.
    """

    path: pathlib.Path
    source: Any
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, row: int) -> np.ndarray:
        """The array of one record.

        **Raises:** `DataError` if the record is damaged, or its array is of another shape or dtype.
        """
        array = _record(self.path, self.source, row).get(self.name)
        if array is None or array.shape != self.shape[1:] or array.dtype != self.dtype:
            found = "missing" if array is None else f"{array.dtype}{list(array.shape)}"
            raise DataError(
                f"{self.path}: {self.name!r} of record {row} is {found}, but {self.dtype}{list(self.shape[1:])} in the first."
            )
        return array


def read_records(path: pathlib.Path) -> dict[str, Any]:
    """The arrays by name; labels are in memory, all others stay in the file.

    A record is what `np.savez` writes into a buffer: for instance `x`, an image or a row, and `y`, its label.

    **Arguments:**

    - `path`: a file whose name ends in `.array_record`, or a folder with `train.array_record`, and `val.array_record` or
      `test.array_record`, whose arrays are called `x_train`, `x_test` and so on.

    **Raises:** `DataError` if a file is missing, damaged or empty.
    """
    if not path.is_dir():
        return _arrays(path)
    found = {}
    for part, names in _PARTS.items():
        file = next(
            (path / f"{name}{RECORD_SUFFIX}" for name in names if (path / f"{name}{RECORD_SUFFIX}").exists()), None
        )
        if file is not None:
            found |= {f"{name}_{part}": array for name, array in _arrays(file).items()}
    return found


def are_records(path: pathlib.Path) -> bool:
    """Whether `read_records` reads this."""
    return path.suffix == RECORD_SUFFIX or (path / f"train{RECORD_SUFFIX}").is_file()


def _arrays(path: pathlib.Path) -> dict[str, Any]:
    try:
        source: Any = grain.sources.ArrayRecordDataSource(str(path))
        count = len(source)
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{path} cannot be read as an ArrayRecord file: {error}.") from error
    if not count:
        raise DataError(f"{path} has no records.")
    first = _record(path, source, 0)
    columns = {
        name: RecordedArray(path, source, name, (count, *array.shape), array.dtype) for name, array in first.items()
    }
    return {
        name: np.stack([column[row] for row in range(count)]) if name in _LABELS else column
        for name, column in columns.items()
    }


def _record(path: pathlib.Path, source: Any, row: int) -> Mapping[str, np.ndarray]:
    try:
        with np.load(io.BytesIO(source[row]), allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, TypeError, RuntimeError, zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: record {row} is no .npz archive of arrays: {error}.") from error
