"""One operator at one opset: on the device and on the host, against ONNX Runtime or a given expectation."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from onnxeqx._graph import Value
from onnxeqx._registry import Op
from onnxeqx._symbolic import Dim
from onnxeqx.plugins.manager import host
from tests.onnx_suite import node_cases

from .shape_cases import evaluate_on_host

N, M = Dim(Value("x"), 0), Dim(Value("x"), 1)


def lookup(name: str, opset: int) -> Op:
    entry = host().registry.lookup("", name, opset)
    assert entry is not None
    return entry


def host_case_names(plugin: str) -> list[str]:
    """The suite's cases whose nodes all run on the host, and belong to this plugin."""
    names = []
    for name, case in node_cases().items():
        opset = case.model.opset_import[0].version
        entries = [host().registry.lookup(node.domain, node.op_type, opset) for node in case.model.graph.node]
        if all(entry is not None and entry.plugin == plugin and entry.on_host for entry in entries):
            names.append(name)
    return names


def check_host_case(name: str) -> None:
    """NumPy in, NumPy out, in exactly the dtype that ONNX says."""
    case = node_cases()[name]
    for inputs, expected in case.data_sets:
        with np.errstate(all="ignore"):  # NumPy warns of infinities and divisions by zero, JAX does not
            results = evaluate_on_host(case.model, [_decoded(value) for value in inputs])
        for result, wanted in zip(results, map(_decoded, expected), strict=True):
            assert isinstance(result, np.ndarray | np.generic)
            _compare(result, wanted, wanted.dtype, case.rtol, case.atol)


def _decoded(value: Any) -> Any:
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


def check(name: str, opset: int, operands: list[Any], expected: Any, **attributes: Any) -> None:
    """Runs the operator on JAX arrays, under strict promotion, and on NumPy arrays where it says that it can."""
    entry = lookup(name, opset)
    expected = expected if isinstance(expected, list) else [expected]
    if "n_outputs" in entry.attributes:
        attributes["n_outputs"] = len(expected)
    arrays = [
        value if value is None or entry.input_name(i) in entry.host else jnp.asarray(value)
        for i, value in enumerate(operands)
    ]
    with jax.numpy_dtype_promotion("strict"):
        results = entry.function(*arrays, **attributes)
    for result, wanted in zip(results if isinstance(results, tuple) else [results], expected, strict=True):
        assert isinstance(result, jax.Array)
        _compare(result, wanted, jnp.asarray(wanted).dtype)
    if entry.on_host:
        result = entry.function(*operands, **attributes)
        assert isinstance(result, np.ndarray | np.generic)
        _compare(result, expected[0], expected[0].dtype)


def _compare(result: Any, wanted: Any, dtype: Any, rtol: float = 0.0, atol: float = 0.0) -> None:
    assert (result.shape, result.dtype) == (wanted.shape, dtype)
    if dtype.kind in "US":
        np.testing.assert_array_equal(result, wanted)
        return
    rough = jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize < 4
    result, wanted = (np.asarray(value).astype(np.float64) for value in (result, wanted))
    np.testing.assert_allclose(result, wanted, max(rtol, 5e-3 if rough else 1e-5), max(atol, 1e-6))


def check_against_runtime(name: str, opset: int, *operands: Any, outputs: int = 1, **attributes: Any) -> None:
    """The same as ONNX Runtime with optimisations off."""
    names = [f"x{i}" if value is not None else "" for i, value in enumerate(operands)]
    node = helper.make_node(name, names, [f"y{i}" for i in range(outputs)], **attributes)
    given = {key: np.asarray(value) for key, value in zip(names, operands, strict=True) if key}
    inputs = [
        helper.make_tensor_value_info(key, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for key, value in given.items()
    ]
    graph = helper.make_graph([node], "g", inputs, [helper.make_empty_tensor_value_info(y) for y in node.output])
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", opset)])
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    expected = onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, given)
    check(name, opset, list(operands), list(expected), **attributes)


def objects(*items: Any) -> np.ndarray:
    """A shape vector with symbolic dimensions."""
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array


def texts(array: Any) -> list[str]:
    """Elements as text: symbols do not compare."""
    assert np.asarray(array).dtype == object
    return [repr(item) for item in np.asarray(array).reshape(-1)]
