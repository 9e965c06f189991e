"""Runs cases of the ONNX suite, and models in ONNX text, on the host as well as on the device."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnx.parser
import onnxruntime

from onnxeqx.plugins.manager import host
from onnxeqx.runtime import host_ints
from tests.onnx_suite import attributes, evaluate, node_cases

# JAX: "scatter_mul gradients are only implemented if `unique_indices=True`".
WITHOUT_GRADIENT = ("test_scatter_elements_with_reduction_mul", "test_scatternd_multiply")


class Symbol:
    """A symbolic dimension as the importer has them at load: arithmetic, but no integer."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __add__(self, other: Any) -> "Symbol":
        return Symbol(f"({self.text} + {other})")

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        raise TypeError(f"{self.text} is not known")

    __hash__ = object.__hash__

    def __int__(self) -> int:
        raise TypeError(f"{self.text} is not known")

    __index__ = __float__ = __bool__ = __int__


def objects(*items: Any) -> np.ndarray:
    """A shape vector with symbols."""
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array


def case_names(*plugins: str) -> list[str]:
    """The suite's cases whose nodes are all operators of these plugins."""
    ops = {op.name for op in host().registry.ops() if op.plugin in plugins}
    return [name for name, case in node_cases().items() if {node.op_type for node in case.model.graph.node} <= ops]


def data_dependent(name: str) -> bool:
    """Whether the shape of the case's output depends on data, so that it cannot be traced."""
    return any(node.op_type in ("NonZero", "Unique") for node in node_cases()[name].model.graph.node)


def check_on_host(name: str) -> None:
    """Every operand is a NumPy array, or a tuple where a shape is wanted; so is every result, in ONNX's dtype."""
    case = node_cases()[name]
    for inputs, expected in case.data_sets:
        results = evaluate_on_host(case.model, inputs)
        assert not any(isinstance(result, jax.Array) for result in results)
        _compare(results, expected, case.rtol, case.atol)


def check_under_jit(name: str) -> None:
    """`jit` changes nothing, and neither does `vmap` over a batch of one; gradients exist."""
    case = node_cases()[name]
    for inputs, expected in case.data_sets:
        function, arrays = traceable(case.model, inputs)
        _compare(jax.jit(function)(*arrays), expected, case.rtol, case.atol)
        batched = jax.vmap(function, axis_size=1)(*(array[None] for array in arrays))
        _compare([result[0] for result in batched], expected, case.rtol, case.atol)
        inexact = [i for i, array in enumerate(arrays) if jnp.issubdtype(array.dtype, jnp.floating)]
        if inexact and name not in WITHOUT_GRADIENT:
            gradients = jax.grad(_sum_of(function), inexact)(*arrays)
            assert all(bool(jnp.isfinite(gradient).all()) for gradient in gradients)


def _sum_of(function: Callable[..., list[Any]]) -> Callable[..., Any]:
    return lambda *arrays: sum(jnp.asarray(result).astype(jnp.float32).sum() for result in function(*arrays))


def _compare(results: Any, expected: Any, rtol: float, atol: float) -> None:
    assert len(results) == len(expected)
    for result, wanted in zip(results, expected, strict=True):
        if wanted is None or isinstance(wanted, list):
            np.testing.assert_equal(result, wanted)
            continue
        dtype = jnp.asarray(wanted).dtype if isinstance(result, jax.Array) else wanted.dtype
        assert (result.shape, result.dtype) == (wanted.shape, dtype)
        result, wanted = (np.asarray(value).astype(np.float64) for value in (result, wanted))
        np.testing.assert_allclose(result, wanted, rtol, atol)


def evaluate_on_host(model: onnx.ModelProto, inputs: list[Any]) -> list[Any]:
    """Evaluates the graph without JAX arrays."""
    opset = model.opset_import[0].version
    values: dict[str, Any] = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    values |= dict(zip((value.name for value in model.graph.input), inputs, strict=True))
    for node in model.graph.node:
        op = host().registry.lookup(node.domain, node.op_type, opset)
        assert op is not None
        operands = [
            None if not name else _operand(values[name], op.input_name(i) in op.host)
            for i, name in enumerate(node.input)
        ]
        options = attributes(node)
        if "n_outputs" in op.attributes:
            options["n_outputs"] = len(node.output)
        result = op.function(*operands, **options)
        results = result if isinstance(result, tuple) else (result,)
        values |= dict(zip(node.output, results, strict=True))
    return [values[output.name] for output in model.graph.output]


def _operand(value: Any, shape_like: bool) -> Any:
    return host_ints(value) if shape_like and value.ndim == 1 else value


def traceable(model: onnx.ModelProto, inputs: list[Any]) -> tuple[Callable[..., list[Any]], list[jax.Array]]:
    """The single node of a model as a function of the operands that may be traced, and those operands."""
    (node,) = model.graph.node
    op = host().registry.lookup(node.domain, node.op_type, model.opset_import[0].version)
    assert op is not None
    values = dict(zip((value.name for value in model.graph.input), inputs, strict=True))
    traced = [i for i, name in enumerate(node.input) if name and op.input_name(i) not in op.host]
    options = attributes(node) | ({"n_outputs": len(node.output)} if "n_outputs" in op.attributes else {})

    def function(*arrays: jax.Array) -> list[Any]:
        operands = [values[name] if name else None for name in node.input]
        for i, array in zip(traced, arrays, strict=True):
            operands[i] = array
        result = op.function(*operands, **options)
        return list(result) if isinstance(result, tuple) else [result]

    return function, [jnp.asarray(values[node.input[i]]) for i in traced]


def check_against_runtime(opset: int, text: str, *inputs: np.ndarray) -> None:
    """A graph in ONNX text gives what ONNX Runtime gives with optimisations off, on the device and on the host."""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}]> g {text}')
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    inputs = tuple(np.asarray(array) for array in inputs)
    expected = session.run(None, {value.name: array for value, array in zip(session.get_inputs(), inputs, strict=True)})
    _compare(evaluate(model, list(inputs)), expected, 1e-6, 1e-6)
    _compare(evaluate_on_host(model, list(inputs)), expected, 1e-6, 1e-6)
