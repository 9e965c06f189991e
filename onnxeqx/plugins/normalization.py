"""Normalisation: by stored statistics, over a batch, a layer, a group or neighbouring channels."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._registry import op
from ..runtime import normalize_axes
from .hookspecs import hookimpl


@op("BatchNormalization", since=14, buffers=("input_mean", "input_var"))
def batch_normalization(
    X, scale, B, input_mean, input_var, *, epsilon=1e-5, momentum=0.9, training_mode=0, n_outputs=1
):
    """`scale * (X - mean) / sqrt(var + epsilon) + B` for each channel. X: (n, c, *d), the others (c,), float -> as X.

    In training mode by the statistics of the batch; the running ones follow as second and third output.

    https://onnx.ai/onnx/operators/onnx__BatchNormalization.html
    """
    if not training_mode:
        return _normalized_by(X, scale, B, input_mean, input_var, epsilon)
    axes = (0, *range(2, X.ndim))
    wide = X.astype(_at_least_float32(X.dtype))
    mean, var = wide.mean(axes), wide.var(axes)
    y = _normalized_by(X, scale, B, mean, var, epsilon)
    running = [
        (old * momentum + new.astype(old.dtype) * (1 - momentum)) for old, new in ((input_mean, mean), (input_var, var))
    ]
    return y if n_outputs == 1 else (y, *running)


@op("BatchNormalization", since=7, until=13, buffers=("mean", "var"))
def batch_normalization_7(X, scale, B, mean, var, *, epsilon=1e-5, momentum=0.9, spatial=1):
    """As in opset 14, for inference; without `spatial`, the statistics have the shape of one example. Float.

    https://onnx.ai/onnx/operators/onnx__BatchNormalization.html
    """
    return _normalized_by(X, scale, B, mean, var, epsilon)


@op("BatchNormalization", since=1, until=6, buffers=("mean", "var"))
def batch_normalization_1(
    X, scale, B, mean, var, *, epsilon=1e-5, momentum=0.9, is_test=0, spatial=1, consumed_inputs=None
):
    """As in opset 14, for inference: `is_test` is taken as 1. Float.

    https://onnx.ai/onnx/operators/onnx__BatchNormalization.html
    """
    return _normalized_by(X, scale, B, mean, var, epsilon)


def _normalized_by(x: Any, scale: Any, bias: Any, mean: Any, var: Any, epsilon: float) -> Any:
    dtype = _at_least_float32(x.dtype)

    def per_channel(values: Any) -> Any:
        return values.astype(dtype).reshape(*values.shape, *(1,) * (x.ndim - 1 - values.ndim))

    factor = per_channel(scale) * jax.lax.rsqrt(per_channel(var) + epsilon)
    return ((x.astype(dtype) - per_channel(mean)) * factor + per_channel(bias)).astype(x.dtype)


def _at_least_float32(dtype: Any) -> Any:
    return jnp.promote_types(dtype, jnp.float32)


@op("InstanceNormalization", since=6)
def instance_normalization(input, scale, B, *, epsilon=1e-5):
    """Each channel of each example by its own mean and variance. input: (n, c, *d), scale, B: (c,), float -> as input.

    https://onnx.ai/onnx/operators/onnx__InstanceNormalization.html
    """
    return group_normalization(input, scale, B, num_groups=input.shape[1], epsilon=epsilon)


@op("InstanceNormalization", since=1, until=5)
def instance_normalization_1(input, scale, B, *, epsilon=1e-5, consumed_inputs=None):
    """Each channel of each example by its own mean and variance. input: (n, c, *d), scale, B: (c,), float -> as input.

    https://onnx.ai/onnx/operators/onnx__InstanceNormalization.html
    """
    return instance_normalization(input, scale, B, epsilon=epsilon)


@op("GroupNormalization", since=21)
def group_normalization(X, scale, bias, *, num_groups, epsilon=1e-5, stash_type=1):
    """Each group of channels by its own mean and variance. X: (n, c, *d), scale, bias: (c,), float -> as X.

    https://onnx.ai/onnx/operators/onnx__GroupNormalization.html
    """
    dtype = _at_least_float32(X.dtype)
    groups = X.astype(dtype).reshape(X.shape[0], num_groups, -1)
    y = _standardized(groups, (-1,), epsilon)[0].reshape(X.shape)
    channels = (-1, *(1,) * (X.ndim - 2))
    return (y * scale.astype(dtype).reshape(channels) + bias.astype(dtype).reshape(channels)).astype(X.dtype)


@op("GroupNormalization", since=18, until=20)
def group_normalization_18(X, scale, bias, *, num_groups, epsilon=1e-5):
    """As in opset 21, with one scale and bias for each group. X: (n, c, *d), scale, bias: (num_groups,), float -> as X.

    https://onnx.ai/onnx/operators/onnx__GroupNormalization.html
    """
    size = X.shape[1] // num_groups
    return group_normalization(
        X, jnp.repeat(scale, size), jnp.repeat(bias, size), num_groups=num_groups, epsilon=epsilon
    )


@op("LayerNormalization", since=17)
def layer_normalization(X, Scale, B=None, *, axis=-1, epsilon=1e-5, stash_type=1, n_outputs=1):
    """The axes from `axis` on by their mean and variance, then scaled and shifted. Float -> as X; also mean and 1/deviation.

    https://onnx.ai/onnx/operators/onnx__LayerNormalization.html
    """
    axes = tuple(range(axis % X.ndim, X.ndim))
    wide = X.astype(_at_least_float32(X.dtype) if stash_type == 1 else X.dtype)
    standard, mean, inverse = _standardized(wide, axes, epsilon)
    y = standard.astype(X.dtype) * Scale
    y = y if B is None else y + B
    return y if n_outputs == 1 else (y, mean, inverse)[:n_outputs]


def _standardized(x: Any, axes: tuple[int, ...], epsilon: float) -> tuple[Any, Any, Any]:
    mean = x.mean(axes, keepdims=True)
    inverse = jax.lax.rsqrt(x.var(axes, keepdims=True) + epsilon)
    return (x - mean) * inverse, mean, inverse


@op("RMSNormalization", since=23)
def rms_normalization(X, scale, *, axis=-1, epsilon=1e-5, stash_type=1):
    """The axes from `axis` on divided by their root mean square, then scaled. Float -> as X.

    https://onnx.ai/onnx/operators/onnx__RMSNormalization.html
    """
    axes = tuple(range(axis % X.ndim, X.ndim))
    wide = X.astype(_at_least_float32(X.dtype) if stash_type == 1 else X.dtype)
    y = wide * jax.lax.rsqrt((wide * wide).mean(axes, keepdims=True) + epsilon)
    return y.astype(X.dtype) * scale


@op("LRN", since=1)
def lrn(X, *, alpha=1e-4, beta=0.75, bias=1.0, size):
    """Each value by the squares of `size` neighbouring channels. X: (n, c, *d), float -> as X.

    https://onnx.ai/onnx/operators/onnx__LRN.html
    """
    before, after = (size - 1) // 2, size // 2
    window = (1, size, *(1,) * (X.ndim - 2))
    padding = [(0, 0), (before, after), *[(0, 0)] * (X.ndim - 2)]
    squares = jax.lax.reduce_window(X * X, np.zeros((), X.dtype), jax.lax.add, window, (1,) * X.ndim, padding)
    return X / (bias + alpha / size * squares) ** beta


@op("LpNormalization", since=1)
def lp_normalization(input, *, axis=-1, p=2):
    """Divided by the sum of magnitudes (p=1) or the root of squares (p=2) along `axis`; 0 where that is 0. Float -> as input.

    https://onnx.ai/onnx/operators/onnx__LpNormalization.html
    """
    power = abs(input).sum(axis, keepdims=True) if p == 1 else (input * input).sum(axis, keepdims=True)
    # The root of a safe number: the gradient of sqrt at zero is infinite.
    norm = jnp.where(power == 0, 1, power)
    return jnp.where(power == 0, 0, input / (norm if p == 1 else jnp.sqrt(norm)))


@op("MeanVarianceNormalization", since=9)
def mean_variance_normalization(X, *, axes=(0, 2, 3)):
    """By mean and standard deviation along `axes`. Any shape, float -> as X.

    https://onnx.ai/onnx/operators/onnx__MeanVarianceNormalization.html
    """
    axes = normalize_axes(axes, X.ndim)
    centred = X - X.mean(axes, keepdims=True)
    # ONNX defines the operator by a function body that adds 1e-9 to the deviation.
    return centred / (jnp.sqrt((centred * centred).mean(axes, keepdims=True)) + 1e-9)


@hookimpl
def onnxeqx_register_ops(registry) -> None:
    registry.add_module(__name__)
