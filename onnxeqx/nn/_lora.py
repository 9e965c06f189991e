"""Linear layers and convolutions with a low-rank update beside their weight."""

import math
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ._conv import Conv


class LoRALinear(eqx.Module):
    """`eqx.nn.Linear` whose weight is `weight + scale * lora_up @ lora_down`.

    `lora_up` begins as zeros, so that a new layer computes what the old one did.

    https://arxiv.org/abs/2106.09685
    """

    batched: ClassVar[bool] = True

    weight: Float[Array, "out in"]
    bias: Float[Array, " out"] | None
    lora_down: Float[Array, "rank in"]
    lora_up: Float[Array, "out rank"]
    scale: float = eqx.field(static=True)

    def __init__(self, linear: eqx.nn.Linear, rank: int, scale: float, *, key: PRNGKeyArray):
        """**Arguments:**

        - `linear`: the layer, whose `weight` and `bias` are kept.
        - `rank`: of the update; at least 1.
        - `scale`: its factor.
        - `key`: for `lora_down`, which is drawn as the rows of a linear layer are.
        """
        width_out, width_in = linear.weight.shape
        dtype = linear.weight.dtype
        self.weight, self.bias = linear.weight, linear.bias
        bound = (1 / width_in) ** 0.5
        self.lora_down = jax.random.uniform(key, (rank, width_in), dtype, -bound, bound)
        self.lora_up = jnp.zeros((width_out, rank), dtype)
        self.scale = scale

    def __call__(self, x: Float[Array, "*batch in"], *, key: PRNGKeyArray | None = None) -> Float[Array, "*batch out"]:
        """Any number of examples at once, or one: shape `(*batch, in)` -> `(*batch, out)`."""
        flat = x.reshape(-1, x.shape[-1])
        # XLA's CPU backend would fuse the product with few columns into the sum, and compute it without its fast kernels.
        update = jax.lax.optimization_barrier((flat @ self.lora_down.T) @ (self.scale * self.lora_up.T))
        y = flat @ self.weight.T + update
        y = y if self.bias is None else y + self.bias
        return y.reshape(*x.shape[:-1], y.shape[-1])

    def merged(self) -> eqx.nn.Linear:
        """A plain linear layer that computes the same."""
        width_out, width_in = self.weight.shape
        weight = self.weight + self.scale * (self.lora_up @ self.lora_down)
        linear = eqx.filter_eval_shape(
            eqx.nn.Linear, width_in, width_out, use_bias=self.bias is not None, key=jax.random.key(0)
        )
        return eqx.tree_at(lambda layer: (layer.weight, layer.bias), linear, (weight, self.bias), is_leaf=_is_none)


class LoRAConv(eqx.Module):
    """[`onnxeqx.nn.Conv`][] whose weight is `weight + scale * lora_up @ lora_down`, reshaped to the kernel.

    `lora_up` begins as zeros, so that a new layer computes what the old one did.

    https://arxiv.org/abs/2106.09685
    """

    batched: ClassVar[bool] = True

    weight: Float[Array, "out_channels in_channels/groups *kernel"]
    bias: Float[Array, " out_channels"] | None
    lora_down: Float[Array, "rank in_channels/groups*kernel"]
    lora_up: Float[Array, "out_channels rank"]
    scale: float = eqx.field(static=True)
    geometry: Conv

    def __init__(self, conv: Conv, rank: int, scale: float, *, key: PRNGKeyArray):
        """**Arguments:**

        - `conv`: the layer, whose `weight` and `bias` are kept.
        - `rank`, `scale`, `key`: as of [`onnxeqx.nn.LoRALinear`][].
        """
        self.weight, self.bias, self.scale = conv.weight, conv.bias, scale
        self.geometry = eqx.tree_at(lambda layer: (layer.weight, layer.bias), conv, (None, None), is_leaf=_is_none)
        fan_in, bound = math.prod(conv.weight.shape[1:]), math.prod(conv.weight.shape[1:]) ** -0.5
        self.lora_down = jax.random.uniform(key, (rank, fan_in), conv.weight.dtype, -bound, bound)
        self.lora_up = jnp.zeros((conv.weight.shape[0], rank), conv.weight.dtype)

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """As [`onnxeqx.nn.Conv`][]."""
        return self.merged()(x)

    def merged(self) -> Conv:
        """A plain convolution that computes the same."""
        update = self.scale * (self.lora_up @ self.lora_down)
        fields = (self.weight + update.reshape(self.weight.shape), self.bias)
        return eqx.tree_at(lambda layer: (layer.weight, layer.bias), self.geometry, fields, is_leaf=_is_none)


def _is_none(leaf: object) -> bool:
    return leaf is None
