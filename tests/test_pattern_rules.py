"""Patterns of activations, normalisations and linear layers: as exporters spell them, and what is almost the same."""

import math

import numpy as np
import onnx.parser
import pytest
from onnx import numpy_helper

from onnxeqx._errors import ConversionError
from onnxeqx._load import build
from onnxeqx._patterns import apply_patterns
from onnxeqx._registry import Registry
from tests.test_attention_patterns import assert_no_pattern_applies, assert_same_numbers, operators, parsed, printed

X = "(float[n, 4] x) => (float[a, b] y)"


def constant(name: str, number: float) -> str:
    return f"{name} = Constant<value_float = {number!r}>() "


HALF_ONE = constant("half", 0.5) + constant("one", 1.0)
ROOT = constant("root", math.sqrt(2))
ERF = "d = Div(x, root) e = Erf(d) f = Add(e, one) "
CUBE = constant("three", 3.0) + constant("c", 0.044715) + constant("s", math.sqrt(2 / math.pi))
TANH = "p = Pow(x, three) q = Mul(p, c) r = Add(x, q) t = Mul(r, s) u = Tanh(t) f = Add(u, one) "
HARD = constant("three", 3.0) + constant("zero", 0.0) + constant("six", 6.0)

ACTIVATIONS = {
    "gelu, PyTorch to opset 17": ("Gelu", HALF_ONE + ROOT + ERF + "g = Mul(x, f) y = Mul(g, half)"),
    "gelu, half first": ("Gelu", HALF_ONE + ROOT + ERF + "h = Mul(half, x) y = Mul(h, f)"),
    "gelu, half last": ("Gelu", HALF_ONE + ROOT + ERF + "h = Mul(f, half) y = Mul(x, h)"),
    "gelu, multiplied by the root's inverse": (
        "Gelu",
        HALF_ONE + constant("root", math.sqrt(0.5)) + ERF.replace("Div", "Mul") + "g = Mul(x, f) y = Mul(g, half)",
    ),
    "gelu by tanh, GPT-2": ("Gelu", HALF_ONE + CUBE + TANH + "h = Mul(x, half) y = Mul(h, f)"),
    "gelu by tanh, x * x * x": (
        "Gelu",
        HALF_ONE
        + CUBE
        + TANH.replace("Pow(x, three)", "Mul(xx, x)").replace("p =", "xx = Mul(x, x) p =")
        + "h = Mul(x, half) y = Mul(h, f)",
    ),
    "silu": ("Swish", "g = Sigmoid(x) y = Mul(x, g)"),
    "quick gelu": ("Swish", constant("a", 1.702) + "b = Mul(x, a) g = Sigmoid(b) y = Mul(x, g)"),
    "softplus": ("Softplus", constant("one", 1.0) + "e = Exp(x) f = Add(e, one) y = Log(f)"),
    "mish": ("Mish", "s = Softplus(x) t = Tanh(s) y = Mul(x, t)"),
    "hard swish": ("HardSwish", HARD + "a = Add(x, three) b = Clip(a, zero, six) c = Mul(x, b) y = Div(c, six)"),
    "hard swish by hard sigmoid": ("HardSwish", f"b = HardSigmoid<alpha = {1 / 6!r}, beta = 0.5>(x) y = Mul(x, b)"),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name):
    operator, nodes = ACTIVATIONS[name]
    model = parsed(X, nodes)
    assert operators(model) == {operator}
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32) * 3
    assert_same_numbers(model, x=x)


@pytest.mark.parametrize(
    ("name", "part", "other"),
    [
        ("gelu, PyTorch to opset 17", repr(math.sqrt(2)), "1.4141"),
        ("gelu, PyTorch to opset 17", "value_float = 0.5", "value_float = 0.49"),
        ("gelu, PyTorch to opset 17", "Mul(x, f)", "Mul(d, f)"),
        ("gelu, PyTorch to opset 17", "Add(e, one)", "Sub(e, one)"),
        ("gelu by tanh, GPT-2", "0.044715", "0.0447"),
        ("gelu by tanh, GPT-2", "value_float = 3.0", "value_float = 2.0"),
        ("silu", "Mul(x, g)", "Mul(g, g)"),
        ("softplus", "value_float = 1.0", "value_float = 1.1"),
        ("hard swish", "value_float = 3.0", "value_float = 2.5"),
        ("hard swish by hard sigmoid", "beta = 0.5", "beta = 0.4"),
        ("hard swish by hard sigmoid", f"alpha = {1 / 6!r}", "alpha = 0.2"),
    ],
)
def test_what_is_not_quite_an_activation(name, part, other):
    nodes = ACTIVATIONS[name][1]
    assert part in nodes
    model = parsed(X, nodes.replace(part, other))
    assert_no_pattern_applies(model)


def test_an_activation_of_which_a_part_has_another_reader_stays():
    nodes = ACTIVATIONS["gelu, PyTorch to opset 17"][1]
    assert_no_pattern_applies(parsed("(float[n, 4] x) => (float[a, b] y, float[c, d] e)", nodes))
    assert_no_pattern_applies(parsed("(float[n, 4] x) => (float[a, b] y, float[c, d] z)", nodes + " z = Neg(e)"))


def test_a_constant_that_adds_axes_is_not_dropped():
    nodes = ACTIVATIONS["gelu, PyTorch to opset 17"][1]
    nodes = nodes.replace("half = Constant<value_float = 0.5>()", "half = Constant<value = float[1, 1, 1] {0.5}>()")
    model = parsed("(float[n, 4] x) => (float[a, b, c] y)", nodes)
    assert "Gelu" not in operators(model)
    assert_same_numbers(model, x=np.ones((3, 4), np.float32))


# Normalisation.

NORMALIZATIONS = """
two = Constant<value_float = 2.0>() one = Constant<value_float = 1.0>() eps = Constant<value_float = 1e-5>()
"""
RMS = (
    NORMALIZATIONS
    + """
p = Pow(x, two) m = ReduceMean<axes = [-1], keepdims = 1>(p) v = Add(m, eps) r = Sqrt(v)
"""
)
LAYER = (
    NORMALIZATIONS
    + """
mu = ReduceMean<axes = [-1], keepdims = 1>(x) c = Sub(x, mu) p = Pow(c, two)
m = ReduceMean<axes = [-1], keepdims = 1>(p) v = Add(m, eps) r = Sqrt(v) d = Div(c, r)
"""
)
NORMS = {
    "rms, llama": ("RMSNorm", RMS + "i = Div(one, r) n = Mul(x, i) y = Mul(weight, n)"),
    "rms, divided": ("RMSNorm", RMS + "n = Div(x, r) y = Mul(n, weight)"),
    "rms, reciprocal": ("RMSNorm", RMS + "i = Reciprocal(r) n = Mul(x, i) y = Mul(n, weight)"),
    "rms, casts": ("RMSNorm", RMS + "i = Div(one, r) n = Mul(x, i) k = Cast<to = 1>(n) y = Mul(weight, k)"),
    "rms, x * x": ("RMSNorm", RMS.replace("Pow(x, two)", "Mul(x, x)") + "n = Div(x, r) y = Mul(n, weight)"),
    "layer norm": ("LayerNorm", LAYER + "w = Mul(d, weight) y = Add(w, bias)"),
}


def with_weights(signature: str, nodes: str, **weights: np.ndarray) -> onnx.ModelProto:
    model = parsed(signature, nodes)
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    return model


def normalization(nodes: str, features: int = 4) -> onnx.ModelProto:
    generator = np.random.default_rng(1)
    weights = {name: generator.standard_normal(features).astype(np.float32) for name in ("weight", "bias")}
    used = {name: array for name, array in weights.items() if name in nodes}
    return with_weights("(float[n, t, 4] x) => (float[a, b, c] y)", nodes, **used)


def layers(model: onnx.ModelProto) -> list[str]:
    return [call.lifted.layer.__name__ for call in printed(model).lifted.all_calls() if call.lifted is not None]


@pytest.mark.parametrize("name", NORMS)
def test_normalisations_become_layers(name):
    layer, nodes = NORMS[name]
    model = normalization(nodes)
    assert layers(model) == [layer]
    assert all(path.endswith((".weight", ".bias")) for path in printed(model).weights())
    assert_same_numbers(model, x=np.random.default_rng(2).standard_normal((2, 3, 4)).astype(np.float32))


@pytest.mark.parametrize(
    ("name", "part", "other"),
    [
        ("rms, llama", "axes = [-1]", "axes = [1]"),
        ("rms, llama", "Pow(x, two)", "Pow(x, one)"),
        ("rms, llama", "keepdims = 1>(p) v = Add(m, eps)", "keepdims = 1>(p) v = Sub(m, eps)"),
        ("layer norm", "p = Pow(c, two)", "p = Pow(x, two)"),
        ("layer norm", "Div(c, r)", "Div(x, r)"),
    ],
)
def test_what_is_not_quite_a_normalisation(name, part, other):
    nodes = NORMS[name][1]
    assert part in nodes
    model = normalization(nodes.replace(part, other))
    assert not layers(model)
    assert_no_pattern_applies(model)


def test_a_weight_for_each_position_is_no_weight_of_a_norm():
    nodes = NORMS["rms, divided"][1]
    weight = np.arange(1, 4, dtype=np.float32)[:, None]
    model = with_weights("(float[n, 3, 4] x) => (float[a, b, c] y)", nodes, weight=weight)
    assert not layers(model)


# Linear layers.

CONV_1D = """
flat = Constant<value_ints = [-1, 4]>() width = Constant<value_ints = [6]>()
lead = Shape<start = 0, end = 2>(x) target = Concat<axis = 0>(lead, width)
rows = Reshape(x, flat) g = Gemm(rows, weight, bias) y = Reshape(g, target)
"""


def conv_1d(nodes: str) -> onnx.ModelProto:
    generator = np.random.default_rng(3)
    weights = {"weight": generator.standard_normal((4, 6)), "bias": generator.standard_normal(6)}
    weights = {name: array.astype(np.float32) for name, array in weights.items()}
    return with_weights("(float[n, t, 4] x) => (float[a, b, c] y)", nodes, **weights)


def test_a_linear_layer_over_the_batch_takes_no_reshapes():
    """`Conv1D` of GPT-2."""
    model = conv_1d(CONV_1D)
    assert layers(model) == ["Linear"]
    assert "reshape" not in printed(model).source
    assert_same_numbers(model, x=np.random.default_rng(4).standard_normal((2, 3, 4)).astype(np.float32))


def test_a_linear_layer_whose_result_takes_another_shape_keeps_its_reshapes():
    model = conv_1d(CONV_1D.replace("lead = Shape<start = 0, end = 2>(x)", "lead = Constant<value_ints = [3, -1]>()"))
    assert "reshape" in printed(model).source
    assert_same_numbers(model, x=np.random.default_rng(4).standard_normal((3, 2, 4)).astype(np.float32))


# Choosing.


def test_patterns_by_name():
    nodes = "g = Sigmoid(x) z = Mul(x, g) s = Softplus(z) t = Tanh(s) y = Mul(z, t)"
    model = parsed(X, nodes)
    assert operators(model) == {"Swish", "Mish"}
    some = printed(model, patterns=("mish",)).lifted
    assert {call.op_type for call in some.all_calls()} == {"Sigmoid", "Mul", "Mish"}
    with pytest.raises(ConversionError, match="no pattern 'misch'"):
        printed(model, patterns=("misch",))


def test_bodies_of_control_flow_are_searched():
    branch = "g = Sigmoid(x) z = Mul(x, g)"
    nodes = f"y = If(c) <then_branch = t () => (float[a, b] z) {{ {branch} }}, else_branch = e () => (float[a, b] w) {{ w = Identity(x) }}>"
    model = parsed("(float[n, 4] x, bool c) => (float[a, b] y)", nodes)
    assert "Swish" in operators(model)
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    live = build(printed(model))
    np.testing.assert_allclose(live(x, np.array(True)), x / (1 + np.exp(-x)), rtol=1e-5, atol=1e-6)


def test_without_rules_nothing_changes():
    graph = printed(parsed(X, "y = Neg(x)")).lifted
    before = list(graph.calls)
    apply_patterns(graph, Registry())
    assert graph.calls == before
