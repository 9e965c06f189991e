"""BatchNorm in training: it normalises by the batch, and its statistics follow."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import onnxeqx
from onnxeqx import nn
from onnxeqx.training import (
    ConfigError,
    TrainState,
    adamw,
    fit,
    following_statistics,
    freeze_batch_norm,
    make_train_step,
    statistics_paths,
    train_batch_norm,
)
from onnxeqx.training.data import Batch
from onnxeqx.training.losses import cross_entropy
from onnxeqx.training.optimizers import optimizer
from onnxeqx.training.statistics import with_statistics

from .conftest import Net, colours
from .tiny import write_tiny


class NormNet(eqx.Module):
    """As `Net`, with a BatchNorm behind its convolution."""

    net: Net
    norm: nn.BatchNorm

    def __init__(self):
        self.net = Net()
        self.norm = nn.BatchNorm(3)

    def __call__(self, x):
        return self.net(self.norm(x))


@pytest.fixture
def model():
    return train_batch_norm(NormNet())


def training_of(model, wrapped):
    mask = with_statistics(jax.tree.map(eqx.is_inexact_array, model), model)
    return mask, following_statistics(wrapped, statistics_paths(model))


def test_in_training_the_batch_normalises_and_in_inference_what_is_stored():
    random = np.random.default_rng(0)
    layer = eqx.tree_at(lambda bn: (bn.weight, bn.bias), nn.BatchNorm(3), (jnp.array([1.0, 2, 3]), jnp.arange(3.0)))
    x = random.normal(2, 3, size=(4, 3, 5)).astype(np.float32)
    training = nn.TrainingBatchNorm(layer)
    mean, variance = x.mean((0, 2), keepdims=True), x.var((0, 2), keepdims=True)
    wanted = (x - mean) / np.sqrt(variance + 1e-5) * np.array([1, 2, 3])[:, None] + np.arange(3)[:, None]
    np.testing.assert_allclose(training(x), wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(eqx.nn.inference_mode(training)(x), layer(x))
    assert eqx.tree_equal(training.frozen(), layer)


def test_gradients_go_through_the_statistics_of_the_batch():
    random = np.random.default_rng(0)
    x, weights = (jnp.asarray(random.normal(size=(6, 3)).astype(np.float32)) for _ in range(2))
    layer = nn.TrainingBatchNorm(nn.BatchNorm(3))

    def plain(x):
        return jnp.sum(weights * (x - x.mean(0)) / jnp.sqrt(x.var(0) + 1e-5))

    found = jax.grad(lambda x: jnp.sum(weights * layer(x)))(x)
    np.testing.assert_allclose(found, jax.grad(plain)(x), rtol=1e-4, atol=1e-5)


def test_statistics_follow_the_batches_as_in_pytorch(model):
    mask, following = training_of(model, adamw(0.01, weight_decay=0.5))
    state = TrainState.create(model, following, mask)
    step = make_train_step(following, cross_entropy, {})
    mean, variance = np.zeros(3), np.ones(3)
    for seed in range(4):
        batch = colours(8, seed)
        state = step(state, Batch(batch.inputs, batch.labels.astype(np.int32), np.ones(8, bool)))
        # https://docs.pytorch.org/docs/stable/generated/torch.nn.BatchNorm2d.html: momentum 0.1, the unbiased variance.
        mean = 0.9 * mean + 0.1 * batch.inputs.mean((0, 2, 3))
        variance = 0.9 * variance + 0.1 * batch.inputs.var((0, 2, 3), ddof=1)
    norm = freeze_batch_norm(state.model).norm
    np.testing.assert_allclose(norm.running_mean.value, mean, rtol=1e-5)
    np.testing.assert_allclose(norm.running_var.value, variance, rtol=1e-5)


def test_accumulation_clipping_and_averages_leave_the_statistics_alone(model, data):
    ends = []
    for wrapped in (
        adamw(0.01),
        optimizer("adamw", 0.01, clip_grad=1e-6, average_decay=0.5),
        optimizer("adamw", 0.01, accumulation_steps=2),
    ):
        mask, following = training_of(model, wrapped)
        ends.append(fit(model, data, optimizer=following, trainable=mask, epochs=2).model.norm)
    for end in ends[1:]:
        np.testing.assert_array_equal(end.running_mean, ends[0].running_mean)
        np.testing.assert_array_equal(end.running_var, ends[0].running_var)


def test_frozen_statistics_stay_bit_by_bit(data):
    model = NormNet()
    trained = fit(model, data, optimizer=optax.adamw(0.1, weight_decay=0.5), epochs=1).model
    assert eqx.tree_equal(trained.norm.running_mean, model.norm.running_mean)
    assert eqx.tree_equal(trained.norm.running_var, model.norm.running_var)
    assert not eqx.tree_equal(trained.norm.weight, model.norm.weight)


def test_a_loaded_network_trains_its_statistics_and_is_saved_with_them(tmp_path):
    import onnxruntime

    loaded = onnxeqx.load(write_tiny(tmp_path / "net.onnx"))
    model = train_batch_norm(loaded)
    assert statistics_paths(model) == ["features.1.running_mean", "features.1.running_var"]
    mask, following = training_of(model, adamw(0.01))
    images = np.random.default_rng(0).normal(1, 2, size=(16, 3, 12, 12)).astype(np.float32)
    state = TrainState.create(model, following, mask)
    state = make_train_step(following, cross_entropy, {})(
        state, Batch(images, np.zeros(16, np.int32), np.ones(16, bool))
    )
    trained = freeze_batch_norm(state.model)
    assert jax.tree.structure(trained) == jax.tree.structure(loaded)
    assert not np.allclose(trained.features[1].running_mean.value, loaded.features[1].running_mean.value)
    onnxeqx.save_onnx(trained, tmp_path / "trained.onnx")
    (served,) = onnxruntime.InferenceSession(tmp_path / "trained.onnx").run(None, {"image": images})
    np.testing.assert_allclose(served, trained(images), rtol=1e-4, atol=1e-5)


def test_a_network_without_batch_norm_is_refused(net):
    with pytest.raises(ConfigError, match="exporters fold it into convolutions"):
        train_batch_norm(net)
