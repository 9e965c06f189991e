"""Detection: choosing among overlapping boxes."""

from typing import Any

import numpy as np

from .._registry import op
from ..runtime import array_namespace
from ._operands import as_array, known
from .hookspecs import hookimpl


@op(
    "NonMaxSuppression",
    since=10,
    host=("max_output_boxes_per_class", "iou_threshold", "score_threshold"),
    on_host=True,
)
def non_max_suppression(
    boxes, scores, max_output_boxes_per_class=None, iou_threshold=None, score_threshold=None, *, center_point_box=0
):
    """The best boxes of each class, without those that overlap a better one too much -> (count, 3), int64.

    boxes: (n, boxes, 4) of corners `y1, x1, y2, x2`, or of `x, y, width, height` about a centre; scores: (n, classes,
    boxes), float. A row of the result is an example, a class and a box. Not under `jit`: the shape is data.

    https://onnx.ai/onnx/operators/onnx__NonMaxSuppression.html
    """
    xp = array_namespace(boxes, scores)
    boxes, scores = known(boxes, "NonMaxSuppression"), known(scores, "NonMaxSuppression")
    most, overlap = _number(max_output_boxes_per_class, 0), np.float32(_number(iou_threshold, 0))
    least = _number(score_threshold, None)
    rows = []
    for example, class_ in np.ndindex(scores.shape[:2]):
        candidates = np.argsort(-scores[example, class_], stable=True)
        if least is not None:
            candidates = candidates[scores[example, class_, candidates] > np.float32(least)]
        chosen = _chosen(_corners(boxes[example], center_point_box), candidates, most, overlap)
        rows += [(example, class_, box) for box in chosen]
    return as_array(np.array(rows, np.int64).reshape(-1, 3), xp)


def _number(value: Any, default: Any) -> Any:
    return default if value is None else known(value, "NonMaxSuppression").item()


def _corners(boxes: np.ndarray, center_point_box: int) -> np.ndarray:
    """Lower corners, then upper ones: (boxes, 4), of whatever two axes."""
    first, second = boxes[:, :2], boxes[:, 2:]
    if center_point_box:
        return np.concatenate([first - second / 2, first + second / 2], axis=1)
    return np.concatenate([np.minimum(first, second), np.maximum(first, second)], axis=1)


def _chosen(corners: np.ndarray, candidates: np.ndarray, most: int, overlap: np.float32) -> list[int]:
    """At most so many of the candidates, the best of which come first."""
    chosen: list[int] = []
    while len(candidates) and len(chosen) < most:
        best, *_ = candidates
        chosen.append(int(best))
        candidates = candidates[1:]
        candidates = candidates[_overlaps(corners[best], corners[candidates]) <= overlap]
    return chosen


def _overlaps(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of one box with each of the others; 0 where either has no area."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    intersections = np.maximum(sides, 0).prod(-1)
    unions = (box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(-1) - intersections
    return np.where(intersections > 0, intersections / np.where(unions > 0, unions, 1), 0)


@hookimpl
def onnxeqx_register_ops(registry) -> None:
    registry.add_module(__name__)
