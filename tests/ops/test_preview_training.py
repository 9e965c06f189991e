"""Steps of optimisers by ONNX's own formulas, in any mix of dtypes, and in models."""

import functools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import onnx
import onnx.parser
import pytest
from jax.test_util import check_grads

import onnxeqx
from onnxeqx.plugins.preview_training import adagrad, adam, momentum

GENERATOR = np.random.default_rng(0)
X, G, V = GENERATOR.standard_normal((3, 4)).astype(np.float32)
H = GENERATOR.random(4).astype(np.float32)
RATE = 0.1
MOMENTUM = {"alpha": 0.9, "beta": 0.5, "norm_coefficient": 0.01}


@pytest.fixture(autouse=True)
def _strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        yield


def adagrad_by_hand(t, x, g, h):
    g = 0.01 * x + g
    h = h + g * g
    return x - RATE / (1 + t * 0.1) * g / (np.sqrt(h) + 1e-6), h


def adam_by_hand(t, x, g, v, h):
    g = 0.01 * x + g
    v, h = 0.9 * v + (1 - 0.9) * g, 0.999 * h + (1 - 0.999) * g * g
    rate = RATE * np.sqrt(1 - 0.999**t) / (1 - 0.9**t) if t > 0 else RATE
    return (1 - 0.02) * (x - rate * v / (np.sqrt(h) + 1e-6)), v, h


def momentum_by_hand(t, x, g, v, mode):
    g = 0.01 * x + g
    v = 0.9 * v + (0.5 if t > 0 else 1) * g
    return x - RATE * (g + 0.9 * v if mode == "nesterov" else v), v


# By name: the operator, ONNX's formula, and the state beside the tensor and its gradient.
STEPS = {
    "Adagrad": (functools.partial(adagrad, decay_factor=0.1, norm_coefficient=0.01), adagrad_by_hand, (H,)),
    "Adam": (functools.partial(adam, norm_coefficient=0.01, norm_coefficient_post=0.02), adam_by_hand, (V, H)),
    "Momentum": (
        functools.partial(momentum, mode="standard", **MOMENTUM),
        functools.partial(momentum_by_hand, mode="standard"),
        (V,),
    ),
    "Nesterov": (
        functools.partial(momentum, mode="nesterov", **MOMENTUM),
        functools.partial(momentum_by_hand, mode="nesterov"),
        (V,),
    ),
}


@pytest.mark.parametrize("t", [0, 1, 5])
@pytest.mark.parametrize("name", STEPS)
def test_one_tensor(name, t):
    step, by_hand, state = STEPS[name]
    operands = [jnp.float32(RATE), jnp.asarray(t), *map(jnp.asarray, (X, G, *state))]
    for call in (step, jax.jit(step)):
        np.testing.assert_allclose(call(*operands), by_hand(t, X, G, *state), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", STEPS)
def test_two_tensors_are_two_steps(name):
    step, _, state = STEPS[name]
    pairs = [(jnp.asarray(value), jnp.asarray(value[:2] + 1)) for value in (X, G, *state)]
    both = step(jnp.float32(RATE), jnp.asarray(3), *(value for pair in pairs for value in pair))
    for i in range(2):
        alone = step(jnp.float32(RATE), jnp.asarray(3), *(pair[i] for pair in pairs))
        assert all(np.array_equal(*values) for values in zip(both[i::2], alone, strict=True))


@pytest.mark.parametrize("dtypes", [(jnp.float32, jnp.float64), (jnp.float64, jnp.float32)])
@pytest.mark.parametrize("name", STEPS)
def test_the_rate_may_have_another_dtype_than_the_tensors(name, dtypes):
    step, by_hand, state = STEPS[name]
    with jax.enable_x64(True):
        outputs = step(jnp.asarray(RATE, dtypes[0]), jnp.int64(3), *(jnp.asarray(v, dtypes[1]) for v in (X, G, *state)))
        assert all(output.dtype == dtypes[1] for output in outputs)
        np.testing.assert_allclose(outputs, by_hand(3, X, G, *state), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", STEPS)
def test_rate_and_step_may_be_python_numbers(name):
    """As printed models hold constants."""
    step, _, state = STEPS[name]
    tensors = [jnp.asarray(value) for value in (X, G, *state)]
    np.testing.assert_array_equal(step(RATE, 3, *tensors), step(jnp.float32(RATE), jnp.asarray(3), *tensors))


@pytest.mark.parametrize("t", [0, 3])
@pytest.mark.parametrize("name", STEPS)
def test_gradients(name, t):
    step, _, state = STEPS[name]
    operands = (jnp.float32(RATE), *map(jnp.asarray, (X, G, *state)))
    check_grads(lambda rate, *rest: step(rate, jnp.asarray(t), *rest), operands, order=1, atol=2e-2, rtol=2e-2)
    zeros = (operands[0], *(jnp.zeros_like(value) for value in operands[1:]))
    gradients = jax.grad(lambda *values: sum(map(jnp.sum, step(values[0], jnp.asarray(t), *values[1:]))), range(3))(
        *zeros
    )
    assert all(bool(jnp.isfinite(gradient).all()) for gradient in gradients)


def test_in_a_model_with_a_constant_rate():
    text = """<ir_version: 8, opset_import: ["" : 17, "ai.onnx.preview.training" : 1]>
        g (float[n] x, float[n] g, float[n] h) => (float[n] y, float[n] s) {
        r = Constant <value = float {0.1}> () t = Constant <value = int64 {3}> ()
        y, s = ai.onnx.preview.training.Adagrad <norm_coefficient = 0.01, decay_factor = 0.1> (r, t, x, g, h) }"""
    outputs = onnxeqx.load_model(onnx.parser.parse_model(text))(X, G, H)
    np.testing.assert_allclose(outputs, adagrad_by_hand(3, X, G, H), rtol=1e-5)


def test_tensors_without_state_are_refused():
    with pytest.raises(ValueError, match=r"4 tensors .* multiple of 3"):
        adagrad(RATE, 3, X, G, H, X)


def test_unknown_modes_are_refused():
    with pytest.raises(ValueError, match="no mode 'fast'"):
        momentum(RATE, 3, X, G, V, mode="fast", **MOMENTUM)


@pytest.mark.parametrize("name", STEPS)
def test_lowers_for_tpu_with_symbolic_sizes(name):
    step, _, state = STEPS[name]
    tensor = jax.ShapeDtypeStruct(jax.export.symbolic_shape("n"), jnp.float32)
    scalars = jax.ShapeDtypeStruct((), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)
    jax.export.export(jax.jit(step), platforms=["tpu"])(*scalars, *[tensor] * (2 + len(state)))
