"""Operators that exporters spell out, and that ONNX has no name for (domain `onnxeqx`). Patterns put them in."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._registry import op
from ..runtime import host_ints
from .hookspecs import hookimpl


@op("RotateHalf", domain="onnxeqx")
def rotate_half(x):
    """The halves of the last axis swapped, the new first one negated. Shape (..., n) with even n -> the same, any dtype.

    Rotary position embedding: https://arxiv.org/abs/2104.09864.
    """
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([-second, first], axis=-1)


@op("RepeatHeads", domain="onnxeqx", prints="jnp.repeat(x, repeats, axis=1)")
def repeat_heads(x, *, repeats):
    """Each head `repeats` times: shape (batch, heads, length, width) -> (batch, heads * repeats, length, width).

    Grouped-query attention: https://arxiv.org/abs/2305.13245.
    """
    return jnp.repeat(x, repeats, axis=1)


@op("CausalMask", domain="onnxeqx", host=("queries", "keys", "past"))
def causal_mask(queries, keys, past=0):
    """Which keys each query may attend to: those up to its own position -> bool, shape (1, 1, queries, keys).

    **Arguments:**

    - `queries`, `keys`: how many there are.
    - `past`: how many keys come before the position of the first query.
    """
    (queries,), (keys,), (past,) = map(host_ints, (queries, keys, past))
    visible = jnp.arange(keys) <= jnp.arange(queries)[:, None] + past
    return visible[None, None]


@op("DotProductAttention", domain="onnxeqx")
def dot_product_attention(
    query: Float[Array, "batch target heads width"],
    key: Float[Array, "batch source key_heads width"],
    value: Float[Array, "batch source key_heads width"],
    bias: Float[Array, "#batch #heads #target #source"] | None = None,
    *,
    scale: float,
) -> Float[Array, "batch target heads width"]:
    """`softmax(query @ key * scale + bias) @ value`, by [`jax.nn.dot_product_attention`][].

    That one computes the softmax in float32 whatever the dtype, so that in float64 this one takes another way.

    **Arguments:**

    - `query`, `key`, `value`: as many key heads as heads, or a divisor of them: then each serves several heads.
    - `bias`: added to the scores: very negative where there is nothing to attend to.
    - `scale`: of the scores.
    """
    if query.dtype != jnp.float64:
        return jax.nn.dot_product_attention(query, key, value, bias, scale=scale)
    repeats = query.shape[2] // key.shape[2]
    key, value = (jnp.repeat(array, repeats, axis=2) for array in (key, value))
    scores = jnp.einsum("btnh,bsnh->bnts", query, key) * scale
    weights = jax.nn.softmax(scores if bias is None else scores + bias, axis=-1)
    return jnp.einsum("bnts,bsnh->btnh", weights, value)


@hookimpl
def onnxeqx_register_ops(registry) -> None:
    registry.add_module(__name__)
