"""Losses and metrics: plain functions of a batch of outputs and labels that give one value for each example."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int


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


def logits_of_probabilities(outputs: Float[Array, "batch classes *ones"]) -> Float[Array, "batch classes"]:
    """Logits of which the softmax is what a model gives that already ends in Softmax.

    A probability that underflowed to zero counts as the smallest normal number, so that loss and gradient are finite.
    """
    probabilities = _flat(outputs)
    # The logarithm of a softmax's output is again a logit, up to a constant that a softmax removes.
    return jnp.log(jnp.maximum(probabilities, jnp.finfo(probabilities.dtype).tiny))


def cross_entropy_from_probabilities(
    outputs: Float[Array, "batch classes *ones"], labels: Int[Array, " batch"]
) -> Float[Array, " batch"]:
    """Cross entropy for a model that already ends in Softmax.

    See `logits_of_probabilities`. Arguments and result as in `cross_entropy`.
    """
    return cross_entropy(logits_of_probabilities(outputs), labels)


def accuracy(outputs: Float[Array, "batch classes *ones"], labels: Int[Array, " batch"]) -> Float[Array, " batch"]:
    """1 where the largest output is the label, else 0. Arguments as in `cross_entropy`; shape `(batch,)`, float32."""
    return (jnp.argmax(_flat(outputs), axis=-1) == labels).astype(jnp.float32)


def _flat(outputs: Array) -> Array:
    """`(batch, classes)` in float32 or wider: networks with a convolutional head give `(batch, classes, 1, 1)`."""
    flat = outputs.reshape(outputs.shape[0], -1)
    return flat.astype(flat.dtype if flat.dtype.itemsize >= 4 else jnp.float32)
