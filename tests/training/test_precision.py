"""16-bit computation with float32 parameters, and the scale of float16's loss."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from onnxeqx.training import Data, DivergedError, TrainState, accuracy, adamw, cross_entropy, fit, make_train_step
from onnxeqx.training.data import Batch
from onnxeqx.training.loop import SMALLEST_LOSS_SCALE
from onnxeqx.training.precision import backed_off, loss_scale, scale_loss

from .conftest import Arrays, colours


def scaled(initial=2.0**15, growth_interval=2000, rate=0.05):
    return optax.chain(scale_loss(initial, growth_interval=growth_interval), optax.sgd(rate))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_the_step_computes_in_16_bits_and_parameters_stay_float32(net, data, dtype):
    seen = []

    def forward(model, inputs, key):
        seen.append((model.conv.weight.dtype, inputs.dtype))
        return model(inputs)

    optimizer = scaled() if dtype == jnp.float16 else adamw(0.05)
    fitted = fit(net, data, optimizer=optimizer, epochs=1, forward=forward, compute_dtype=dtype)
    assert seen
    assert set(seen) == {(jnp.dtype(dtype), jnp.dtype(dtype))}
    assert {leaf.dtype for leaf in jax.tree.leaves(eqx.filter(fitted.model, eqx.is_inexact_array))} == {
        jnp.dtype(jnp.float32)
    }
    whole = fit(net, data, optimizer=optax.sgd(0.05) if dtype == jnp.float16 else adamw(0.05), epochs=1)
    # 8 bits of a number: losses near 1 agree to 1 in 100, and not exactly.
    assert fitted.history[-1]["val_loss"] == pytest.approx(whole.history[-1]["val_loss"], rel=2e-2)
    assert fitted.history[-1]["val_loss"] != whole.history[-1]["val_loss"]


def step_from(net, optimizer, inputs, compute_dtype=jnp.float16):
    mask = jax.tree.map(eqx.is_inexact_array, net)
    state = TrainState.create(net, optimizer, mask, metrics=["accuracy"])
    step = make_train_step(optimizer, cross_entropy, {"accuracy": accuracy}, compute_dtype=compute_dtype)
    return step(state, Batch(inputs, np.zeros(len(inputs), np.int32), np.ones(len(inputs), bool)))


def test_the_scale_leaves_the_gradients_as_they_are(net):
    inputs = colours(8, seed=3).inputs
    plain, with_scale = (step_from(net, optimizer, inputs, None) for optimizer in (optax.sgd(0.05), scaled()))
    for one, other in zip(jax.tree.leaves(plain.trainable), jax.tree.leaves(with_scale.trainable), strict=True):
        np.testing.assert_array_equal(one, other)  # a power of two costs no bit


def test_the_scale_saves_gradients_that_float16_would_lose(net):
    tiny = eqx.tree_at(lambda n: n.head.weight, net, net.head.weight * 1e-6)
    inputs = colours(8, seed=3).inputs
    moved = [
        np.abs(step_from(tiny, optimizer, inputs).trainable.conv.weight - tiny.conv.weight).max()
        for optimizer in (optax.sgd(1e3), scaled(rate=1e3))
    ]
    assert moved[0] == 0
    assert moved[1] > 0


def test_an_overflow_halves_the_scale_and_changes_nothing_else(net):
    inputs = colours(8, seed=3).inputs
    after = step_from(net, scaled(initial=2.0**40), inputs)
    assert float(loss_scale(after.opt_state)) == 2.0**39
    assert int(after.totals["skipped"]) == 1
    assert int(after.totals["examples"]) == 0
    assert eqx.tree_equal(after.trainable, eqx.filter(net, eqx.is_inexact_array))


def test_the_scale_grows_after_an_interval():
    transformation = scale_loss(4.0, growth_interval=2)
    state = transformation.init({})
    scales = []
    for _ in range(4):
        _, state = transformation.update({}, state)
        scales.append(float(state.scale))
    assert scales == [4.0, 8.0, 8.0, 16.0]
    assert float(backed_off(state).scale) == 8.0


def test_gradients_that_no_scale_makes_finite_end_the_run(net):
    inputs = colours(16, seed=1)
    inputs.inputs[3] = np.nan
    data = Data(Arrays(inputs.inputs, inputs.labels), colours(7, seed=2), batch_size=16)
    with pytest.raises(DivergedError, match="is not finite"):
        fit(net, data, optimizer=scaled(initial=SMALLEST_LOSS_SCALE * 4), epochs=9, compute_dtype=jnp.float16)
