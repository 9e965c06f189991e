"""Activation functions, and Dropout."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._graph import Call, Value
from .._printing import Operand
from .._registry import op
from ..runtime import array_namespace, normalize_axes
from ._operands import aligned, as_arrays
from .elementwise import max_
from .hookspecs import hookimpl
from .tensor import flatten


@op("Relu", since=6, on_host=True, prints="jax.nn.relu(x)")
def relu(x):
    """`max(x, 0)`. Any shape, number dtype -> the same.

    https://onnx.ai/onnx/operators/onnx__Relu.html
    """
    return max_(x, 0) if array_namespace(x) is np else jax.nn.relu(x)


@op("Relu", since=1, until=5, on_host=True)
def relu_1(x, *, consumed_inputs=None):
    """`max(x, 0)`. Any shape, float -> the same.

    https://onnx.ai/onnx/operators/onnx__Relu.html
    """
    return relu(x)


@op("LeakyRelu", since=6, prints="jax.nn.leaky_relu(x, negative_slope=alpha)")
def leaky_relu(x, *, alpha=0.01):
    """`x` where positive, else `alpha * x`. Any shape, float -> the same.

    https://onnx.ai/onnx/operators/onnx__LeakyRelu.html
    """
    return jnp.where(x >= 0, x, alpha * x)


@op("LeakyRelu", since=1, until=5)
def leaky_relu_1(x, *, alpha=0.01, consumed_inputs=None):
    """`x` where positive, else `alpha * x`. Any shape, float -> the same.

    https://onnx.ai/onnx/operators/onnx__LeakyRelu.html
    """
    return leaky_relu(x, alpha=alpha)


@op("PRelu", since=7, prints="jnp.where(x >= 0, x, slope * x)")
def p_relu(x, slope):
    """`x` where positive, else `slope * x`; `slope` broadcasts to `x`. Any shapes, one number dtype -> that dtype.

    https://onnx.ai/onnx/operators/onnx__PRelu.html
    """
    return jnp.where(x >= 0, x, slope * x)


@op("PRelu", since=1, until=6)
def p_relu_1(x, slope, *, consumed_inputs=None):
    """`x` where positive, else `slope * x`; a vector `slope` has one value for each channel. Float.

    https://onnx.ai/onnx/operators/onnx__PRelu.html
    """
    return p_relu(x, aligned(x, slope, axis=1, broadcast=int(np.ndim(slope) == 1 and np.size(slope) > 1)))


@op("Elu", since=6, prints="jax.nn.elu(x, alpha=alpha)")
def elu(x, *, alpha=1.0):
    """`x` where positive, else `alpha * (e ** x - 1)`. Any shape, float -> the same.

    https://onnx.ai/onnx/operators/onnx__Elu.html
    """
    return jax.nn.elu(x, alpha)


@op("Elu", since=1, until=5)
def elu_1(x, *, alpha=1.0, consumed_inputs=None):
    """`x` where positive, else `alpha * (e ** x - 1)`. Any shape, float -> the same.

    https://onnx.ai/onnx/operators/onnx__Elu.html
    """
    return elu(x, alpha=alpha)


@op("Selu", since=6, prints="gamma * jax.nn.elu(x, alpha=alpha)")
def selu(x, *, alpha=1.67326319217681884765625, gamma=1.05070102214813232421875):
    """`gamma * x` where positive, else `gamma * alpha * (e ** x - 1)`. Any shape, float -> the same.

    https://onnx.ai/onnx/operators/onnx__Selu.html
    """
    return gamma * jax.nn.elu(x, alpha)


@op("Selu", since=1, until=5)
def selu_1(x, *, alpha=1.6732, gamma=1.0507, consumed_inputs=None):
    """`gamma * x` where positive, else `gamma * alpha * (e ** x - 1)`. Any shape, float -> the same.

    https://onnx.ai/onnx/operators/onnx__Selu.html
    """
    return selu(x, alpha=alpha, gamma=gamma)


@op("Celu", since=12, prints="jax.nn.celu(x, alpha=alpha)")
def celu(x, *, alpha=1.0):
    """`max(0, x) + min(0, alpha * (e ** (x / alpha) - 1))`. Any shape, float -> the same.

    https://onnx.ai/onnx/operators/onnx__Celu.html
    """
    return jax.nn.celu(x, alpha)


@op("ThresholdedRelu", since=10, prints="jnp.where(x > alpha, x, 0)")
def thresholded_relu(x, *, alpha=1.0):
    """`x` where it exceeds `alpha`, else 0. Any shape, float -> the same.

    https://onnx.ai/onnx/operators/onnx__ThresholdedRelu.html
    """
    return jnp.where(x > alpha, x, 0)


@op("Sigmoid", since=6, prints="jax.nn.sigmoid(x)")
def sigmoid(x):
    """`1 / (1 + e ** -x)`. Any shape, float -> the same.

    https://onnx.ai/onnx/operators/onnx__Sigmoid.html
    """
    return jax.nn.sigmoid(x)


@op("Sigmoid", since=1, until=5)
def sigmoid_1(x, *, consumed_inputs=None):
    """`1 / (1 + e ** -x)`. Any shape, float -> the same.

    https://onnx.ai/onnx/operators/onnx__Sigmoid.html
    """
    return jax.nn.sigmoid(x)


@op("HardSigmoid", since=6, prints="jnp.clip(alpha * x + beta, 0, 1)")
def hard_sigmoid(x, *, alpha=0.2, beta=0.5):
    """`alpha * x + beta`, between 0 and 1. Any shape, float -> the same.

    https://onnx.ai/onnx/operators/onnx__HardSigmoid.html
    """
    return jnp.clip(alpha * x + beta, 0, 1)


@op("HardSigmoid", since=1, until=5)
def hard_sigmoid_1(x, *, alpha=0.2, beta=0.5, consumed_inputs=None):
    """`alpha * x + beta`, between 0 and 1. Any shape, float -> the same.

    https://onnx.ai/onnx/operators/onnx__HardSigmoid.html
    """
    return hard_sigmoid(x, alpha=alpha, beta=beta)


@op("HardSwish", since=14)
def hard_swish(x):
    """`x` times the hard sigmoid with slope 1/6. Any shape, float -> the same.

    https://onnx.ai/onnx/operators/onnx__HardSwish.html
    """
    # The function body that defines the operator holds 1/6 as float32, which shows in float64.
    return x * hard_sigmoid(x, alpha=float(np.float32(1 / 6)), beta=0.5)


def _print_swish(x: Operand, *, alpha: float) -> str:
    return "jax.nn.silu(x)" if alpha == 1 else "x * jax.nn.sigmoid(alpha * x)"


@op("Swish", since=24, prints=_print_swish)
def swish(x, *, alpha=1.0):
    """`x * sigmoid(alpha * x)`. Any shape, float -> the same.

    https://onnx.ai/onnx/operators/onnx__Swish.html
    """
    return x * jax.nn.sigmoid(alpha * x)


@op("Mish", since=18, prints="jax.nn.mish(x)")
def mish(x):
    """`x * tanh(softplus(x))`. Any shape, float -> the same.

    https://onnx.ai/onnx/operators/onnx__Mish.html
    """
    return jax.nn.mish(x)


def _print_gelu(x: Operand, *, approximate: str) -> str:
    return "jax.nn.gelu(x)" if approximate == "tanh" else "jax.nn.gelu(x, approximate=False)"


@op("Gelu", since=20, prints=_print_gelu)
def gelu(x, *, approximate="none"):
    """`x` times the normal distribution function, exact or by `"tanh"`. Any shape, float -> the same.

    https://onnx.ai/onnx/operators/onnx__Gelu.html
    """
    return jax.nn.gelu(x, approximate=approximate == "tanh")


@op("Softplus", since=1, prints="jax.nn.softplus(x)")
def softplus(x):
    """`log(1 + e ** x)`. Any shape, float -> the same.

    https://onnx.ai/onnx/operators/onnx__Softplus.html
    """
    return jax.nn.softplus(x)


@op("Softsign", since=1, prints="jax.nn.soft_sign(x)")
def softsign(x):
    """`x / (1 + |x|)`. Any shape, float -> the same.

    https://onnx.ai/onnx/operators/onnx__Softsign.html
    """
    return jax.nn.soft_sign(x)


@op("Shrink", since=9)
def shrink(x, *, bias=0.0, lambd=0.5):
    """`x + bias` below `-lambd`, `x - bias` above `lambd`, else 0. Any shape, number dtype -> the same.

    https://onnx.ai/onnx/operators/onnx__Shrink.html
    """
    _, x = as_arrays(x)
    wide = x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.integer) else x
    return jnp.where(wide < -lambd, wide + bias, jnp.where(wide > lambd, wide - bias, 0)).astype(x.dtype)


@op("Softmax", since=13, prints="jax.nn.softmax(x, axis=axis)")
def softmax(x, *, axis=-1):
    """Softmax along `axis`. Any shape, float -> the same.

    https://onnx.ai/onnx/operators/onnx__Softmax.html
    """
    return jax.nn.softmax(x, axis=axis)


def _print_over_trailing(function: str) -> Callable[..., Any]:
    """The printing rule of an operator on all axes from `axis` on, together."""

    def rule(x: Operand, *, axis: int) -> tuple[str, dict[str, Any]] | None:
        if x.ndim is None:
            return None
        axes = tuple(range(axis % x.ndim, x.ndim))
        return f"{function}(x, axis=axes)", {"axes": -1 if len(axes) == 1 else axes}

    return rule


@op("Softmax", since=1, until=12, prints=_print_over_trailing("jax.nn.softmax"))
def softmax_1(x, *, axis=1):
    """Softmax over all axes from `axis` on, together. Any shape, float -> the same.

    https://onnx.ai/onnx/operators/onnx__Softmax.html
    """
    return jax.nn.softmax(x, axis=_trailing(x, axis))


@op("LogSoftmax", since=13, prints="jax.nn.log_softmax(x, axis=axis)")
def log_softmax(x, *, axis=-1):
    """The logarithm of softmax along `axis`. Any shape, float -> the same.

    https://onnx.ai/onnx/operators/onnx__LogSoftmax.html
    """
    return jax.nn.log_softmax(x, axis=axis)


@op("LogSoftmax", since=1, until=12, prints=_print_over_trailing("jax.nn.log_softmax"))
def log_softmax_1(x, *, axis=1):
    """The logarithm of softmax over all axes from `axis` on, together. Any shape, float -> the same.

    https://onnx.ai/onnx/operators/onnx__LogSoftmax.html
    """
    return jax.nn.log_softmax(x, axis=_trailing(x, axis))


@op("Hardmax", since=13)
def hardmax(x, *, axis=-1):
    """1 at the first maximum along `axis`, else 0. Any shape, float -> the same.

    https://onnx.ai/onnx/operators/onnx__Hardmax.html
    """
    return jax.nn.one_hot(jnp.argmax(x, axis=axis), x.shape[axis], axis=axis, dtype=x.dtype)


@op("Hardmax", since=1, until=12)
def hardmax_1(x, *, axis=1):
    """1 at the first maximum over all axes from `axis` on, together, else 0. Any shape, float -> the same.

    https://onnx.ai/onnx/operators/onnx__Hardmax.html
    """
    return hardmax(flatten(x, axis=_trailing(x, axis)[0]), axis=-1).reshape(x.shape)


def _trailing(x: jax.Array, axis: int) -> tuple[int, ...]:
    # Before opset 13 the input is flattened to two dimensions at `axis`, so that the trailing axes count as one.
    (first,) = normalize_axes((axis,), x.ndim)
    return tuple(range(first, x.ndim))


def _outside_training(call: Call) -> Value | None:
    """The input of a Dropout that hands it on: it is known to be outside training."""
    training = call.inputs[2] if len(call.inputs) > 2 else None
    is_outside = training is None or (training.array is not None and not training.array.item())
    return call.operand(0) if is_outside else None


@op("Dropout", since=12, host=("ratio", "training_mode"), passes_through=_outside_training)
def dropout(data, ratio=None, training_mode=None, *, seed=None, n_outputs=1, key=None):
    """The input, and a mask of ones: models are loaded for inference. Float.

    A node in training mode drops elements of its input if the model is called with a `key`. Without one, it does so if it
    has a `seed`: always those that ONNX's own reference drops, so that models agree.

    https://onnx.ai/onnx/operators/onnx__Dropout.html
    """
    rate = 0.5 if ratio is None else float(np.asarray(ratio).item())
    trains = training_mode is not None and np.asarray(training_mode).item() and rate > 0
    if not trains or (key is None and seed is None):
        return data if n_outputs == 1 else (data, jnp.ones(np.shape(data), bool))
    if key is None:
        mask = np.random.RandomState(seed).uniform(size=np.shape(data)) >= rate
    else:
        mask = jax.random.bernoulli(key, 1 - rate, np.shape(data))
    y = jnp.where(mask, data / (1 - rate), 0)
    return (y, jnp.asarray(mask)) if n_outputs > 1 else y


@op("TrainingDropout", domain="onnxeqx", since=1)
def training_dropout(data, *, rate, key=None):
    """Dropout as [`onnxeqx.insert_dropout`][] puts it in: `eqx.nn.Dropout` with a `key`, the identity without one.

    data: any shape, float -> same shape and dtype. `rate` is the share of elements that become zero, below 1.
    """
    return eqx.nn.Dropout(rate)(data, key=key, inference=key is None)


@op("Dropout", since=10, until=11, passes_through=True)
def dropout_10(data, *, ratio=0.5, n_outputs=1):
    """The input, unchanged, and a mask of ones. Float.

    https://onnx.ai/onnx/operators/onnx__Dropout.html
    """
    return dropout(data, n_outputs=n_outputs)


@op("Dropout", since=7, until=9, passes_through=True)
def dropout_7(data, *, ratio=0.5, n_outputs=1):
    """The input, unchanged, and a mask of ones in its dtype. Float.

    https://onnx.ai/onnx/operators/onnx__Dropout.html
    """
    return data if n_outputs == 1 else (data, jnp.ones_like(data))


@op("Dropout", since=1, until=6, passes_through=True)
def dropout_1(data, *, ratio=0.5, is_test=0, consumed_inputs=None, n_outputs=1):
    """The input, unchanged, and a mask of ones in its dtype. Float.

    https://onnx.ai/onnx/operators/onnx__Dropout.html
    """
    return dropout_7(data, n_outputs=n_outputs)


@hookimpl
def onnxeqx_register_ops(registry) -> None:
    registry.add_module(__name__)
