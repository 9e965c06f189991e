from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt

from ..runtime import canonical_dtype

_BITS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


class Buffer(eqx.Module):
    """A floating-point array that is never trained, such as a statistic of BatchNorm.

    The values are kept as their bits, in an unsigned-integer array: `eqx.is_inexact_array` does not select it, so no
    optimiser decays it and no gradient reaches it, while it is saved, moved, cast around and stacked like any leaf.
    """

    bits: UInt[Array, "..."]
    dtype: str = eqx.field(static=True)

    def __init__(self, value: Any, dtype: Any = None):
        """**Arguments:**

        - `value`: the values, any shape, floating point.
        - `dtype`: their dtype. Defaults to that of `value`; without `jax_enable_x64`, float64 becomes float32.
        """
        value = value if hasattr(value, "dtype") else np.asarray(value, np.float32)
        self.dtype = str(canonical_dtype(dtype or value.dtype))
        self.bits = to_bits(value.astype(self.dtype))

    @property
    def shape(self) -> tuple[int, ...]:
        return self.bits.shape

    @property
    def value(self) -> Float[Array, "..."]:
        """The values, in the dtype in which they are stored."""
        return jax.lax.bitcast_convert_type(self.bits, jnp.dtype(self.dtype))

    def astype(self, dtype: Any) -> Float[Array, "..."]:
        """The values in the dtype of a computation. Shape as `bits`."""
        return self.value.astype(dtype)


def to_bits(value: Any) -> Any:
    """The same memory as unsigned integers. Any shape; NumPy stays NumPy."""
    bits = _BITS[value.dtype.itemsize]
    return value.view(bits) if isinstance(value, np.ndarray) else jax.lax.bitcast_convert_type(value, bits)


def parameter(*shape: int, dtype: Any = jnp.float32) -> Float[Array, "..."]:
    """A trained tensor that belongs to no layer, before its weights are bound. Zeros of this shape and dtype."""
    return jnp.zeros(shape, canonical_dtype(dtype))


def buffer(*shape: int, dtype: Any = jnp.float32) -> Buffer:
    """A [`onnxeqx.nn.Buffer`][] before its values are bound. Zeros of this shape and dtype."""
    return Buffer(jnp.zeros(shape, canonical_dtype(dtype)))


def constant(*shape: int, dtype: Any) -> Array:
    """A table of integers or booleans before its values are bound. Zeros of this shape and dtype."""
    return jnp.zeros(shape, canonical_dtype(dtype))
