"""Operands as arrays of one namespace: NumPy on the host, JAX on the device."""

import types
from typing import Any

import jax
import jax.core
import jax.export
import jax.numpy as jnp
import numpy as np

from .._errors import HostValueError
from ..runtime import array_namespace

Namespace = types.ModuleType


def as_arrays(*values: Any, sizes: tuple[Any, ...] = ()) -> tuple[Any, ...]:
    """The operands' namespace, followed by every operand as an array of that namespace.

    NumPy and Python values stay exactly what they are on the host: integers of 64 bits, symbolic dimensions as elements
    of an array of `dtype=object`. Where one of the `sizes` of the result is a symbolic dimension of `jax.export`, only
    JAX can make it.
    """
    xp = jnp if any(jax.export.is_symbolic_dim(size) for size in sizes) else array_namespace(*values)
    return xp, *(as_array(value, xp) for value in values)


def as_array(value: Any, xp: Namespace) -> Any:
    """One operand as an array of the namespace `xp`.

    A Python number stands for a constant without axes (`int` for int64, `float` for float32), and a tuple for a shape.
    """
    if isinstance(value, jax.Array):
        return value
    array = _on_host(value)
    if xp is np:
        return array
    return _symbols_on_device(array) if array.dtype == object else jnp.asarray(array)


def known(value: Any, operator: str) -> np.ndarray:
    """The operand's data as a NumPy array, for operators whose output shape depends on it.

    **Raises:** `HostValueError` if the operand is traced by `jit` or `vmap`; `jax.grad` alone is no obstacle.
    """
    if isinstance(value, jax.Array):
        value = jax.lax.stop_gradient(value)
    if isinstance(value, jax.core.Tracer):
        raise HostValueError(
            f"The output shape of {operator} depends on the data of a traced array ({value.aval.str_short()}); call "
            "the model without jit and vmap, or make the operand a constant or a function of input shapes."
        )
    return np.asarray(_on_host(value))


def _on_host(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return np.asarray(value)
    if isinstance(value, tuple | list):
        return _stacked([_on_host(item) for item in value])
    match value:
        case bool():
            return np.asarray(value)
        case int():
            return np.asarray(value, np.int64)
        case float():
            return np.asarray(value, np.float32)
    return _object_array([value], ())


def _stacked(items: list[np.ndarray]) -> np.ndarray:
    return np.stack(items) if items else np.zeros(0, np.int64)


def _object_array(items: list[Any], shape: tuple[int, ...]) -> np.ndarray:
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array.reshape(shape)


def shape_array(dims: tuple[Any, ...]) -> np.ndarray:
    """Dimensions as a vector: int64, or `dtype=object` if some are symbolic."""
    if all(isinstance(dim, int) for dim in dims):
        return np.array(dims, np.int64)
    return _object_array(list(dims), (len(dims),))


def _symbols_on_device(array: np.ndarray) -> jax.Array:
    """Symbolic dimensions of `jax.export` as traced integers."""
    items = [jnp.asarray(item) for item in array.reshape(-1)]
    return jnp.stack(items).reshape(array.shape)


def dtype_of(*values: Any) -> np.dtype | None:
    """The dtype of the first operand that is an array; `None` if all are Python numbers."""
    return next((value.dtype for value in values if hasattr(value, "dtype")), None)


def aligned(a: Any, b: Any, *, axis: int | None, broadcast: int) -> Any:
    """`b` as operators before opset 7 broadcast it: its axes meet those of `a` from `axis` on, by default the last ones."""
    if not broadcast or axis is None or np.ndim(b) == 0:
        return b
    return b.reshape(*b.shape, *(1,) * (a.ndim - axis % a.ndim - b.ndim))
