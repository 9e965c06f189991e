"""What printed models and operator functions import: host and device values, layers over a batch, dtypes."""

import math
import types
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ._errors import HostValueError


def array_namespace(*values: Any) -> types.ModuleType:
    """`jax.numpy` if any of the values is a JAX array (or tracer), else `numpy`.

    NumPy on the host, JAX on the device: an operator written with this namespace keeps shape arithmetic on the host,
    in 64-bit integers and without a tracer, and runs on the device for everything else.
    """
    return jnp if any(isinstance(value, jax.Array) for value in values) else np


def host_ints(value: Any) -> tuple[Any, ...]:
    """A shape-like operand as a tuple of integers (or of symbolic dimensions, under `jax.export`).

    **Arguments:**

    - `value`: a sequence of integers, a NumPy array, or a JAX array that is not being traced. A scalar counts as one
      integer.

    **Raises:** `HostValueError` if the value is traced: it depends on the data of an input.
    """
    if isinstance(value, jax.core.Tracer):
        raise HostValueError(
            f"A shape-like operand ({value.aval.str_short()}) depends on the data of a traced array, but must be known "
            "while tracing; call the model without jit, or make the operand a constant or a function of input shapes."
        )
    if isinstance(value, tuple | list):
        return tuple(item.item() if isinstance(item, np.generic | np.ndarray) else item for item in value)
    return tuple(np.asarray(value).reshape(-1).tolist())


def over_batch(layer: Callable[..., Array], x: Array, *, core_ndim: int) -> Array:
    """Calls an unbatched Equinox layer over all leading axes of `x`.

    ONNX graphs are batched and Equinox layers are not. Because the call stands in the model's code and the layer in
    its field, `eqx.tree_at(lambda m: m.fc, model, eqx.nn.Linear(...))` needs no adapter.

    **Arguments:**

    - `layer`: any callable on an array with `core_ndim` axes. A layer with a true `batched` attribute is called as is.
    - `x`: shape `(*batch, *core)` with `core_ndim` core axes.
    - `core_ndim`: how many trailing axes belong to one example (1 for `eqx.nn.Linear`, 3 for `eqx.nn.Conv2d`).

    **Returns:** shape `(*batch, *layer_output)`.
    """
    batch = x.shape[: x.ndim - core_ndim]
    if getattr(layer, "batched", False) or not batch:
        return layer(x)
    # One flattened axis instead of nested vmaps: XLA then sees a plain matrix product.
    flat = x.reshape(math.prod(batch), *x.shape[len(batch) :])
    y = jax.vmap(layer)(flat)
    return y.reshape(*batch, *y.shape[1:])


def canonical_dtype(dtype: Any) -> np.dtype:
    """The dtype in which JAX holds values of this dtype: the one place where 64-bit types become 32-bit ones.

    ONNX shapes and token ids are int64; without `jax_enable_x64`, JAX has 32-bit integers and floats only.
    """
    return jax.dtypes.canonicalize_dtype(dtype)


def compute_dtype(module: Any, default: Any = jnp.float32) -> np.dtype:
    """The floating dtype in which a module computes: that of its first floating-point leaf.

    A cast of all parameters to bfloat16 (or float64) thereby also moves the casts and constants inside the model.
    """
    for leaf in jax.tree.leaves(module):
        if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf.dtype
    return canonical_dtype(default)


def normalize_axes(axes: Sequence[int], ndim: int) -> tuple[int, ...]:
    """Negative axes counted from the end, as everywhere in ONNX.

    **Raises:** `ValueError` if an axis is outside `[-ndim, ndim)`.
    """
    for axis in axes:
        if not -ndim <= axis < ndim:
            raise ValueError(f"axis {axis} is out of range for an array of {ndim} dimensions")
    return tuple(axis % ndim for axis in axes)
