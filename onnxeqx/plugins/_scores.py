"""What the classifiers and regressors of `ai.onnx.ml` have in common: scores, and the labels that they stand for."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..runtime import canonical_dtype, host_value


def transformed(scores: Any, post_transform: str) -> Any:
    """Scores (batch, targets) after an attribute `post_transform`.

    **Raises:** `ValueError` if there is no such transform.
    """
    match post_transform:
        case "NONE":
            return scores
        case "LOGISTIC":
            return jax.nn.sigmoid(scores)
        case "SOFTMAX":
            return jax.nn.softmax(scores, axis=-1)
        case "SOFTMAX_ZERO":  # scores of 0 stay 0
            return jnp.where(scores == 0, 0, jax.nn.softmax(jnp.where(scores == 0, -jnp.inf, scores), axis=-1))
        case "PROBIT":
            return jax.scipy.stats.norm.ppf(scores)
    raise ValueError(f"There is no post_transform {post_transform!r}; correct the node's attribute.")


def two_classes(score: Any, post_transform: str, *, probability: bool) -> Any:
    """One score (batch,) as those of two classes, as ONNX Runtime does: `probability` says which kind of score it is."""
    if probability:
        score = transformed(score, post_transform) if post_transform == "LOGISTIC" else score
        return jnp.stack((1 - score, score), axis=1)
    pair = jnp.stack((-score, score), axis=1)
    return jax.nn.sigmoid(pair) if post_transform == "LOGISTIC" else pair


def labelled(chosen: Any, labels: Sequence[Any]) -> Any:
    """The labels of the chosen classes (batch,): integers, or text on the host.

    **Raises:** `HostValueError` for text while tracing.
    """
    if labels and isinstance(labels[0], str | bytes):
        texts = np.array([label.decode() if isinstance(label, bytes) else label for label in labels], object)
        return texts[host_value(chosen, "label, which is text and therefore chosen on the host,")]
    return jnp.asarray(labels, canonical_dtype(np.int64))[chosen]
