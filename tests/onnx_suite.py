"""Runs cases of the ONNX project's own backend suite through the registered operators, node by node."""

import functools
import warnings
from typing import Any

import jax.numpy as jnp
import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.backend.test.loader import load_model_tests

from onnxeqx.plugins.manager import host


@functools.cache
def node_cases() -> dict[str, Any]:
    """The in-memory `node` cases of the installed onnx, by name."""
    with warnings.catch_warnings(action="ignore"):  # onnx overflows on purpose while it makes its cases
        return {case.name: case for case in load_model_tests(kind="node")}


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """The node's attributes as Python values."""
    return {attribute.name: _python(helper.get_attribute_value(attribute)) for attribute in node.attribute}


def _python(value: Any) -> Any:
    match value:
        case bytes():
            return value.decode()
        case onnx.TensorProto():
            return numpy_helper.to_array(value)
        case list() | tuple():
            return tuple(_python(item) for item in value)
    return value


def evaluate(model: onnx.ModelProto, inputs: list[np.ndarray]) -> list[Any]:
    """Evaluates the graph eagerly: host operands stay NumPy, everything else is a JAX array."""
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    values: dict[str, Any] = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    names = [value.name for value in model.graph.input if value.name not in values]
    values |= dict(zip(names, inputs, strict=True))
    for node in model.graph.node:
        op = host().registry.lookup(node.domain, node.op_type, opsets[node.domain])
        assert op is not None, f"{node.domain}::{node.op_type} at opset {opsets[node.domain]} is not registered"
        operands = [
            None if not name else values[name] if op.input_name(i) in op.host else jnp.asarray(values[name])
            for i, name in enumerate(node.input)
        ]
        options = attributes(node)
        if "n_outputs" in op.attributes:
            options["n_outputs"] = len(node.output)
        result = op.function(*operands, **options)
        results = result if isinstance(result, tuple) else (result,)
        values |= {name: value for name, value in zip(node.output, results, strict=False) if name}
    return [values[output.name] for output in model.graph.output]
