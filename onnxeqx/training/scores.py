"""What a classifier gets right and wrong, class by class."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from .._errors import DataError


@dataclasses.dataclass(frozen=True)
class ClassScore:
    """How well one class is told from the others; a score that is a division by zero is nan.

    - `name`: of the class.
    - `precision`: the share of the examples predicted to be of the class that are.
    - `recall`: the share of the examples of the class that are predicted to be.
    - `f1`: the harmonic mean of both.
    - `examples`: how many are of the class.
    """

    name: str
    precision: float
    recall: float
    f1: float
    examples: int


def confusion(
    labels: Int[np.ndarray, " examples"], predicted: Int[np.ndarray, " examples"], classes: int
) -> Int[np.ndarray, "classes classes"]:
    """Counts how often each class is predicted to be each class.

    **Arguments:**

    - `labels`: the true class of each example, integers of shape `(examples,)`.
    - `predicted`: the predicted one, of the same shape.
    - `classes`: how many there are.

    **Returns:** int64 of shape `(classes, classes)`; rows are true classes, columns predicted ones.

    **Raises:** `DataError` if a class is not in `range(classes)`.
    """
    labels, predicted = np.asarray(labels, np.int64), np.asarray(predicted, np.int64)
    for name, values in (("labels", labels), ("predicted", predicted)):
        outside = (values < 0) | (values >= classes)
        if outside.any():
            raise DataError(
                f"{name} has class {values[outside][0]} at index {np.flatnonzero(outside)[0]}, "
                f"but classes are 0 to {classes - 1}; leave out examples without a class."
            )
    return np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes).astype(np.int64)


def class_scores(counts: Int[np.ndarray, "classes classes"], class_names: Sequence[str]) -> tuple[ClassScore, ...]:
    """Precision, recall and F1 of each class.

    **Arguments:**

    - `counts`: as of `confusion`.
    - `class_names`: in the order of the classes.

    **Returns:** one score for each class, in their order.
    """
    right, examples, predictions = counts.diagonal(), counts.sum(1), counts.sum(0)
    columns = (
        _share(right, predictions).tolist(),
        _share(right, examples).tolist(),
        _share(2 * right, examples + predictions).tolist(),
        examples.tolist(),
    )
    return tuple(ClassScore(*row) for row in zip(class_names, *columns, strict=True))


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
