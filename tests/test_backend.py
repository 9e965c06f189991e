"""onnxeqx as an ONNX backend: the ONNX project's own runner, and the interface by hand."""

import unittest
import warnings

import numpy as np
import onnx
import onnx.backend.base
import onnx.backend.test
import onnx.parser
import pytest
from onnx import helper

import onnxeqx
import onnxeqx.backend

CASES = (
    r"^test_(add|relu|lstm_defaults|sequence_insert_at_front|optional_get_element_optional_sequence|equal_string)_cpu$"
)
MODEL = """<ir_version: 8, opset_import: ["": 17]>
g (double[n] x, double[n] y) => (double[n] sum, double[n] difference) { sum = Add (x, y) difference = Sub (x, y) }"""


def test_the_onnx_projects_runner_runs_it_unchanged():
    with warnings.catch_warnings(action="ignore"):  # onnx overflows on purpose while it makes its cases
        suite = onnx.backend.test.BackendTest(onnxeqx.backend, __name__).include(CASES).test_suite
        result = unittest.TestResult()
        suite.run(result)
    assert result.testsRun - len(result.skipped) == 6
    assert not [*result.failures, *result.errors]


def test_it_is_a_backend():
    assert issubclass(onnxeqx.backend.OnnxeqxBackend, onnx.backend.base.Backend)
    assert onnxeqx.backend.supports_device("CPU")
    assert not onnxeqx.backend.supports_device("TPU:0")
    assert onnxeqx.backend.is_compatible(onnx.parser.parse_model(MODEL))


@pytest.mark.parametrize("by_name", [False, True])
def test_models_run_with_64_bits(by_name):
    x, y = np.array([1.0, 2.0]), np.array([1e-12, 3.0])
    prepared = onnxeqx.backend.prepare(onnx.parser.parse_model(MODEL))
    total, difference = prepared.run({"y": y, "x": x} if by_name else [x, y])
    np.testing.assert_array_equal(total, x + y)
    np.testing.assert_array_equal(difference, x - y)
    assert total.dtype == np.float64
    (again, _) = onnxeqx.backend.run_model(onnx.parser.parse_model(MODEL), [x, y])
    np.testing.assert_array_equal(again, total)


def test_single_nodes():
    x = np.array([[3.0, -1.0]], np.float32)
    (y,) = onnxeqx.backend.run_node(helper.make_node("Relu", ["x"], ["y"]), [x])
    np.testing.assert_array_equal(y, [[3, 0]])
    scaler = helper.make_node("Scaler", ["x"], ["y"], domain="ai.onnx.ml", offset=[1.0], scale=[2.0])
    np.testing.assert_array_equal(onnxeqx.backend.run_node(scaler, [x])[0], [[4, -4]])
    old = helper.make_node("Softmax", ["x"], ["y"])
    batch = np.zeros((1, 2, 3), np.float32)
    (y,) = onnxeqx.backend.run_node(old, [batch], opset_version=11)
    np.testing.assert_allclose(y, 1 / 6, rtol=1e-6)  # over all axes from the second on, before 13
