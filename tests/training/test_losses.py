import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from onnxeqx.training import (
    accuracy,
    adamw,
    cross_entropy,
    cross_entropy_from_probabilities,
    decays,
    distillation,
    logits_of_probabilities,
    token_cross_entropy,
    warmup_cosine,
)

from .conftest import Net


def test_cross_entropy_by_hand():
    logits = np.array([[1.0, 2.0, 0.5], [0.0, 0.0, 3.0]], np.float32)
    labels = np.array([1, 0])
    expected = np.log(np.exp(logits).sum(1)) - logits[[0, 1], labels]
    np.testing.assert_allclose(cross_entropy(logits, labels), expected, rtol=1e-6)
    np.testing.assert_allclose(cross_entropy(logits[:, :, None, None], labels), expected, rtol=1e-6)
    np.testing.assert_allclose(
        cross_entropy_from_probabilities(jax.nn.softmax(logits), labels), expected, rtol=1e-5, atol=1e-6
    )


def test_a_vanished_probability_has_finite_loss_and_gradient():
    probabilities, labels = jnp.array([[1.0, 0.0]]), jnp.array([1])
    value, gradient = jax.value_and_grad(lambda p: cross_entropy_from_probabilities(p, labels).sum())(probabilities)
    assert jnp.isfinite(value)
    assert jnp.isfinite(gradient).all()


def test_half_precision_outputs_give_a_float32_loss():
    with jax.numpy_dtype_promotion("strict"):
        assert cross_entropy(jnp.zeros((2, 3), jnp.bfloat16), jnp.array([0, 1])).dtype == jnp.float32


def test_accuracy():
    outputs = np.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]], np.float32)
    assert accuracy(outputs, np.array([1, 1, 1])).tolist() == [1.0, 0.0, 1.0]
    assert accuracy(outputs[..., None, None], np.array([1, 1, 1])).tolist() == [1.0, 0.0, 1.0]


def test_the_schedule_rises_then_falls_to_zero():
    schedule = warmup_cosine(0.1, steps=100, warmup_steps=10)
    rates = [float(schedule(step)) for step in range(101)]
    assert 0 < rates[0] < rates[5] < rates[10] == pytest.approx(0.1)
    assert rates[10] > rates[50] > rates[99]
    assert rates[100] == pytest.approx(0, abs=1e-8)
    assert float(warmup_cosine(0.1, steps=100)(0)) == pytest.approx(0.1)


def test_biases_do_not_decay(net):
    trainable, _ = eqx.partition(net, eqx.is_inexact_array)
    # Gradients of zero: only weight decay moves the weights.
    optimizer = adamw(1.0, weight_decay=0.5)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, trainable), optimizer.init(trainable), trainable)
    moved = optax.apply_updates(trainable, updates)
    np.testing.assert_array_equal(moved.head.bias, net.head.bias)
    np.testing.assert_allclose(moved.head.weight, net.head.weight * 0.5, rtol=1e-6)
    mask = decays(trainable)
    assert isinstance(mask, Net)
    assert mask.head.weight is True
    assert mask.head.bias is False


def test_a_teachers_tokens_count_where_labels_do():
    random = np.random.default_rng(0)
    student, teacher = (jnp.asarray(random.normal(size=(2, 5, 4)), jnp.float32) for _ in range(2))
    labels = jnp.asarray([[0, 1, -100, -100, -100], [2, 3, 1, 0, -100]])
    loss = distillation(token_cross_entropy, share=1)
    changed = student.at[:, 4].set(100.0)
    np.testing.assert_allclose(loss((student, teacher), labels), loss((changed, teacher), labels))
    first = loss((student[:1, :2], teacher[:1, :2]), labels[:1, :2])
    np.testing.assert_allclose(loss((student, teacher), labels)[:1], first, rtol=1e-6)


def test_probabilities_of_tokens_are_logits_of_tokens():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 4)), jnp.float32)
    labels = jnp.asarray([[0, 1, -100, 2, 3], [2, 3, 1, 0, -100]])
    found = token_cross_entropy(logits_of_probabilities(jax.nn.softmax(logits)), labels)
    np.testing.assert_allclose(found, token_cross_entropy(logits, labels), rtol=1e-5)
