"""Optimisers by name, what goes around them, and schedules."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import onnxeqx
from onnxeqx.training import (
    Checkpoints,
    ConfigError,
    Data,
    averaged,
    cross_entropy,
    decays,
    fit,
    optimizer,
    smoothed_cross_entropy,
    warmup_constant,
    warmup_cosine,
    warmup_linear,
)
from onnxeqx.training.optimizers import optimizer_names
from tests.deep_models import deepened

from .conftest import Net, colours
from .test_fit import bits


def parameters_of(net: Net):
    return eqx.partition(net, onnxeqx.parameters(net))[0]


def gradients_of(net: Net, scale: float = 1.0):
    return jax.tree.map(lambda leaf: jnp.full_like(leaf, scale), parameters_of(net))


def after_one_update(transformation, net: Net, scale: float = 1.0):
    params = parameters_of(net)
    updates, state = transformation.update(gradients_of(net, scale), transformation.init(params), params)
    return onnxeqx.key_paths(updates), state


@pytest.mark.parametrize("name", optimizer_names())
def test_every_optimiser_of_optax_moves_the_parameters(name, net):
    transformation, params = optimizer(name, 1e-2, clip_grad=1.0), parameters_of(net)
    state = transformation.init(params)
    for _ in range(2):  # some only look at the first gradients
        updates, state = transformation.update(gradients_of(net), state, params)
    found = onnxeqx.key_paths(updates)
    assert all(np.isfinite(update).all() for update in found.values())
    assert any(np.abs(update).max() > 0 for update in found.values())


def test_the_common_ones_are_there():
    assert {"adamw", "adam", "sgd", "lion", "lamb", "adafactor", "rmsprop", "adagrad", "radam"} <= set(
        optimizer_names()
    )


def test_unknown_names_are_refused():
    with pytest.raises(ConfigError, match=r"--opt is 'adamx'; Optax has .*adamw, "):
        optimizer("adamx", 0.1)
    with pytest.raises(ConfigError, match=r"--opt-args has 'momentun', but optax.sgd takes momentum, nesterov"):
        optimizer("sgd", 0.1, arguments={"momentun": 0.9})


def test_weight_decay_is_coupled_where_the_optimiser_has_none(net):
    updates, _ = after_one_update(optimizer("sgd", 0.1, weight_decay=0.5), net)
    np.testing.assert_allclose(updates["head.weight"], -0.1 * (1 + 0.5 * net.head.weight), rtol=1e-6)
    np.testing.assert_allclose(updates["head.bias"], -0.1, rtol=1e-6)


def test_biases_of_stacked_layers_do_not_decay():
    model = onnxeqx.load_model(deepened("bert_small.ts", 4), scan_layers=True)
    found = {
        path: bool(leaf)
        for path, leaf in onnxeqx.key_paths(as_arrays(decays(eqx.filter(model, eqx.is_inexact_array)))).items()
    }
    layer = "mods.0.bert.encoder.layer.output"
    assert onnxeqx.key_paths(model)[f"{layer}.dense.bias"].ndim == 2
    assert [found[f"{layer}.{name}"] for name in ("dense.weight", "dense.bias", "LayerNorm.weight")] == [
        True,
        False,
        False,
    ]


def as_arrays(tree):
    return jax.tree.map(np.asarray, tree)


def test_clipping_bounds_the_norm_of_all_gradients_together(net):
    clipped, _ = after_one_update(optimizer("sgd", 1.0, weight_decay=0, clip_grad=0.5), net, scale=100.0)
    norm = np.sqrt(sum(np.square(update).sum() for update in clipped.values()))
    np.testing.assert_allclose(norm, 0.5, rtol=1e-5)
    small, _ = after_one_update(optimizer("sgd", 1.0, weight_decay=0, clip_grad=1e6), net)
    np.testing.assert_allclose(small["head.bias"], -1.0)


def test_accumulated_batches_are_one_big_batch(net):
    """Padding aside: each batch counts alike."""
    parts = colours(32, seed=1), colours(8, seed=2)
    schedule = warmup_linear(0.05, steps=6, warmup_steps=2)
    big = fit(net, Data(*parts, batch_size=16, seed=3), optimizer=optimizer("adamw", schedule), epochs=3)
    small = fit(
        net, Data(*parts, batch_size=8, seed=3), optimizer=optimizer("adamw", schedule, accumulation_steps=2), epochs=3
    )
    assert small.history[-1]["step"] == 2 * big.history[-1]["step"]
    for path, leaf in onnxeqx.key_paths(parameters_of(big.model)).items():
        np.testing.assert_allclose(onnxeqx.key_paths(small.model)[path], leaf, atol=1e-6, err_msg=path)


def test_the_average_follows_the_weights(net):
    transformation = optimizer("sgd", 0.1, weight_decay=0, average_decay=0.5)
    params = parameters_of(net)
    state, expected = transformation.init(params), net.head.bias
    for number in (1, 2, 3):
        updates, state = transformation.update(gradients_of(net), state, params)
        params = optax.apply_updates(params, updates)
        rate = min(0.5, (1 + number) / (10 + number))
        expected = rate * expected + (1 - rate) * params.head.bias
    np.testing.assert_allclose(averaged(state).head.bias, expected, rtol=1e-6)
    assert averaged(optimizer("sgd", 0.1).init(params)) is None


@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_the_average_is_what_is_evaluated_kept_and_resumed(net, data, tmp_path, accumulation_steps):
    arguments = {"weight_decay": 0.0, "average_decay": 0.99, "accumulation_steps": accumulation_steps}
    states = []

    def run(epochs: int, folder, **options):
        with Checkpoints(tmp_path / folder) as checkpoints:
            return fit(
                net,
                data,
                optimizer=optimizer("sgd", 0.5, **arguments),
                epochs=epochs,
                restore=checkpoints.restore,
                callbacks=[checkpoints, lambda event: states.append(event.state)],
                **options,
            )

    whole = run(4, "whole")
    last = states[-1]
    assert bits(whole.model) == bits(last.evaluated) != bits(last.model)
    outputs = last.evaluated(jnp.asarray(data.validation.inputs))
    loss = float(cross_entropy(outputs, data.validation.labels).mean())
    assert whole.history[-1]["val_loss"] == pytest.approx(loss, rel=1e-5)
    run(2, "parts")
    assert bits(run(4, "parts").model) == bits(whole.model)


def test_label_smoothing():
    logits, labels = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32), np.array([0, 3, 1, 2, 2])
    targets = 0.9 * np.eye(4)[labels] + 0.1 / 4
    expected = -(targets * jax.nn.log_softmax(logits)).sum(1)
    np.testing.assert_allclose(smoothed_cross_entropy(0.1)(logits, labels), expected, rtol=1e-6)
    np.testing.assert_allclose(smoothed_cross_entropy(0.0)(logits, labels), cross_entropy(logits, labels), rtol=1e-6)


@pytest.mark.parametrize(
    ("schedule", "end"),
    [(warmup_cosine, 0.0), (warmup_linear, 0.0), (warmup_constant, 2.0)],
    ids=["cosine", "linear", "constant"],
)
def test_schedules_rise_and_fall(schedule, end):
    rate = schedule(2.0, steps=20, warmup_steps=4)
    rates = [float(rate(step)) for step in range(21)]
    assert rates[0] == pytest.approx(0.4)
    assert rates[:5] == sorted(rates[:5])
    assert rates[4] == pytest.approx(2.0)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[20] == pytest.approx(end, abs=1e-6)
    assert float(schedule(2.0, steps=20)(0)) == pytest.approx(2.0)


def test_the_run_stops_when_asked(net, data):
    asked = []
    fitted = fit(net, data, optimizer=optimizer("sgd", 0.1), epochs=9, stop=lambda: asked.append(0) or len(asked) > 3)
    assert [row["epoch"] for row in fitted.history] == [0, 1, 2, 3]


def test_the_validation_loss_is_another(net, data):
    optimizers = optimizer("sgd", 0.0, weight_decay=0)
    smoothed = fit(
        net, data, optimizer=optimizers, epochs=1, loss=smoothed_cross_entropy(0.5), validation_loss=cross_entropy
    )
    plain = fit(net, data, optimizer=optimizers, epochs=1)
    assert smoothed.history[-1]["val_loss"] == plain.history[-1]["val_loss"]
    assert smoothed.history[-1]["train_loss"] != plain.history[-1]["train_loss"]
