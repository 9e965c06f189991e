"""Spectra against NumPy, random numbers by their statistics, gated units and embeddings by hand, text and optimiser steps."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from jax.test_util import check_grads

import onnxeqx
from onnxeqx.plugins import attention, preview_training, random_generation, signal, strings
from onnxeqx.plugins.activation import dropout

GENERATOR = np.random.default_rng(0)


@pytest.mark.parametrize("length", [None, 6, 12])
@pytest.mark.parametrize("parts", [1, 2])
def test_dft(length, parts):
    x = GENERATOR.standard_normal((2, 9, parts)).astype(np.float32)
    values = x[..., 0] + (1j * x[..., 1] if parts == 2 else 0)
    expected = np.fft.fft(values, length, axis=1)
    found = signal.dft(x, length, 1)
    np.testing.assert_allclose(found[..., 0] + 1j * found[..., 1], expected, rtol=1e-4, atol=1e-4)
    back = signal.dft(signal.dft(x, axis=1), axis=1, inverse=1)
    np.testing.assert_allclose(back[..., 0], x[..., 0], atol=1e-5)


@pytest.mark.parametrize("length", [8, 9])
def test_one_sided_dft(length):
    x = GENERATOR.standard_normal((2, length, 1)).astype(np.float32)
    half = signal.dft(x, axis=1, onesided=1)
    np.testing.assert_allclose(half[..., 0] + 1j * half[..., 1], np.fft.rfft(x[..., 0]), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(signal.dft(half, length, 1, inverse=1, onesided=1), x, atol=1e-5)


def test_stft_and_gradients():
    x, window = GENERATOR.standard_normal((1, 20, 1)).astype(np.float32), np.hanning(8).astype(np.float32)
    found = signal.stft(x, 4, window)
    frames = np.stack([np.fft.rfft(x[0, i : i + 8, 0] * window) for i in range(0, 13, 4)])
    np.testing.assert_allclose(found[0, ..., 0] + 1j * found[0, ..., 1], frames, rtol=1e-4, atol=1e-5)
    check_grads(lambda x: signal.stft(x, 4, window), (x,), order=1, rtol=2e-2)


def test_random_numbers():
    normal = random_generation.random_normal(mean=2.0, scale=3.0, seed=1.5, shape=(10_000,))
    assert abs(float(normal.mean()) - 2) < 0.1
    assert abs(float(normal.std()) - 3) < 0.1
    uniform = random_generation.random_uniform(low=-1.0, high=4.0, seed=0.0, shape=(10_000,))
    assert (float(uniform.min()) >= -1, float(uniform.max()) < 4) == (True, True)
    assert abs(float(uniform.mean()) - 1.5) < 0.1
    chances = jnp.full((10_000,), 0.3)
    assert abs(float(random_generation.bernoulli(chances, seed=2.0).mean()) - 0.3) < 0.02
    drawn = random_generation.multinomial(jnp.log(jnp.array([[0.2, 0.8]])), sample_size=10_000, seed=3.0)
    assert drawn.dtype == jnp.int32
    assert abs(float(drawn.mean()) - 0.8) < 0.02


def test_a_seed_determines_the_numbers():
    one, same, other = (random_generation.random_uniform(seed=seed, shape=(8,)) for seed in (1.0, 1.0, 1.5))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)
    like = random_generation.random_normal_like(jnp.zeros((2, 3), jnp.bfloat16))
    assert (like.shape, like.dtype) == ((2, 3), jnp.bfloat16)


def test_seeded_dropout_drops_what_the_reference_drops():
    x = np.ones((3, 4), np.float32)
    np.random.seed(5)
    mask = np.random.uniform(0, 1.0, x.shape) >= 0.25
    y, found = dropout(x, np.float32(0.25), np.array(True), seed=5, n_outputs=2)
    np.testing.assert_array_equal(found, mask)
    np.testing.assert_allclose(y, mask / 0.75, rtol=1e-6)
    np.testing.assert_array_equal(dropout(x, np.float32(0.25), np.array(False), seed=5), x)


def test_gated_units_and_rotary_embeddings():
    a, b = GENERATOR.standard_normal((2, 3, 4)).astype(np.float32)
    np.testing.assert_allclose(attention.swi_glu(a, b), a / (1 + np.exp(-a)) * b, rtol=1e-5)
    x = GENERATOR.standard_normal((1, 2, 3, 4)).astype(np.float32)
    angles = GENERATOR.standard_normal((1, 3, 2)).astype(np.float32)
    turned = attention.rotary_embedding(x, np.cos(angles), np.sin(angles))
    expected = (x[..., :2] + 1j * x[..., 2:]) * np.exp(1j * angles)[:, None]
    np.testing.assert_allclose(turned, np.concatenate((expected.real, expected.imag), -1), rtol=1e-5, atol=1e-6)


def test_text():
    words = np.array(["a b", "c"], object)
    assert strings.string_concat(words, np.array(["!"], object)).tolist() == ["a b!", "c!"]
    pieces, counts = strings.string_split(words, n_outputs=2)
    assert (pieces.tolist(), counts.tolist()) == ([["a", "b"], ["c", ""]], [2, 1])
    assert strings.regex_full_match(words, pattern="[a-c]").tolist() == [False, True]
    assert strings.string_normalizer(words, stopwords=("C",), case_change_action="UPPER").tolist() == ["A B"]


def test_text_in_a_model():
    text = """<ir_version: 9, opset_import: ["" : 20]> g (string[n] x) => (string[n] y, bool[n] m) {
        tail = Constant <value: tensor = string[1] {"?"}> () y = StringConcat (x, tail) m = RegexFullMatch <pattern = "a.*"> (y) }"""
    y, m = onnxeqx.load_model(onnx.parser.parse_model(text))(np.array(["ab", "c"], object))
    assert (y.tolist(), m.tolist()) == (["ab?", "c?"], [True, False])


def test_optimiser_steps_move_against_the_gradient():
    x, g, zero = jnp.array([1.0, -2.0]), jnp.array([0.5, -0.5]), jnp.zeros(2)
    rate, step = jnp.float32(0.1), jnp.int32(0)
    moved, velocity = preview_training.momentum(
        rate, step, x, g, zero, alpha=0.9, beta=1.0, mode="standard", norm_coefficient=0.0
    )
    np.testing.assert_allclose(moved, x - 0.1 * g)
    np.testing.assert_allclose(velocity, g)
    moved, squares = preview_training.adagrad(rate, step, x, g, zero)
    np.testing.assert_allclose((moved, squares), (x - 0.1 * np.sign(g), g**2), rtol=1e-4)


def test_the_gradient_operator_in_a_model():
    text = """<ir_version: 8, opset_import: ["" : 17, "ai.onnx.preview.training" : 1]>
        g (float[n] a, float[n] b) => (float[n] c, float[n] da, float[n] db) {
        c = Mul (a, b)
        da, db = ai.onnx.preview.training.Gradient <xs = ["a", "b"], y = "c"> (a, b) }"""
    a, b = np.array([1.0, 2.0], np.float32), np.array([3.0, -4.0], np.float32)
    c, da, db = onnxeqx.load_model(onnx.parser.parse_model(text))(a, b)
    np.testing.assert_array_equal((c, da, db), (a * b, b, a))


def test_spectra_lower_for_tpu():
    shape = jax.ShapeDtypeStruct((2, 16, 1), np.float32)
    jax.export.export(jax.jit(lambda x: signal.dft(x, axis=1)), platforms=["tpu"])(shape)
