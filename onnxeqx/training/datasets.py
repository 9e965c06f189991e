"""Opens training data by what the user names: a folder of images, an `.npz` file, or a built-in data set."""

import dataclasses
import pathlib
import zipfile
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from .._errors import DataError
from .data import Examples, hold_out, limited
from .images import SUFFIXES, ImageArrays, ImageFiles, Preprocessing

TRAINING_FOLDERS = ("train", "training")
VALIDATION_FOLDERS = ("val", "valid", "validation", "test")
# Names of images and labels inside an .npz file, as NumPy users, Keras and MedMNIST write them.
TRAINING_ARRAYS = (("x_train", "y_train"), ("train_images", "train_labels"), ("x", "y"), ("images", "labels"))
VALIDATION_ARRAYS = (
    ("x_val", "y_val"),
    ("val_images", "val_labels"),
    ("x_test", "y_test"),
    ("test_images", "test_labels"),
)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The two parts of a data set and the names of its classes, in the order of the labels."""

    training: Examples
    validation: Examples
    class_names: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which examples are used: the held-out share, a limit on both parts, and the seed that draws them."""

    validation_share: float = 0.2
    limit: int | None = None
    seed: int = 0

    def split(self, labels: Sequence[int]) -> tuple[list[int], list[int]]:
        training, validation = hold_out(labels, self.validation_share, self.seed)
        return self.limited(training), self.limited(validation)

    def limited(self, indices: Sequence[int]) -> list[int]:
        return limited(indices, self.limit, self.seed)


def open_dataset(data: str, preprocess: Preprocessing, *, classes: int | None, selection: Selection) -> Dataset:
    """Opens a data set of labelled images.

    **Arguments:**

    - `data`: the name of a built-in data set (`digits`), an `.npz` file, or a folder: `folder/<class>/…`, or
      `folder/train/<class>/…` with `folder/val/<class>/…` (or `test`).
    - `preprocess`: applied to each image.
    - `classes`: how many classes there are; `None` takes what the data shows.
    - `selection`: the held-out share, where the data has no validation part, and the limit.

    **Raises:** `DataError` if the data is missing, empty, damaged, or does not fit the number of classes.
    """
    if data in BUILT_IN:
        images, labels, names = BUILT_IN[data]()
        return _from_arrays(data, (images, labels), None, preprocess, classes, selection, names)
    path = pathlib.Path(data)
    if path.is_dir():
        return _from_folder(path, preprocess, classes, selection)
    if path.is_file():
        training, validation = _read_npz(path)
        return _from_arrays(str(path), training, validation, preprocess, classes, selection)
    names = ", ".join(BUILT_IN)
    raise DataError(f"There is no data at {data}: give a folder of images, an .npz file, or one of: {names}.")


def _digits() -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    try:
        import sklearn.datasets
    except ImportError:
        raise DataError("The digits come with scikit-learn, which is not installed: pip install scikit-learn") from None
    pixels, labels = sklearn.datasets.load_digits(return_X_y=True)
    images = (np.reshape(pixels, (-1, 8, 8)) * (255 / 16)).round().astype(np.uint8)
    return images, np.asarray(labels), tuple("0123456789")


BUILT_IN: dict[str, Callable[[], tuple[np.ndarray, np.ndarray, tuple[str, ...]]]] = {"digits": _digits}


# --- folders of images ------------------------------------------------------------------------------------------------


def _from_folder(folder: pathlib.Path, preprocess: Preprocessing, classes: int | None, selection: Selection) -> Dataset:
    training_folder = next((folder / name for name in TRAINING_FOLDERS if (folder / name).is_dir()), folder)
    names = _class_folders(training_folder)
    if classes is not None and classes != len(names):
        listed = ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
        raise DataError(f"--classes is {classes}, but {training_folder} has {len(names)} class folders: {listed}.")
    paths, labels = _labelled_files(training_folder, names)
    if training_folder != folder and (held_out := _validation_folder(folder)):
        if foreign := sorted(set(_class_folders(held_out)) - set(names)):
            raise DataError(f"{held_out} has classes that {training_folder} does not have: {', '.join(foreign)}.")
        training = _image_files(paths, labels, selection.limited(range(len(paths))), preprocess)
        paths, labels = _labelled_files(held_out, [name for name in names if (held_out / name).is_dir()], names)
        validation = _image_files(paths, labels, selection.limited(range(len(paths))), preprocess)
    else:
        parts = selection.split(labels)
        training, validation = (_image_files(paths, labels, indices, preprocess) for indices in parts)
    return Dataset(training, validation, tuple(names))


def _validation_folder(folder: pathlib.Path) -> pathlib.Path | None:
    return next((folder / name for name in VALIDATION_FOLDERS if (folder / name).is_dir()), None)


def _class_folders(folder: pathlib.Path) -> list[str]:
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if len(names) < 2:
        found = f"only {names[0]}" if names else "none"
        raise DataError(f"{folder} needs one sub-folder of images for each class, at least two; there is {found}.")
    return names


def _labelled_files(
    folder: pathlib.Path, present: Sequence[str], names: Sequence[str] | None = None
) -> tuple[list[pathlib.Path], list[int]]:
    """The images of the `present` classes, and their labels: positions in `names` (by default `present`)."""
    paths: list[pathlib.Path] = []
    labels: list[int] = []
    for name in present:
        found = sorted(
            path for path in (folder / name).rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()
        )
        if not found:
            raise DataError(f"The class folder {folder / name} has no images ({', '.join(sorted(SUFFIXES))}).")
        paths.extend(found)
        labels.extend([(names or present).index(name)] * len(found))
    return paths, labels


def _image_files(paths, labels, indices, preprocess) -> ImageFiles:
    return ImageFiles([paths[index] for index in indices], [labels[index] for index in indices], preprocess)


# --- arrays -----------------------------------------------------------------------------------------------------------

Arrays = tuple[np.ndarray, np.ndarray]


def _read_npz(path: pathlib.Path) -> tuple[Arrays, Arrays | None]:
    try:
        with path.open("rb") as file:
            arrays = np.load(file, allow_pickle=False)
            if isinstance(arrays, np.ndarray):
                raise DataError(f"{path} holds a single array, but must be an .npz file with images and labels.")
            training, validation = _named_pair(arrays, TRAINING_ARRAYS), _named_pair(arrays, VALIDATION_ARRAYS)
            if training is None:
                pairs = ", ".join(f"{images} and {labels}" for images, labels in TRAINING_ARRAYS)
                raise DataError(f"{path} has no training arrays (it has {', '.join(arrays)}); name them {pairs}.")
            return training, validation
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(f"{path} cannot be read as an .npz file: {error}.") from error


def _named_pair(arrays: Mapping[str, np.ndarray], pairs: Sequence[tuple[str, str]]) -> Arrays | None:
    return next(((arrays[images], arrays[labels]) for images, labels in pairs if {images, labels} <= set(arrays)), None)


def _from_arrays(
    origin: str,
    training: Arrays,
    validation: Arrays | None,
    preprocess: Preprocessing,
    classes: int | None,
    selection: Selection,
    names: tuple[str, ...] = (),
) -> Dataset:
    images, labels = _checked(origin, *training, preprocess)
    if classes is None:
        classes = int(labels.max()) + 1
    _check_labels(origin, labels, classes)
    if validation is None:
        parts = selection.split(labels.tolist())
        training_part, validation_part = (ImageArrays(images, labels, part, preprocess) for part in parts)
    else:
        held_out = _checked(origin, *validation, preprocess)
        _check_labels(origin, held_out[1], classes)
        training_part, validation_part = (
            ImageArrays(x, y, selection.limited(range(len(y))), preprocess) for x, y in ((images, labels), held_out)
        )
    names = (*names, *(str(label) for label in range(len(names), classes)))
    return Dataset(training_part, validation_part, names[:classes])


def _checked(origin: str, images: np.ndarray, labels: np.ndarray, preprocess: Preprocessing) -> Arrays:
    if images.ndim == 4 and images.shape[3] not in (1, 3, 4) and images.shape[1] in (1, 3):
        images = images.transpose(0, 2, 3, 1)
    if not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (1, 3, 4))):
        raise DataError(f"{origin}: images of shape {images.shape} are not (n, h, w), (n, h, w, c) or (n, c, h, w).")
    if labels.shape == (len(labels), 1):
        labels = labels[:, 0]
    if labels.shape != (len(images),):
        raise DataError(
            f"{origin}: {len(images)} images, but labels of shape {labels.shape}; one label an image is needed."
        )
    if not len(images):
        raise DataError(f"{origin} has no images.")
    if labels.dtype.kind not in "biuf" or not np.array_equal(labels, np.trunc(labels)):
        raise DataError(
            f"{origin}: labels must be whole numbers (0, 1, 2, …), not {labels.dtype}, such as {labels[0]}."
        )
    return _pixels(origin, images, preprocess), labels.astype(np.int64)


def _pixels(origin: str, images: np.ndarray, preprocess: Preprocessing) -> np.ndarray:
    """Integers as uint8; floating-point pixels in [0, 1], or as they are if normalised already."""
    if images.dtype == np.uint8:
        return images
    if not np.issubdtype(images.dtype, np.floating) and not np.issubdtype(images.dtype, np.integer):
        raise DataError(f"{origin}: images of dtype {images.dtype} are neither integers nor floating-point numbers.")
    low, high = images.min(), images.max()
    if not np.isfinite(low) or not np.isfinite(high):
        bad = int(np.flatnonzero(~np.isfinite(images).reshape(len(images), -1).all(1))[0])
        raise DataError(f"{origin}: image {bad} has values that are not finite.")
    if low < 0 or high > 255:
        if set(preprocess.mean) == {0.0} and set(preprocess.std) == {1.0} and np.issubdtype(images.dtype, np.floating):
            return images
        raise DataError(
            f"{origin}: pixels lie in [{low:g}, {high:g}], not in [0, 255] or [0, 1]; "
            "if they are normalised already, pass --mean 0 --std 1."
        )
    if np.issubdtype(images.dtype, np.integer):
        return images.astype(np.uint8)
    return images if high <= 1 else images / np.asarray(255, images.dtype)


def _check_labels(origin: str, labels: np.ndarray, classes: int) -> None:
    outside = np.flatnonzero((labels < 0) | (labels >= classes))
    if outside.size:
        example = int(outside[0])
        raise DataError(
            f"{origin}: label {labels[example]} of example {example} is outside 0 to {classes - 1} "
            f"(--classes {classes})."
        )
