"""Training BatchNorm: it normalises by the batch, and its stored statistics follow (https://arxiv.org/abs/1502.03167)."""

from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.tree_util as jtu
import optax
from jaxtyping import PyTree

from .._weights import dotted_path
from ..nn import BatchNorm, TrainingBatchNorm
from .errors import ConfigError

Tree = TypeVar("Tree")


def train_batch_norm(model: Tree) -> Tree:
    """The model with its BatchNorm in training: each normalises by the statistics of the batch.

    Key paths stay. The gradient with respect to `running_mean` and `running_var` is then the statistics of the batch, which
    `following_statistics` makes them follow. `eqx.nn.inference_mode` switches to the stored ones, as [`onnxeqx.training.fit`][]
    does when it evaluates; `freeze_batch_norm` gives the layers back that can be saved.

    **Arguments:**

    - `model`: a model with [`onnxeqx.nn.BatchNorm`][] layers.

    **Raises:** `ConfigError` if it has none: most exporters fold them into convolutions (`onnxeqx inspect` says so).
    """
    if not any(isinstance(node, BatchNorm) for node in jax.tree.leaves(model, is_leaf=_is(BatchNorm))):
        raise ConfigError(
            "The model has no BatchNorm whose statistics could be trained: exporters fold it into convolutions unless told "
            "otherwise (torch.onnx.export with training=TrainingMode.PRESERVE); see onnxeqx inspect. Leave --batch-norm out."
        )
    return jax.tree.map(
        lambda node: TrainingBatchNorm(node) if isinstance(node, BatchNorm) else node, model, is_leaf=_is(BatchNorm)
    )


def freeze_batch_norm(model: Tree) -> Tree:
    """The model with its BatchNorm as stored: the inverse of `train_batch_norm`. Others stay as they are."""
    return jax.tree.map(
        lambda node: node.frozen() if isinstance(node, TrainingBatchNorm) else node,
        model,
        is_leaf=_is(TrainingBatchNorm),
    )


def with_statistics(mask: PyTree, model: PyTree) -> PyTree:
    """A mask of what is trained, and the statistics of BatchNorm that is in training, which follow its batches."""
    statistics = set(statistics_paths(model))
    return jtu.tree_map_with_path(lambda path, chosen: chosen or dotted_path(path) in statistics, mask)


def statistics_paths(model: PyTree) -> list[str]:
    """The key paths of the statistics of BatchNorm that is in training."""
    nodes = jtu.tree_leaves_with_path(model, is_leaf=_is(TrainingBatchNorm))
    found = [dotted_path(path) for path, node in nodes if isinstance(node, TrainingBatchNorm)]
    return [f"{path}.{name}" for path in found for name in ("running_mean", "running_var")]


def following_statistics(
    optimizer: optax.GradientTransformation, paths: list[str], *, momentum: float = 0.1
) -> optax.GradientTransformation:
    """An optimiser for all parameters but these statistics, which move towards those of each batch.

    **Arguments:**

    - `optimizer`: for everything else; it does not see the statistics, so that neither clipping nor decay reaches them.
    - `paths`: their key paths, as `statistics_paths` gives them. Without any, the optimiser itself is returned.
    - `momentum`: the share of the new statistics, as in PyTorch.
    """
    if not paths:
        return optimizer

    def others(tree: Any) -> Any:
        return jtu.tree_map_with_path(lambda path, leaf: None if dotted_path(path) in paths else leaf, tree)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        followed = jax.tree.map(lambda new, old: momentum * (new - old), updates, params)
        updated, state = optimizer.update(others(updates), state, others(params))
        return eqx.combine(updated, followed), state

    return optax.GradientTransformation(lambda params: optimizer.init(others(params)), update)


def _is(kind: type) -> Any:
    return lambda node: isinstance(node, kind)
