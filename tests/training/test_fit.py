import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from onnxeqx import WeightsError, key_paths
from onnxeqx._weights import dotted_path
from onnxeqx.training import (
    Batch,
    ConfigError,
    Data,
    DivergedError,
    EpochDone,
    StepDone,
    TrainState,
    ValidationStep,
    accuracy,
    adamw,
    cross_entropy,
    fit,
    make_eval_step,
    make_train_step,
)
from onnxeqx.training.state import zero_totals

from .conftest import Net, colours


def bits(tree):
    return {path: np.asarray(getattr(leaf, "bits", leaf)).tobytes() for path, leaf in key_paths(tree).items()}


def array_paths(tree):
    return {dotted_path(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)}


def test_fit_learns_and_leaves_the_callers_model_alone(net, data):
    before = bits(net)
    fitted = fit(net, data, optimizer=adamw(0.05), epochs=8)
    assert fitted.history[0]["val_accuracy"] < 0.6
    assert fitted.history[-1]["val_accuracy"] == 1.0
    assert bits(net) == before
    assert [row["epoch"] for row in fitted.history] == list(range(9))
    assert set(fitted.history[1]) == {"epoch", "step", "train_loss", "train_accuracy", "val_loss", "val_accuracy"}
    outputs = fitted.model(jnp.asarray(data.validation.inputs))
    assert float(accuracy(outputs, data.validation.labels).mean()) == 1.0


def test_the_same_seed_gives_the_same_bits(net, data):
    first = fit(net, data, optimizer=adamw(0.05), epochs=2)
    second = fit(net, data, optimizer=adamw(0.05), epochs=2)
    assert bits(first.model) == bits(second.model)
    assert first.history == second.history
    other = Data(data.training, data.validation, data.batch_size, seed=4)
    assert bits(fit(net, other, optimizer=adamw(0.05), epochs=2).model) != bits(first.model)


@pytest.mark.parametrize(
    ("trainable", "freeze", "trained"),
    [
        ("head.*", None, {"head.weight", "head.bias"}),
        (None, ["conv.*", "hidden"], {"head.weight", "head.bias"}),
        (["hidden.*", "head.*"], "*.bias", {"hidden.weight", "head.weight"}),
    ],
)
def test_frozen_leaves_stay_and_cost_no_optimiser_state(net, data, trainable, freeze, trained):
    states = []
    fitted = fit(
        net,
        data,
        optimizer=adamw(0.05),
        trainable=trainable,
        freeze=freeze,
        epochs=1,
        callbacks=[lambda event: states.append(event.state) if isinstance(event, EpochDone) else None],
    )
    before, after = bits(net), bits(fitted.model)
    assert {path for path in before if before[path] != after[path]} == trained
    moments = states[-1].opt_state[0]
    assert array_paths(moments.mu) == array_paths(moments.nu) == array_paths(states[-1].trainable) == trained


def test_buffers_are_never_trained(net, data):
    fitted = fit(net, data, optimizer=adamw(0.05, weight_decay=1.0), epochs=1)
    assert bits(fitted.model)["scale"] == bits(net)["scale"]


def test_a_mask_serves_as_well_as_patterns(net, data):
    mask = eqx.tree_at(lambda m: m.head.bias, jax.tree.map(lambda _: False, net), True)
    fitted = fit(net, data, optimizer=optax.sgd(0.1), trainable=mask, epochs=1)
    before, after = bits(net), bits(fitted.model)
    assert {path for path in before if before[path] != after[path]} == {"head.bias"}


def test_a_mask_and_patterns_exclude_each_other(net, data):
    with pytest.raises(ConfigError, match="a mask already says all"):
        fit(net, data, optimizer=optax.sgd(0.1), trainable=jax.tree.map(eqx.is_inexact_array, net), freeze="head.*")


def test_nothing_to_train_is_an_error(net, data):
    with pytest.raises(ConfigError, match="Nothing is left to train"):
        fit(net, data, optimizer=adamw(0.1), freeze="*")
    with pytest.raises(WeightsError, match="'tail"):
        fit(net, data, optimizer=adamw(0.1), freeze="tail.*")


def test_padding_counts_for_nothing(net):
    inputs = np.random.default_rng(0).normal(size=(5, 3, 6, 6)).astype(np.float32)
    labels = np.array([0, 1, 2, 0, 1], np.int32)
    plain = Batch(inputs, labels, np.ones(5, bool))
    padding = np.full((3, 3, 6, 6), 1e3, np.float32)
    padded = Batch(np.concatenate([inputs, padding]), np.append(labels, [2, 2, 2]), np.arange(8) < 5)

    evaluate = make_eval_step(cross_entropy, {"accuracy": accuracy})
    sums = [evaluate(net, zero_totals(["accuracy"]), batch) for batch in (plain, padded)]
    assert int(sums[1]["examples"]) == 5
    for name in ("loss", "accuracy"):
        np.testing.assert_allclose(sums[1][name], sums[0][name], rtol=1e-6)

    optimizer = optax.sgd(0.1)
    step = make_train_step(optimizer, cross_entropy, {})
    states = [
        step(TrainState.create(net, optimizer, jax.tree.map(eqx.is_inexact_array, net)), batch)
        for batch in (plain, padded)
    ]
    np.testing.assert_allclose(states[1].model.head.weight, states[0].model.head.weight, rtol=1e-5, atol=1e-7)


def test_evaluation_counts_each_example_once(net, data):
    row = fit(net, data, optimizer=adamw(0.1), epochs=1).history[0]
    outputs = net(jnp.asarray(data.validation.inputs))
    assert row["val_accuracy"] == pytest.approx(float(accuracy(outputs, data.validation.labels).mean()))
    assert row["val_loss"] == pytest.approx(float(cross_entropy(outputs, data.validation.labels).mean()), rel=1e-5)


def test_steps_compile_once(net, data):
    optimizer = optax.sgd(0.1)
    traces = []

    def loss(outputs, labels):
        traces.append(outputs.shape)
        return cross_entropy(outputs, labels)

    fit(net, data, optimizer=optimizer, loss=loss, metrics={}, epochs=2)
    assert len(traces) == 3  # the step's gradient, the step's totals, the evaluation


def test_events_come_in_order(net, data):
    events = []
    fit(net, data, optimizer=adamw(0.1), epochs=2, callbacks=[events.append])
    one_epoch = [StepDone] * 3 + [ValidationStep, EpochDone]
    assert [type(event) for event in events] == [ValidationStep, EpochDone, *one_epoch, *one_epoch]
    assert [event.step for event in events if isinstance(event, StepDone)] == [1, 2, 3, 4, 5, 6]
    assert [event.previous["examples"] for event in events if isinstance(event, StepDone)] == [0, 8, 16] * 2


def test_loss_and_metrics_are_replaceable(net, data):
    def margin(outputs, labels):
        return jnp.maximum(0, 1 - outputs[jnp.arange(len(labels)), labels])

    row = fit(net, data, optimizer=optax.sgd(0.1), loss=margin, metrics={"margin": margin}, epochs=1).history[-1]
    assert row["val_loss"] == row["val_margin"]
    assert "val_accuracy" not in row


def test_a_loss_that_is_not_finite_ends_the_run(net):
    data = colours(8, seed=0)
    data.inputs[3] = np.nan
    with pytest.raises(
        DivergedError, match=r"gradient of step 1 \(epoch 1\) is not finite: the weights are still those of step 0"
    ):
        fit(net, Data(data, colours(3, seed=1), batch_size=4), optimizer=adamw(0.1), epochs=1)


def test_a_replaced_head_trains(data):
    net = eqx.tree_at(lambda m: m.head, Net(classes=9), eqx.nn.Linear(8, 3, key=jax.random.key(5)))
    assert fit(net, data, optimizer=adamw(0.05), trainable="head.*", epochs=1).model.head.weight.shape == (3, 8)
