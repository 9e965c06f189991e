"""Losses that stand in graphs made for training."""

from typing import Any

import jax
import jax.numpy as jnp

from .._registry import op
from .hookspecs import hookimpl
from .reduction import widened


@op("NegativeLogLikelihoodLoss", since=12)
def negative_log_likelihood_loss(input, target, weight=None, *, ignore_index=None, reduction="mean"):
    """Minus the log-probability of each target, weighted by class. input: (n, classes, *d), target: (n, *d), weight: (classes,).

    The mean is over the sum of the weights; targets `ignore_index` count for nothing.

    https://onnx.ai/onnx/operators/onnx__NegativeLogLikelihoodLoss.html
    """
    counts = jnp.ones_like(target, dtype=bool) if ignore_index is None else target != ignore_index
    target = jnp.where(counts, target, 0)
    loss = -widened(jnp.take_along_axis(input, target[:, None], axis=1)[:, 0])
    weights = jnp.where(counts, 1 if weight is None else jnp.asarray(weight)[target], 0).astype(loss.dtype)
    # The second `where`: minus infinity where a target is ignored, times 0, would be NaN.
    return _reduced(jnp.where(counts, loss * weights, 0), weights, reduction).astype(input.dtype)


def _reduced(loss: Any, weights: Any, reduction: str) -> Any:
    match reduction:
        case "none":
            return loss
        case "sum":
            return loss.sum()
        case "mean":
            return loss.sum() / weights.sum()
    raise ValueError(f"There is no reduction {reduction!r}, only none, sum and mean; correct the node's attribute.")


@op("SoftmaxCrossEntropyLoss", since=12)
def softmax_cross_entropy_loss(scores, labels, weights=None, *, ignore_index=None, reduction="mean", n_outputs=1):
    """`negative_log_likelihood_loss` of the logarithm of softmax along axis 1, which is the second output.

    https://onnx.ai/onnx/operators/onnx__SoftmaxCrossEntropyLoss.html
    """
    log_prob = jax.nn.log_softmax(widened(scores), axis=1)
    loss = negative_log_likelihood_loss(log_prob, labels, weights, ignore_index=ignore_index, reduction=reduction)
    loss = loss.astype(scores.dtype)
    return (loss, log_prob.astype(scores.dtype)) if n_outputs > 1 else loss


@hookimpl
def onnxeqx_register_ops(registry):
    registry.add_module(__name__)
