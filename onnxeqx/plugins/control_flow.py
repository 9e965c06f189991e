"""Control flow: a subgraph is a function, which the printed model defines beside the call.

What is known while tracing is decided in Python; what is traced becomes `jax.lax.cond`, `scan` or `while_loop`.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from .._errors import HostValueError
from .._registry import op
from .hookspecs import hookimpl

Body = Callable[..., Any]


def _chosen_branch(cond: np.ndarray) -> str:
    return "then_branch" if cond.item() else "else_branch"


@op("If", since=1, prefers_host=("cond",), chooses=_chosen_branch)
def if_(cond, *, then_branch, else_branch, n_outputs=1):
    """The outputs of one of two subgraphs without inputs. cond: one boolean element.

    A condition that is known while tracing picks its branch in Python, and the branches may differ in rank. A traced one
    becomes `jax.lax.cond`; the outputs of the branches then have equal shapes.

    https://onnx.ai/onnx/operators/onnx__If.html
    """
    if not isinstance(cond, Tracer):
        return then_branch() if np.asarray(cond).item() else else_branch()
    branches = [functools.partial(_on_device, branch) for branch in (then_branch, else_branch)]
    try:
        return lax.cond(cond.reshape(()), *branches)
    except TypeError as error:
        shapes = [jax.eval_shape(branch) for branch in branches]
        if shapes[0] == shapes[1]:
            raise
        raise HostValueError(
            f"The branches of an If give {shapes[0]} and {shapes[1]}, and its condition depends on the data of an input; "
            "call the model without jit, or export it with branches of equal shapes."
        ) from error


def _on_device(body: Body, *operands: Any) -> Any:
    return jax.tree.map(jnp.asarray, body(*operands))


@op("Loop", since=1, prefers_host=("max_trip_count", "cond"))
def loop(max_trip_count=None, cond=None, *v_initial, body, n_outputs=1):
    """Repeats a subgraph: `(iteration, cond, *state) -> (cond, *state, *scan_outputs)`; the scan outputs are stacked.

    Runs in Python where nothing is traced. Under tracing, a known number of iterations becomes `jax.lax.scan`; a condition or
    a number that is traced becomes `jax.lax.while_loop`, which has no gradient in reverse mode and no scan outputs. A body
    that changes the shapes of its state, or needs the iteration as a number, is unrolled.

    https://onnx.ai/onnx/operators/onnx__Loop.html
    """
    limit = math.inf if max_trip_count is None else max_trip_count
    limit = limit if isinstance(limit, Tracer | float) else int(np.asarray(limit).item())
    condition = np.bool_(True) if cond is None else cond
    condition = condition.reshape(()) if isinstance(condition, Tracer) else np.bool_(np.asarray(condition).item())
    results = _Loop(body, len(v_initial)).run(limit, condition, v_initial)
    return results if n_outputs > 1 else results[0]


class _Loop:
    """The ways to repeat a body."""

    def __init__(self, body: Body, states: int) -> None:
        self.body, self.states = body, states

    def step(
        self, iteration: Any, condition: Any, state: Sequence[Any]
    ) -> tuple[Any, tuple[Any, ...], tuple[Any, ...]]:
        """The next condition, the next state and the scan outputs."""
        condition, *results = as_tuple(self.body(iteration, condition, *state))
        condition = condition.reshape(()) if isinstance(condition, Tracer) else np.bool_(np.asarray(condition).item())
        return condition, tuple(results[: self.states]), tuple(results[self.states :])

    def run(self, limit: Any, condition: Any, state: Sequence[Any]) -> tuple[Any, ...]:
        traced = _is_traced((limit, condition, state))
        if not traced:
            traced = limit > 0 and condition and _is_traced(self.step(np.int64(0), condition, state))
        return self.staged(limit, condition, state) if traced else self.unrolled(limit, condition, state)

    def unrolled(self, limit: Any, condition: Any, state: Sequence[Any]) -> tuple[Any, ...]:
        first = state
        rows: list[tuple[Any, ...]] = []
        while len(rows) < limit and condition:
            condition, state, outputs = self.step(np.int64(len(rows)), condition, state)
            rows.append(outputs)
            if isinstance(condition, Tracer):
                raise _unknown_count()
        if not rows:
            shapes = jax.eval_shape(lambda *state: self.step(jnp.int32(0), np.bool_(True), state)[2], *first)
            return (*state, *(jnp.zeros((0, *shape.shape), shape.dtype) for shape in shapes))
        return (*state, *(jnp.stack(column) for column in zip(*rows, strict=True)))

    def staged(self, limit: Any, condition: Any, state: Sequence[Any]) -> tuple[Any, ...]:
        conditions: list[Any] = []

        def next_state_and_outputs(iteration: Any, *state: Any) -> Any:
            condition, state, outputs = self.step(iteration, np.bool_(True), state)
            conditions.append(condition)
            return _on_device(lambda: (state, outputs))

        try:
            shapes, outputs = jax.eval_shape(next_state_and_outputs, jnp.int32(0), *state)
            fixed = shapes == jax.eval_shape(lambda: tuple(_on_device(lambda: state)))
        except HostValueError:
            fixed, outputs = False, ()
        static = conditions and not isinstance(conditions[-1], Tracer) and bool(conditions[-1])
        known = not _is_traced((limit, condition))
        if fixed and static and known and limit < math.inf:
            return self.scanned(limit if condition else 0, state)
        if fixed and not outputs:
            return self.repeated(limit, condition, state)
        if known:
            return self.unrolled(limit, condition, state)
        raise _unknown_count()

    def scanned(self, length: int, state: Sequence[Any]) -> tuple[Any, ...]:
        def step(state: tuple[Any, ...], iteration: Any) -> tuple[Any, Any]:
            _, state, outputs = self.step(iteration, np.bool_(True), state)
            return _on_device(lambda: (state, outputs))

        state, outputs = lax.scan(step, tuple(map(jnp.asarray, state)), jnp.arange(length))
        return (*state, *outputs)

    def repeated(self, limit: Any, condition: Any, state: Sequence[Any]) -> tuple[Any, ...]:
        def is_open(carry: Any) -> Any:
            iteration, condition, _ = carry
            return condition & ((iteration < limit) if limit is not math.inf else True)

        def step(carry: Any) -> Any:
            iteration, condition, state = carry
            condition, state, _ = self.step(iteration, condition, state)
            return iteration + 1, *_on_device(lambda: (condition, state))

        start = (jnp.int32(0), jnp.asarray(condition), tuple(map(jnp.asarray, state)))
        return lax.while_loop(is_open, step, start)[2]


def _unknown_count() -> HostValueError:
    return HostValueError(
        "How often a Loop repeats depends on the data of an input, and its outputs grow with each iteration, so their shape "
        "is not known under jit; call the model without jit, or export it with a fixed number of iterations."
    )


def _is_traced(values: Any) -> bool:
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(values))


def as_tuple(results: Any) -> tuple[Any, ...]:
    """The outputs of a subgraph: several are a tuple already."""
    return results if isinstance(results, tuple) else (results,)


@op("Scan", since=9)
def scan(
    *initial_state_and_scan_inputs,
    body,
    num_scan_inputs,
    scan_input_axes=None,
    scan_input_directions=None,
    scan_output_axes=None,
    scan_output_directions=None,
    n_outputs=1,
):
    """Runs a subgraph along an axis: `(*state, *slices) -> (*state, *slices)`. By default along the first axis, forwards.

    Directions are 0 for forwards and 1 for backwards.

    https://onnx.ai/onnx/operators/onnx__Scan.html
    """
    states = len(initial_state_and_scan_inputs) - num_scan_inputs
    state, inputs = initial_state_and_scan_inputs[:states], initial_state_and_scan_inputs[states:]
    inputs = [
        jnp.moveaxis(jnp.asarray(x), axis, 0) for x, axis in zip(inputs, _each(scan_input_axes, inputs), strict=True)
    ]
    inputs = _directed(inputs, scan_input_directions)

    def step(state: tuple[Any, ...], slices: list[Any]) -> tuple[Any, Any]:
        results = as_tuple(_on_device(body, *state, *slices))
        return results[:states], results[states:]

    state, outputs = lax.scan(step, tuple(map(jnp.asarray, state)), inputs)
    outputs = _directed(outputs, scan_output_directions)
    outputs = [jnp.moveaxis(y, 0, axis) for y, axis in zip(outputs, _each(scan_output_axes, outputs), strict=True)]
    results = (*state, *outputs)
    return results if n_outputs > 1 else results[0]


def _each(numbers: Sequence[int] | None, arrays: Sequence[Any]) -> Sequence[int]:
    return (0,) * len(arrays) if numbers is None else numbers


def _directed(arrays: Sequence[Any], directions: Sequence[int] | None) -> list[Any]:
    return [jnp.flip(x, 0) if backwards else x for x, backwards in zip(arrays, _each(directions, arrays), strict=True)]


@op("Scan", since=8, until=8)
def scan_8(sequence_lens=None, *initial_state_and_scan_inputs, body, directions=None, num_scan_inputs, n_outputs=1):
    """As the later `scan`, for a batch: the first axis of every operand is the batch, the second of scan inputs the sequence.

    sequence_lens: (batch,), the length of each sequence; past it the state stays, and the outputs are zero.

    https://onnx.ai/onnx/operators/onnx__Scan.html
    """
    states = len(initial_state_and_scan_inputs) - num_scan_inputs

    def run(length: Any, *operands: Any) -> tuple[Any, ...]:
        def masked(position: Any, *state_and_slices: Any) -> tuple[Any, ...]:
            results = as_tuple(body(*state_and_slices))
            kept = (*state_and_slices[:states], *map(jnp.zeros_like, results[states:]))
            inside = position < length
            return position + 1, *(jnp.where(inside, y, old) for y, old in zip(results, kept, strict=True))

        body_of_one = body if length is None else masked
        operands = operands if length is None else (jnp.int32(0), *operands)
        results = as_tuple(
            scan(
                *operands,
                body=body_of_one,
                num_scan_inputs=num_scan_inputs,
                scan_input_directions=directions,
                n_outputs=n_outputs + (length is not None),
            )
        )
        return results if length is None else results[1:]

    in_axes = (None if sequence_lens is None else 0, *(0,) * len(initial_state_and_scan_inputs))
    results = jax.vmap(run, in_axes)(sequence_lens, *initial_state_and_scan_inputs)
    return results if n_outputs > 1 else results[0]


@op("SequenceMap", since=17)
def sequence_map(input_sequence, *additional_inputs, body, n_outputs=1):
    """Applies a subgraph to each element of a sequence -> a sequence of its results.

    Further inputs are sequences, which are walked along, or tensors, which every call is given.

    https://onnx.ai/onnx/operators/onnx__SequenceMap.html
    """
    rows = [
        as_tuple(body(element, *(other[i] if isinstance(other, list) else other for other in additional_inputs)))
        for i, element in enumerate(input_sequence)
    ]
    results = tuple([row[i] for row in rows] for i in range(n_outputs))
    return results if n_outputs > 1 else results[0]


@hookimpl
def onnxeqx_register_ops(registry):
    registry.add_module(__name__)
