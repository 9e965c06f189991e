"""Recurrent networks: one `jax.lax.scan` over time for each direction, with all inputs projected before it."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .._registry import op
from . import activation
from .hookspecs import hookimpl

# Each with the number of its parameters (alpha, beta), which have the defaults of the operators of these names.
_ACTIVATIONS: dict[str, tuple[Callable[..., Any], int]] = {
    "affine": (lambda x, alpha=1.0, beta=0.0: alpha * x + beta, 2),
    "elu": (lambda x, alpha=1.0: jax.nn.elu(x, alpha), 1),
    "hardsigmoid": (lambda x, alpha=0.2, beta=0.5: jnp.clip(alpha * x + beta, 0, 1), 2),
    "leakyrelu": (lambda x, alpha=0.01: jax.nn.leaky_relu(x, alpha), 1),
    "relu": (jax.nn.relu, 0),
    "scaledtanh": (lambda x, alpha=1.0, beta=1.0: alpha * jnp.tanh(beta * x), 2),
    "sigmoid": (jax.nn.sigmoid, 0),
    "softplus": (activation.softplus, 0),
    "softsign": (jax.nn.soft_sign, 0),
    "tanh": (jnp.tanh, 0),
    "thresholdedrelu": (lambda x, alpha=1.0: jnp.where(x > alpha, x, 0), 1),
}

State = tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class _Weights:
    """The weights of one direction: `w` and its bias for the input, `r` and its bias for the state, LSTM's peepholes `p`."""

    w: Any
    r: Any
    wb: Any
    rb: Any
    p: Any = None


Cell = Callable[..., State]


@op("RNN", since=14)
def rnn(
    X,
    W,
    R,
    B=None,
    sequence_lens=None,
    initial_h=None,
    *,
    activation_alpha=None,
    activation_beta=None,
    activations=("Tanh", "Tanh"),
    clip=None,
    direction="forward",
    hidden_size=None,
    layout=0,
    n_outputs=1,
):
    """Elman network. X: (time, batch, inputs) -> Y: (time, directions, batch, hidden), Y_h: (directions, batch, hidden).

    With `layout` 1 the batch is the first axis of all of these. Past its length, a sequence's outputs are zero.

    https://onnx.ai/onnx/operators/onnx__RNN.html
    """

    def cell(projected: Any, state: State, weights: _Weights, functions: Any) -> State:
        (f,) = functions
        return (f(projected + state[0] @ weights.r.T + weights.rb),)

    functions = _functions(activations, ("Tanh",), direction, activation_alpha, activation_beta, (clip,))
    states = [initial_h]
    return _run(X, W, R, B, None, sequence_lens, states, cell, functions, direction, layout, n_outputs)


@op("GRU", since=14)
def gru(
    X,
    W,
    R,
    B=None,
    sequence_lens=None,
    initial_h=None,
    *,
    activation_alpha=None,
    activation_beta=None,
    activations=None,
    clip=None,
    direction="forward",
    hidden_size=None,
    layout=0,
    linear_before_reset=0,
    n_outputs=1,
):
    """Gated recurrent unit. Shapes as for `rnn`; gates in the order update, reset, hidden.

    https://onnx.ai/onnx/operators/onnx__GRU.html
    """

    def cell(projected: Any, state: State, weights: _Weights, functions: Any) -> State:
        f, g = functions
        (h,) = state
        hidden = h.shape[-1]
        gates = projected[:, : 2 * hidden] + h @ weights.r[: 2 * hidden].T + weights.rb[: 2 * hidden]
        update, reset = jnp.split(f(gates), 2, axis=1)
        x, r, bias = projected[:, 2 * hidden :], weights.r[2 * hidden :].T, weights.rb[2 * hidden :]
        candidate = g(x + (reset * (h @ r + bias) if linear_before_reset else (reset * h) @ r + bias))
        return ((1 - update) * candidate + update * h,)

    functions = _functions(activations, ("Sigmoid", "Tanh"), direction, activation_alpha, activation_beta, (clip, clip))
    states = [initial_h]
    return _run(X, W, R, B, None, sequence_lens, states, cell, functions, direction, layout, n_outputs)


@op("LSTM", since=14)
def lstm(
    X,
    W,
    R,
    B=None,
    sequence_lens=None,
    initial_h=None,
    initial_c=None,
    P=None,
    *,
    activation_alpha=None,
    activation_beta=None,
    activations=None,
    clip=None,
    direction="forward",
    hidden_size=None,
    input_forget=0,
    layout=0,
    n_outputs=1,
):
    """Long short-term memory, with peepholes `P` on request. Shapes as for `rnn`, and Y_c: (directions, batch, hidden).

    Gates in the order input, output, forget, cell; peepholes in the order input, output, forget.

    https://onnx.ai/onnx/operators/onnx__LSTM.html
    """

    def cell(projected: Any, state: State, weights: _Weights, functions: Any) -> State:
        f, g, h = functions
        gates = projected + state[0] @ weights.r.T + weights.rb
        i, o, forget, c = jnp.split(gates, 4, axis=1)
        peep_i, peep_o, peep_f = (0, 0, 0) if weights.p is None else jnp.split(weights.p, 3)
        i = f(i + peep_i * state[1])
        forget = 1 - i if input_forget else f(forget + peep_f * state[1])
        c = forget * state[1] + i * g(c)
        return f(o + peep_o * c) * h(c), c

    # As in ONNX Runtime, the new cell state is not clipped before its activation.
    default, clips = ("Sigmoid", "Tanh", "Tanh"), (clip, clip, None)
    functions = _functions(activations, default, direction, activation_alpha, activation_beta, clips)
    states = [initial_h, initial_c]
    return _run(X, W, R, B, P, sequence_lens, states, cell, functions, direction, layout, n_outputs)


@op("RNN", since=7, until=13)
def rnn_7(
    X,
    W,
    R,
    B=None,
    sequence_lens=None,
    initial_h=None,
    *,
    activation_alpha=None,
    activation_beta=None,
    activations=("Tanh", "Tanh"),
    clip=None,
    direction="forward",
    hidden_size=None,
    n_outputs=1,
):
    """As the later `rnn`, with the time as the first axis.

    https://onnx.ai/onnx/operators/onnx__RNN.html
    """
    options: dict[str, Any] = {
        "activation_alpha": activation_alpha,
        "activation_beta": activation_beta,
        "activations": activations,
    }
    return rnn(X, W, R, B, sequence_lens, initial_h, clip=clip, direction=direction, n_outputs=n_outputs, **options)


@op("RNN", since=1, until=6)
def rnn_1(
    X,
    W,
    R,
    B=None,
    sequence_lens=None,
    initial_h=None,
    *,
    activation_alpha=None,
    activation_beta=None,
    activations=("Tanh", "Tanh"),
    clip=None,
    direction="forward",
    hidden_size=None,
    output_sequence=0,
    n_outputs=1,
):
    """As the later `rnn_7`; `output_sequence` says whether Y is wanted, which the outputs of the node say too.

    https://onnx.ai/onnx/operators/onnx__RNN.html
    """
    options: dict[str, Any] = {
        "activation_alpha": activation_alpha,
        "activation_beta": activation_beta,
        "activations": activations,
    }
    return rnn(X, W, R, B, sequence_lens, initial_h, clip=clip, direction=direction, n_outputs=n_outputs, **options)


@op("GRU", since=7, until=13)
def gru_7(
    X,
    W,
    R,
    B=None,
    sequence_lens=None,
    initial_h=None,
    *,
    activation_alpha=None,
    activation_beta=None,
    activations=None,
    clip=None,
    direction="forward",
    hidden_size=None,
    linear_before_reset=0,
    n_outputs=1,
):
    """As the later `gru`, with the time as the first axis.

    https://onnx.ai/onnx/operators/onnx__GRU.html
    """
    options: dict[str, Any] = {
        "activation_alpha": activation_alpha,
        "activation_beta": activation_beta,
        "activations": activations,
    }
    options |= {"clip": clip, "direction": direction, "linear_before_reset": linear_before_reset}
    return gru(X, W, R, B, sequence_lens, initial_h, n_outputs=n_outputs, **options)


@op("GRU", since=3, until=6)
def gru_3(
    X,
    W,
    R,
    B=None,
    sequence_lens=None,
    initial_h=None,
    *,
    activation_alpha=None,
    activation_beta=None,
    activations=None,
    clip=None,
    direction="forward",
    hidden_size=None,
    linear_before_reset=0,
    output_sequence=0,
    n_outputs=1,
):
    """As the later `gru_7`; `output_sequence` says whether Y is wanted, which the outputs of the node say too.

    https://onnx.ai/onnx/operators/onnx__GRU.html
    """
    options: dict[str, Any] = {
        "activation_alpha": activation_alpha,
        "activation_beta": activation_beta,
        "activations": activations,
    }
    options |= {"clip": clip, "direction": direction, "linear_before_reset": linear_before_reset}
    return gru(X, W, R, B, sequence_lens, initial_h, n_outputs=n_outputs, **options)


@op("GRU", since=1, until=2)
def gru_1(
    X,
    W,
    R,
    B=None,
    sequence_lens=None,
    initial_h=None,
    *,
    activation_alpha=None,
    activation_beta=None,
    activations=None,
    clip=None,
    direction="foward",  # ONNX's own spelling in this version
    hidden_size=None,
    output_sequence=0,
    n_outputs=1,
):
    """As the later `gru_3`, which resets before the linear map.

    https://onnx.ai/onnx/operators/onnx__GRU.html
    """
    options: dict[str, Any] = {
        "activation_alpha": activation_alpha,
        "activation_beta": activation_beta,
        "activations": activations,
    }
    return gru(X, W, R, B, sequence_lens, initial_h, clip=clip, direction=direction, n_outputs=n_outputs, **options)


@op("LSTM", since=7, until=13)
def lstm_7(
    X,
    W,
    R,
    B=None,
    sequence_lens=None,
    initial_h=None,
    initial_c=None,
    P=None,
    *,
    activation_alpha=None,
    activation_beta=None,
    activations=None,
    clip=None,
    direction="forward",
    hidden_size=None,
    input_forget=0,
    n_outputs=1,
):
    """As the later `lstm`, with the time as the first axis.

    https://onnx.ai/onnx/operators/onnx__LSTM.html
    """
    options: dict[str, Any] = {
        "activation_alpha": activation_alpha,
        "activation_beta": activation_beta,
        "activations": activations,
    }
    options |= {"clip": clip, "direction": direction, "input_forget": input_forget}
    return lstm(X, W, R, B, sequence_lens, initial_h, initial_c, P, n_outputs=n_outputs, **options)


@op("LSTM", since=1, until=6)
def lstm_1(
    X,
    W,
    R,
    B=None,
    sequence_lens=None,
    initial_h=None,
    initial_c=None,
    P=None,
    *,
    activation_alpha=None,
    activation_beta=None,
    activations=None,
    clip=None,
    direction="forward",
    hidden_size=None,
    input_forget=0,
    output_sequence=0,
    n_outputs=1,
):
    """As the later `lstm_7`; `output_sequence` says whether Y is wanted, which the outputs of the node say too.

    https://onnx.ai/onnx/operators/onnx__LSTM.html
    """
    options: dict[str, Any] = {
        "activation_alpha": activation_alpha,
        "activation_beta": activation_beta,
        "activations": activations,
    }
    options |= {"clip": clip, "direction": direction, "input_forget": input_forget}
    return lstm(X, W, R, B, sequence_lens, initial_h, initial_c, P, n_outputs=n_outputs, **options)


def _functions(
    names: Sequence[str] | None,
    default: Sequence[str],
    direction: str,
    alphas: Sequence[float] | None,
    betas: Sequence[float] | None,
    clips: Sequence[float | None],
) -> list[list[Callable[[Any], Any]]]:
    """The activation functions of each direction, inputs clipped. Only functions with parameters take them from the lists."""
    count = 2 if direction == "bidirectional" else 1
    names = [*names][: count * len(default)] if names else [*default] * count
    if len(names) != count * len(default):
        raise ValueError(
            f"{len(names)} activations were given, but {count * len(default)} are needed; correct the node."
        )
    remaining = {"alpha": [*(alphas or ())], "beta": [*(betas or ())]}
    functions = []
    for name, clip in zip(names, [*clips] * count, strict=True):
        if name.lower() not in _ACTIVATIONS:
            raise ValueError(f"There is no activation {name!r}, only {', '.join(_ACTIVATIONS)}; correct the node.")
        function, parameters = _ACTIVATIONS[name.lower()]
        given = {key: remaining[key].pop(0) for key in ("alpha", "beta")[:parameters] if remaining[key]}
        functions.append(_clipped(functools.partial(function, **given), clip))
    return [functions[i : i + len(default)] for i in range(0, len(functions), len(default))]


def _clipped(function: Callable[[Any], Any], clip: float | None) -> Callable[[Any], Any]:
    return function if clip is None else lambda x: function(jnp.clip(x, -clip, clip))


def _run(
    x: Any,
    w: Any,
    r: Any,
    b: Any,
    p: Any,
    lengths: Any,
    initial: Sequence[Any],
    cell: Cell,
    functions: list[list[Callable[[Any], Any]]],
    direction: str,
    layout: int,
    n_outputs: int,
) -> Any:
    """Every direction over all time steps -> the outputs of the node."""
    x = jnp.swapaxes(x, 0, 1) if layout else x
    zeros = jnp.zeros((w.shape[0], x.shape[1], r.shape[-1]), x.dtype)
    initial = [zeros if state is None else jnp.swapaxes(state, 0, 1) if layout else state for state in initial]
    b = jnp.zeros((w.shape[0], 2 * w.shape[1]), x.dtype) if b is None else b
    ys, finals = [], []
    for d, functions_of_direction in enumerate(functions):
        wb, rb = jnp.split(b[d], 2)
        weights = _Weights(w[d], r[d], wb, rb, None if p is None else p[d])
        reverse = direction == "reverse" or d == 1
        state = tuple(state[d] for state in initial)
        y, final = _scan(
            x,
            weights,
            functools.partial(cell, weights=weights, functions=functions_of_direction),
            state,
            lengths,
            reverse,
        )
        ys.append(y)
        finals.append(final)
    y = jnp.stack(ys, axis=1)
    states = [jnp.stack(parts) for parts in zip(*finals, strict=True)]
    if layout:
        y, states = jnp.transpose(y, (2, 0, 1, 3)), [jnp.swapaxes(state, 0, 1) for state in states]
    return (y, *states)[:n_outputs] if n_outputs > 1 else y


def _scan(x: Any, weights: _Weights, cell: Any, state: State, lengths: Any, reverse: bool) -> tuple[Any, State]:
    projected = x @ weights.w.T + weights.wb

    def step(state: State, inputs: tuple[Any, Any]) -> tuple[State, Any]:
        position, projected = inputs
        new = cell(projected, state)
        if lengths is None:
            return new, new[0]
        # A backward pass then begins at the last step of each sequence, as the steps after it change nothing.
        inside = (position < lengths)[:, None]
        new = tuple(jnp.where(inside, after, before) for after, before in zip(new, state, strict=True))
        return new, jnp.where(inside, new[0], 0)

    final, y = lax.scan(step, state, (np.arange(x.shape[0], dtype=np.int32), projected), reverse=reverse)
    return y, final


@hookimpl
def onnxeqx_register_ops(registry):
    registry.add_module(__name__)
