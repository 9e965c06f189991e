"""Choosing leaves by patterns of key paths: what to train, what to hold, which optimiser for which."""

import fnmatch
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, cast

import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import optax

from ._errors import WeightsError
from ._stacks import Stacks, of_each_layer, stacks_of
from ._weights import dotted_path, key_paths
from .nn import Buffer

Tree = TypeVar("Tree")
T = TypeVar("T")


def parameters(
    model: Tree, trainable: str | Sequence[str] | None = None, freeze: str | Sequence[str] | None = None
) -> Tree:
    """Which leaves to train, as a boolean PyTree for `eqx.partition`.

    **Arguments:**

    - `model`: the model.
    - `trainable`: patterns of key paths to train, such as `"classifier.*"` or `"encoder.layer.1[01].*"`
      (https://docs.python.org/3/library/fnmatch.html). Defaults to every parameter.
    - `freeze`: patterns of key paths to leave out.

    **Returns:** a PyTree of the model's structure: true for the parameters chosen, false for everything else. Buffers and
    constants are never chosen.

    **Raises:** `WeightsError` if a pattern matches no parameter, or only some of the layers in a stacked leaf.

    !!! Warning

        A tree of this type is itself callable, because the model is, and Optax calls callable masks. Give Optax the
        function: `optax.masked(tx, lambda params: onnxeqx.parameters(params, ...))`, or partition first and optimise what
        is trainable.
    """
    leaves = {
        path: leaf
        for path, leaf in key_paths(model).items()
        if not isinstance(leaf, Buffer) and jnp.issubdtype(leaf.dtype, jnp.inexact)
    }
    stacks = stacks_of(model)
    single = [name for path in leaves for name in of_each_layer(path, stacks)]
    chosen = set(single if trainable is None else _matching(list(leaves), trainable, stacks))
    chosen -= set(_matching(list(leaves), freeze or (), stacks))
    selected = {
        path for path in leaves if _same_for_all(path, [name in chosen for name in of_each_layer(path, stacks)])
    }
    return jtu.tree_map_with_path(lambda path, _: dotted_path(path) in selected, model)


def matching_parameters(tree: Any, pattern: str) -> list[str]:
    """The key paths, of single layers, of the leaves that a pattern chooses.

    **Raises:** `WeightsError` if it matches none.
    """
    return list(_matching(list(key_paths(tree)), pattern, stacks_of(tree)))


def _matching(paths: list[str], patterns: str | Sequence[str], stacks: Stacks) -> Iterator[str]:
    """The key paths of single layers' leaves that patterns choose, by these or by the key path of their stack."""
    single = {path: of_each_layer(path, stacks) for path in paths}
    known = list(dict.fromkeys(name for names in single.values() for name in names))
    whole = [path for path in paths if path not in known]
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        found = [name for wanted in (pattern, f"{pattern}.*") for name in fnmatch.filter(known, wanted)]
        found += [
            name
            for wanted in (pattern, f"{pattern}.*")
            for path in fnmatch.filter(whole, wanted)
            for name in single[path]
        ]
        if not found:
            tops = sorted({name.split(".")[0] for name in known})
            raise WeightsError(
                f"Pattern {pattern!r} matches no parameter; key paths begin with {', '.join(tops[:20])}, for example "
                f"{known[0] if known else '(none)'!r}."
            )
        yield from found


def _same_for_all(path: str, values: list[T]) -> T:
    """What patterns say of a leaf, which must be the same for each layer in it."""
    if len(set(values)) > 1:
        raise WeightsError(
            f"{path} holds {len(values)} layers, of which the patterns choose some; masks and groups are of whole leaves: train "
            "all layers and hold some with optax.chain(optimizer, onnxeqx.freeze_layers(...)), or onnxeqx.unstack the model."
        )
    return values[0]


def partition(
    transforms: Mapping[str, optax.GradientTransformation], groups: Mapping[str, str | Sequence[str]], *, default: str
) -> optax.GradientTransformationExtraArgs:
    """Parameter groups by key path: `optax.partition` for trees that are callable.

    `optax.partition` and `optax.multi_transform` call a mask that is callable, and a mask of a model's structure is; here
    the labels are put on the flat list of leaves.

    ```python
    rates = {"head": optax.adamw(1e-3), "body": optax.adamw(1e-5)}
    optimizer = onnxeqx.partition(rates, {"head": "classifier.*"}, default="body")
    ```

    **Arguments:**

    - `transforms`: an optimiser for each label.
    - `groups`: patterns of key paths for each label, as in [`onnxeqx.parameters`][]. Later groups win.
    - `default`: the label of every other leaf.

    **Raises:** on `init`, `WeightsError` if a pattern matches nothing, or only some of the layers in a stacked leaf.
    """

    def labels(tree: Any) -> list[str]:
        paths, stacks = [dotted_path(path) for path, _ in jtu.tree_flatten_with_path(tree)[0]], stacks_of(tree)
        chosen = {name: label for label, patterns in groups.items() for name in _matching(paths, patterns, stacks)}
        return [
            _same_for_all(path, [chosen.get(name, default) for name in of_each_layer(path, stacks)]) for path in paths
        ]

    def of(tree: Any) -> optax.GradientTransformationExtraArgs:
        by_label: dict[Hashable, optax.GradientTransformation] = {**transforms}
        return optax.partition(by_label, labels(tree))

    def init(params: Any) -> Any:
        return of(params).init(jtu.tree_leaves(params))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        leaves, structure = jtu.tree_flatten(updates)
        flat = None if params is None else jtu.tree_leaves(params)
        updated, state = of(updates).update(leaves, state, flat, **extra)
        # A transformation keeps the structure of what it is given: here, a flat list.
        return jtu.tree_unflatten(structure, cast(list[Any], updated)), state

    return optax.GradientTransformationExtraArgs(init, update)


def freeze_layers(patterns: str | Sequence[str]) -> optax.GradientTransformation:
    """An Optax transformation after which some leaves, or some layers of stacked ones, stay as they are.

    A mask chooses whole leaves, but a leaf of [`onnxeqx.stack`][] holds all layers:

    ```python
    optimizer = optax.chain(optax.adamw(1e-4), onnxeqx.freeze_layers("encoder.layer.[0-7].*"))
    ```

    It sets updates to zero, so it comes last. The gradients of the frozen layers are computed all the same.

    **Arguments:**

    - `patterns`: of key paths, as in [`onnxeqx.parameters`][], with the numbers of layers.

    **Raises:** on `update`, `WeightsError` if a pattern matches no leaf.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        stacks = stacks_of(updates)
        frozen = set(_matching(list(key_paths(updates)), patterns, stacks))

        def kept(path: Sequence[Any], leaf: Any) -> Any:
            rows = np.array([name not in frozen for name in of_each_layer(dotted_path(path), stacks)])
            return leaf * rows.reshape(rows.shape + (1,) * (leaf.ndim - 1) if len(rows) > 1 else ()).astype(leaf.dtype)

        return jtu.tree_map_with_path(kept, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
