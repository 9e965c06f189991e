"""Losses in graphs made for training: against ONNX Runtime's, by hand, and their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from onnxeqx.plugins.loss import negative_log_likelihood_loss, softmax_cross_entropy_loss

SCORES = np.random.default_rng(0).standard_normal((4, 5)).astype(np.float32)
LABELS = np.array([1, 0, 4, 2])
WEIGHTS = np.array([0.5, 1.0, 2.0, 1.5, 0.25], np.float32)


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


def test_the_second_output_is_the_logarithm_of_softmax():
    _, log_prob = softmax_cross_entropy_loss(SCORES, LABELS, n_outputs=2)
    np.testing.assert_allclose(log_prob, jax.nn.log_softmax(SCORES, axis=1))


def test_an_ignored_label_may_lie_outside_the_classes():
    labels = np.array([1, -100, 4, 2])
    found = negative_log_likelihood_loss(jax.nn.log_softmax(SCORES), labels, ignore_index=-100, reduction="none")
    assert found[1] == 0
    assert jnp.isfinite(found).all()


def test_gradients():
    check_grads(lambda scores: softmax_cross_entropy_loss(scores, LABELS), (SCORES,), order=1, rtol=2e-2)


def test_unknown_reductions_are_refused():
    with pytest.raises(ValueError, match="no reduction 'max'"):
        negative_log_likelihood_loss(SCORES, LABELS, reduction="max")
