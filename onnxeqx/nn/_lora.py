"""A linear layer with a low-rank update beside its weight."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray


class LoRALinear(eqx.Module):
    """`eqx.nn.Linear` whose weight is `weight + scale * lora_up @ lora_down`.

    `lora_up` begins as zeros, so that a new layer computes what the old one did.

    https://arxiv.org/abs/2106.09685
    """

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

    def __call__(self, x: Float[Array, " in"], *, key: PRNGKeyArray | None = None) -> Float[Array, " out"]:
        """One example: shape `(in,)` -> `(out,)`."""
        y = self.weight @ x + self.scale * (self.lora_up @ (self.lora_down @ x))
        return y if self.bias is None else y + self.bias

    def merged(self) -> eqx.nn.Linear:
        """A plain linear layer that computes the same."""
        width_out, width_in = self.weight.shape
        weight = self.weight + self.scale * (self.lora_up @ self.lora_down)
        linear = eqx.filter_eval_shape(
            eqx.nn.Linear, width_in, width_out, use_bias=self.bias is not None, key=jax.random.key(0)
        )
        return eqx.tree_at(
            lambda layer: (layer.weight, layer.bias), linear, (weight, self.bias), is_leaf=lambda leaf: leaf is None
        )
