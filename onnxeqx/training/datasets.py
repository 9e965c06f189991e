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
from .errors import ConfigError
from .image_arrays import ImageArrays, Pixels
from .images import SUFFIXES, EncodedImage, ImageFiles, Preprocessing
from .labels import label_array, label_column
from .tables import Table, is_table, open_tables
from .tasks import UNLABELLED, Labels

TRAINING_FOLDERS = ("train", "training")
VALIDATION_FOLDERS = ("val", "valid", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The two parts of a data set, and what its labels are called: classes in their order, or the numbers that are predicted.

    `description` is saved beside the model: what must be done to inputs before the model takes them. `held_out` says whether the
    validation part is a share of the data, which has none of its own.
    """

    training: Examples
    validation: Examples
    class_names: tuple[str, ...]
    description: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    held_out: bool = False

    def class_counts(self) -> np.ndarray | None:
        """How many training examples each class has; `None` where examples do not tell without being read."""
        labels, indices = (getattr(self.training, name, None) for name in ("labels", "indices"))
        found = None if labels is None else np.asarray(labels)
        if found is None or found.ndim != 1 or found.dtype.kind not in "iu":
            return None
        return np.bincount(found if indices is None else found[indices], minlength=len(self.class_names))


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
    names: tuple[str, ...] = (),
) -> Dataset:
    """Opens a data set of labelled images.

    **Arguments:**

    - `data`: the name of a data set (`digits`), an `.npz` file or a folder of `.npy` files, a table with a column `image` of
      files, or a folder: `folder/<class>/…`, or `folder/train/<class>/…` with `folder/val/<class>/…` (or `test`).
    - `preprocess`: applied to each image.
    - `classes`: how many classes there are; `None` takes what the data shows.
    - `selection`: the held-out share, where the data has no validation part, and the limit.
    - `augment`: random changes to training images.
    - `labels`: what labels are: `"class"`, `"classes"` (0 or 1 for each) or `"numbers"`; for others, which are not in the data,
      a folder needs no folders of classes, and arrays no labels.
    - `sources`: data sets by name; by default the built-in ones.
    - `columns`: of a table, those of the labels.
    - `names`: the classes of an earlier run, which this data has too.

    **Raises:** `DataError` if the data is missing, empty, damaged, or does not fit the number of classes.
    """
    sources = {"digits": digits} if sources is None else sources
    opener = _Opener(preprocess, classes, selection, augment or Augmentation(), labels, columns, names)
    path = pathlib.Path(data)
    if data in sources:
        images, values, known = sources[data]()
        return opener.arrays(data, (images, values), None, names or tuple(known))
    if is_table(path):
        return opener.tables(path, *open_tables(path))
    if path.is_file() or are_arrays(path):
        arrays = read_arrays(path)
        unlabelled = labels in UNLABELLED
        training, validation = (
            named_pair(arrays, names, unlabelled=unlabelled) for names in (TRAINING_ARRAYS, VALIDATION_ARRAYS)
        )
        if training is None:
            pairs = ", ".join(" and ".join(pair) for pair in TRAINING_ARRAYS)
            raise DataError(f"{path} has no training arrays (it has {', '.join(arrays)}); name them {pairs}.")
        return opener.arrays(str(path), training, validation, names)
    if path.is_dir():
        return opener.folder(path)
    raise DataError(
        f"There is no data at {data}: give a folder of images, an .npz file, a table, or one of: {', '.join(sources)}."
    )


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
    names: tuple[str, ...] = ()

    def folder(self, folder: pathlib.Path) -> Dataset:
        if self.labels in ("classes", "numbers"):
            raise DataError(
                f"{folder}: class folders give each image one class; this task takes a table with a column 'image'."
            )
        training_folder = next((folder / name for name in TRAINING_FOLDERS if (folder / name).is_dir()), folder)
        names = self._class_names(training_folder)
        present = [name for name in names if (training_folder / name).is_dir()]
        paths, labels = _labelled_files(training_folder, present, names)
        if training_folder != folder and (held_out := _validation_folder(folder)):
            if names and (foreign := sorted(set(_class_folders(held_out)) - set(names))):
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
            return self._dataset(training, validation, names, held_out=True)
        return self._dataset(training, validation, names)

    def _class_names(self, folder: pathlib.Path) -> list[str]:
        """None where labels are not in the data."""
        if self.labels in UNLABELLED:
            return []
        names = _class_folders(folder, least=1 if self.names else 2)
        if self.names:
            if foreign := sorted(set(names) - set(self.names)):
                raise DataError(
                    f"{folder} has the classes {', '.join(foreign)}, which the run does not know: {', '.join(self.names[:10])}."
                )
            return list(self.names)
        if self.classes not in (None, len(names)):
            listed = ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
            raise DataError(f"--classes is {self.classes}, but {folder} has {len(names)} class folders: {listed}.")
        return names

    def arrays(self, origin: str, training: Arrays, validation: Arrays | None, names: tuple[str, ...] = ()) -> Dataset:
        examples, names = self._all(origin, *training, names)
        if examples.pixels.normalised and self.augment:
            raise ConfigError(
                f"{origin} holds pixels that are normalised already, which augmentation does not take: give pixels in [0, 255] "
                "or [0, 1], or leave augmentation out."
            )
        if validation is None:
            held_out, parts = examples, self.selection.split(examples.labels)
        else:
            as_in = examples.pixels if examples.images.dtype.kind == "f" else None
            held_out, _ = self._all(f"{origin} (validation part)", *validation, names, as_in)
            parts = [self.selection.limited(part.indices) for part in (examples, held_out)]
        return self._dataset(
            dataclasses.replace(examples, indices=parts[0], augment=self.augment),
            dataclasses.replace(held_out, indices=parts[1]),
            names,
            held_out=validation is None,
        )

    def _all(
        self, origin: str, images: Any, labels: np.ndarray | None, names: tuple[str, ...], as_in: Pixels | None = None
    ) -> tuple[ImageArrays, tuple[str, ...]]:
        pixels, count = Pixels.of(origin, images, self.preprocess, as_in=as_in), len(images)
        labels, names = label_array(origin, labels, self.labels, examples=count, classes=self.classes, names=names)
        return ImageArrays(images, labels, range(count), self.preprocess, pixels=pixels), names

    def tables(self, path: pathlib.Path, training: Table, validation: Table | None) -> Dataset:
        folder = path if path.is_dir() else path.parent
        labels, names = label_column(training, self.columns, self.labels, self.names or None)
        paths = _listed_files(folder, training)
        if validation is None:
            parts = self.selection.split(labels)
            held_out_paths, held_out = paths, labels
        else:
            held_out, _ = label_column(validation, self.columns, self.labels, names)
            held_out_paths = _listed_files(folder, validation)
            parts = [self.selection.limited(range(len(part))) for part in (labels, held_out)]
        return self._dataset(
            self._files(paths, list(labels), parts[0], training=True),
            self._files(held_out_paths, list(held_out), parts[1]),
            names,
            held_out=validation is None,
        )

    def _files(self, paths: Any, labels: Any, indices: Sequence[int], *, training: bool = False) -> ImageFiles:
        augment = self.augment if training else Augmentation()
        chosen = [paths[index] for index in indices], [labels[index] for index in indices]
        return ImageFiles(*chosen, self.preprocess, augment)

    def _dataset(
        self, training: Examples, validation: Examples, names: Sequence[str], *, held_out: bool = False
    ) -> Dataset:
        return Dataset(training, validation, tuple(names), dataclasses.asdict(self.preprocess), held_out)


def _validation_folder(folder: pathlib.Path) -> pathlib.Path | None:
    return next((folder / name for name in VALIDATION_FOLDERS if (folder / name).is_dir()), None)


def _class_folders(folder: pathlib.Path, least: int = 2) -> list[str]:
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if len(names) < least:
        found = f"only {names[0]}" if names else "none"
        raise DataError(f"{folder} needs one sub-folder of images for each class, at least two; there is {found}.")
    return names


def _labelled_files(
    folder: pathlib.Path, present: Sequence[str], names: Sequence[str] | None = None
) -> tuple[list[pathlib.Path], list[int]]:
    """The images of the `present` classes, and their labels: positions in `names` (by default `present`).

    Without names of classes, all images below the folder, with the label 0.
    """
    if not (names or present):
        paths = _image_files(folder)
        return paths, [0] * len(paths)
    paths, labels = [], []
    for name in present:
        found = _image_files(folder / name)
        paths.extend(found)
        labels.extend([(names or present).index(name)] * len(found))
    return paths, labels


def _image_files(folder: pathlib.Path) -> list[pathlib.Path]:
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not found:
        raise DataError(f"The folder {folder} has no images ({', '.join(sorted(SUFFIXES))}).")
    return found


def _listed_files(folder: pathlib.Path, table: Table) -> list[pathlib.Path | EncodedImage]:
    """The images of a table: names of files relative to its folder, or what Hugging Face `datasets` keeps of an image."""
    found: list[pathlib.Path | EncodedImage] = []
    for row, value in enumerate(table.column("image", "--data")):
        origin = f"{table.origin}, row {row}"
        if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
            found.append(EncodedImage(value["bytes"], origin))
            continue
        name = value.get("path") if isinstance(value, dict) else value
        if not isinstance(name, str):
            raise DataError(f"{origin} (the first is 0): column 'image' names no file; correct or remove the row.")
        if not (folder / name).is_file():
            raise DataError(
                f"{origin} (the first is 0): column 'image' is {name}, but there is no such file in {folder}; correct or remove "
                "the row."
            )
        found.append(folder / name)
    return found
