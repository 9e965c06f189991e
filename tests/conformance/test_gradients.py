"""The gradient of every operator, against finite differences in float64, on cases of the suites.

`without_gradients.txt` holds the operators that are not checked, each with its reason. Those whose schema has no
floating-point input or no floating-point output have no gradient.
"""

import collections
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from jax.test_util import check_grads

import onnxeqx
from onnxeqx.conformance import Case, installed_cases
from onnxeqx.plugins.manager import host
from tests.ops.shape_cases import traceable
from tests.versions.written_cases import ML, WRITTEN, X, by_numpy, by_runtime

FLOATS = {"tensor(float)", "tensor(double)", "tensor(float16)", "tensor(bfloat16)"}
WITHOUT = dict(
    line.split(None, 1) for line in (pathlib.Path(__file__).parent / "without_gradients.txt").read_text().splitlines()
)
CASES_PER_OPERATOR = 2
DOUBLE = {"eps": 1e-6, "rtol": 1e-4, "atol": 1e-5}
# Models with subgraphs, and the operators of ai.onnx.ml, whose results are float32 whatever goes in.
SINGLE = {"eps": 1e-2, "rtol": 2e-2, "atol": 2e-2}


def may_have_gradient(name: str) -> bool:
    domain, _, op_type = name.rpartition("::")
    if not onnx.defs.has(op_type, domain):
        return False
    schema = onnx.defs.get_schema(op_type, domain)
    return all(any(set(formal.types) & FLOATS for formal in formals) for formals in (schema.inputs, schema.outputs))


NAMES = sorted(name for name in {op.full_name for op in host().registry.ops()} if may_have_gradient(name))


# Floating-point cases of operators for which the suites have none.
MORE = [
    by_numpy("Trilu", 14, X, gives=np.triu(X)),
    by_runtime("Imputer", 1, X[0], domain=ML, imputed_value_floats=[1.0], replaced_value_float=0.0),
]


@functools.cache
def cases() -> dict[str, list[Case]]:
    """The cases of one node by operator, the smallest first, whose numbers are finite."""
    found = collections.defaultdict(list)
    for case in [*installed_cases(), *(written.case() for written in (*WRITTEN, *MORE))]:
        if case.kind in ("node", "written"):
            model, ((inputs, _), *_) = case.load()
            node, *others = model.graph.node
            arrays = [x for x in inputs if isinstance(x, np.ndarray) and jnp.issubdtype(x.dtype, jnp.floating)]
            finite = all(np.isfinite(x.astype(np.float64)).all() for x in arrays)
            if not others and not model.graph.initializer and arrays and finite:
                size = sum(x.size for x in arrays)
                found[f"{node.domain}::{node.op_type}".removeprefix("::")].append((size, case.name, case))
    return {name: [case for *_, case in sorted(found[name], key=lambda entry: entry[:2])] for name in found}


def of_node(model: onnx.ModelProto, inputs: list[Any]) -> tuple[Callable[..., Any], list[jax.Array]]:
    """The operator's function, and the operands that may be traced, in float64."""
    function, arrays = traceable(model, inputs)
    wide = [x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x for x in arrays]
    return function, wide


def of_model(model: onnx.ModelProto, inputs: list[Any]) -> tuple[Callable[..., Any], list[jax.Array]]:
    """A model with subgraphs, which state their dtypes."""
    live = onnxeqx.load_model(model)
    return live, [jnp.asarray(x) for x in inputs]


def differentiable(case: Case) -> tuple[Callable[..., list[Any]], list[jax.Array]]:
    """The case as a function from its floating-point operands to its floating-point results."""
    model, ((inputs, _), *_) = case.load()
    subgraphs = any(attribute.type == onnx.AttributeProto.GRAPH for attribute in model.graph.node[0].attribute)
    function, arrays = (of_model if subgraphs else of_node)(model, inputs)
    places = [i for i, array in enumerate(arrays) if jnp.issubdtype(array.dtype, jnp.floating)]
    generator = np.random.default_rng(0)
    # Away from ties and from kinks, where a derivative has no limit.
    given = [arrays[i] + 1e-2 * generator.uniform(0.1, 1, arrays[i].shape).astype(arrays[i].dtype) for i in places]

    def of_floats(*operands: Any) -> list[Any]:
        filled: list[Any] = list(arrays)
        for i, operand in zip(places, operands, strict=True):
            filled[i] = jnp.asarray(operand)  # check_grads also calls with NumPy arrays, which would stay on the host
        results = jax.tree.leaves(function(*filled))
        return [result for result in results if jnp.issubdtype(result.dtype, jnp.floating)]

    return of_floats, given


@pytest.mark.parametrize("name", NAMES)
def test_gradient(name):
    if name in WITHOUT:
        pytest.skip(WITHOUT[name])
    checked = 0
    with jax.enable_x64(True):
        for case in cases().get(name, []):
            function, operands = differentiable(case)
            results = function(*operands)
            widths = {x.dtype.itemsize for x in (*operands, *results)}
            if operands and results and min(widths) >= 4:
                check_grads(function, operands, order=1, modes=("rev",), **(DOUBLE if widths == {8} else SINGLE))
                checked += 1
            if checked == CASES_PER_OPERATOR:
                break
    assert checked
