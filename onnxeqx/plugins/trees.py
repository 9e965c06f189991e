"""Ensembles of decision trees: all trees of all examples go down one level at a time, by gathers on the device.

What the attributes say is put into arrays once, while tracing. There is no gradient through the decisions.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from .._registry import op
from ._scores import labelled, transformed, two_classes
from .hookspecs import hookimpl

_DOMAIN = "ai.onnx.ml"
_MODES: tuple[Callable[[Any, Any], Any], ...] = (
    jnp.less_equal,
    jnp.less,
    jnp.greater_equal,
    jnp.greater,
    jnp.equal,
    jnp.not_equal,
)
_MODE_NAMES = ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ")
_LEAF, _MEMBER = -1, 6


@dataclasses.dataclass(frozen=True)
class _Forest:
    """Trees as arrays over their nodes; a leaf is its own child.

    **Fields:** for each node `features`, `splits`, `modes`, `true` and `false` children, `missing` (NaN goes to the true one)
    and `members` (of a set, filled up with NaN); the `roots`; `weights`: (nodes, targets) of the leaves, and where they are
    `given`.
    """

    features: np.ndarray
    splits: np.ndarray
    modes: np.ndarray
    true: np.ndarray
    false: np.ndarray
    missing: np.ndarray
    members: np.ndarray
    roots: np.ndarray
    weights: np.ndarray
    given: np.ndarray

    @functools.cached_property
    def depth(self) -> int:
        """Decisions on the longest way."""
        level, depth = set(self.roots.tolist()), 0
        while level := {
            child for node in level if self.modes[node] != _LEAF for child in (self.true[node], self.false[node])
        }:
            depth += 1
            if depth > len(self.modes):
                raise ValueError("a tree of the ensemble has a cycle; export the model again")
        return depth

    def leaves(self, x: Any) -> Any:
        """The leaf of each tree for each example: (batch, trees)."""
        nodes = jnp.broadcast_to(jnp.asarray(self.roots), (x.shape[0], len(self.roots)))
        for _ in range(self.depth):
            nodes = jnp.where(self._goes_true(x, nodes), jnp.asarray(self.true)[nodes], jnp.asarray(self.false)[nodes])
        return nodes

    def _goes_true(self, x: Any, nodes: Any) -> Any:
        value = jnp.take_along_axis(x, jnp.asarray(self.features)[nodes], axis=1)
        split, mode = jnp.asarray(self.splits, x.dtype)[nodes], jnp.asarray(self.modes)[nodes]
        goes = jnp.zeros(nodes.shape, bool)
        for number in np.unique(self.modes[self.modes != _LEAF]):
            if number == _MEMBER:
                found = (value[..., None] == jnp.asarray(self.members, x.dtype)[nodes]).any(-1)
            else:
                found = _MODES[number](value, split)
            goes = jnp.where(mode == number, found, goes)
        return goes | (jnp.isnan(value) & jnp.asarray(self.missing)[nodes]) if self.missing.any() else goes

    def scores(self, x: Any, aggregate: str) -> Any:
        """What the leaves say together: (batch, targets)."""
        x = x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.float32)
        nodes = self.leaves(x)
        weights, given = jnp.asarray(self.weights, x.dtype)[nodes], jnp.asarray(self.given)[nodes]
        if aggregate in ("SUM", "AVERAGE"):
            return weights.sum(1) / (len(self.roots) if aggregate == "AVERAGE" else 1)
        reduce, start = (jnp.min, jnp.inf) if aggregate == "MIN" else (jnp.max, -jnp.inf)
        return jnp.where(given.any(1), reduce(jnp.where(given, weights, start), axis=1), 0)


def _leaf_table(nodes: Any, targets: Any, weights: Any, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    table, given = np.zeros(shape), np.zeros(shape, bool)
    np.add.at(table, (np.asarray(nodes, int), np.asarray(targets, int)), np.asarray(weights, float))
    given[np.asarray(nodes, int), np.asarray(targets, int)] = True
    return table, given


def _forest(
    nodes: dict[str, Any],
    leaf_trees: Any,
    leaf_nodes: Any,
    targets: Any,
    weights: Any,
    count: Any,
) -> _Forest:
    """The trees of the older operators, whose nodes have a tree and a number in it."""
    places = {key: place for place, key in enumerate(zip(nodes["treeids"], nodes["nodeids"], strict=True))}
    modes = np.array([_MODE_NAMES.index(mode) if mode != "LEAF" else _LEAF for mode in nodes["modes"]])
    own = np.arange(len(modes))

    def children(key: str) -> np.ndarray:
        pairs = zip(nodes["treeids"], nodes[key], strict=True)
        return np.array([places[pair] if modes[i] != _LEAF else i for i, pair in enumerate(pairs)])

    true, false = children("truenodeids"), children("falsenodeids")
    inner = modes != _LEAF
    roots = np.setdiff1d(own, np.concatenate((true[inner], false[inner])))
    leaves = [places[pair] for pair in zip(leaf_trees, leaf_nodes, strict=True)]
    table, given = _leaf_table(leaves, targets, weights, (len(modes), count))
    missing = np.array(nodes["missing"] or np.zeros(len(modes)), bool)
    members = np.full((len(modes), 1), np.nan)
    features, splits = np.where(inner, nodes["featureids"], 0), np.asarray(nodes["values"], float)
    return _Forest(features, splits, modes, true, false, missing, members, roots, table, given)


def _based(scores: Any, base_values: Any) -> Any:
    return scores if base_values is None or not len(base_values) else scores + jnp.asarray(base_values, scores.dtype)


@op("TreeEnsembleRegressor", domain=_DOMAIN, since=3)
def tree_ensemble_regressor(
    X,
    *,
    aggregate_function="SUM",
    base_values=None,
    base_values_as_tensor=None,
    n_targets=None,
    nodes_falsenodeids=None,
    nodes_featureids=None,
    nodes_hitrates=None,
    nodes_hitrates_as_tensor=None,
    nodes_missing_value_tracks_true=None,
    nodes_modes=None,
    nodes_nodeids=None,
    nodes_treeids=None,
    nodes_truenodeids=None,
    nodes_values=None,
    nodes_values_as_tensor=None,
    post_transform="NONE",
    target_ids=None,
    target_nodeids=None,
    target_treeids=None,
    target_weights=None,
    target_weights_as_tensor=None,
):
    """What all trees say together. X: (batch, features) -> (batch, targets), float32.

    https://onnx.ai/onnx/operators/onnx_aionnxml_TreeEnsembleRegressor.html
    """
    nodes = {
        "treeids": nodes_treeids,
        "nodeids": nodes_nodeids,
        "featureids": nodes_featureids,
        "modes": nodes_modes,
        "values": nodes_values if nodes_values_as_tensor is None else nodes_values_as_tensor,
        "truenodeids": nodes_truenodeids,
        "falsenodeids": nodes_falsenodeids,
        "missing": nodes_missing_value_tracks_true,
    }
    weights = target_weights if target_weights_as_tensor is None else target_weights_as_tensor
    forest = _forest(nodes, target_treeids, target_nodeids, target_ids, weights, n_targets)
    base: Any = base_values if base_values_as_tensor is None else base_values_as_tensor
    return transformed(_based(forest.scores(X, aggregate_function), base), post_transform).astype(jnp.float32)


@op("TreeEnsembleRegressor", domain=_DOMAIN, since=1, until=2)
def tree_ensemble_regressor_1(
    X,
    *,
    aggregate_function="SUM",
    base_values=None,
    n_targets=None,
    nodes_falsenodeids=None,
    nodes_featureids=None,
    nodes_hitrates=None,
    nodes_missing_value_tracks_true=None,
    nodes_modes=None,
    nodes_nodeids=None,
    nodes_treeids=None,
    nodes_truenodeids=None,
    nodes_values=None,
    post_transform="NONE",
    target_ids=None,
    target_nodeids=None,
    target_treeids=None,
    target_weights=None,
):
    """As the later `tree_ensemble_regressor`, with numbers as attributes only.

    https://onnx.ai/onnx/operators/onnx_aionnxml_TreeEnsembleRegressor.html
    """
    return tree_ensemble_regressor(**locals())


@op("TreeEnsembleClassifier", domain=_DOMAIN, since=3)
def tree_ensemble_classifier(
    X,
    *,
    base_values=None,
    base_values_as_tensor=None,
    class_ids=None,
    class_nodeids=None,
    class_treeids=None,
    class_weights=None,
    class_weights_as_tensor=None,
    classlabels_int64s=None,
    classlabels_strings=None,
    nodes_falsenodeids=None,
    nodes_featureids=None,
    nodes_hitrates=None,
    nodes_hitrates_as_tensor=None,
    nodes_missing_value_tracks_true=None,
    nodes_modes=None,
    nodes_nodeids=None,
    nodes_treeids=None,
    nodes_truenodeids=None,
    nodes_values=None,
    nodes_values_as_tensor=None,
    post_transform="NONE",
    n_outputs=1,
):
    """The label and the scores of the classes. X: (batch, features) -> (batch,), and (batch, classes) float32.

    https://onnx.ai/onnx/operators/onnx_aionnxml_TreeEnsembleClassifier.html
    """
    nodes = {
        "treeids": nodes_treeids,
        "nodeids": nodes_nodeids,
        "featureids": nodes_featureids,
        "modes": nodes_modes,
        "values": nodes_values if nodes_values_as_tensor is None else nodes_values_as_tensor,
        "truenodeids": nodes_truenodeids,
        "falsenodeids": nodes_falsenodeids,
        "missing": nodes_missing_value_tracks_true,
    }
    weights: Any = class_weights if class_weights_as_tensor is None else class_weights_as_tensor
    labels: Any = classlabels_int64s if classlabels_strings is None else classlabels_strings
    base: Any = base_values if base_values_as_tensor is None else base_values_as_tensor
    classes = set(class_ids or ())
    forest = _forest(nodes, class_treeids, class_nodeids, class_ids, weights, len(labels))
    scores = forest.scores(X, "SUM")
    if len(labels) == 2 and len(classes) == 1:
        # One score for two classes: a probability, or a number whose sign decides.
        score = _based(scores[:, min(classes)], None if base is None else [base[-1]] if len(base) else None)
        positive = min(weights) >= 0
        chosen = (score > (0.5 if positive else 0)).astype(jnp.int32)
        scores = two_classes(score, post_transform, probability=positive)
    else:
        scores = _based(scores, base)
        chosen = jnp.argmax(scores, axis=1)
        scores = transformed(scores, post_transform)
    found = labelled(chosen, labels)
    return (found, scores.astype(jnp.float32)) if n_outputs > 1 else found


@op("TreeEnsembleClassifier", domain=_DOMAIN, since=1, until=2)
def tree_ensemble_classifier_1(
    X,
    *,
    base_values=None,
    class_ids=None,
    class_nodeids=None,
    class_treeids=None,
    class_weights=None,
    classlabels_int64s=None,
    classlabels_strings=None,
    nodes_falsenodeids=None,
    nodes_featureids=None,
    nodes_hitrates=None,
    nodes_missing_value_tracks_true=None,
    nodes_modes=None,
    nodes_nodeids=None,
    nodes_treeids=None,
    nodes_truenodeids=None,
    nodes_values=None,
    post_transform="NONE",
    n_outputs=1,
):
    """As the later `tree_ensemble_classifier`, with numbers as attributes only.

    https://onnx.ai/onnx/operators/onnx_aionnxml_TreeEnsembleClassifier.html
    """
    return tree_ensemble_classifier(**locals())


@op("TreeEnsemble", domain=_DOMAIN, since=5)
def tree_ensemble(
    X,
    *,
    aggregate_function=1,
    leaf_targetids,
    leaf_weights,
    membership_values=None,
    n_targets=None,
    nodes_falseleafs,
    nodes_falsenodeids,
    nodes_featureids,
    nodes_hitrates=None,
    nodes_missing_value_tracks_true=None,
    nodes_modes,
    nodes_splits,
    nodes_trueleafs,
    nodes_truenodeids,
    post_transform=0,
    tree_roots,
):
    """What all trees say together. X: (batch, features), float -> (batch, targets), the same dtype.

    https://onnx.ai/onnx/operators/onnx_aionnxml_TreeEnsemble.html
    """
    inner, leaves = len(nodes_modes), len(leaf_weights)

    def child(ids: Sequence[int], leaf: Sequence[int]) -> np.ndarray:
        # Leaves stand after the inner nodes.
        return np.append(np.asarray(ids) + np.where(leaf, inner, 0), inner + np.arange(leaves)).astype(np.int32)

    fill = np.zeros(leaves, int)
    table, given = _leaf_table(
        inner + np.arange(leaves), leaf_targetids, leaf_weights, (inner + leaves, n_targets or 1)
    )
    forest = _Forest(
        np.append(nodes_featureids, fill).astype(np.int32),
        np.append(np.asarray(nodes_splits, float), fill),
        np.append(np.asarray(nodes_modes, int), fill + _LEAF),
        child(nodes_truenodeids, nodes_trueleafs),
        child(nodes_falsenodeids, nodes_falseleafs),
        np.append(np.asarray(nodes_missing_value_tracks_true or np.zeros(inner)), fill).astype(bool),
        _members(nodes_modes, membership_values, inner + leaves),
        np.asarray(tree_roots, np.int32),
        table,
        given,
    )
    scores = forest.scores(X, ("AVERAGE", "SUM", "MIN", "MAX")[aggregate_function])
    return transformed(scores, ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")[post_transform])


def _members(modes: Sequence[int], values: Any, count: int) -> np.ndarray:
    """The set of each node that asks for membership: sets follow each other in the order of those nodes, each ended by NaN."""
    sets: list[list[float]] = [[]]
    for value in () if values is None else np.asarray(values, float).tolist():
        if np.isnan(value):
            sets.append([])
        else:
            sets[-1].append(value)
    table = np.full((count, max(map(len, sets)) or 1), np.nan)
    asking = [node for node, mode in enumerate(modes) if mode == _MEMBER]
    for node, members in zip(asking, sets, strict=False):
        table[node, : len(members)] = members
    return table


@hookimpl
def onnxeqx_register_ops(registry):
    registry.add_module(__name__)
