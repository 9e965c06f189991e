"""Arrays in files: `.npz`, folders of `.npy`, which are mapped into memory, and ArrayRecord."""

import pathlib
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from .._errors import DataError
from .records import are_records, read_records

Arrays = tuple[np.ndarray, np.ndarray | None]
"""Inputs, and labels if there are any."""

BLOCK_BYTES = 2**24
"""How much of an array is looked at together, which may be larger than the memory."""

# Names of inputs and labels, as NumPy users, Keras and MedMNIST write them.
TRAINING_ARRAYS = (("x_train", "y_train"), ("train_images", "train_labels"), ("x", "y"), ("images", "labels"))
VALIDATION_ARRAYS = (
    ("x_val", "y_val"),
    ("val_images", "val_labels"),
    ("x_test", "y_test"),
    ("test_images", "test_labels"),
)


def read_arrays(path: pathlib.Path) -> dict[str, Any]:
    """The arrays by name.

    **Arguments:**

    - `path`: an `.npz` file, a folder of `.npy` files, of which only what is used is read, or ArrayRecord (see `read_records`).

    **Raises:** `DataError` if a file is damaged, is a single array, or holds Python objects.
    """
    if are_records(path):
        return read_records(path)
    if path.is_dir():
        return {file.stem: MappedArray(file) for file in sorted(path.glob("*.npy"))}
    try:
        with path.open("rb") as file:
            arrays = np.load(file, allow_pickle=False)
            if isinstance(arrays, np.ndarray):
                raise DataError(f"{path} holds a single array, but must be an .npz file with images and labels.")
            return {name: arrays[name] for name in arrays.files}
    # On damaged archives zipfile lets through what zlib raises, and NotImplementedError for a compression it does not know.
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, zlib.error, NotImplementedError) as error:
        raise DataError(f"{path} cannot be read as an .npz file: {error}.") from error


class MappedArray:
    """A `.npy` file that is mapped into memory, here and, by its path alone, in worker processes: NumPy would pickle all of it.

    **Arguments:**

    - `path`: of the file.

    **Raises:** `DataError` if it is damaged, or holds Python objects.
    """

    def __init__(self, path: pathlib.Path):
        self.path = path
        try:
            self.array = np.load(path, allow_pickle=False, mmap_mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{path} cannot be read as a .npy file: {error}.") from error
        self.shape, self.dtype, self.ndim = self.array.shape, self.array.dtype, self.array.ndim

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, rows: Any) -> np.ndarray:
        return self.array[rows]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.array, dtype, copy=copy)

    def __reduce__(self) -> Any:
        return MappedArray, (self.path,)


def are_arrays(path: pathlib.Path) -> bool:
    """Whether `read_arrays` is for this."""
    return path.suffix == ".npz" or are_records(path) or (path.is_dir() and any(path.glob("*.npy")))


def named_pair(
    arrays: Mapping[str, np.ndarray], pairs: Sequence[tuple[str, str]], *, unlabelled: bool = False
) -> Arrays | None:
    """The first pair of names that are both there, as inputs and labels; `unlabelled` ones may lack the latter."""
    for inputs, labels in pairs:
        if inputs in arrays and (labels in arrays or unlabelled):
            return arrays[inputs], arrays.get(labels)
    return None


def blocks(array: Any) -> Iterator[tuple[int, np.ndarray]]:
    """All rows of an array, some at a time, each time with the number of the first.

    **Arguments:**

    - `array`: in memory, mapped into it, or in records (`RecordedArray`).
    """
    array = array.array if isinstance(array, MappedArray) else array
    if not isinstance(array, np.ndarray):
        yield from ((row, np.asarray(array[row])[None]) for row in range(len(array)))
        return
    count = max(BLOCK_BYTES * len(array) // max(array.nbytes, 1), 1)
    yield from ((row, np.asarray(array[row : row + count])) for row in range(0, len(array), count))
