"""Models that draw random numbers: from a key that they are called with, else from the seeds of their nodes."""

import equinox as eqx
import jax
import numpy as np
import onnx
import onnx.parser
import pytest

import onnxeqx

NOISE = """<ir_version: 8, opset_import: ["": 17]>
noise (float[n, 3] x) => (float[n, 3] y, float[2] z) {
  e = RandomNormalLike (x)
  f = RandomNormalLike (x)
  s = Add (x, e)
  y = Add (s, f)
  z = RandomUniform <shape: ints = [2], seed: float = 4.0> ()
}"""
REPEATED = """<ir_version: 8, opset_import: ["": 17]>
repeated (float[n, 3] x, int64 trips) => (float[n, 3] y) {
  go = Constant <value = bool {1}> ()
  y = Loop (trips, go, x) <body = step (int64 i, bool on, float[n, 3] s) => (bool going, float[n, 3] t)
    { going = Identity (on) d = RandomNormalLike (s) t = Add (s, d) }>
}"""
DROPPED = """<ir_version: 8, opset_import: ["": 17]>
dropped (float[n] x) => (float[n] y, bool[n] mask) {
  ratio = Constant <value = float {0.25}> ()
  training = Constant <value = bool {1}> ()
  y, mask = Dropout (x, ratio, training)
}"""
KEYS = jax.random.key(0), jax.random.key(1)
X = np.zeros((2, 3), np.float32)


def load(text: str) -> eqx.Module:
    return onnxeqx.load_model(onnx.parser.parse_model(text))


def test_a_key_decides_every_number():
    model = load(NOISE)
    once, again, other = (model(X, key=key) for key in (KEYS[0], KEYS[0], KEYS[1]))
    for i in range(2):
        np.testing.assert_array_equal(once[i], again[i])
        assert not np.isclose(once[i], other[i]).any()
    alone = model(X, key=KEYS[0])[0] - load(NOISE.replace("(s, f)", "(s, x)"))(X, key=KEYS[0])[0]
    assert not np.isclose(alone, once[0] - alone).any(), "two nodes draw the same numbers"


def test_without_a_key_the_seeds_decide():
    model = load(NOISE)
    for result, again in zip(model(X), model(X), strict=True):
        np.testing.assert_array_equal(result, again)
    other = load(NOISE.replace("4.0", "5.0"))
    assert not np.isclose(model(X)[1], other(X)[1]).any()
    np.testing.assert_array_equal(model(X)[0], other(X)[0])


def test_keys_are_traced():
    model = load(NOISE)
    step = jax.jit(lambda key: model(X, key=key)[0])
    np.testing.assert_allclose(step(KEYS[1]), model(X, key=KEYS[1])[0], rtol=1e-6)
    drawn = jax.vmap(lambda key: model(X, key=key)[0])(jax.random.split(KEYS[0], 500))
    assert np.std(drawn) == pytest.approx(np.sqrt(2), rel=0.05)


def test_subgraphs_draw_from_the_key_too():
    model = load(REPEATED)
    one, two = (model(X, np.array(3), key=key) for key in KEYS)
    assert not np.isclose(one, two).any()


def test_numbers_are_drawn_in_each_call_not_once_at_load():
    source = "z (float[1] x) => (float[20] y) { y = RandomNormal <shape: ints = [20]> () }"
    model = load(f'<ir_version: 8, opset_import: ["": 17]> {source}')
    one, two = (model(np.zeros(1, np.float32), key=key) for key in KEYS)
    assert not np.isclose(one, two).any()


def test_dropout_in_training_mode_drops_with_a_key_only():
    model, x = load(DROPPED), np.arange(1, 10_001, dtype=np.float32)
    y, mask = model(x)
    np.testing.assert_array_equal(y, x)
    assert mask.all()
    y, mask = model(x, key=KEYS[0])
    assert abs(float(mask.mean()) - 0.75) < 0.02
    np.testing.assert_allclose(y, np.where(mask, x / 0.75, 0), rtol=1e-6)
    (gradient,) = jax.grad(lambda x: model(x, key=KEYS[0])[0].sum())(x)[None]
    np.testing.assert_allclose(gradient, mask / 0.75, rtol=1e-6)


def test_a_converted_folder_takes_the_key(tmp_path):
    onnx.save(onnx.parser.parse_model(NOISE), tmp_path / "noise.onnx")
    onnxeqx.convert(tmp_path / "noise.onnx", tmp_path / "noise")
    assert "key=subkey(key, 1)" in (tmp_path / "noise" / "model.py").read_text()
    for result, wanted in zip(
        onnxeqx.load(tmp_path / "noise")(X, key=KEYS[0]), load(NOISE)(X, key=KEYS[0]), strict=True
    ):
        np.testing.assert_array_equal(result, wanted)


def test_an_input_may_be_called_key():
    model = load(NOISE.replace("(float[n, 3] x)", "(float[n, 3] key)").replace("(x", "(key"))
    assert model.input_names == ("key",)
    np.testing.assert_array_equal(model(key=X)[0], model(X)[0])


def test_models_that_draw_nothing_take_no_key():
    model = load('<ir_version: 8, opset_import: ["": 17]> g (float[n] x) => (float[n] y) { y = Neg (x) }')
    with pytest.raises(onnxeqx.InputError, match="no input 'key'"):
        model(np.zeros(2, np.float32), key=KEYS[0])
