"""Operators that no plugin provides run by the function bodies that ONNX gives for them."""

import functools

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx.reference import ReferenceEvaluator

import onnxeqx
from onnxeqx._convert import convert
from onnxeqx._load import build
from onnxeqx._read import read_proto
from onnxeqx.plugins.manager import PluginHost

GENERATOR = np.random.default_rng(0)
X = GENERATOR.standard_normal((2, 4, 6)).astype(np.float32)
SCALE, BIAS = GENERATOR.standard_normal((2, 4)).astype(np.float32)
# By family that is left out: a model whose nodes have a body each, or one that depends on their types and attributes.
ACTIVATIONS = """<ir_version: 10, opset_import: ["": 21]>
g (float[n, 4, 6] x) => (float[n, 4, 6] y) { a = Gelu <approximate = "tanh"> (x) y = Mish (a) }"""
GROUPS = """<ir_version: 10, opset_import: ["": 21]>
g (float[2, 4, 6] x, float[4] scale, float[4] bias) => (float[2, 4, 6] y)
{ y = GroupNormalization <num_groups = 2> (x, scale, bias) }"""
IN_A_BRANCH = """<ir_version: 10, opset_import: ["": 21]>
g (float[2, 4, 6] x, bool c) => (float[2, 4, 6] y) {
  y = If (c) <
    then_branch = yes () => (float[2, 4, 6] z) { z = Mish (x) },
    else_branch = no () => (float[2, 4, 6] w) { w = Neg (x) }
  >
}"""


@functools.cache
def lacking(family: str) -> PluginHost:
    return PluginHost(autoload=False, disabled=frozenset({family}))


def load(text: str, plugins: PluginHost):
    return build(convert(read_proto(onnx.parser.parse_model(text)), "model", plugins))


@pytest.mark.parametrize(
    ("family", "text", "inputs"),
    [
        ("activation", ACTIVATIONS, [X]),
        ("normalization", GROUPS, [X, SCALE, BIAS]),
        ("activation", IN_A_BRANCH, [X, np.array(True)]),
    ],
    ids=["each has a body", "body of its types", "in a branch"],
)
def test_bodies_compute_what_the_operators_do(family, text, inputs):
    expanded = load(text, lacking(family))
    (expected,) = ReferenceEvaluator(onnx.parser.parse_model(text)).run(
        None, dict(zip(expanded.input_names, inputs, strict=True))
    )
    np.testing.assert_allclose(expanded(*inputs), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        onnxeqx.load_model(onnx.parser.parse_model(text))(*inputs), expected, rtol=1e-4, atol=1e-5
    )


def test_an_operator_that_a_plugin_provides_is_not_expanded():
    assert "jax.nn.mish" in convert(read_proto(onnx.parser.parse_model(ACTIVATIONS)), "model").source
    expanded = convert(read_proto(onnx.parser.parse_model(ACTIVATIONS)), "model", lacking("activation")).source
    assert "jax.nn.mish" not in expanded


def test_an_operator_without_a_body_is_missing():
    text = '<ir_version: 8, opset_import: ["": 17]> g (float[n] x) => (float[n] y) { y = Erf (x) }'
    with pytest.raises(onnxeqx.UnsupportedOpsError, match="Erf"):
        load(text, lacking("elementwise"))
