"""One node through ONNX Runtime and through the registered operator, with attributes as Python values."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
from onnx import TensorProto, helper

from onnxeqx.plugins.manager import host


def runtime(name: str, opset: int, inputs: tuple[np.ndarray, ...], n_outputs: int = 1, **attributes: Any) -> Any:
    """The node's outputs from ONNX Runtime with optimisations off."""
    names = [f"x{i}" for i in range(len(inputs))]
    outputs = [f"y{i}" for i in range(n_outputs)]
    kinds = [helper.np_dtype_to_tensor_dtype(inputs[0].dtype), TensorProto.INT64]
    graph = helper.make_graph(
        [helper.make_node(name, names, outputs, **attributes)],
        "g",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in zip(names, inputs, strict=True)
        ],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in zip(outputs, kinds, strict=False)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return session.run(None, dict(zip(names, inputs, strict=True)))


def ours(name: str, opset: int, inputs: tuple[np.ndarray, ...], n_outputs: int = 1, **attributes: Any) -> Any:
    """The node's outputs from the operator registered for this opset, under `jit` and strict promotion."""
    op = host().registry.lookup("", name, opset)
    assert op is not None
    options = attributes | ({"n_outputs": n_outputs} if "n_outputs" in op.attributes else {})
    traced = {i: jnp.asarray(x) for i, x in enumerate(inputs) if op.input_name(i) not in op.host}

    def function(traced: dict[int, jax.Array]) -> Any:
        return op.function(*(traced.get(i, x) for i, x in enumerate(inputs)), **options)

    with jax.numpy_dtype_promotion("strict"):
        results = jax.jit(function)(traced)
    return results if isinstance(results, tuple) else (results,)


def check(name: str, opset: int, inputs: tuple[np.ndarray, ...], n_outputs: int = 1, **attributes: Any) -> None:
    """Both agree in shape, dtype (64-bit integers aside) and value."""
    expected = runtime(name, opset, inputs, n_outputs, **attributes)
    results = ours(name, opset, inputs, n_outputs, **attributes)
    assert len(results) == len(expected)
    for result, wanted in zip(results, expected, strict=True):
        assert (result.shape, result.dtype) == (wanted.shape, jnp.asarray(wanted).dtype)
        np.testing.assert_allclose(result, wanted, 1e-4, 1e-5)


def normal(*shape: int, seed: int = 0, dtype: Any = np.float32) -> np.ndarray:
    """Standard normal numbers."""
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)
