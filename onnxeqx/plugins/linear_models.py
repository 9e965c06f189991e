"""Linear models and support vector machines, as scikit-learn's converters write them."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .._registry import op
from ._scores import labelled, transformed, two_classes
from .hookspecs import hookimpl

_DOMAIN = "ai.onnx.ml"


def _floating(x: Any) -> Any:
    return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.float32)


@op("LinearRegressor", domain=_DOMAIN, since=1)
def linear_regressor(X, *, coefficients=None, intercepts=None, post_transform="NONE", targets=1):
    """`X @ coefficients.T + intercepts`. X: (batch, features), numbers -> (batch, targets), float32.

    https://onnx.ai/onnx/operators/onnx_aionnxml_LinearRegressor.html
    """
    weight = np.asarray(coefficients, np.float32).reshape(targets, -1)
    scores = X.astype(jnp.float32) @ weight.T
    scores = scores if not intercepts else scores + np.asarray(intercepts, np.float32)
    return transformed(scores, post_transform)


@op("LinearClassifier", domain=_DOMAIN, since=1)
def linear_classifier(
    X,
    *,
    classlabels_ints=None,
    classlabels_strings=None,
    coefficients,
    intercepts=None,
    multi_class=0,
    post_transform="NONE",
    n_outputs=1,
):
    """The label of the highest score, and the scores. X: (batch, features) -> (batch,), and (batch, classes) float32.

    https://onnx.ai/onnx/operators/onnx_aionnxml_LinearClassifier.html
    """
    labels: Any = classlabels_ints if classlabels_strings is None else classlabels_strings
    rows = len(intercepts) if intercepts else len(labels)
    scores = linear_regressor(X, coefficients=coefficients, intercepts=intercepts, targets=rows)
    if rows == 1 and len(labels) == 2:
        chosen = (scores[:, 0] > 0).astype(jnp.int32)
        scores = jnp.concatenate((1 - scores, scores), axis=1)
    else:
        chosen = jnp.argmax(scores, axis=1)
        scores = transformed(scores, post_transform)
    found = labelled(chosen, labels)
    return (found, scores) if n_outputs > 1 else found


def _kernel(x: Any, vectors: np.ndarray, kind: str, parameters: Sequence[float] | None) -> Any:
    """Similarity of each example to each support vector: (batch, vectors)."""
    gamma, offset, degree = parameters or (0.0, 0.0, 0.0)
    products = x @ vectors.T
    match kind:
        case "LINEAR":
            return products
        case "POLY":
            return (gamma * products + offset) ** degree
        case "RBF":
            return jnp.exp(-gamma * ((x[:, None] - vectors) ** 2).sum(-1))
        case "SIGMOID":
            return jnp.tanh(gamma * products + offset)
    raise ValueError(
        f"There is no kernel_type {kind!r}, only LINEAR, POLY, RBF and SIGMOID; correct the node's attribute."
    )


@op("SVMRegressor", domain=_DOMAIN, since=1)
def svm_regressor(
    X,
    *,
    coefficients=None,
    kernel_params=None,
    kernel_type="LINEAR",
    n_supports=0,
    one_class=0,
    post_transform="NONE",
    rho=None,
    support_vectors=None,
):
    """A support vector machine's number for each example, or its sign for one class. X: (batch, features) -> (batch, 1), float32.

    https://onnx.ai/onnx/operators/onnx_aionnxml_SVMRegressor.html
    """
    x, weights = X.astype(jnp.float32), np.asarray(coefficients, np.float32)
    if n_supports:
        vectors = np.asarray(support_vectors, np.float32).reshape(n_supports, -1)
        scores = _kernel(x, vectors, kernel_type, kernel_params) @ weights
    else:
        scores = _kernel(x, weights[None], kernel_type, kernel_params)[:, 0]
    scores = scores + np.float32((rho or (0.0,))[0])
    if one_class:
        scores = jnp.where(scores > 0, 1.0, -1.0).astype(jnp.float32)
    return transformed(scores[:, None], post_transform)


@op("SVMClassifier", domain=_DOMAIN, since=1)
def svm_classifier(
    X,
    *,
    classlabels_ints=None,
    classlabels_strings=None,
    coefficients=None,
    kernel_params=None,
    kernel_type="LINEAR",
    post_transform="NONE",
    prob_a=None,
    prob_b=None,
    rho=None,
    support_vectors=None,
    vectors_per_class=None,
    n_outputs=1,
):
    """The label by votes of every pair of classes, and scores or probabilities. X: (batch, features) -> (batch,), (batch, n).

    https://onnx.ai/onnx/operators/onnx_aionnxml_SVMClassifier.html
    """
    labels: Any = classlabels_ints if classlabels_strings is None else classlabels_strings
    x = X.astype(jnp.float32)
    if not vectors_per_class:  # one linear function for each class
        weights = np.asarray(coefficients, np.float32).reshape(len(labels), -1)
        scores = _kernel(x, weights, kernel_type, kernel_params) + np.float32((rho or (0.0,))[0])
        return _chosen(jnp.argmax(scores, axis=1), transformed(scores, post_transform), labels, n_outputs)
    decisions = _pairwise(x, coefficients, kernel_type, kernel_params, support_vectors, vectors_per_class, rho)
    votes = _votes(decisions, len(vectors_per_class))
    if prob_a:
        scores = _probabilities(decisions, np.asarray(prob_a), np.asarray(prob_b), len(vectors_per_class))
    else:
        scores = two_classes(decisions[:, 0], post_transform, probability=False) if len(labels) == 2 else decisions
        scores = scores if len(labels) == 2 else transformed(scores, post_transform)
    return _chosen(jnp.argmax(votes, axis=1), scores, labels, n_outputs)


def _chosen(chosen: Any, scores: Any, labels: Sequence[Any], n_outputs: int) -> Any:
    found = labelled(chosen, labels)
    return (found, scores) if n_outputs > 1 else found


def _pairs(classes: int) -> list[tuple[int, int]]:
    return [(i, j) for i in range(classes) for j in range(i + 1, classes)]


def _pairwise(
    x: Any, coefficients: Any, kind: str, parameters: Any, vectors: Any, counts: Sequence[int], rho: Any
) -> Any:
    """The decision between each pair of classes, as LIBSVM stores them: (batch, pairs). Positive is for the first."""
    total = sum(counts)
    kernels = _kernel(x, np.asarray(vectors, np.float32).reshape(total, -1), kind, parameters)
    weights = np.asarray(coefficients, np.float32).reshape(len(counts) - 1, total)
    starts = np.concatenate(([0], np.cumsum(counts)))
    decisions = []
    for number, (i, j) in enumerate(_pairs(len(counts))):
        of_i, of_j = slice(starts[i], starts[i + 1]), slice(starts[j], starts[j + 1])
        decision = kernels[:, of_i] @ weights[j - 1, of_i] + kernels[:, of_j] @ weights[i, of_j]
        decisions.append(decision + np.float32(rho[number]))
    return jnp.stack(decisions, axis=1)


def _votes(decisions: Any, classes: int) -> Any:
    votes = [jnp.zeros(decisions.shape[0], jnp.int32)] * classes
    for number, (i, j) in enumerate(_pairs(classes)):
        first = (decisions[:, number] > 0).astype(jnp.int32)
        votes[i], votes[j] = votes[i] + first, votes[j] + 1 - first
    return jnp.stack(votes, axis=1)


def _probabilities(decisions: Any, a: np.ndarray, b: np.ndarray, classes: int) -> Any:
    """Platt's probabilities of the pairs, joined by Wu, Lin and Weng's second method, as in LIBSVM.

    https://www.csie.ntu.edu.tw/~cjlin/papers/svmprob/svmprob.pdf
    """
    pairs = jnp.clip(jax.nn.sigmoid(-(decisions * a.astype(np.float32) + b.astype(np.float32))), 1e-7, 1 - 1e-7)
    r = jnp.zeros((decisions.shape[0], classes, classes), pairs.dtype)
    for number, (i, j) in enumerate(_pairs(classes)):
        r = r.at[:, i, j].set(pairs[:, number]).at[:, j, i].set(1 - pairs[:, number])
    q = -r * jnp.swapaxes(r, 1, 2)
    return jax.vmap(_minimum)(q + jnp.eye(classes, dtype=pairs.dtype) * (r**2).sum(1)[:, None])


def _minimum(q: Any) -> Any:
    """The probabilities p that minimise p'Qp, to the accuracy at which LIBSVM stops: scikit-learn's numbers have it, too."""
    classes = q.shape[0]

    def errors(p: Any) -> Any:
        return q @ p - p @ q @ p

    def is_open(carry: Any) -> Any:
        iteration, p = carry
        return (iteration < 100) & (jnp.max(jnp.abs(errors(p))) >= 0.005 / classes)

    def sweep(carry: Any) -> Any:
        iteration, p = carry
        for t in range(classes):
            change = -errors(p)[t] / q[t, t]
            p = p.at[t].add(change) / (1 + change)
        return iteration + 1, p

    return lax.while_loop(is_open, sweep, (0, jnp.full(classes, 1 / classes, q.dtype)))[1]


@hookimpl
def onnxeqx_register_ops(registry):
    registry.add_module(__name__)
