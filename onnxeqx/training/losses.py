"""Losses and metrics: plain functions of a batch of outputs and labels that give one value for each example."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

Values = Callable[[Any, Any], Array]
"""A loss or a metric: `(outputs, labels)` of a batch to one value for each example, shape `(batch,)`."""


def cross_entropy(outputs: Float[Array, "batch classes *ones"], labels: Int[Array, " batch"]) -> Float[Array, " batch"]:
    """Softmax cross entropy from logits (log-probabilities give the same value).

    **Arguments:**

    - `outputs`: logits of shape `(batch, classes)`; axes of size 1 after the classes are ignored.
    - `labels`: class indices of shape `(batch,)`, integers.

    **Returns:** the loss of each example, shape `(batch,)`, in the outputs' dtype or float32, whichever is wider.
    """
    logits = _flat(outputs)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def smoothed_cross_entropy(smoothing: float) -> Callable[[Array, Array], Array]:
    """Cross entropy towards labels of which a share is spread over all classes: https://arxiv.org/abs/1512.00567.

    **Arguments:**

    - `smoothing`: that share, in [0, 1).

    **Returns:** a loss with the arguments and the result of `cross_entropy`.
    """

    def loss(outputs: Array, labels: Array) -> Array:
        logits = _flat(outputs)
        targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype), smoothing)
        return optax.softmax_cross_entropy(logits, targets)

    return loss


def logits_of_probabilities(outputs: Float[Array, "batch ..."]) -> Float[Array, "batch ..."]:
    """Logits of which the softmax is what a model gives that already ends in Softmax.

    A probability that underflowed to zero counts as the smallest normal number, so that loss and gradient are finite.
    """
    probabilities = _wide(outputs)
    # The logarithm of a softmax's output is again a logit, up to a constant that a softmax removes.
    return jnp.log(jnp.maximum(probabilities, jnp.finfo(probabilities.dtype).tiny))


def cross_entropy_from_probabilities(
    outputs: Float[Array, "batch classes *ones"], labels: Int[Array, " batch"]
) -> Float[Array, " batch"]:
    """Cross entropy for a model that already ends in Softmax.

    See `logits_of_probabilities`. Arguments and result as in `cross_entropy`.
    """
    return cross_entropy(logits_of_probabilities(outputs), labels)


def class_weighted(loss: Values, weights: Sequence[float]) -> Values:
    """A loss of which each example counts by the weight of its class; weights are scaled to a mean of 1 over classes.

    **Arguments:**

    - `loss`: takes class indices of shape `(batch,)`.
    - `weights`: one for each class, in the order of the labels.
    """
    scaled = np.asarray(weights, np.float32) * len(weights) / sum(weights)

    def weighted(outputs: Any, labels: Any) -> Array:
        return loss(outputs, labels) * jnp.asarray(scaled)[labels]

    return weighted


def binary_cross_entropy(
    outputs: Float[Array, "batch classes *ones"], labels: Float[Array, "batch classes"]
) -> Float[Array, " batch"]:
    """Sigmoid cross entropy from logits, for several labels at once.

    **Arguments:**

    - `outputs`: logits of shape `(batch, classes)`; axes of size 1 after the classes are ignored.
    - `labels`: 1 where the label holds, else 0; shape `(batch, classes)`, float.

    **Returns:** the mean over classes, shape `(batch,)`.
    """
    return optax.sigmoid_binary_cross_entropy(_flat(outputs), labels).mean(-1)


def squared_error(
    outputs: Float[Array, "batch targets *ones"], labels: Float[Array, "batch targets"]
) -> Float[Array, " batch"]:
    """The mean over targets of squared differences; shapes as of `binary_cross_entropy`."""
    return optax.losses.squared_error(_flat(outputs), _flat(labels)).mean(-1)


def absolute_error(
    outputs: Float[Array, "batch targets *ones"], labels: Float[Array, "batch targets"]
) -> Float[Array, " batch"]:
    """The mean over targets of absolute differences; shapes as of `binary_cross_entropy`."""
    return jnp.abs(_flat(outputs) - _flat(labels)).mean(-1)


def huber(
    outputs: Float[Array, "batch targets *ones"], labels: Float[Array, "batch targets"]
) -> Float[Array, " batch"]:
    """Half of squared differences, linear beyond 1 (https://doi.org/10.1214/aoms/1177703732); the mean over targets."""
    return optax.losses.huber_loss(_flat(outputs), _flat(labels)).mean(-1)


IGNORED = -100
"""The label of positions that do not count, as in PyTorch and Hugging Face."""


def token_cross_entropy(
    outputs: Float[Array, "batch positions classes"], labels: Int[Array, "batch positions"]
) -> Float[Array, " batch"]:
    """Softmax cross entropy at each position, the mean over those that count.

    **Arguments:**

    - `outputs`: logits, shape `(batch, positions, classes)`.
    - `labels`: class indices, or -100 where a position does not count; shape `(batch, positions)`.
    """
    logits = _wide(outputs)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
    return _mean_of_counted(losses, labels)


def smoothed_token_cross_entropy(smoothing: float) -> Values:
    """`token_cross_entropy` towards labels of which a share is spread over all classes: https://arxiv.org/abs/1512.00567."""

    def loss(outputs: Array, labels: Array) -> Array:
        logits = _wide(outputs)
        targets = optax.smooth_labels(
            jax.nn.one_hot(jnp.maximum(labels, 0), logits.shape[-1], dtype=logits.dtype), smoothing
        )
        return _mean_of_counted(optax.softmax_cross_entropy(logits, targets), labels)

    return loss


def contrastive(temperature: float = 0.05) -> Values:
    """InfoNCE over the batch: each first embedding is to find its second among all (https://arxiv.org/abs/1807.03748).

    **Arguments:**

    - `temperature`: divides the cosine similarities.

    **Returns:** a loss of a pair of embeddings, each of shape `(batch, width)`, and labels of shape `(batch,)`: examples with
    equal labels (padding repeats one) are no negatives of each other.
    """

    def loss(outputs: tuple[Array, Array], labels: Int[Array, " batch"]) -> Float[Array, " batch"]:
        return optax.softmax_cross_entropy_with_integer_labels(
            _similarities(outputs, labels) / temperature, jnp.arange(len(labels))
        )

    return loss


def retrieval(outputs: tuple[Array, Array], labels: Int[Array, " batch"]) -> Float[Array, " batch"]:
    """1 where a first embedding is nearest to its own second among those of the batch, else 0. Arguments as in `contrastive`."""
    return (jnp.argmax(_similarities(outputs, labels), -1) == jnp.arange(len(labels))).astype(jnp.float32)


def distillation(loss: Values, *, share: float, temperature: float = 1.0) -> Values:
    """A loss towards a teacher's outputs, beside one towards labels: https://arxiv.org/abs/1503.02531.

    **Arguments:**

    - `loss`: towards labels; not asked for if `share` is 1.
    - `share`: of the teacher in the sum.
    - `temperature`: divides the logits of both; the divergence is multiplied by its square.

    **Returns:** a loss of a pair of logits, the model's and the teacher's, with the classes in their last axis; where labels are
    of positions, those of -100 do not count.
    """

    def distilled(outputs: tuple[Array, Array], labels: Any) -> Float[Array, " batch"]:
        student, teacher = (_wide(logits) for logits in outputs)
        divergence = optax.losses.kl_divergence(
            jax.nn.log_softmax(student / temperature), jax.nn.softmax(teacher / temperature)
        )
        if divergence.ndim == 2 and divergence.shape == jnp.shape(labels):  # of tokens, some of which are padding
            soft = _mean_of_counted(divergence, labels) * temperature**2
        else:
            soft = divergence.reshape(len(divergence), -1).mean(-1) * temperature**2
        return soft if share == 1 else share * soft + (1 - share) * loss(student, labels)

    return distilled


def accuracy(outputs: Float[Array, "batch classes *ones"], labels: Int[Array, " batch"]) -> Float[Array, " batch"]:
    """1 where the largest output is the label, else 0. Arguments as in `cross_entropy`; shape `(batch,)`, float32."""
    return (jnp.argmax(_flat(outputs), axis=-1) == labels).astype(jnp.float32)


def label_accuracy(
    outputs: Float[Array, "batch classes *ones"], labels: Float[Array, "batch classes"]
) -> Float[Array, " batch"]:
    """The share of labels that are right, of several at once, from logits; shapes as of `binary_cross_entropy`."""
    return ((_flat(outputs) > 0) == (labels > 0.5)).mean(-1, dtype=jnp.float32)


def exact_match(
    outputs: Float[Array, "batch classes *ones"], labels: Float[Array, "batch classes"]
) -> Float[Array, " batch"]:
    """1 where all labels are right, else 0, from logits; shapes as of `binary_cross_entropy`."""
    return ((_flat(outputs) > 0) == (labels > 0.5)).all(-1).astype(jnp.float32)


def token_accuracy(
    outputs: Float[Array, "batch positions classes"], labels: Int[Array, "batch positions"]
) -> Float[Array, " batch"]:
    """The share of the positions that count at which the largest output is the label; shapes as of `token_cross_entropy`."""
    return _mean_of_counted((jnp.argmax(outputs, -1) == labels).astype(jnp.float32), labels)


def _mean_of_counted(values: Array, labels: Array) -> Array:
    counted = labels != IGNORED
    return jnp.where(counted, values, 0).sum(-1) / jnp.maximum(counted.sum(-1), 1)


def _similarities(outputs: tuple[Array, Array], labels: Array) -> Array:
    """Cosine similarities of all pairs, shape `(batch, batch)`; none between different examples with equal labels."""
    first, second = (optax.safe_norm(x, 1e-12, axis=-1, keepdims=True) for x in outputs)
    similarities = (outputs[0] / first) @ (outputs[1] / second).T
    twins = (labels[:, None] == labels[None]) & ~jnp.eye(len(labels), dtype=bool)
    return jnp.where(twins, -jnp.inf, similarities)


def _flat(outputs: Array) -> Array:
    """`(batch, classes)` in float32 or wider: networks with a convolutional head give `(batch, classes, 1, 1)`."""
    return _wide(outputs.reshape(outputs.shape[0], -1))


def _wide(outputs: Array) -> Array:
    return outputs.astype(outputs.dtype if outputs.dtype.itemsize >= 4 else jnp.float32)
