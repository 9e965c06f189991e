"""Attention, linear attention and causal convolution: against ONNX Runtime and onnx.reference, gradients, symbolic sizes."""

import functools
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import jax.test_util
import numpy as np
import onnx.parser
import onnx.reference
import pytest
from onnx import TensorProto, helper

import onnxeqx
from onnxeqx._convert import convert
from onnxeqx._read import read_proto
from onnxeqx.plugins.attention import attention
from onnxeqx.plugins.linear_attention import causal_conv_with_state, linear_attention

from .family_cases import check, check_against_runtime

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


# Four heads of queries share two heads of keys and values; three queries, five keys, of which four more are in a cache.
Q, K, V = normal(2, 4, 3, 8), normal(2, 2, 5, 8), normal(2, 2, 5, 6)
CACHE = normal(2, 2, 4, 8), normal(2, 2, 4, 6)
FLAT = [np.swapaxes(x, 1, 2).reshape(2, x.shape[2], -1) for x in (Q, K, V)]
HEADS: dict[str, Any] = {"q_num_heads": 4, "kv_num_heads": 2}
MASK = RNG.random((2, 4, 3, 5)) < 0.6
MASK[..., 0] = True  # every query sees something
BLIND = MASK.copy()
BLIND[0, 1, 2] = BLIND[1] = False
BLIND_BIAS = np.where(BLIND, normal(2, 4, 3, 5), -np.inf).astype(np.float32)
SINCE_23 = {
    "plain": ([Q, K, V], {}),
    "flat": (FLAT, HEADS),
    "scaled": ([Q, K, V], {"scale": 0.2}),
    "capped": ([Q, K, V], {"softcap": 0.5}),
    "causal": ([Q, K, V], {"is_causal": 1}),
    "boolean mask": ([Q, K, V, MASK], {}),
    "added mask": ([Q, K, V, normal(3, 5)], {"is_causal": 1}),
    "added mask for each head": ([Q, K, V, normal(4, 3, 5)], {}),
    "integers added": ([Q, K, V, np.arange(15).reshape(3, 5)], {}),
    "wide softmax": ([Q, K, V], {"softmax_precision": TensorProto.FLOAT}),
}
CACHED = {
    "cache": ([Q, K, V, None, *CACHE], {}),
    "flat": ([*FLAT, normal(3, 9), *CACHE], HEADS),
    "causal": ([Q, K, V, normal(3, 9), *CACHE], {"is_causal": 1}),
}
LENGTHS = [None, None, np.array([5, 3])]
SINCE_24 = {
    "lengths": ([Q, K, V, None, *LENGTHS], {}),
    "causal lengths": ([Q, K, V, None, *LENGTHS], {"is_causal": 1}),
    "lengths and mask": ([*FLAT, MASK, *LENGTHS], HEADS),
}
SHORT_MASK = ([Q, K, V, MASK[..., :4], None, None, np.array([4, 3])], {})
ONE_KEY = ([Q, K, V, MASK[..., :1]], {})
# Some queries see no key: ONNX says zeros, ONNX Runtime's kernels of opsets 23 and 24 another thing.
BLIND_CASES = {
    "boolean": ([Q, K, V, BLIND], {}),
    "added": ([Q, K, V, BLIND_BIAS], {}),
    "causal": ([Q, K, V, np.tile(np.arange(5) > 0, (3, 1))], {"is_causal": 1}),
    "longer than the cache": ([Q, K, V, None, None, None, np.array([2, 1])], {"is_causal": 1}),
}

# Four heads of queries share two states; six steps.
QUERY, KEY, VALUE = normal(2, 6, 4 * 3), normal(2, 6, 2 * 3) / 2, normal(2, 6, 2 * 5)
STATE = normal(2, 2, 3, 5)
DECAY, BETA = -abs(normal(2, 6, 2)), RNG.random((2, 6, 2)).astype(np.float32)
RULES = {"linear": (None, None), "gated": (DECAY, None), "delta": (None, BETA), "gated_delta": (DECAY, BETA)}

X, WEIGHT, BIAS, STEPS = normal(2, 6, 7), normal(6, 1, 4), normal(6), normal(2, 6, 3)

# Each of float arrays, whose first axes are the batch.
FUNCTIONS = {
    "Attention": (attention, (Q, K, V)),
    "Attention, flat and causal": (functools.partial(attention, is_causal=1, left_window_size=1, **HEADS), FLAT),
    "Attention, masked": (lambda q, k, v: attention(q, k, v, BLIND[:1], softcap=2.0, n_outputs=1), (Q, K, V)),
    "Attention, biased": (lambda q, k, v, bias: attention(q, k, v, bias), (Q, K, V, BLIND_BIAS)),
    "Attention, cached": (lambda q, k, v, pk, pv: attention(q, k, v, None, pk, pv, is_causal=1), (Q, K, V, *CACHE)),
    "LinearAttention": (functools.partial(linear_attention, **HEADS), (QUERY, KEY, VALUE, STATE, DECAY, BETA)),
    "CausalConvWithState": (
        lambda x, past: causal_conv_with_state(
            x, WEIGHT.astype(x.dtype), BIAS.astype(x.dtype), past, activation="silu"
        ),
        (X, STEPS),
    ),
}


@pytest.fixture(autouse=True)
def _strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        yield


def check_against_reference(name, opset, *operands, outputs=1, **attributes):
    names = [f"x{i}" if value is not None else "" for i, value in enumerate(operands)]
    node = helper.make_node(name, names, [f"y{i}" for i in range(outputs)], **attributes)
    given = {key: value for key, value in zip(names, operands, strict=True) if key}
    inputs = [helper.make_empty_tensor_value_info(key) for key in given]
    graph = helper.make_graph([node], "g", inputs, [helper.make_empty_tensor_value_info(y) for y in node.output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    expected = onnx.reference.ReferenceEvaluator(model).run(None, given)
    check(name, opset, list(operands), [np.asarray(value) for value in expected], **attributes)


@pytest.mark.parametrize("opset", [23, 24, 25])
@pytest.mark.parametrize("case", SINCE_23)
def test_attention(case, opset):
    operands, attributes = SINCE_23[case]
    check_against_runtime("Attention", opset, *operands, **attributes)


@pytest.mark.parametrize("opset", [23, 24, 25])
@pytest.mark.parametrize("case", CACHED)
def test_attention_after_a_cache(case, opset):
    operands, attributes = CACHED[case]
    check_against_reference("Attention", opset, *operands, outputs=3, **attributes)
    if opset == 25 or case != "causal":  # for which the kernels before want as many queries as keys
        check_against_runtime("Attention", opset, *operands, outputs=3, **attributes)


@pytest.mark.parametrize("opset", [24, 25])
@pytest.mark.parametrize("case", SINCE_24)
def test_attention_to_a_cache_of_given_lengths(case, opset):
    operands, attributes = SINCE_24[case]
    check_against_runtime("Attention", opset, *operands, **attributes)


@pytest.mark.parametrize("opset", [24, 25])
@pytest.mark.parametrize("case", [SHORT_MASK, ONE_KEY], ids=["short", "one key"])
def test_a_mask_may_be_cut_short_since_opset_24(case, opset):
    operands, attributes = case
    check_against_reference("Attention", opset, *operands, **attributes)


def test_a_mask_broadcasts_along_the_keys_at_opset_23():
    column, cache = MASK[..., 1:2], [*CACHE]
    for past, keys in (([None, None], 5), (cache, 9)):
        full = np.broadcast_to(column, (2, 4, 3, keys))
        expected = np.asarray(attention(Q, K, V, full, *past))
        check("Attention", 23, [Q, K, V, column, *past], expected)


@pytest.mark.parametrize("left", [-1, 0, 2])
@pytest.mark.parametrize("right", [-1, 0, 1])
def test_windows(left, right):
    window = {"left_window_size": left, "right_window_size": right}
    check_against_runtime("Attention", 25, Q, K, V, **window)
    check_against_runtime("Attention", 25, Q, K, V, MASK, *LENGTHS, **window)
    check_against_runtime("Attention", 25, Q, K, V, None, *CACHE, is_causal=1, **window)


@pytest.mark.parametrize("opset", [23, 24, 25])
@pytest.mark.parametrize("mode", [0, 1, 2, 3])
def test_stages_of_the_scores(mode, opset):
    options = {"is_causal": 1, "softcap": 2.0, "qk_matmul_output_mode": mode}
    if mode != 2:  # where ONNX Runtime has its least float for minus infinity
        check_against_runtime("Attention", opset, Q, K, V, MASK, outputs=4, **options)
    if mode != 0:  # where the reference gives the capped scores
        check_against_reference("Attention", opset, Q, K, V, BLIND, outputs=4, **options)


@pytest.mark.parametrize("case", BLIND_CASES)
def test_a_query_that_sees_nothing_gives_zeros(case):
    operands, attributes = BLIND_CASES[case]
    for opset in (23, 24) if len(operands) < 7 else (24,):
        check_against_reference("Attention", opset, *operands, **attributes)
    check_against_runtime("Attention", 25, *operands, **attributes)


def test_the_bias_decides_what_is_seen_not_the_scores():
    infinite = Q.copy()
    infinite[0] = np.inf
    y = attention(infinite, abs(K), V, np.zeros(5, bool))
    np.testing.assert_array_equal(y, 0)


def test_a_softmax_may_be_wider_than_the_inputs():
    q, k, v = (jnp.asarray(x, jnp.float16) for x in (Q, K, V))
    y, *_, probabilities = attention(q, k, v, softmax_precision=TensorProto.FLOAT, qk_matmul_output_mode=3, n_outputs=4)
    assert (y.dtype, probabilities.dtype) == (jnp.float16, jnp.float16)
    np.testing.assert_allclose(y.astype(jnp.float32), attention(Q, K, V), atol=5e-3)


def test_scaling_before_the_product_keeps_scores_within_16_bits():
    q, k, v = (jnp.full((1, 1, 2, 64), 60.0, jnp.float16) for _ in range(3))
    assert np.isfinite(np.asarray(attention(q, k, v))).all()


def test_numbers_of_heads_that_do_not_fit():
    with pytest.raises(ValueError, match="needs q_num_heads and kv_num_heads"):
        attention(*FLAT)
    with pytest.raises(ValueError, match="3 heads of queries cannot share 2 heads of keys"):
        attention(Q[:, :3], K, V)
    with pytest.raises(ValueError, match="3 heads of queries cannot share 2 states"):
        linear_attention(QUERY, KEY, VALUE, q_num_heads=3, kv_num_heads=2, update_rule="linear")


@pytest.mark.parametrize("state", [None, STATE], ids=["zeros", "state"])
@pytest.mark.parametrize("rule", RULES)
def test_linear_attention(rule, state):
    operands, options = (QUERY, KEY, VALUE, state, *RULES[rule]), {"update_rule": rule, **HEADS}
    check_against_reference("LinearAttention", 27, *operands, outputs=2, **options)
    check_against_runtime("LinearAttention", 27, *operands, outputs=2, **options)


def test_each_key_feature_may_decay_and_heads_share_a_rate():
    operands = QUERY, KEY, VALUE, STATE, -abs(normal(2, 6, 6)), BETA[..., :1]
    check_against_runtime("LinearAttention", 27, *operands, outputs=2, scale=0.7, **HEADS)


def test_linear_attention_step_by_step_is_that_of_all_steps():
    whole, final = linear_attention(QUERY, KEY, VALUE, STATE, DECAY, BETA, n_outputs=2, **HEADS)
    state, outputs = STATE, []
    for step in range(6):
        q, k, v, decay, beta = (x[:, step : step + 1] for x in (QUERY, KEY, VALUE, DECAY, BETA))
        y, state = linear_attention(q, k, v, state, decay, beta, n_outputs=2, **HEADS)
        outputs.append(y)
    np.testing.assert_allclose(jnp.concatenate(outputs, axis=1), whole, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(state, final, rtol=1e-5, atol=1e-6)


def test_a_state_may_be_wider_than_the_inputs():
    q, k, v, decay, beta = (jnp.asarray(x, jnp.bfloat16) for x in (QUERY, KEY, VALUE, DECAY, BETA))
    y, state = linear_attention(q, k, v, STATE, decay, beta, n_outputs=2, **HEADS)
    assert (y.dtype, state.dtype) == (jnp.bfloat16, jnp.float32)
    y, state = linear_attention(q, k, v, None, decay, beta, n_outputs=2, **HEADS)
    assert (y.dtype, state.dtype) == (jnp.bfloat16, jnp.bfloat16)


def test_rules_that_do_not_fit():
    with pytest.raises(ValueError, match="no update_rule 'rwkv', only linear, gated"):
        linear_attention(QUERY, KEY, VALUE, update_rule="rwkv", **HEADS)
    with pytest.raises(ValueError, match="'gated' takes an input 'decay'"):
        linear_attention(QUERY, KEY, VALUE, update_rule="gated", **HEADS)
    with pytest.raises(ValueError, match="'linear' takes no input 'beta'"):
        linear_attention(QUERY, KEY, VALUE, None, None, BETA, update_rule="linear", **HEADS)


@pytest.mark.parametrize("activation", ["none", "silu", "swish"])
@pytest.mark.parametrize("bias", [None, BIAS], ids=["", "bias"])
@pytest.mark.parametrize("steps", [None, STEPS], ids=["zeros", "state"])
def test_causal_convolution(activation, bias, steps):
    operands = X, WEIGHT, bias, steps
    check_against_reference("CausalConvWithState", 27, *operands, outputs=2, activation=activation)
    check_against_runtime("CausalConvWithState", 27, *operands, outputs=2, activation=activation)


def test_causal_convolution_of_less_than_a_kernel_and_of_one_step():
    check_against_runtime("CausalConvWithState", 27, X[..., :1], WEIGHT, None, STEPS, outputs=2)
    check_against_reference("CausalConvWithState", 27, X, WEIGHT[..., :1], outputs=2)
    with pytest.raises(ValueError, match="no activation 'relu', only none, silu and swish"):
        causal_conv_with_state(X, WEIGHT, activation="relu")


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_narrow_floats_stay_narrow(name, dtype):
    function, arrays = FUNCTIONS[name]
    narrow = [jnp.asarray(x, dtype) for x in arrays]
    result, wanted = jax.jit(function)(*narrow), jax.jit(function)(*(x.astype(jnp.float32) for x in narrow))
    assert result.dtype == dtype
    np.testing.assert_allclose(result.astype(jnp.float32), wanted, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_jit_and_vmap_change_nothing(name):
    function, arrays = FUNCTIONS[name]
    wanted = function(*map(jnp.asarray, arrays))
    np.testing.assert_allclose(jax.jit(function)(*arrays), wanted, rtol=1e-5, atol=1e-6)
    batched = jax.vmap(function)(*(np.stack([x, x]) for x in arrays))
    np.testing.assert_allclose(batched, [wanted, wanted], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if "biased" not in name])
def test_gradients(name):
    function, arrays = FUNCTIONS[name]
    jax.test_util.check_grads(jax.jit(function), arrays, order=1, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("case", BLIND_CASES)
def test_gradients_are_finite_where_a_query_sees_nothing(case):
    (q, k, v, *rest), attributes = BLIND_CASES[case]

    def total(q, k, v):
        y, *_, probabilities = attention(q, k, v, *rest, qk_matmul_output_mode=3, n_outputs=4, **attributes)
        return y.sum() + jnp.square(probabilities).sum()

    for gradient in jax.grad(total, (0, 1, 2))(q, k, v):
        assert bool(jnp.isfinite(gradient).all())
        assert bool(gradient.any())


def test_the_gradient_of_a_bias_is_zero_where_it_hides():
    def total(bias):
        y, *_ = attention(Q, K, V, bias, n_outputs=3)
        return jnp.square(y).sum()

    gradient = jax.grad(total)(BLIND_BIAS)
    np.testing.assert_array_equal(np.where(BLIND, 0, gradient), 0)
    assert bool(jnp.isfinite(gradient).all())
    assert bool(gradient.any())


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_empty_batch_stays_empty(name):
    function, arrays = FUNCTIONS[name]
    assert jax.eval_shape(function, *(x[:0] for x in arrays)).shape[0] == 0


@pytest.mark.parametrize("name", FUNCTIONS)
def test_lowers_for_tpu_with_a_symbolic_batch(name):
    function, arrays = FUNCTIONS[name]
    (batch,) = jax.export.symbolic_shape("b")
    specifications = [jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype) for x in arrays]
    (result,) = jax.export.export(jax.jit(function), platforms=["tpu"])(*specifications).out_avals
    assert str(result.shape[0]) == "b"


def test_times_may_be_symbolic_too():
    batch, queries, past = jax.export.symbolic_shape("b, q, p")
    heads = [(4, queries, 8), (2, queries, 8), (2, queries, 6), (2, past, 8), (2, past, 6)]
    specifications = [jax.ShapeDtypeStruct((batch, *shape), jnp.float32) for shape in heads]
    cached = jax.jit(lambda q, k, v, pk, pv: attention(q, k, v, None, pk, pv, is_causal=1, n_outputs=2))
    exported = jax.export.export(cached)(*specifications)
    assert [str(result.shape) for result in exported.out_avals] == ["(b, 4, q, 6)", "(b, 2, q + p, 8)"]
    y, keys = exported.call(Q[:, :, :2], K[:, :, :2], V[:, :, :2], *CACHE)
    np.testing.assert_allclose(y, cached(Q[:, :, :2], K[:, :, :2], V[:, :, :2], *CACHE)[0], rtol=1e-5, atol=1e-6)
    assert keys.shape == (2, 2, 6, 8)


def test_a_printed_model_holds_one_call():
    text = """<ir_version: 10, opset_import: ["" : 24]> g (float[b, 4, q, 8] x, float[b, 2, p, 8] pk, float[b, 2, p, 6] pv,
        float[b, 2, q, 8] k, float[b, 2, q, 6] v) => (float[b, 4, q, 6] y, float[b, 2, n, 8] nk, float[b, 2, n, 6] nv) {
        y, nk, nv = Attention <is_causal = 1, softmax_precision = 1> (x, k, v, , pk, pv) }"""
    model = onnx.parser.parse_model(text)
    source = convert(read_proto(model), "m.onnx").source
    assert source.count("attention.attention(") == 1
    assert "softmax(" not in source
    y, keys, values = onnxeqx.load_model(model)(Q, *CACHE, K[:, :, :3], V[:, :, :3])
    expected = attention(Q, K[:, :, :3], V[:, :, :3], None, *CACHE, is_causal=1, n_outputs=3)
    for result, wanted in zip((y, keys, values), expected, strict=True):
        np.testing.assert_allclose(result, wanted, rtol=1e-6)
