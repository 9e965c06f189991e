"""Normalisation: by stored statistics, over a batch, a layer, a group or neighbouring channels."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx

from .._registry import op
from ..runtime import normalize_axes
from ._operands import dtype_of
from .hookspecs import hookimpl
from .reduction import reduce_l1, reduce_l2, square_root, widened


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
    outputs = _by_batch(X, scale, B, input_mean, input_var, epsilon, momentum)
    return outputs[0] if n_outputs == 1 else outputs[:n_outputs]


def _by_batch(x: Any, scale: Any, bias: Any, mean: Any, var: Any, epsilon: float, momentum: float) -> tuple[Any, ...]:
    """Normalised by the statistics of the batch; the new running statistics; those of the batch."""
    axes = (0, *range(1 + mean.ndim, x.ndim))
    statistics = widened(x).mean(axes), widened(x).var(axes)
    batch = [statistic.astype(mean.dtype) for statistic in statistics]
    running = [old * momentum + new * (1 - momentum) for old, new in zip((mean, var), batch, strict=True)]
    return _normalized_by(x, scale, bias, *statistics, epsilon), *running, *batch


@op("BatchNormalization", since=7, until=13, buffers=("mean", "var"))
def batch_normalization_7(X, scale, B, mean, var, *, epsilon=1e-5, momentum=0.9, spatial=1, n_outputs=1):
    """As in opset 14; without `spatial`, the statistics have the shape of one example. Float.

    Several outputs stand for training mode: the running statistics, then those of the batch.

    https://onnx.ai/onnx/operators/onnx__BatchNormalization.html
    """
    if n_outputs == 1:
        return _normalized_by(X, scale, B, mean, var, epsilon)
    return _by_batch(X, scale, B, mean, var, epsilon, momentum)[:n_outputs]


@op("BatchNormalization", since=1, until=6, buffers=("mean", "var"))
def batch_normalization_1(
    X, scale, B, mean, var, *, epsilon=1e-5, momentum=0.9, is_test=0, spatial=1, consumed_inputs=None, n_outputs=1
):
    """As in opset 7: inference with one output, whatever `is_test` says. Float.

    https://onnx.ai/onnx/operators/onnx__BatchNormalization.html
    """
    return batch_normalization_7(X, scale, B, mean, var, epsilon=epsilon, momentum=momentum, n_outputs=n_outputs)


def _normalized_by(x: Any, scale: Any, bias: Any, mean: Any, var: Any, epsilon: float) -> Any:
    wide = widened(x)
    scale, bias, mean, var = (_per_channel(values, wide) for values in (scale, bias, mean, var))
    factor = scale * jax.lax.rsqrt(var + epsilon)
    return ((wide - mean) * factor + bias).astype(x.dtype)


def _per_channel(values: Any, x: Any) -> Any:
    return values.astype(x.dtype).reshape(*values.shape, *(1,) * (x.ndim - 1 - values.ndim))


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
    groups = widened(X).reshape(X.shape[0], num_groups, X.shape[1] // num_groups, *X.shape[2:])
    y = _standardized(groups, tuple(range(2, groups.ndim)), epsilon)[0].reshape(X.shape)
    return (y * _per_channel(scale, y) + _per_channel(bias, y)).astype(X.dtype)


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
    standard, *statistics = _standardized(widened(X), axes, epsilon)
    y = standard.astype(X.dtype) * Scale
    y = y if B is None else y + B
    stash = onnx.helper.tensor_dtype_to_np_dtype(stash_type)
    return y if n_outputs == 1 else (y, *(statistic.astype(stash) for statistic in statistics))[:n_outputs]


def _standardized(x: Any, axes: tuple[int, ...], epsilon: float) -> tuple[Any, Any, Any]:
    mean = x.mean(axes, keepdims=True)
    inverse = jax.lax.rsqrt(x.var(axes, keepdims=True) + epsilon)
    return (x - mean) * inverse, mean, inverse


@op("RMSNormalization", since=23)
def rms_normalization(X, scale, *, axis=-1, epsilon=1e-5, stash_type=1):
    """The axes from `axis` on divided by their root mean square, then scaled. Float -> shape of X, dtype of `scale`.

    https://onnx.ai/onnx/operators/onnx__RMSNormalization.html
    """
    axes = tuple(range(axis % X.ndim, X.ndim))
    wide = widened(X)
    y = (wide * jax.lax.rsqrt((wide * wide).mean(axes, keepdims=True) + epsilon)).astype(X.dtype)
    return y.astype(dtype_of(scale, y)) * scale


@op("LRN", since=1)
def lrn(X, *, alpha=1e-4, beta=0.75, bias=1.0, size):
    """Each value by the squares of `size` neighbouring channels. X: (n, c, *d), float -> as X.

    https://onnx.ai/onnx/operators/onnx__LRN.html
    """
    before, after = (size - 1) // 2, size // 2
    window = (1, size, *(1,) * (X.ndim - 2))
    padding = [(0, 0), (before, after), *[(0, 0)] * (X.ndim - 2)]
    wide = widened(X)
    squares = jax.lax.reduce_window(wide * wide, np.zeros((), wide.dtype), jax.lax.add, window, (1,) * X.ndim, padding)
    return (wide / (bias + alpha / size * squares) ** beta).astype(X.dtype)


@op("LpNormalization", since=1)
def lp_normalization(input, *, axis=-1, p=2):
    """Divided by the sum of magnitudes (p=1) or the root of squares (p=2) along `axis`; 0 where that is 0. Float -> as input.

    https://onnx.ai/onnx/operators/onnx__LpNormalization.html
    """
    wide = widened(input)
    norm = reduce_l1(wide, (axis,)) if p == 1 else reduce_l2(wide, (axis,))
    zero = norm == 0
    return jnp.where(zero, 0, wide / jnp.where(zero, 1, norm)).astype(input.dtype)


@op("MeanVarianceNormalization", since=9)
def mean_variance_normalization(X, *, axes=(0, 2, 3)):
    """By mean and standard deviation along `axes`. Any shape, float -> as X.

    https://onnx.ai/onnx/operators/onnx__MeanVarianceNormalization.html
    """
    axes = normalize_axes(axes, X.ndim)
    wide = widened(X)
    centred = wide - wide.mean(axes, keepdims=True)
    # ONNX defines the operator by a function body that adds 1e-9 to the deviation.
    return (centred / (square_root((centred * centred).mean(axes, keepdims=True)) + 1e-9)).astype(X.dtype)


@hookimpl
def onnxeqx_register_ops(registry) -> None:
    registry.add_module(__name__)
