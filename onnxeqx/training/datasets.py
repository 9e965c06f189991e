"""Opens training images by what the user names: a folder, arrays, a table of files, or a data set by name."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .._errors import DataError
from .array_files import TRAINING_ARRAYS, VALIDATION_ARRAYS, Arrays, are_arrays, named_pair, read_arrays
from .augment import Augmentation
from .data import Examples, hold_out, limited
from .images import SUFFIXES, ImageArrays, ImageFiles, Preprocessing
from .labels import label_column
from .tables import TABLE_SUFFIXES, Table, is_saved_dataset, open_tables
from .tasks import Labels

TRAINING_FOLDERS = ("train", "training")
VALIDATION_FOLDERS = ("val", "valid", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The two parts of a data set, and what its labels are called: classes in their order, or the numbers that are predicted.

    `description` is saved beside the model: what must be done to inputs before the model takes them.
    """

    training: Examples
    validation: Examples
    class_names: tuple[str, ...]
    description: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which examples are used: the held-out share, a limit on both parts, and the seed that draws them."""

    validation_share: float = 0.2
    limit: int | None = None
    seed: int = 0

    def split(self, labels: Any) -> tuple[list[int], list[int]]:
        """The indices of the training and of the validation part.

        Labels that are no classes (not whole numbers, or each another one) are all alike.
        """
        values = np.asarray(labels)
        are_classes = values.ndim == 1 and values.dtype.kind in "iub" and len(np.unique(values)) < len(values)
        classes = values.tolist() if are_classes else [0] * len(values)
        training, validation = hold_out(classes, self.validation_share, self.seed)
        return self.limited(training), self.limited(validation)

    def limited(self, indices: Sequence[int]) -> list[int]:
        return limited(indices, self.limit, self.seed)


def open_dataset(
    data: str,
    preprocess: Preprocessing,
    *,
    classes: int | None,
    selection: Selection,
    augment: Augmentation | None = None,
    labels: Labels = "class",
    sources: Mapping[str, Callable[[], tuple[np.ndarray, np.ndarray, Sequence[str]]]] | None = None,
    columns: str | None = None,
) -> Dataset:
    """Opens a data set of labelled images.

    **Arguments:**

    - `data`: the name of a data set (`digits`), an `.npz` file or a folder of `.npy` files, a table with a column `image` of
      files, or a folder: `folder/<class>/…`, or `folder/train/<class>/…` with `folder/val/<class>/…` (or `test`).
    - `preprocess`: applied to each image.
    - `classes`: how many classes there are; `None` takes what the data shows.
    - `selection`: the held-out share, where the data has no validation part, and the limit.
    - `augment`: random changes to training images.
    - `labels`: what labels are: `"class"`, `"classes"` (0 or 1 for each) or `"numbers"`.
    - `sources`: data sets by name; by default the built-in ones.
    - `columns`: of a table, those of the labels.

    **Raises:** `DataError` if the data is missing, empty, damaged, or does not fit the number of classes.
    """
    sources = {"digits": digits} if sources is None else sources
    opener = _Opener(preprocess, classes, selection, augment or Augmentation(), labels, columns)
    path = pathlib.Path(data)
    if data in sources:
        images, values, names = sources[data]()
        return opener.arrays(data, (images, values), None, tuple(names))
    if path.suffix in TABLE_SUFFIXES or is_saved_dataset(path):
        return opener.tables(path, *open_tables(path))
    if path.is_file() or are_arrays(path):
        arrays = read_arrays(path)
        training, validation = named_pair(arrays, TRAINING_ARRAYS), named_pair(arrays, VALIDATION_ARRAYS)
        if training is None:
            pairs = ", ".join(f"{images} and {labels}" for images, labels in TRAINING_ARRAYS)
            raise DataError(f"{path} has no training arrays (it has {', '.join(arrays)}); name them {pairs}.")
        return opener.arrays(str(path), training, validation)
    if path.is_dir():
        return opener.folder(path)
    names = ", ".join(sources)
    raise DataError(f"There is no data at {data}: give a folder of images, an .npz file, a table, or one of: {names}.")


def digits() -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Scikit-learn's 1,797 handwritten digits: images `(n, 8, 8)`, labels `(n,)`, and the names of the classes.

    **Raises:** `DataError` if scikit-learn is not installed.
    """
    try:
        import sklearn.datasets
    except ImportError:
        raise DataError("The digits come with scikit-learn, which is not installed: pip install scikit-learn") from None
    pixels, labels = sklearn.datasets.load_digits(return_X_y=True)
    images = (np.reshape(pixels, (-1, 8, 8)) * (255 / 16)).round().astype(np.uint8)
    return images, np.asarray(labels), tuple("0123456789")


@dataclasses.dataclass(frozen=True)
class _Opener:
    """How a data set is to be opened, wherever it is."""

    preprocess: Preprocessing
    classes: int | None
    selection: Selection
    augment: Augmentation
    labels: Labels
    columns: str | None

    def folder(self, folder: pathlib.Path) -> Dataset:
        if self.labels != "class":
            raise DataError(
                f"{folder}: class folders give each image one class; this task takes a table with a column 'image'."
            )
        training_folder = next((folder / name for name in TRAINING_FOLDERS if (folder / name).is_dir()), folder)
        names = _class_folders(training_folder)
        if self.classes not in (None, len(names)):
            listed = ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
            raise DataError(
                f"--classes is {self.classes}, but {training_folder} has {len(names)} class folders: {listed}."
            )
        paths, labels = _labelled_files(training_folder, names)
        if training_folder != folder and (held_out := _validation_folder(folder)):
            if foreign := sorted(set(_class_folders(held_out)) - set(names)):
                raise DataError(f"{held_out} has classes that {training_folder} does not have: {', '.join(foreign)}.")
            training = self._files(paths, labels, self.selection.limited(range(len(paths))), training=True)
            paths, labels = _labelled_files(held_out, [name for name in names if (held_out / name).is_dir()], names)
            validation = self._files(paths, labels, self.selection.limited(range(len(paths))))
        else:
            parts = self.selection.split(labels)
            training, validation = (
                self._files(paths, labels, parts[0], training=True),
                self._files(paths, labels, parts[1]),
            )
        return self._dataset(training, validation, names)

    def arrays(self, origin: str, training: Arrays, validation: Arrays | None, names: tuple[str, ...] = ()) -> Dataset:
        images, labels = self._checked(origin, *training)
        count = self.classes or (int(labels.max()) + 1 if labels.ndim == 1 else labels.shape[1])
        self._check_labels(origin, labels, count)
        if validation is None:
            training_part, validation_part = self.selection.split(labels)
            held_out = images, labels
        else:
            held_out = self._checked(origin, *validation)
            self._check_labels(origin, held_out[1], count)
            training_part = self.selection.limited(range(len(labels)))
            validation_part = self.selection.limited(range(len(held_out[1])))
        names = (*names, *(str(label) for label in range(len(names), count)))
        return self._dataset(
            ImageArrays(images, labels, training_part, self.preprocess, self.augment),
            ImageArrays(*held_out, validation_part, self.preprocess),
            names[:count],
        )

    def tables(self, path: pathlib.Path, training: Table, validation: Table | None) -> Dataset:
        folder = path if path.is_dir() else path.parent
        labels, names = label_column(training, self.columns, self.labels)
        paths = [folder / name for name in training.column("image", "--data")]
        if validation is None:
            parts = self.selection.split(labels)
            held_out_paths, held_out = paths, labels
        else:
            held_out, _ = label_column(validation, self.columns, self.labels, names)
            held_out_paths = [folder / name for name in validation.column("image", "--data")]
            parts = [self.selection.limited(range(len(part))) for part in (labels, held_out)]
        return self._dataset(
            self._files(paths, list(labels), parts[0], training=True),
            self._files(held_out_paths, list(held_out), parts[1]),
            names,
        )

    def _files(self, paths: Any, labels: Any, indices: Sequence[int], *, training: bool = False) -> ImageFiles:
        augment = self.augment if training else Augmentation()
        chosen = [paths[index] for index in indices], [labels[index] for index in indices]
        return ImageFiles(*chosen, self.preprocess, augment)

    def _dataset(self, training: Examples, validation: Examples, names: Sequence[str]) -> Dataset:
        return Dataset(training, validation, tuple(names), dataclasses.asdict(self.preprocess))

    def _checked(self, origin: str, images: np.ndarray, labels: np.ndarray) -> Arrays:
        if self.labels == "class":
            return _checked(origin, images, labels, self.preprocess)
        if self.labels == "classes" and (np.ndim(labels) != 2 or not np.isin(labels, (0, 1)).all()):
            raise DataError(
                f"{origin}: several labels at once are 0 or 1 for each class, shape (n, classes), not {labels.shape}."
            )
        labels = np.asarray(labels, np.float32).reshape(len(labels), -1)
        if bad := np.flatnonzero(~np.isfinite(labels).all(1)).tolist():
            raise DataError(f"{origin}: the label of example {bad[0]} is not finite.")
        return _checked(origin, images, np.zeros(len(labels), np.int64), self.preprocess)[0], labels

    def _check_labels(self, origin: str, labels: np.ndarray, classes: int) -> None:
        if labels.ndim == 1:
            check_labels(origin, labels, classes)
        elif labels.shape[1] != classes:
            raise DataError(f"{origin}: labels of shape {labels.shape} do not have {classes} columns (--classes).")


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


# --- arrays -------------------------------------------------------------------------------------------------------


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


def check_labels(origin: str, labels: np.ndarray, classes: int) -> None:
    """**Raises:** `DataError` if a class is outside 0 to `classes - 1`; it names the example."""
    outside = np.flatnonzero((labels < 0) | (labels >= classes))
    if outside.size:
        example = int(outside[0])
        raise DataError(
            f"{origin}: label {labels[example]} of example {example} is outside 0 to {classes - 1} "
            f"(--classes {classes})."
        )
