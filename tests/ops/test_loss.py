"""Losses in graphs made for training: against ONNX Runtime's, by hand, and their gradients."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from onnxeqx.plugins.loss import negative_log_likelihood_loss, softmax_cross_entropy_loss

from .family_cases import check_against_runtime

SCORES = np.random.default_rng(0).standard_normal((4, 5)).astype(np.float32)
LABELS = np.array([1, 0, 4, 2])
WEIGHTS = np.array([0.5, 1.0, 2.0, 1.5, 0.25], np.float32)


@pytest.fixture(autouse=True)
def _strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        yield


def by_hand(ignored: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    log_prob = SCORES - np.log(np.exp(SCORES).sum(1, keepdims=True))
    weights = np.where(ignored == LABELS, 0, WEIGHTS[LABELS])
    return -log_prob[range(4), LABELS] * weights, weights


@pytest.mark.parametrize("ignored", [None, 4])
def test_reductions(ignored):
    losses, weights = by_hand(ignored)
    options = {"ignore_index": ignored}
    expected = {"none": losses, "sum": losses.sum(), "mean": losses.sum() / weights.sum()}
    for reduction, wanted in expected.items():
        found = softmax_cross_entropy_loss(SCORES, LABELS, jnp.asarray(WEIGHTS), reduction=reduction, **options)
        np.testing.assert_allclose(found, wanted, rtol=1e-5)


@pytest.mark.parametrize("opset", [12, 13])
@pytest.mark.parametrize("shape", [(4, 5), (2, 5, 3), (2, 5, 3, 2)])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_every_version_and_rank(opset, shape, reduction):
    generator = np.random.default_rng(1)
    scores = generator.standard_normal(shape).astype(np.float32)
    labels = generator.integers(0, 5, (shape[0], *shape[2:]))
    options = {"reduction": reduction, "ignore_index": 2}
    check_against_runtime("SoftmaxCrossEntropyLoss", opset, scores, labels, WEIGHTS, outputs=2, **options)
    check_against_runtime("SoftmaxCrossEntropyLoss", opset, scores, labels, reduction=reduction)
    check_against_runtime("NegativeLogLikelihoodLoss", opset, scores, labels, WEIGHTS, **options)
    check_against_runtime("NegativeLogLikelihoodLoss", opset, scores, labels, None, **options)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_means_over_many_targets_in_narrow_floats(dtype):
    """The sums of 180,000 weights and losses are infinite in float16."""
    generator = np.random.default_rng(1)
    scores = jnp.asarray(generator.standard_normal((2, 3, 300, 300)), dtype)
    labels = generator.integers(0, 3, (2, 300, 300))
    wanted = softmax_cross_entropy_loss(scores.astype(jnp.float32), labels)
    loss, log_prob = softmax_cross_entropy_loss(scores, labels, jnp.ones(3, dtype), n_outputs=2)
    assert (loss.dtype, log_prob.dtype) == (dtype, dtype)
    np.testing.assert_allclose(loss.astype(jnp.float32), wanted, rtol=5e-3)


def test_the_second_output_is_the_logarithm_of_softmax():
    _, log_prob = softmax_cross_entropy_loss(SCORES, LABELS, n_outputs=2)
    np.testing.assert_allclose(log_prob, jax.nn.log_softmax(SCORES, axis=1))


def test_an_ignored_label_may_lie_outside_the_classes():
    labels = np.array([1, -100, 4, 2])
    found = negative_log_likelihood_loss(jax.nn.log_softmax(SCORES), labels, ignore_index=-100, reduction="none")
    assert found[1] == 0
    assert jnp.isfinite(found).all()


def test_ignored_infinities_count_for_nothing():
    log_prob = jnp.log(jnp.array([[0.0, 1.0, 0.0], [0.0, 0.5, 0.5]]))
    labels = jnp.array([1, -1])

    def loss(log_prob):
        return negative_log_likelihood_loss(log_prob, labels, ignore_index=-1)

    assert loss(log_prob) == 0
    assert jax.grad(loss)(log_prob).tolist() == [[0, -1, 0], [0, 0, 0]]


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_gradients(reduction):
    def loss(scores, weights):
        return softmax_cross_entropy_loss(scores, LABELS, weights, ignore_index=4, reduction=reduction)

    check_grads(loss, (jnp.asarray(SCORES), jnp.asarray(WEIGHTS)), order=1, rtol=2e-2)


def test_jit_and_vmap():
    stacked = np.stack([SCORES, 2 * SCORES])
    losses = jax.jit(jax.vmap(lambda scores: softmax_cross_entropy_loss(scores, LABELS, jnp.asarray(WEIGHTS))))(stacked)
    np.testing.assert_allclose(losses[1], softmax_cross_entropy_loss(2 * SCORES, LABELS, WEIGHTS), rtol=1e-5)


@pytest.mark.parametrize("function", [negative_log_likelihood_loss, softmax_cross_entropy_loss])
def test_lowers_for_tpu_with_a_symbolic_batch(function):
    scores, labels = jax.export.symbolic_args_specs((SCORES, LABELS.astype(np.int32)), ("b, 5", "b"))
    jax.export.export(jax.jit(function), platforms=["tpu"])(scores, labels)


def test_unknown_reductions_are_refused():
    with pytest.raises(ValueError, match="no reduction 'max'"):
        negative_log_likelihood_loss(SCORES, LABELS, reduction="max")
