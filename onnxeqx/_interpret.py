"""Interpreting: evaluates a graph call by call. For comparison with ONNX Runtime and for tests; models run as printed."""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from ._graph import Call, Graph, Kind, Value
from ._lower import is_floating
from ._symbolic import Dim, evaluate
from .runtime import canonical_dtype


def interpret(graph: Graph, inputs: Mapping[str, Any]) -> list[Any]:
    """The outputs of an unlifted graph. `inputs` are arrays by input name."""
    values = start(graph, inputs)
    for _ in step_through(graph, values):
        pass
    return [resolve(value, values) for value in graph.outputs]


def start(graph: Graph, inputs: Mapping[str, Any]) -> dict[Value, Any]:
    """The values that are known before the first call."""
    return {value: _on_device(inputs[value.name]) for value in graph.inputs}


def step_through(graph: Graph, values: dict[Value, Any]) -> Iterator[tuple[Call, list[Any]]]:
    """Evaluates the calls in order and yields each with its results, which are also put into `values`.

    A result that is changed in `values` before the next step is what later calls read.
    """
    for call in graph.calls:
        host = {position for position, _ in call.host_operands()}
        on_host = all(value is None or value.kind is not Kind.DEVICE for value in call.inputs)
        operands = [
            None if value is None else _operand(value, values, keep=position in host or on_host)
            for position, value in enumerate(call.inputs)
        ]
        bodies = {name: functools.partial(_run_body, body, values) for name, body in call.bodies.items()}
        result = call.op.function(*operands, **call.attributes, **bodies)
        results = list(result) if isinstance(result, tuple) else [result]
        values |= dict(zip(call.outputs, results, strict=False))
        yield call, results


def _run_body(body: Graph, values: Mapping[Value, Any], *inputs: Any) -> Any:
    """The outputs of a subgraph, which sees the values of the graph around: an array, or a tuple of several."""
    inner = {**values, **dict(zip(body.inputs, inputs, strict=True))}
    for _ in step_through(body, inner):
        pass
    outputs = [resolve(value, inner) for value in body.outputs]
    return tuple(outputs) if len(outputs) > 1 else outputs[0]


def _operand(value: Value, values: Mapping[Value, Any], *, keep: bool) -> Any:
    array = resolve(value, values)
    return array if keep else _on_device(array)


def _on_device(value: Any) -> Any:
    """Arrays of numbers as JAX arrays; lists, `None` and text as they are."""
    is_number = (
        isinstance(value, np.ndarray | np.generic | int | float | bool) and np.asarray(value).dtype.kind not in "USO"
    )
    return jnp.asarray(value) if is_number else value


def resolve(value: Value, values: Mapping[Value, Any]) -> Any:
    """The array that a value stands for."""
    if value in values:
        return values[value]
    if value.leaf is not None:
        array = value.leaf.load()
        return jnp.asarray(array, canonical_dtype(array.dtype))
    if value.kind is Kind.HOST:
        symbols = value.known_array
        items = [evaluate(item, lambda dim: _size(dim, values)) for item in symbols.reshape(-1)]
        return np.array(items, value.dtype or np.int64).reshape(symbols.shape)
    return value.array


def _size(dim: Dim, values: Mapping[Value, Any]) -> int:
    return resolve(dim.value, values).shape[dim.axis]


def is_comparable(value: Value) -> bool:
    """Whether a value is an array that ONNX Runtime can hand out for comparison."""
    return value.dtype is not None and (is_floating(value.dtype) or value.dtype.kind in "iub")
