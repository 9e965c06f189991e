"""Parts of attention that ONNX has as operators. `Attention` itself is expanded from the function body that ONNX gives."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx

from .._registry import op
from ..runtime import canonical_dtype
from .hookspecs import hookimpl


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
