"""Patterns of attention and its masks: as exporters spell them, and what is almost the same."""

from typing import Any

import equinox as eqx
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest

import onnxeqx
from onnxeqx._convert import Printed, convert
from onnxeqx._load import build
from onnxeqx._patterns import Patterns
from onnxeqx._read import read_proto
from tests.sample_models import ENCODER, sample_model


def parsed(signature: str, nodes: str, opset: int = 17) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> g {signature} {{ {nodes} }}')


def printed(model: onnx.ModelProto, patterns: Patterns = True) -> Printed:
    return convert(read_proto(model), "model", patterns=patterns)


def operators(model: onnx.ModelProto) -> set[str]:
    """The operators that are called with all patterns applied."""
    return {call.op_type for call in printed(model).lifted.all_calls()}


def assert_no_pattern_applies(model: onnx.ModelProto, *but: str) -> None:
    """The source is as without patterns, and therefore the numbers are."""
    found = operators(model) - {call.op_type for call in printed(model, patterns=False).lifted.all_calls()}
    assert found == set(but)


def assert_same_numbers(model: onnx.ModelProto, **inputs: np.ndarray) -> None:
    """With patterns, without, and in ONNX Runtime; eagerly and under jit; gradients too."""
    on, off = (build(printed(model, patterns)) for patterns in (True, False))
    session = onnxruntime.InferenceSession(model.SerializeToString())
    expected = [np.asarray(array) for array in session.run(None, inputs)]
    traced = {name: array for name, array in inputs.items() if array.dtype == np.float32}

    def with_gradients(live: Any, traced: dict[str, np.ndarray]) -> Any:
        def loss_and_results(traced: dict[str, np.ndarray]) -> Any:
            results = live(**inputs | traced)
            return loss(results), results

        return jax.grad(loss_and_results, has_aux=True)(traced)

    gradients, jitted = jax.jit(lambda traced: with_gradients(on, traced))(traced)
    wanted, plain = with_gradients(off, traced)
    for results in (on(**inputs), jitted, plain):
        for got, array in zip(jax.tree.leaves(results), expected, strict=True):
            assert got.shape == array.shape
            np.testing.assert_allclose(got, array, rtol=1e-5, atol=1e-5 * max(1, np.abs(array).max(initial=0)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), gradients, wanted)


def loss(results: Any) -> jax.Array:
    floating = [result for result in jax.tree.leaves(results) if jnp.issubdtype(result.dtype, jnp.floating)]
    return sum((jnp.sum(jnp.sin(result)) for result in floating), jnp.zeros(()))


# Masks.

CONSTANTS = """
c0 = Constant<value_int = 0>() c1 = Constant<value_int = 1>() cm = Constant<value_ints = [-1]>()
a0 = Constant<value_ints = [0]>() a1 = Constant<value_ints = [1]>() a2 = Constant<value_ints = [2]>()
a3 = Constant<value_ints = [3]>() a12 = Constant<value_ints = [1, 2]>() a01 = Constant<value_ints = [0, 1]>()
"""

SIZES = """
b1 = Shape<start = 0, end = 1>(ids) b = Squeeze(b1)
n1 = Shape<start = 1, end = 2>(ids) n = Squeeze(n1)
rows = Range(c0, b, c1) columns = Range(c0, n, c1)
"""

TORCHSCRIPT_PADDING = """
m = Cast<to = 9>(mask)
r1 = Unsqueeze(rows, a1) r2 = Unsqueeze(r1, a2) r3 = Unsqueeze(r2, a3)
k1 = Unsqueeze(columns, a0) k2 = Unsqueeze(k1, a1) k3 = Unsqueeze(k2, a2)
flat = Flatten<axis = 2>(m)
offset = Mul(r3, n1) index = Add(k3, offset)
taken = Gather<axis = 0>(flat, index)
vector = Reshape(taken, cm)
target = Concat<axis = 0>(b1, a1, a1, n1)
padding = Reshape(vector, target)
"""

DYNAMO_PADDING = """
m = Cast<to = 9>(mask)
r2 = Unsqueeze(rows, a12) r3 = Unsqueeze(r2, a3)
k2 = Unsqueeze(columns, a01) k3 = Unsqueeze(k2, a2)
target = Concat<axis = 0>(b1, a1, a1, n1)
r4 = Expand(r3, target) r5 = Unsqueeze(r4, cm)
k4 = Expand(k3, target) k5 = Unsqueeze(k4, cm)
index = Concat<axis = -1>(r5, k5)
padding = GatherND<batch_dims = 0>(m, index)
"""

PADDING = {"torchscript": TORCHSCRIPT_PADDING, "dynamo": DYNAMO_PADDING}
IDS_AND_MASK = "(int64[batch, length] ids, int64[batch, length] mask)"


def ids_and_mask(batch: int = 2, length: int = 5) -> dict[str, np.ndarray]:
    mask = np.ones((batch, length), np.int64)
    mask[0, 3:] = 0
    return {"ids": np.zeros((batch, length), np.int64), "mask": mask}


@pytest.mark.parametrize("spelling", PADDING)
def test_a_padding_mask_is_the_mask_with_axes_inserted(spelling):
    signature = f"{IDS_AND_MASK} => (bool[a, b, c, d] padding)"
    model = parsed(signature, CONSTANTS + SIZES + PADDING[spelling])
    assert operators(model) == {"Cast", "Unsqueeze"}
    assert "return mask.astype(bool)[:, None, None]" in printed(model).source
    assert_same_numbers(model, **ids_and_mask())
    assert_same_numbers(model, **ids_and_mask(3, 7))


def test_a_padding_mask_of_more_rows_than_there_are_ids_is_cut():
    signature = "(int64[batch, length] ids, int64[more, length] mask) => (bool[a, b, c, d] padding)"
    model = parsed(signature, CONSTANTS + SIZES + DYNAMO_PADDING)
    assert "Slice" in operators(model)
    assert_same_numbers(model, **ids_and_mask())
    assert_same_numbers(
        model, ids=np.zeros((2, 4), np.int64), mask=np.array([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
    )


@pytest.mark.parametrize(
    ("spelling", "part", "other"),
    [
        ("torchscript", "Range(c0, n, c1)", "Range(c1, n, c1)"),  # positions from 1 on
        ("torchscript", "offset = Mul(r3, n1)", "offset = Mul(r3, a1)"),  # rows that overlap
        (
            "torchscript",
            "Flatten<axis = 2>(m)",
            "Flatten<axis = 2>(t)",
        ),  # the mask transposed: columns of another length
        ("dynamo", "Range(c0, n, c1)", "Range(c1, n, c1)"),
        ("dynamo", "Concat<axis = -1>(r5, k5)", "Concat<axis = -1>(k5, r5)"),
    ],
)
def test_what_is_not_quite_a_padding_mask(spelling, part, other):
    signature = f"{IDS_AND_MASK} => (bool[a, b, c, d] padding)"
    nodes = (SIZES + PADDING[spelling]).replace(part, other)
    nodes = nodes.replace("flat =", "t = Transpose<perm = [1, 0]>(m) flat =")
    assert nodes.count(other) == 1
    assert_no_pattern_applies(parsed(signature, CONSTANTS + nodes))


def test_a_gathered_mask_that_somebody_else_reads_stays():
    signature = f"{IDS_AND_MASK} => (bool[a, b, c, d] padding, bool[e] vector)"
    assert_no_pattern_applies(parsed(signature, CONSTANTS + SIZES + TORCHSCRIPT_PADDING))


CAUSAL = """
q1 = Unsqueeze(columns, a0) q2 = Unsqueeze(q1, a1) q3 = Unsqueeze(q2, a3)
k1 = Unsqueeze(columns, a0) k2 = Unsqueeze(k1, a1) k3 = Unsqueeze(k2, a2)
causal = LessOrEqual(k3, q3)
"""


def test_a_causal_mask():
    model = parsed("(int64[batch, length] ids) => (bool[a, b, c, d] causal)", CONSTANTS + SIZES + CAUSAL)
    assert operators(model) == {"onnxeqx::CausalMask"}
    assert "idioms.causal_mask(ids.shape[1], ids.shape[1])" in printed(model).source
    assert_same_numbers(model, ids=np.zeros((2, 5), np.int64))


def test_a_causal_mask_after_a_past():
    nodes = """
    p1 = Shape<start = 1, end = 2>(past) p = Squeeze(p1) total = Add(p, n)
    positions = Add(columns, p) all = Range(c0, total, c1)
    """
    nodes += CAUSAL.replace("q1 = Unsqueeze(columns", "q1 = Unsqueeze(positions").replace(
        "k1 = Unsqueeze(columns", "k1 = Unsqueeze(all"
    )
    model = parsed("(int64[b, length] ids, int64[b, m] past) => (bool[a, c, d, e] causal)", CONSTANTS + SIZES + nodes)
    assert operators(model) == {"onnxeqx::CausalMask"}
    assert_same_numbers(model, ids=np.zeros((2, 5), np.int64), past=np.zeros((2, 3), np.int64))


@pytest.mark.parametrize(
    ("part", "other"),
    [
        ("LessOrEqual(k3, q3)", "LessOrEqual(q3, k3)"),
        ("LessOrEqual(k3, q3)", "Less(k3, q3)"),
        ("columns = Range(c0, n, c1)", "columns = Range(c1, n, c1)"),
        ("Unsqueeze(q2, a3)", "Unsqueeze(q2, a2)"),
    ],
)
def test_what_is_not_quite_a_causal_mask(part, other):
    nodes = (SIZES + CAUSAL).replace(part, other)
    assert nodes.count(other) >= 1
    model = parsed("(int64[batch, length] ids) => (bool[a, b, c, d] causal)", CONSTANTS + nodes)
    assert_no_pattern_applies(model)


FOR_ALL_QUERIES = (
    TORCHSCRIPT_PADDING
    + """
q1 = Unsqueeze(columns, a0) q2 = Unsqueeze(q1, a1) q3 = Unsqueeze(q2, a3)
always = GreaterOrEqual(q3, c0)
all = And(always, padding)
"""
)


def test_a_mask_for_all_queries():
    model = parsed(f"{IDS_AND_MASK} => (bool[a, b, c, d] all)", CONSTANTS + SIZES + FOR_ALL_QUERIES)
    assert operators(model) == {"Cast", "Unsqueeze", "Expand"}
    assert_same_numbers(model, **ids_and_mask())


@pytest.mark.parametrize("condition", ["GreaterOrEqual(q3, c1)", "Greater(q3, c0)"])
def test_a_mask_for_some_queries_stays(condition):
    nodes = FOR_ALL_QUERIES.replace("GreaterOrEqual(q3, c0)", condition)
    model = parsed(f"{IDS_AND_MASK} => (bool[a, b, c, d] all)", CONSTANTS + SIZES + nodes)
    assert "And" in operators(model)
    assert_same_numbers(model, **ids_and_mask())


# Attention.

QUERIES = "float[b, t, 4, 8] q, float[b, s, 4, 8] k, float[b, s, 4, 8] v"
ATTENTION = """
qt = Transpose<perm = [0, 2, 1, 3]>(q)
kt = Transpose<perm = [0, 2, 3, 1]>(k)
vt = Transpose<perm = [0, 2, 1, 3]>(v)
product = MatMul(qt, kt)
factor = Constant<value_float = 0.25>()
scores = Mul(product, factor)
biased = Add(scores, bias)
weights = Softmax<axis = -1>(biased)
heads = MatMul(weights, vt)
y = Transpose<perm = [0, 2, 1, 3]>(heads)
"""
RESULT = "(float[m, n, o, p] y)"
CALL = "onnxeqx::DotProductAttention"


def heads(batch: int = 2, queries: int = 3, keys: int = 5, number: int = 4, width: int = 8) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    shapes = {
        "q": (batch, queries, number, width),
        "k": (batch, keys, number, width),
        "v": (batch, keys, number, width),
    }
    return {name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def bias(*shape: int) -> np.ndarray:
    """Of very negative numbers, in the first row throughout: where nothing may be attended to, all is equally."""
    values = np.where(np.random.default_rng(1).random(shape) < 0.3, np.finfo(np.float32).min, 0).astype(np.float32)
    values[:, :, 0] = np.finfo(np.float32).min
    return values


SPELLINGS = {
    "multiplied": [],
    "divided": [("Mul(product, factor)", "Div(product, factor)")],
    "not scaled": [("Mul(product, factor)", "Identity(product)")],
    "bias first": [("Add(scores, bias)", "Add(bias, scores)")],
    "keys transposed twice": [
        (
            "kt = Transpose<perm = [0, 2, 3, 1]>(k)",
            "kh = Transpose<perm = [0, 2, 1, 3]>(k) kt = Transpose<perm = [0, 1, 3, 2]>(kh)",
        )
    ],
    "scaled by the root each": [
        ("product = MatMul(qt, kt)", "root = Constant<value_float = 0.5>() qs = Mul(qt, root) ks = Mul(kt, root)"),
        ("scores = Mul(product, factor)", "scores = MatMul(qs, ks)"),
    ],
    "keys transposed as matrices": [
        (
            "kt = Transpose<perm = [0, 2, 3, 1]>(k)",
            """kh = Transpose<perm = [0, 2, 1, 3]>(k) ks = Shape<start = 1, end = 2>(k) kb = Shape<start = 0, end = 1>(k)
            many = Constant<value_ints = [-1]>() four = Constant<value_ints = [4]>() eight = Constant<value_ints = [8]>()
            flat = Concat<axis = 0>(many, ks, eight) km = Reshape(kh, flat) kmt = Transpose<perm = [0, 2, 1]>(km)
            apart = Concat<axis = 0>(kb, four, eight, ks) kt = Reshape(kmt, apart)""",
        )
    ],
    "axis from the front": [("Softmax<axis = -1>", "Softmax<axis = 3>")],
}


def replaced(nodes: str, replacements: list[tuple[str, str]]) -> str:
    for part, other in replacements:
        assert part in nodes
        nodes = nodes.replace(part, other)
    return nodes


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_attention_becomes_one_call(spelling):
    nodes = replaced(ATTENTION, SPELLINGS[spelling])
    model = parsed(f"({QUERIES}, float[b, 1, t, s] bias) => {RESULT}", nodes)
    assert operators(model) == {CALL}
    assert_same_numbers(model, **heads(), bias=bias(2, 1, 3, 5))


@pytest.mark.parametrize("order", ["0, 1, 2, 3", "2, 0, 1, 3"])
def test_heads_that_another_order_follows(order):
    nodes = replaced(ATTENTION, [("perm = [0, 2, 1, 3]>(heads)", f"perm = [{order}]>(heads)")])
    model = parsed(f"({QUERIES}, float[b, 1, t, s] bias) => {RESULT}", nodes)
    assert operators(model) == {CALL, "Transpose"}
    assert_same_numbers(model, **heads(), bias=bias(2, 1, 3, 5))


# As PyTorch's multi-head attention: positions first, queries, keys and values side by side, batch and heads in one axis.
PACKED = """
c0 = Constant<value_int = 0>() c1 = Constant<value_int = 1>() c2 = Constant<value_int = 2>()
a0 = Constant<value_ints = [0]>() a3 = Constant<value_ints = [3]>()
apart = Constant<value_ints = [5, -1, 3, 32]>() merged = Constant<value_ints = [5, -1, 8]>()
split = Constant<value_ints = [-1, 4, 5, 8]>() root = Constant<value_float = 0.5>()
p0 = Reshape(x, apart) p1 = Unsqueeze(p0, a0) p2 = Transpose<perm = [3, 1, 2, 0, 4]>(p1) packed = Squeeze(p2, a3)
q0 = Gather<axis = 0>(packed, c0) q1 = Reshape(q0, merged) q2 = Transpose<perm = [1, 0, 2]>(q1) q = Reshape(q2, split)
k0 = Gather<axis = 0>(packed, c1) k1 = Reshape(k0, merged) k2 = Transpose<perm = [1, 0, 2]>(k1) k = Reshape(k2, split)
v0 = Gather<axis = 0>(packed, c2) v1 = Reshape(v0, merged) v2 = Transpose<perm = [1, 0, 2]>(v1) v = Reshape(v2, split)
kt = Transpose<perm = [0, 1, 3, 2]>(k)
qs = Mul(q, root) ks = Mul(kt, root) scores = MatMul(qs, ks) weights = Softmax<axis = -1>(scores)
heads = MatMul(weights, v)
y = Transpose<perm = [2, 0, 1, 3]>(heads)
"""


def test_packed_heads_beside_the_batch():
    model = parsed(f"(float[5, b, 96] x) => {RESULT}", PACKED)
    calls = [call.op_type for call in printed(model).lifted.all_calls()]
    assert sorted(calls) == sorted([CALL, *["Reshape"] * 4, *["Gather"] * 3, *["Transpose"] * 5])
    source = printed(model).source
    assert "x.reshape(5, -1, 3, 32).transpose(2, 0, 1, 3)" in source
    assert source.count(".reshape(5, -1, 4, 8).transpose(1, 0, 2, 3)") == 3
    x = np.random.default_rng(0).standard_normal((5, 2, 96)).astype(np.float32)
    assert_same_numbers(model, x=x)


@pytest.mark.parametrize(
    ("part", "other"),
    [
        ("merged = Constant<value_ints = [5, -1, 8]>()", "merged = Constant<value_ints = [10, -1, 8]>()"),
        ("q2 = Transpose<perm = [1, 0, 2]>(q1)", "q2 = Transpose<perm = [1, 2, 0]>(q1)"),
    ],
    ids=["positions that are split too", "another order of axes"],
)
def test_what_is_not_quite_heads_beside_the_batch(part, other):
    nodes = replaced(PACKED, [(part, other)])
    model = parsed(f"(float[5, b, 96] x) => {RESULT}", nodes)
    plain = printed(parsed(f"(float[5, b, 96] x) => {RESULT}", PACKED)).source
    assert printed(model).source.count(".reshape(5, -1, 4, 8)") < plain.count(".reshape(5, -1, 4, 8)")
    x = np.random.default_rng(0).standard_normal((5, 2, 96)).astype(np.float32)
    assert_same_numbers(model, x=x)


def test_attention_without_a_bias():
    model = parsed(f"({QUERIES}) => {RESULT}", replaced(ATTENTION, [("Add(scores, bias)", "Identity(scores)")]))
    assert operators(model) == {CALL}
    assert_same_numbers(model, **heads())


def test_attention_with_two_biases():
    """T5 adds a bias by position, and a mask."""
    nodes = replaced(
        ATTENTION, [("biased = Add(scores, bias)", "first = Add(scores, position) biased = Add(first, bias)")]
    )
    model = parsed(f"({QUERIES}, float[1, 4, t, s] position, float[b, 1, 1, s] bias) => {RESULT}", nodes)
    assert operators(model) == {CALL, "Add"}
    position = np.random.default_rng(2).standard_normal((1, 4, 3, 5)).astype(np.float32)
    assert_same_numbers(model, **heads(), position=position, bias=bias(2, 1, 1, 5))


GROUPED = """
a2 = Constant<value_ints = [2]>() a4 = Constant<value_ints = [4]>() a8 = Constant<value_ints = [8]>()
b1 = Shape<start = 0, end = 1>(k) s1 = Shape<start = 1, end = 2>(k)
wide = Concat<axis = 0>(b1, a2, a2, s1, a8) narrow = Concat<axis = 0>(b1, a4, s1, a8)
kh = Transpose<perm = [0, 2, 1, 3]>(k) ku = Unsqueeze(kh, a2) ke = Expand(ku, wide) kr = Reshape(ke, narrow)
vh = Transpose<perm = [0, 2, 1, 3]>(v) vu = Unsqueeze(vh, a2) ve = Expand(vu, wide) vr = Reshape(ve, narrow)
"""
FEWER_KEYS = "float[b, t, 4, 8] q, float[b, s, 2, 8] k, float[b, s, 2, 8] v, float[b, 1, t, s] bias"


def fewer_keys() -> dict[str, np.ndarray]:
    arrays = heads()
    return {"q": arrays["q"], "k": arrays["k"][:, :, :2], "v": arrays["v"][:, :, :2], "bias": bias(2, 1, 3, 5)}


def test_heads_that_serve_a_group_are_not_repeated():
    grouped = [
        ("Transpose<perm = [0, 2, 3, 1]>(k)", "Transpose<perm = [0, 1, 3, 2]>(kr)"),
        ("vt = Transpose<perm = [0, 2, 1, 3]>(v)", "vt = Identity(vr)"),
    ]
    model = parsed(f"({FEWER_KEYS}) => {RESULT}", GROUPED + replaced(ATTENTION, grouped))
    assert operators(model) == {CALL}
    assert_same_numbers(model, **fewer_keys())


def test_repeated_heads_alone():
    model = parsed(
        "(float[b, s, 2, 8] k, float[b, s, 2, 8] v) => (float[m, n, o, p] kr, float[m, n, o, p] vr)", GROUPED
    )
    assert operators(model) == {"Transpose", "onnxeqx::RepeatHeads"}
    arrays = fewer_keys()
    assert_same_numbers(model, k=arrays["k"], v=arrays["v"])


@pytest.mark.parametrize(
    "almost",
    [
        [("Softmax<axis = -1>", "Softmax<axis = 2>")],
        [("kt = Transpose<perm = [0, 2, 3, 1]>(k)", "kt = Transpose<perm = [0, 3, 2, 1]>(k) ")],
        [("MatMul(weights, vt)", "MatMul(scores, vt)")],
    ],
    ids=["another axis of the softmax", "keys in another order", "no softmax"],
)
def test_what_is_not_quite_attention(almost):
    signature = "(float[b, 4, 4, 4] q, float[b, 4, 4, 4] k, float[b, 4, 4, 4] v, float[b, 1, 4, 4] bias)"
    model = parsed(f"{signature} => {RESULT}", replaced(ATTENTION, almost))
    assert_no_pattern_applies(model)
    assert_same_numbers(model, **heads(queries=4, keys=4, width=4), bias=np.zeros((2, 1, 4, 4), np.float32))


def test_weights_that_are_an_output_stay():
    signature = f"({QUERIES}, float[b, 1, t, s] bias) => (float[m, n, o, p] y, float[m, n, t, s] weights)"
    assert_no_pattern_applies(parsed(signature, ATTENTION))


@pytest.mark.parametrize(
    ("signature", "shapes"),
    [
        ("float[b, t, 4, 8] q, float[1, s, 4, 8] k, float[1, s, 4, 8] v, float[b, 1, t, s] bias", {"k": 1, "v": 1}),
        (
            "float[1, t, 4, 8] q, float[1, s, 4, 8] k, float[1, s, 4, 8] v, float[b, 1, t, s] bias",
            {"q": 1, "k": 1, "v": 1},
        ),
        ("float[b, t, 4, 8] q, float[c, s, 4, 8] k, float[c, s, 4, 8] v, float[b, 1, t, s] bias", {}),
    ],
    ids=["keys for the whole batch", "a bias with a batch", "batches that need not be equal"],
)
def test_what_broadcasts_is_no_attention(signature, shapes):
    """`jax.nn.dot_product_attention` wants equal batches and as many heads."""
    model = parsed(f"({signature}) => {RESULT}", ATTENTION)
    assert_no_pattern_applies(model)
    inputs = {name: array[: shapes.get(name)] for name, array in heads().items()}
    assert_same_numbers(model, **inputs, bias=bias(2, 1, 3, 5))


def test_values_of_another_width_are_no_attention():
    signature = "float[b, t, 4, 8] q, float[b, s, 4, 8] k, float[b, s, 4, 6] v, float[b, 1, t, s] bias"
    assert_no_pattern_applies(parsed(f"({signature}) => {RESULT}", ATTENTION))


ROTATED = """
a0 = Constant<value_ints = [0]>() a3 = Constant<value_ints = [3]>() half = Constant<value_ints = [4]>()
a1 = Constant<value_ints = [1]>() end = Constant<value_ints = [9223372036854775807]>()
first = Slice(x, a0, half, a3, a1) second = Slice(x, half, end, a3, a1)
negated = Neg(second)
y = Concat<axis = -1>(negated, first)
"""


def test_rotated_halves():
    model = parsed(f"(float[b, h, t, 8] x) => {RESULT}", ROTATED)
    assert operators(model) == {"onnxeqx::RotateHalf"}
    assert_same_numbers(model, x=heads()["q"])


@pytest.mark.parametrize(
    "almost",
    [
        [("Concat<axis = -1>(negated, first)", "Concat<axis = -1>(first, negated)")],
        [("value_ints = [4]", "value_ints = [3]")],
        [("Neg(second)", "Identity(second)")],
        [("9223372036854775807", "7")],
        [("axis = -1", "axis = 2")],
    ],
    ids=["the other half", "not the middle", "not negated", "not to the end", "another axis"],
)
def test_what_is_not_quite_rotated_halves(almost):
    model = parsed(f"(float[b, h, t, 8] x) => {RESULT}", replaced(ROTATED, almost))
    assert_no_pattern_applies(model)


def test_attention_lowers_for_tpu_with_a_symbolic_batch():
    model = build(printed(parsed(f"({QUERIES}, float[b, 1, t, s] bias) => {RESULT}", ATTENTION)))
    (batch,) = jax.export.symbolic_shape("b")
    inputs = heads() | {"bias": bias(2, 1, 3, 5)}
    structs = {name: jax.ShapeDtypeStruct((batch, *array.shape[1:]), array.dtype) for name, array in inputs.items()}
    exported = jax.export.export(jax.jit(lambda x: model(**x)), platforms=["cpu", "tpu"])(structs)
    np.testing.assert_allclose(exported.call(inputs), model(**inputs), rtol=1e-5, atol=1e-5)


# Whole models.


@pytest.mark.parametrize("name", [ENCODER, "llama_small.ts"])
def test_a_real_model_computes_the_same_and_is_saved_as_it_was(name, tmp_path):
    """The way back to ONNX does not know of patterns: it keeps the graph of the file."""
    model = sample_model(name)
    ids = np.random.default_rng(0).integers(0, 1000, (2, 6))
    inputs = {value.name: np.zeros_like(ids) for value in model.graph.input} | {"input_ids": ids}
    inputs["attention_mask"] = np.array([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
    on, off = (onnxeqx.load_model(model, patterns=patterns) for patterns in (True, False))
    wanted = eqx.filter_jit(off)(**inputs)
    np.testing.assert_allclose(
        eqx.filter_jit(on)(**inputs), wanted, rtol=1e-5, atol=1e-5 * float(jnp.abs(wanted).max())
    )
    assert set(onnxeqx.key_paths(on)) == set(onnxeqx.key_paths(off))
    gradients = [onnxeqx.key_paths(eqx.filter_jit(eqx.filter_grad(lambda m: loss(m(**inputs))))(m)) for m in (on, off)]
    for path, gradient in gradients[1].items():
        if eqx.is_inexact_array(gradient):
            scale = float(jnp.abs(gradient).max())
            np.testing.assert_allclose(gradients[0][path], gradient, rtol=1e-4, atol=1e-4 * scale + 1e-6, err_msg=path)
    nodes = []
    for name, live in (("on", on), ("off", off)):
        onnxeqx.save_onnx(live, tmp_path / f"{name}.onnx")
        nodes.append([node.SerializeToString() for node in onnx.load(tmp_path / f"{name}.onnx").graph.node])
    assert nodes[0] == nodes[1]
    (saved,) = onnxruntime.InferenceSession(tmp_path / "on.onnx").run(None, inputs)
    np.testing.assert_allclose(np.asarray(saved), wanted, rtol=1e-4, atol=1e-5 * float(jnp.abs(wanted).max()))
