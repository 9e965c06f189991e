"""Random numbers, of the `key` that a model is called with.

Without a key, a node draws from its `seed`, and one without a seed from a fixed key: every call gives the same numbers.
"""

import struct
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx

from .._registry import op
from ..runtime import canonical_dtype
from .hookspecs import hookimpl


def _key(key: Any, seed: float | None) -> Any:
    """The given key, or else that of a node's seed, a float32 of which every bit counts."""
    if key is not None:
        return key
    return jax.random.key(0 if seed is None else struct.unpack("<I", struct.pack("<f", seed))[0])


def _dtype(given: Any, default: Any) -> np.dtype:
    if given is None:
        return np.dtype(default)
    return canonical_dtype(onnx.helper.tensor_dtype_to_np_dtype(given) if isinstance(given, int) else given)


@op("RandomNormal", since=1, dtypes=("dtype",))
def random_normal(*, dtype=onnx.TensorProto.FLOAT, mean=0.0, scale=1.0, seed=None, shape, key=None):
    """Normal numbers of this mean and standard deviation.

    https://onnx.ai/onnx/operators/onnx__RandomNormal.html
    """
    return jax.random.normal(_key(key, seed), shape, _dtype(dtype, np.float32)) * scale + mean


@op("RandomNormalLike", since=1, dtypes=("dtype",))
def random_normal_like(input, *, dtype=None, mean=0.0, scale=1.0, seed=None, key=None):
    """Normal numbers in the shape of `input`, and in its dtype if none is given.

    https://onnx.ai/onnx/operators/onnx__RandomNormalLike.html
    """
    return jax.random.normal(_key(key, seed), input.shape, _dtype(dtype, input.dtype)) * scale + mean


@op("RandomUniform", since=1, dtypes=("dtype",))
def random_uniform(*, dtype=onnx.TensorProto.FLOAT, high=1.0, low=0.0, seed=None, shape, key=None):
    """Numbers from `low` to below `high`.

    https://onnx.ai/onnx/operators/onnx__RandomUniform.html
    """
    return jax.random.uniform(_key(key, seed), shape, _dtype(dtype, np.float32), low, high)


@op("RandomUniformLike", since=1, dtypes=("dtype",))
def random_uniform_like(input, *, dtype=None, high=1.0, low=0.0, seed=None, key=None):
    """Numbers from `low` to below `high` in the shape of `input`, and in its dtype if none is given.

    https://onnx.ai/onnx/operators/onnx__RandomUniformLike.html
    """
    return jax.random.uniform(_key(key, seed), input.shape, _dtype(dtype, input.dtype), low, high)


@op("Bernoulli", since=15, dtypes=("dtype",))
def bernoulli(input, *, dtype=None, seed=None, key=None):
    """1 with the probability that `input` gives, else 0; in its dtype if none is given. Any shape.

    https://onnx.ai/onnx/operators/onnx__Bernoulli.html
    """
    drawn = jax.random.uniform(_key(key, seed), input.shape, input.dtype) < input
    return drawn.astype(_dtype(dtype, input.dtype))


@op("Multinomial", since=7, dtypes=("dtype",))
def multinomial(input, *, dtype=onnx.TensorProto.INT32, sample_size=1, seed=None, key=None):
    """Classes drawn with these unnormalised log-probabilities: (batch, classes) -> (batch, sample_size), int32 or int64.

    https://onnx.ai/onnx/operators/onnx__Multinomial.html
    """
    drawn = jax.random.categorical(_key(key, seed), input[:, None], shape=(input.shape[0], sample_size))
    return drawn.astype(_dtype(dtype, jnp.int32))


@hookimpl
def onnxeqx_register_ops(registry):
    registry.add_module(__name__)
