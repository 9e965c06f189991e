"""Real models compute the same however they are printed: nested or flat, stacked or not, with patterns or
without, lifted or call by call.

Slow; run with `pytest -m zoo`. Needs `../shared/zoo`. Nesting is compared in float64, so that what differs is a mistake and not
rounding; patterns in float32, in which the constants of the files are written.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest

import onnxeqx
from onnxeqx._convert import convert, unlifted
from onnxeqx._interpret import interpret
from onnxeqx._load import build
from onnxeqx._origin import single_arrays
from onnxeqx._read import read_proto
from onnxeqx._verify import random_inputs
from tests.sample_models import fill
from tests.test_zoo import MODELS, ZOO, forget_compiled_models, require_zoo, sizes_of, without_dropout

pytestmark = pytest.mark.zoo

# Of the scale of each result.
TOLERANCE = 1e-7
# Control flow over operators is not differentiated in reverse mode: a loop with a data-dependent number of iterations.
NO_GRADIENT = {"loop_if.ts"}
# Models with equal layers in a row of which each takes what the one before returns.
STACKED = {
    "bert_small.dyn",
    "bert_small.dynraw",
    "bert_small.ts",
    "clip_small.dyn",
    "convnext_tiny.dyn",
    "efficientnet_b0.ts",
    "gpt2_small.dyn",
    "gpt2_small.ts",
    "gpt2_small_past.ts",
    "llama_small.ts",
    "resnet50.ts",
    "vit_b_16.dyn",
    "vit_b_16.ts",
    "whisper_small_enc.ts",
}

__all__ = ["forget_compiled_models"]


@pytest.fixture
def in_64_bits():
    with jax.enable_x64(True):
        yield


def nested(proto: onnx.ModelProto) -> Any:
    return wide(build(convert(read_proto(proto), "model")))


def wide(model: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float64) if eqx.is_inexact_array(leaf) else leaf, model)


def narrow_inputs(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    model = read_proto(proto)
    return random_inputs(model, seed=0, sizes=sizes_of(model, 0, 64))


def wide_inputs(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {
        name: array.astype(np.float64) if np.issubdtype(array.dtype, np.floating) else array
        for name, array in narrow_inputs(proto).items()
    }


def results(value: Any) -> list[np.ndarray]:
    return [np.asarray(item) for item in (value if isinstance(value, tuple | list) else (value,))]


def check_equal(got: list[np.ndarray], wanted: list[np.ndarray], tolerance: float = TOLERANCE) -> None:
    for one, other in zip(got, wanted, strict=True):
        scale = max(1.0, float(np.abs(other).max(initial=0)))
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * scale)


def check_same(
    one: Any, other: Any, inputs: dict[str, np.ndarray], *, gradients: bool, tolerance: float = TOLERANCE
) -> None:
    """Both models under jit: the same results, and the same gradients by key path."""
    call: Callable = eqx.filter_jit(lambda model, inputs: model(**inputs))
    check_equal(results(call(one, inputs)), results(call(other, inputs)), tolerance)
    if not gradients:
        return

    @eqx.filter_jit
    @eqx.filter_grad
    def slope(model):
        outputs = model(**inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return sum(jnp.mean(output**2) for output in outputs if jnp.issubdtype(output.dtype, jnp.floating))

    ours, theirs = (single_arrays(slope(model)) for model in (one, other))
    assert ours.keys() == theirs.keys()
    check_equal(list(ours.values()), [theirs[key] for key in ours], tolerance)


@pytest.mark.parametrize("name", MODELS or ["zoo"])
def test_nested_equals_flat(name, monkeypatch, in_64_bits):
    require_zoo()
    proto = without_dropout(fill(onnx.load(ZOO / "models" / f"{name}.onnx")))
    model = nested(proto)
    monkeypatch.setattr("onnxeqx._nest.owning_blocks", lambda graph, blocks: {id(call): () for call in graph.calls})
    flat = nested(proto)
    check_same(model, flat, wide_inputs(proto), gradients=name not in NO_GRADIENT)


@pytest.mark.parametrize("name", MODELS or ["zoo"])
def test_stacked_equals_single(name, monkeypatch, in_64_bits):
    require_zoo()
    monkeypatch.setattr("onnxeqx._emit._scans.SHORTEST", 2)  # most of the models have two layers
    proto = without_dropout(fill(onnx.load(ZOO / "models" / f"{name}.onnx")))
    if name not in STACKED:
        with pytest.raises(onnxeqx.ConversionError, match="equal layers in a row"):
            convert(read_proto(proto), "model", scan_layers=True)
        return
    stacked = wide(build(convert(read_proto(proto), "model", scan_layers=True)))
    check_same(stacked, nested(proto), wide_inputs(proto), gradients=True)


@pytest.mark.parametrize("name", MODELS or ["zoo"])
def test_patterns_change_nothing(name):
    require_zoo()
    proto = without_dropout(fill(onnx.load(ZOO / "models" / f"{name}.onnx")))
    one, other = (build(convert(read_proto(proto), "model", patterns=patterns)) for patterns in (True, False))
    check_same(one, other, narrow_inputs(proto), gradients=name not in NO_GRADIENT, tolerance=1e-5)


@pytest.mark.parametrize("name", MODELS or ["zoo"])
def test_lifted_equals_unlifted(name):
    """The calls one by one, with the operators' own functions, are the reference: no lifting, no rewriting, no printing."""
    require_zoo()
    proto = without_dropout(fill(onnx.load(ZOO / "models" / f"{name}.onnx")))
    inputs = narrow_inputs(proto)
    got = results(build(convert(read_proto(proto), "model"))(**inputs))
    check_equal(got, [np.asarray(value) for value in interpret(unlifted(read_proto(proto)), inputs)], 1e-5)
