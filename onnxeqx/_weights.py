"""Weights: key paths, binding, saving and loading.

A key path is the dotted path of a leaf (`encoder.layer.3.attention.query.weight`); a [`onnxeqx.nn.Buffer`][] counts as one
leaf. Weights are matched by key path, never by order.
"""

import contextlib
import json
import os
import pathlib
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import safetensors
import safetensors.numpy

from ._errors import OnnxeqxError, OutputExistsError, WeightsError
from .nn import Buffer
from .nn._buffer import to_bits
from .runtime import canonical_dtype

Tree = TypeVar("Tree")

# From the layout in the ONNX file to the layout in the model, and back.
TRANSFORMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "": lambda array: array,
    "transpose": lambda array: array.T,
}


def _is_leaf(item: Any) -> bool:
    return isinstance(item, Buffer)


def dotted_path(path: Sequence[Any]) -> str:
    """A path of JAX's tree utilities as a dotted key path."""
    parts = []
    for entry in path:
        match entry:
            case (
                jtu.GetAttrKey(name=part)
                | jtu.DictKey(key=part)
                | jtu.SequenceKey(idx=part)
                | jtu.FlattenedIndexKey(key=part)
            ):
                parts.append(str(part))
    return ".".join(parts)


def key_paths(tree: Any) -> dict[str, Any]:
    """The leaves of a model by key path, in the model's order.

    **Arguments:**

    - `tree`: a model, or any PyTree of arrays. Leaves that are no arrays (functions, strings) are left out.
    """
    return {
        dotted_path(path): leaf
        for path, leaf in jtu.tree_flatten_with_path(tree, is_leaf=_is_leaf)[0]
        if hasattr(leaf.bits if isinstance(leaf, Buffer) else leaf, "dtype")
    }


def bind(skeleton: Tree, weights: Mapping[str, np.ndarray], source: str, *, adopt_dtypes: bool = False) -> Tree:
    """A model with its leaves filled by key path.

    **Arguments:**

    - `skeleton`: the model, its leaves arrays or `jax.ShapeDtypeStruct`s.
    - `weights`: arrays by key path.
    - `source`: where they come from, for the message.
    - `adopt_dtypes`: floating-point leaves take the dtype of the weights. A layer's default dtype depends on
      `jax_enable_x64`; that of a file does not.

    **Raises:** `WeightsError` listing all missing, unexpected and mismatched key paths.
    """
    present = key_paths(skeleton)
    problems = [f"missing: {path}" for path in present if path not in weights]
    problems += [f"unexpected: {path}" for path in weights if path not in present]
    for path, leaf in present.items():
        if path not in weights:
            continue
        array, wanted = weights[path], jnp.dtype(leaf.dtype)
        if tuple(array.shape) != tuple(leaf.shape):
            problems.append(
                f"shape of {path}: {_shape_text(array.shape)} in {source}, {_shape_text(leaf.shape)} in the model"
            )
        elif canonical_dtype(array.dtype) != wanted and not (adopt_dtypes and _both_floating(array.dtype, leaf)):
            problems.append(f"dtype of {path}: {array.dtype} in {source}, {wanted} in the model")
    if problems:
        raise WeightsError(
            f"{source} does not fit the model ({len(problems)} key path{'s' if len(problems) > 1 else ''}):\n  "
            + "\n  ".join(problems)
        )

    def fill(path: Sequence[Any], leaf: Any) -> Any:
        name = dotted_path(path)
        if name not in present:
            return leaf
        array = np.asarray(weights[name], canonical_dtype(weights[name].dtype))
        if isinstance(leaf, Buffer):
            return eqx.tree_at(lambda buffer: buffer.bits, leaf, jnp.asarray(to_bits(np.ascontiguousarray(array))))
        return jnp.asarray(array)

    return jtu.tree_map_with_path(fill, skeleton, is_leaf=_is_leaf)


def _both_floating(dtype: np.dtype, leaf: Any) -> bool:
    return (
        not isinstance(leaf, Buffer)
        and jnp.issubdtype(dtype, jnp.floating)
        and jnp.issubdtype(leaf.dtype, jnp.floating)
    )


def _shape_text(shape: Sequence[int]) -> str:
    return f"({', '.join(map(str, shape))})"


def arrays(model: Any) -> dict[str, np.ndarray]:
    """The model's leaves on the host, by key path; buffers as the floats they stand for."""
    return {
        path: np.asarray(leaf.value if isinstance(leaf, Buffer) else leaf) for path, leaf in key_paths(model).items()
    }


def save_weights(
    model: Any, path: str | os.PathLike[str], *, metadata: Mapping[str, str] | None = None, force: bool = True
) -> None:
    """Writes the model's leaves to a safetensors file, by key path.

    **Arguments:**

    - `model`: the model.
    - `path`: the file, written whole or not at all.
    - `metadata`: strings to store with it.
    - `force`: overwrite a file that is there.

    https://huggingface.co/docs/safetensors
    """
    # A new dictionary of contiguous arrays: safetensors rewrites the one it is given.
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays(model).items()}
    data = safetensors.numpy.save(contiguous, metadata=dict(metadata or {}) or None)
    write_whole(path, data, force=force)


def read_weights(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays by key path, and the metadata, of a safetensors file.

    **Raises:** `WeightsError` if the file is missing or damaged.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise WeightsError(f"There is no weights file {str(path)!r}; give the path of a .safetensors file.")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
        return dict(safetensors.numpy.load_file(path)), metadata
    except (safetensors.SafetensorError, ValueError, OSError) as error:
        raise WeightsError(
            f"{str(path)!r} is no safetensors file or is damaged ({error}); save the weights again."
        ) from error


def load_weights(model: Tree, path: str | os.PathLike[str]) -> Tree:
    """The model with the weights of a file, strictly by key path.

    **Arguments:**

    - `model`: a model, its leaves arrays or `jax.ShapeDtypeStruct`s.
    - `path`: a file written by [`onnxeqx.save_weights`][].

    **Raises:** `WeightsError` listing all missing, unexpected and mismatched key paths at once.
    """
    weights, _ = read_weights(path)
    return bind(model, weights, f"{str(path)!r}")


def write_whole(path: str | os.PathLike[str], data: bytes | str, *, force: bool = True) -> None:
    """Writes a file under a temporary name and renames it: it is there whole or not at all.

    **Raises:** `OutputExistsError` if it is there and `force` is false.
    """
    with whole_path(path, force=force) as scratch:
        scratch.write_bytes(data.encode() if isinstance(data, str) else data)


@contextlib.contextmanager
def whole_path(path: str | os.PathLike[str], *, force: bool) -> Iterator[pathlib.Path]:
    """A temporary path beside `path`, moved there when the block ends well and removed when it does not."""
    path = pathlib.Path(path)
    if path.exists() and not force and not (path.is_dir() and not any(path.iterdir())):
        raise OutputExistsError(f"{str(path)!r} exists; give another path, or force=True (--force) to overwrite it.")
    if not path.parent.is_dir():
        raise OnnxeqxError(f"There is no folder {str(path.parent)!r} to write {path.name!r} into; create it first.")
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield scratch
        if path.is_dir():
            shutil.rmtree(path)
        os.replace(scratch, path)
    finally:
        if scratch.is_dir():
            shutil.rmtree(scratch)
        else:
            scratch.unlink(missing_ok=True)


def dump_json(value: Any) -> str:
    """JSON with sorted keys: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
