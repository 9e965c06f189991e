"""Steps of optimisers, as operators of the domain `ai.onnx.preview.training`. To train a loaded model, use Optax.

The learning rate and each tensor may be of different dtypes; a tensor and what belongs to it keep theirs.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .._registry import op
from .hookspecs import hookimpl
from .reduction import square_root

_DOMAIN = "ai.onnx.preview.training"


def _for_each(inputs: Sequence[Any], groups: int, step: Callable[..., tuple[Any, ...]]) -> Any:
    """`step` on each tensor with its gradient and state; inputs and outputs hold all tensors, then all gradients, and so on."""
    if len(inputs) % groups:
        raise ValueError(
            f"There are {len(inputs)} tensors after the learning rate and the step, but a multiple of {groups} is expected "
            "(tensors, gradients, state); correct the node's inputs."
        )
    count = len(inputs) // groups
    columns = [inputs[i * count : (i + 1) * count] for i in range(groups)]
    results = [step(*row) for row in zip(*columns, strict=True)]
    return tuple(result for column in zip(*results, strict=True) for result in column)


@op("Adagrad", domain=_DOMAIN, since=1)
def adagrad(R, T, *inputs, decay_factor=0.0, epsilon=1e-6, norm_coefficient=0.0):
    """One step of Adagrad: learning rate `R`, step `T`, then tensors, gradients and sums of squared gradients.

    https://onnx.ai/onnx/operators/onnx_aionnxpreviewtraining_Adagrad.html
    """
    R, T = jnp.asarray(R), jnp.asarray(T)  # Python numbers where they are constants
    rate = R / (1 + T.astype(R.dtype) * decay_factor)

    def step(x: Any, gradient: Any, squares: Any) -> tuple[Any, Any]:
        gradient = norm_coefficient * x + gradient
        squares = squares + gradient * gradient
        return x - rate.astype(x.dtype) * gradient / (square_root(squares) + epsilon), squares

    return _for_each(inputs, 3, step)


@op("Adam", domain=_DOMAIN, since=1)
def adam(R, T, *inputs, alpha=0.9, beta=0.999, epsilon=1e-6, norm_coefficient=0.0, norm_coefficient_post=0.0):
    """One step of Adam: learning rate `R`, step `T`, then tensors, gradients, and averages of gradients and of their squares.

    https://onnx.ai/onnx/operators/onnx_aionnxpreviewtraining_Adam.html
    """
    R, T = jnp.asarray(R), jnp.asarray(T)  # Python numbers where they are constants
    steps = jnp.maximum(T, 1).astype(R.dtype)
    corrected = R * jnp.sqrt(1 - beta**steps) / (1 - alpha**steps)
    rate = jnp.where(T > 0, corrected, R)  # the first step may be number 0

    def step(x: Any, gradient: Any, mean: Any, squares: Any) -> tuple[Any, Any, Any]:
        gradient = norm_coefficient * x + gradient
        mean = alpha * mean + (1 - alpha) * gradient
        squares = beta * squares + (1 - beta) * gradient * gradient
        x = x - rate.astype(x.dtype) * mean / (square_root(squares) + epsilon)
        return (1 - norm_coefficient_post) * x, mean, squares

    return _for_each(inputs, 4, step)


@op("Momentum", domain=_DOMAIN, since=1)
def momentum(R, T, *inputs, alpha, beta, mode, norm_coefficient):
    """One step with momentum (`mode` "standard" or "nesterov"): learning rate `R`, step `T`, then tensors, gradients, momenta.

    https://onnx.ai/onnx/operators/onnx_aionnxpreviewtraining_Momentum.html
    """
    if mode not in ("standard", "nesterov"):
        raise ValueError(
            f"There is no mode {mode!r} of momentum, only standard and nesterov; correct the node's attribute."
        )
    R, T = jnp.asarray(R), jnp.asarray(T)  # Python numbers where they are constants

    def step(x: Any, gradient: Any, velocity: Any) -> tuple[Any, Any]:
        gradient = norm_coefficient * x + gradient
        velocity = alpha * velocity + jnp.where(T > 0, beta, 1.0).astype(x.dtype) * gradient
        direction = gradient + alpha * velocity if mode == "nesterov" else velocity
        return x - R.astype(x.dtype) * direction, velocity

    return _for_each(inputs, 3, step)


def _between(attributes: dict[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return (*attributes["xs"], *(attributes.get("zs") or ())), (attributes["y"],)


@op("Gradient", domain=_DOMAIN, since=1, cuts_out=_between)
def gradient(*Inputs, body, xs, y, zs=None, n_outputs=1):
    """The derivatives of the value `y` by the values `xs`, at `Inputs`: the values of `xs`, then those of `zs`.

    `body` computes `y` from them, as the nodes of the graph do. Where `y` has many elements, it is their sum that is derived.

    https://onnx.ai/onnx/operators/onnx_aionnxpreviewtraining_Gradient.html
    """
    places = tuple(range(len(xs)))
    found = jax.grad(lambda *values: jnp.sum(body(*values)), argnums=places)(*Inputs)
    return found if n_outputs > 1 else found[0]


@hookimpl
def onnxeqx_register_ops(registry):
    registry.add_module(__name__)
