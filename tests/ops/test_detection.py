"""Detection: non-maximum suppression against ONNX Runtime, on the device and on the host; refused while tracing."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import onnxeqx
from onnxeqx.plugins import detection

from .family_cases import check, check_against_runtime, check_host_case, host_case_names

RNG = np.random.default_rng(0)
BOXES = RNG.uniform(0, 10, (2, 40, 4)).astype(np.float32)
SCORES = RNG.uniform(-1, 1, (2, 3, 40)).astype(np.float32)
NMS = "NonMaxSuppression"


def most(count):
    return np.array([count], np.int64)


def threshold(value):
    return np.array([value], np.float32)


@pytest.mark.parametrize("name", host_case_names("detection"))
def test_suite_on_host(name):
    check_host_case(name)


@pytest.mark.parametrize("opset", [10, 11])
@pytest.mark.parametrize("center_point_box", [0, 1])
@pytest.mark.parametrize("overlap", [0.0, 0.3, 1.0])
def test_thresholds(opset, center_point_box, overlap):
    # Corners in any order.
    for operands in ((most(5),), (most(100), threshold(overlap)), (most(7), threshold(overlap), threshold(0.25))):
        check_against_runtime(NMS, opset, BOXES, SCORES, *operands, center_point_box=center_point_box)


def test_by_default_there_is_no_output():
    empty = np.zeros((0, 3), np.int64)
    for operands in ((), (most(0),), (most(3), threshold(0.5), threshold(2))):
        check(NMS, 11, [BOXES, SCORES, *operands], empty)
        check_against_runtime(NMS, 11, BOXES, SCORES, *operands)


def test_of_equal_scores_the_first_wins():
    scores = np.round(SCORES * 2)
    check_against_runtime(NMS, 11, BOXES, scores, most(100), threshold(0.4))


def test_thresholds_are_exclusive():
    boxes = np.array([[[0, 0, 2, 2], [0, 0, 1, 2], [5, 5, 5, 9]]], np.float32)  # the last one has no area
    scores = np.array([[[0.9, 0.8, 0.7]]], np.float32)
    for overlap, expected in ((0.5, [0, 1, 2]), (0.49, [0, 2])):
        rows = np.array([[0, 0, box] for box in expected])
        check(NMS, 11, [boxes, scores, most(9), threshold(overlap)], rows)
        check_against_runtime(NMS, 11, boxes, scores, most(9), threshold(overlap))
    check(NMS, 11, [boxes, scores, most(9), threshold(0.5), threshold(0.8)], np.array([[0, 0, 0]]))


def test_gradients_pass_by():
    def selected(boxes):
        rows = detection.non_max_suppression(boxes, jnp.asarray(SCORES), most(3))
        return (boxes[rows[:, 0], rows[:, 2]] ** 2).sum()

    gradient = jax.grad(selected)(jnp.asarray(BOXES))
    assert 0 < int((gradient != 0).any(-1).sum()) <= 18


def test_there_may_be_no_box():
    for shape in ((2, 0, 4), (0, 5, 4)):
        scores = np.zeros((shape[0], 3, shape[1]), np.float32)
        check(NMS, 11, [np.zeros(shape, np.float32), scores, most(3)], np.zeros((0, 3), np.int64))


@pytest.mark.parametrize(
    "trace", [jax.jit, lambda f: jax.jit(jax.vmap(f)), lambda f: jax.export.export(jax.jit(f), platforms=["tpu"])]
)
def test_while_tracing_it_is_refused(trace):
    def function(boxes):
        return detection.non_max_suppression(boxes, jnp.asarray(SCORES), most(3))

    with pytest.raises(
        onnxeqx.HostValueError, match=r"output shape of NonMaxSuppression depends on the data.*without jit"
    ):
        trace(function)(BOXES)
