"""Arrays in files: `.npz`, folders of `.npy`, which are mapped into memory, and ArrayRecord."""

import pathlib
import zipfile
from collections.abc import Mapping, Sequence

import numpy as np

from .._errors import DataError
from .records import are_records, read_records

Arrays = tuple[np.ndarray, np.ndarray]

# Names of inputs and labels, as NumPy users, Keras and MedMNIST write them.
TRAINING_ARRAYS = (("x_train", "y_train"), ("train_images", "train_labels"), ("x", "y"), ("images", "labels"))
VALIDATION_ARRAYS = (
    ("x_val", "y_val"),
    ("val_images", "val_labels"),
    ("x_test", "y_test"),
    ("test_images", "test_labels"),
)


def read_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays by name.

    **Arguments:**

    - `path`: an `.npz` file, a folder of `.npy` files, of which only what is used is read, or ArrayRecord (see `read_records`).

    **Raises:** `DataError` if a file is damaged, is a single array, or holds Python objects.
    """
    if are_records(path):
        return read_records(path)
    if path.is_dir():
        return {file.stem: _mapped(file) for file in sorted(path.glob("*.npy"))}
    try:
        with path.open("rb") as file:
            arrays = np.load(file, allow_pickle=False)
            if isinstance(arrays, np.ndarray):
                raise DataError(f"{path} holds a single array, but must be an .npz file with images and labels.")
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(f"{path} cannot be read as an .npz file: {error}.") from error


def _mapped(path: pathlib.Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} cannot be read as a .npy file: {error}.") from error


def are_arrays(path: pathlib.Path) -> bool:
    """Whether `read_arrays` is for this."""
    return path.suffix == ".npz" or are_records(path) or (path.is_dir() and any(path.glob("*.npy")))


def named_pair(arrays: Mapping[str, np.ndarray], pairs: Sequence[tuple[str, str]]) -> Arrays | None:
    """The first pair of names that are both there, as inputs and labels."""
    return next(((arrays[inputs], arrays[labels]) for inputs, labels in pairs if {inputs, labels} <= set(arrays)), None)
