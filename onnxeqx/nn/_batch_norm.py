from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._buffer import Buffer


class BatchNorm(eqx.Module):
    """Batch normalisation with stored statistics (https://arxiv.org/abs/1502.03167), as an affine map of each channel.

    The statistics are buffers: they are saved with the model and never trained. `weight` and `bias` are parameters.
    """

    batched: ClassVar[bool] = True

    weight: Float[Array, " channels"]
    bias: Float[Array, " channels"]
    running_mean: Buffer
    running_var: Buffer
    eps: float = eqx.field(static=True)

    def __init__(self, channels: int, eps: float = 1e-5, dtype: Any = jnp.float32):
        """**Arguments:**

        - `channels`: size of axis 1 of the input.
        - `eps`: added to the variance.
        - `dtype`: of weights and statistics.
        """
        self.weight = jnp.ones(channels, dtype)
        self.bias = jnp.zeros(channels, dtype)
        self.running_mean = Buffer(jnp.zeros(channels, dtype))
        self.running_var = Buffer(jnp.ones(channels, dtype))
        self.eps = eps

    def __call__(self, x: Float[Array, "batch channels *spatial"]) -> Float[Array, "batch channels *spatial"]:
        """Same shape and dtype as `x`; computed in float32 at least."""
        dtype = x.dtype if jnp.finfo(x.dtype).bits >= 32 else jnp.float32
        scale = self.weight.astype(dtype) * jax.lax.rsqrt(self.running_var.astype(dtype) + self.eps)
        shift = self.bias.astype(dtype) - self.running_mean.astype(dtype) * scale
        channels = (-1, *(1,) * (x.ndim - 2))
        return (x.astype(dtype) * scale.reshape(channels) + shift.reshape(channels)).astype(x.dtype)
