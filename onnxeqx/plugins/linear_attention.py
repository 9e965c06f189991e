"""Attention without a softmax, whose state has a constant size, and the causal convolution that comes before it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .. import _convolution
from .._registry import op
from .hookspecs import hookimpl

# Whether an update rule takes `decay`, and `beta`.
_RULES = {"linear": (False, False), "gated": (True, False), "delta": (False, True), "gated_delta": (True, True)}


@op("LinearAttention", since=27)
def linear_attention(
    query,
    key,
    value,
    past_state=None,
    decay=None,
    beta=None,
    *,
    chunk_size=64,
    kv_num_heads,
    q_num_heads,
    scale=0.0,
    update_rule="gated_delta",
    n_outputs=1,
):
    """Reads from a state to which every step adds the outer product of its key and value. query: (batch, time, heads * size).

    The state is (batch, kv_num_heads, key size, value size). Before a step it is multiplied by `exp(decay)`, `decay` being
    (batch, time, kv_num_heads) or so for each key feature; with `beta` (batch, time, kv_num_heads or 1), only that part of the
    value is added which the state does not give for the key yet. `chunk_size` is a hint, which changes no result.

    https://onnx.ai/onnx/operators/onnx__LinearAttention.html
    """
    _check_rule(update_rule, decay, beta)
    _check_heads(q_num_heads, kv_num_heads)
    wide = _wide(query.dtype)
    q = _by_time(query, q_num_heads, wide)
    # Grouped by the state that they share.
    q = q.reshape(*q.shape[:2], kv_num_heads, q_num_heads // kv_num_heads, q.shape[-1])
    k, v = _by_time(key, kv_num_heads, wide), _by_time(value, kv_num_heads, wide)
    decay = None if decay is None else _by_time(decay, kv_num_heads, wide)
    beta = None if beta is None else _by_time(beta, beta.shape[-1], wide)
    if past_state is None:
        past_state = jnp.zeros((*k.shape[1:], v.shape[-1]), query.dtype)

    state, y = lax.scan(_step, past_state.astype(wide), (q, k, v, decay, beta))
    y = y * (scale or q.shape[-1] ** -0.5)
    output = jnp.swapaxes(y, 0, 1).reshape(*query.shape[:2], q_num_heads * v.shape[-1]).astype(query.dtype)
    return (output, state.astype(past_state.dtype)) if n_outputs > 1 else output


def _step(state: Any, inputs: tuple[Any, ...]) -> tuple[Any, Any]:
    q, k, v, decay, beta = inputs
    if decay is not None:
        state = state * jnp.exp(decay)[..., None]
    if beta is not None:
        v = beta * (v - jnp.einsum("bhkv,bhk->bhv", state, k))
    state = state + k[..., :, None] * v[..., None, :]
    return state, jnp.einsum("bhgk,bhkv->bhgv", q, state)


def _check_rule(rule: str, decay: Any, beta: Any) -> None:
    if rule not in _RULES:
        raise ValueError(f"There is no update_rule {rule!r}, only {', '.join(_RULES)}; correct the node.")
    for name, value, wanted in zip(("decay", "beta"), (decay, beta), _RULES[rule], strict=True):
        if (value is not None) != wanted:
            raise ValueError(
                f"The update_rule {rule!r} takes {'an' if wanted else 'no'} input {name!r}; correct the rule or the inputs."
            )


def _check_heads(queries: int, keys: int) -> None:
    if queries % keys:
        raise ValueError(
            f"{queries} heads of queries cannot share {keys} states evenly; correct q_num_heads or kv_num_heads."
        )


def _by_time(x: Any, heads: int, dtype: Any) -> Any:
    """(batch, time, heads * size) -> (time, batch, heads, size)."""
    return jnp.swapaxes(x.reshape(*x.shape[:2], heads, x.shape[2] // heads), 0, 1).astype(dtype)


def _wide(dtype: Any) -> Any:
    """The dtype of sums over many steps: at least float32."""
    return dtype if dtype.itemsize > 4 else np.dtype(np.float32)


@op("CausalConvWithState", since=27)
def causal_conv_with_state(x, weight, bias=None, past_state=None, *, activation="none", n_outputs=1):
    """Convolution of each channel with the present and past steps. x: (batch, channels, time); weight: (channels, 1, kernel).

    The state holds the last `kernel - 1` steps, (batch, channels, kernel - 1): zeros at first. The activation may be `silu`.

    https://onnx.ai/onnx/operators/onnx__CausalConvWithState.html
    """
    if activation not in ("none", "silu", "swish"):
        raise ValueError(f"There is no activation {activation!r}, only none, silu and swish; correct the node.")
    channels, _, kernel = weight.shape
    if past_state is None:
        past_state = jnp.zeros((*x.shape[:2], kernel - 1), x.dtype)
    steps = jnp.concatenate((past_state, x), axis=2)
    y = _convolution.convolution(steps, weight, strides=(1,), padding=((0, 0),), dilations=(1,), groups=channels)
    y = y if bias is None else y + bias[:, None]
    if activation != "none":
        y = jax.nn.silu(y.astype(_wide(y.dtype))).astype(y.dtype)
    return (y, steps[:, :, x.shape[2] :]) if n_outputs > 1 else y


@hookimpl
def onnxeqx_register_ops(registry):
    registry.add_module(__name__)
