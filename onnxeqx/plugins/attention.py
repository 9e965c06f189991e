"""Attention by softmax, and its parts that ONNX has as operators."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx

from .._registry import op
from ..runtime import canonical_dtype
from .hookspecs import hookimpl


@op("Attention", since=24, dtypes=("softmax_precision",))
def attention(
    Q,
    K,
    V,
    attn_mask=None,
    past_key=None,
    past_value=None,
    nonpad_kv_seqlen=None,
    *,
    is_causal=0,
    kv_num_heads=None,
    left_window_size=-1,
    q_num_heads=None,
    qk_matmul_output_mode=0,
    right_window_size=-1,
    scale=None,
    softcap=0.0,
    softmax_precision=None,
    n_outputs=1,
):
    """Scaled dot-product attention. Q: (batch, heads, time, size), or (batch, time, heads * size); K, V may have fewer heads.

    `attn_mask` says where to look (bool), or is added to the scores (float); a query that may look nowhere gives zeros. Keys
    and values follow those of the cache: `past_key`, `past_value` (batch, heads, past, size); or they are the whole cache, of
    which the first `nonpad_kv_seqlen` (batch,) count. Further outputs: the caches, and a stage of the scores.

    https://onnx.ai/onnx/operators/onnx__Attention.html
    """
    flat = Q.ndim == 3
    if flat:
        Q, K, V = _split_heads(Q, q_num_heads), _split_heads(K, kv_num_heads), _split_heads(V, kv_num_heads)
    past = 0 if past_key is None else past_key.shape[2]
    K, V = _after(past_key, K), _after(past_value, V)
    window = (left_window_size, 0 if is_causal else right_window_size)
    visible = _visible(Q.shape[2], K.shape[2], past, nonpad_kv_seqlen, *window)
    bias = _bias(attn_mask, visible, K.shape[2], Q.dtype)

    scores = _scores(Q, K, scale)
    capped = jnp.tanh(scores / softcap) * softcap if softcap else scores
    biased = capped if bias is None else capped + bias
    probabilities = _probabilities(biased, bias, softmax_precision)
    Y = _weighted(probabilities, V)
    Y = _join_heads(Y) if flat else Y
    outputs = (Y, K, V, (scores, capped, biased, probabilities)[qk_matmul_output_mode])
    return outputs[:n_outputs] if n_outputs > 1 else Y


@op("Attention", since=23, until=23, dtypes=("softmax_precision",))
def attention_23(
    Q,
    K,
    V,
    attn_mask=None,
    past_key=None,
    past_value=None,
    *,
    is_causal=0,
    kv_num_heads=None,
    q_num_heads=None,
    qk_matmul_output_mode=0,
    scale=None,
    softcap=0.0,
    softmax_precision=None,
    n_outputs=1,
):
    """As the later `attention`, with a mask that broadcasts along the keys too, where the later one counts as cut short.

    https://onnx.ai/onnx/operators/onnx__Attention.html
    """
    if attn_mask is not None and attn_mask.shape[-1] == 1:
        keys = K.shape[-2] + (0 if past_key is None else past_key.shape[2])
        attn_mask = jnp.broadcast_to(attn_mask, (*attn_mask.shape[:-1], keys))
    options: dict[str, Any] = {
        "is_causal": is_causal,
        "kv_num_heads": kv_num_heads,
        "q_num_heads": q_num_heads,
        "qk_matmul_output_mode": qk_matmul_output_mode,
        "scale": scale,
        "softcap": softcap,
        "softmax_precision": softmax_precision,
    }
    return attention(Q, K, V, attn_mask, past_key, past_value, n_outputs=n_outputs, **options)


def _split_heads(x: Any, heads: int | None) -> Any:
    """(batch, time, heads * size) -> (batch, heads, time, size)."""
    if not heads:
        raise ValueError(
            f"Attention of 3-D inputs such as {x.shape} needs q_num_heads and kv_num_heads; give the node both attributes."
        )
    return jnp.swapaxes(x.reshape(*x.shape[:2], heads, x.shape[2] // heads), 1, 2)


def _join_heads(x: Any) -> Any:
    """(batch, heads, time, size) -> (batch, time, heads * size)."""
    return jnp.swapaxes(x, 1, 2).reshape(x.shape[0], x.shape[2], x.shape[1] * x.shape[3])


def _after(past: Any, x: Any) -> Any:
    """The cache, if there is one, and the new time steps."""
    return x if past is None else jnp.concatenate((past, x), axis=2)


def _visible(queries: Any, keys: Any, past: Any, lengths: Any, left: int, right: int) -> Any:
    """Which query may look at which key by their positions -> bool, broadcastable to (batch, heads, queries, keys), or `None`.

    The queries stand at the positions from `past`, or, if `lengths` (batch,) is given, at the last of so many valid keys.
    """
    if lengths is None and left < 0 and right < 0:
        return None
    key, query = jnp.arange(keys, dtype=jnp.int32), jnp.arange(queries, dtype=jnp.int32)[:, None]
    first, conditions = jnp.asarray(past, jnp.int32), []
    if lengths is not None:
        lengths = jnp.asarray(lengths, jnp.int32)[:, None, None, None]
        first, conditions = lengths - jnp.asarray(queries, jnp.int32), [key < lengths]
    distance = key - (first + query)
    if left >= 0:
        conditions.append(distance >= -left)
    if right >= 0:
        conditions.append(distance <= right)
    return functools.reduce(jnp.logical_and, conditions)


def _bias(mask: Any, visible: Any, keys: Any, dtype: Any) -> Any:
    """What is added to the scores: the mask, and minus infinity where a query may not look; `None` for nothing."""
    zero = jnp.zeros((), dtype)
    if mask is None:
        return None if visible is None else jnp.where(visible, zero, -jnp.inf)
    bias = jnp.where(mask, zero, -jnp.inf) if mask.dtype == bool else jnp.asarray(mask).astype(dtype)
    if bias.shape[-1] != keys:
        bias = jnp.pad(bias, [(0, 0)] * (bias.ndim - 1) + [(0, keys - bias.shape[-1])], constant_values=-jnp.inf)
    return bias if visible is None else jnp.where(visible, bias, -jnp.inf)


def _scores(Q: Any, K: Any, scale: float | None) -> Any:
    """Products of queries and keys, (batch, heads of Q, queries, keys)."""
    batch, heads, queries, size = Q.shape
    if heads % K.shape[1]:
        raise ValueError(
            f"{heads} heads of queries cannot share {K.shape[1]} heads of keys evenly; correct the inputs or their heads."
        )
    # Both factors are scaled before the product, which could overflow in 16 bits.
    factor = math.sqrt(1 / math.sqrt(size) if scale is None else scale)
    groups = (Q * factor).reshape(batch, K.shape[1], heads // K.shape[1], queries, size)
    return jnp.einsum("bhgqd,bhkd->bhgqk", groups, K * factor).reshape(batch, heads, queries, K.shape[2])


def _probabilities(scores: Any, bias: Any, precision: Any) -> Any:
    """Softmax over the keys, all zero where the bias allows none."""
    # The bias alone says which: a product may be infinite by itself.
    allowed = None if bias is None else bias > -jnp.inf
    wide = scores.astype(_dtype(precision)) if precision else scores
    return jax.nn.softmax(wide, axis=-1, where=allowed).astype(scores.dtype)


def _weighted(probabilities: Any, V: Any) -> Any:
    """Sums of values, (batch, heads of Q, queries, size)."""
    batch, heads, queries, keys = probabilities.shape
    groups = probabilities.reshape(batch, V.shape[1], heads // V.shape[1], queries, keys)
    return jnp.einsum("bhgqk,bhkd->bhgqd", groups, V).reshape(batch, heads, queries, V.shape[3])


@op("FlexAttention", domain="ai.onnx.preview", since=1, dtypes=("softmax_precision",))
def flex_attention(Q, K, V, *, prob_mod=None, scale=None, score_mod=None, softmax_precision=None):
    """Attention whose scores and probabilities go through subgraphs. Q: (batch, heads, time, size); K, V may have fewer heads.

    The softmax is computed in `softmax_precision`: by default float32, or float64 for float64.

    https://onnx.ai/onnx/operators/onnx_aionnxpreview_FlexAttention.html
    """
    precision = _dtype(softmax_precision) if softmax_precision else Q.dtype if Q.dtype.itemsize > 4 else jnp.float32
    groups = Q.shape[1] // K.shape[1]
    K, V = jnp.repeat(K, groups, axis=1), jnp.repeat(V, groups, axis=1)
    scale = 1 / np.sqrt(Q.shape[-1]) if scale is None else scale
    scores = jnp.einsum("bhqd,bhkd->bhqk", Q, K).astype(precision) * float(scale)
    scores = scores if score_mod is None else score_mod(scores)
    probabilities = jax.nn.softmax(scores, axis=-1)
    probabilities = probabilities if prob_mod is None else prob_mod(probabilities)
    return jnp.einsum("bhqk,bhkd->bhqd", probabilities.astype(V.dtype), V)


def _dtype(number: Any) -> np.dtype:
    return canonical_dtype(onnx.helper.tensor_dtype_to_np_dtype(number) if isinstance(number, int) else number)


@op("SwiGLU", since=28)
def swi_glu(A, B, *, alpha=1.0):
    """`A * sigmoid(alpha * A) * B`: a gated linear unit, https://arxiv.org/abs/2002.05202. Equal shapes, float.

    https://onnx.ai/onnx/operators/onnx__SwiGLU.html
    """
    return A * jax.nn.sigmoid(A * alpha) * B


@op("RotaryEmbedding", since=23)
def rotary_embedding(
    X, cos_cache, sin_cache, position_ids=None, *, interleaved=0, num_heads=None, rotary_embedding_dim=0
):
    """Turns pairs of features by an angle for each position. X: (batch, heads, time, size), or (batch, time, heads * size).

    The caches are (positions, angles) with `position_ids` (batch, time), else (batch, time, angles). Pairs are the two halves
    of the first `rotary_embedding_dim` features, or neighbours if `interleaved`.

    https://onnx.ai/onnx/operators/onnx__RotaryEmbedding.html
    """
    flat = X.ndim == 3
    x = X.reshape(*X.shape[:2], num_heads, -1) if flat else jnp.swapaxes(X, 1, 2)
    size = rotary_embedding_dim or x.shape[-1]
    turned, rest = x[..., :size], x[..., size:]
    if position_ids is not None:
        cos_cache, sin_cache = cos_cache[position_ids], sin_cache[position_ids]
    cos, sin = (cache[:, :, None, : size // 2] for cache in (cos_cache, sin_cache))
    first, second = (turned[..., 0::2], turned[..., 1::2]) if interleaved else jnp.split(turned, 2, axis=-1)
    real, imaginary = cos * first - sin * second, sin * first + cos * second
    if interleaved:
        turned = jnp.stack((real, imaginary), axis=-1).reshape(turned.shape)
    else:
        turned = jnp.concatenate((real, imaginary), axis=-1)
    y = jnp.concatenate((turned, rest), axis=-1)
    return y.reshape(X.shape) if flat else jnp.swapaxes(y, 1, 2)


@hookimpl
def onnxeqx_register_ops(registry):
    registry.add_module(__name__)
