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
        return _affine(x, self.running_mean.value, self.running_var.value, self.weight, self.bias, self.eps)


class TrainingBatchNorm(eqx.Module):
    """Batch normalisation by the statistics of the batch, as in training; see [`onnxeqx.training.train_batch_norm`][].

    The key paths are those of [`onnxeqx.nn.BatchNorm`][], but the stored statistics are arrays, and the *gradient* with respect
    to them is the statistics of the batch. So they leave a pure function, through `scan` and `jit` and whatever printed code
    stands around the layer, without a second output for each call.
    """

    batched: ClassVar[bool] = True

    weight: Float[Array, " channels"]
    bias: Float[Array, " channels"]
    running_mean: Float[Array, " channels"]
    running_var: Float[Array, " channels"]
    eps: float = eqx.field(static=True)
    inference: bool

    def __init__(self, layer: BatchNorm):
        """**Arguments:**

        - `layer`: whose weights and statistics it takes over.
        """
        self.weight, self.bias, self.eps = layer.weight, layer.bias, layer.eps
        self.running_mean, self.running_var = layer.running_mean.value, layer.running_var.value
        self.inference = False

    def __call__(self, x: Float[Array, "batch channels *spatial"]) -> Float[Array, "batch channels *spatial"]:
        """Same shape and dtype as `x`; computed in float32 at least. With `inference`, by the stored statistics."""
        if self.inference:
            return self.frozen()(x)
        dtype = _wide(x.dtype)
        axes = (0, *range(2, x.ndim))
        mean = x.astype(dtype).mean(axes)
        variance = x.astype(dtype).var(axes)
        count = x.size // x.shape[1]
        # ONNX stores the variance as it normalises, of the population; what PyTorch's statistics follow is that of the sample.
        following = jax.lax.stop_gradient((mean, variance * (count / max(count - 1, 1))))
        mean, variance = _report((mean, variance), (self.running_mean, self.running_var), following)
        return _affine(x, mean, variance, self.weight, self.bias, self.eps)

    def frozen(self) -> BatchNorm:
        """The layer with its statistics as they are now."""
        layer = BatchNorm(self.weight.shape[-1], self.eps, self.weight.dtype)
        fields = (self.weight, self.bias, Buffer(self.running_mean), Buffer(self.running_var))
        return eqx.tree_at(lambda bn: (bn.weight, bn.bias, bn.running_mean, bn.running_var), layer, fields)


def _wide(dtype: Any) -> Any:
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32


def _affine(x: Array, mean: Array, variance: Array, weight: Array, bias: Array, eps: float) -> Array:
    dtype = _wide(x.dtype)
    scale = weight.astype(dtype) * jax.lax.rsqrt(variance.astype(dtype) + eps)
    shift = bias.astype(dtype) - mean.astype(dtype) * scale
    channels = (-1, *(1,) * (x.ndim - 2))
    return (x.astype(dtype) * scale.reshape(channels) + shift.reshape(channels)).astype(x.dtype)


@jax.custom_vjp
def _report(values: Any, stored: Any, following: Any) -> Any:
    """`values`; the gradient with respect to `stored` is `following`."""
    del stored, following
    return values


def _report_forward(values: Any, stored: Any, following: Any) -> tuple[Any, Any]:
    return values, jax.tree.map(lambda new, old: new.astype(old.dtype), following, stored)


def _report_backward(following: Any, cotangent: Any) -> tuple[Any, Any, Any]:
    return cotangent, following, jax.tree.map(jnp.zeros_like, cotangent)


_report.defvjp(_report_forward, _report_backward)
