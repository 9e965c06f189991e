"""Sizes that the graph's shapes leave open, in terms of other sizes: those of the model's inputs, in the end.

ONNX infers no shape behind a computed target (`Reshape`, `Expand`, `Range`). Here each operator's function is run on
sample sizes: what it gives in all runs for one and the same known size is that size.
"""

import contextlib
import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._graph import Call, Graph, Kind, Value
from ._shapes import sampled_shapes
from ._symbolic import Dim, Symbol, dims, evaluate, key

# Sizes in each run: that of the first dimension, and the step to the next. Small and large ones, for models that take only
# one of them; odd, even and highly composite ones, to tell roundings apart.
_RUNS = ((14, 2), (15, 2), (96, 96), (1009, 12), (20_160, 20_160), (3001, 4))
_FEWEST_RUNS = 3

Shapes = list[tuple[int, ...]]


def settle_sizes(graph: Graph) -> None:
    """Puts known sizes in the place of open ones, in the shapes and in the known sizes that calls read."""
    _Settling().settle(graph)


class _Settling:
    """The runs so far, over a graph in topological order.

    **Fields:** `runs` of `_RUNS` that count: with the sizes of the others the model fails, so that they say nothing;
    `samples`: the sizes of each dimension in them; `known`: what open dimensions turned out to be.
    """

    def __init__(self) -> None:
        self.runs = list(range(len(_RUNS)))
        self.samples: dict[Any, dict[int, int]] = {}
        self.known: dict[Any, Any] = {}
        self._fresh = zip(*(itertools.count(first, step) for first, step in _RUNS), strict=True)
        self._results: dict[Any, list[Shapes] | None] = {}
        self._rewritten: set[Value] = set()

    def settle(self, graph: Graph) -> None:
        for value in graph.inputs:
            self._rewrite(value)
        for call in graph.calls:
            for value in call.reads:
                self._rewrite(value)
            self._infer(call)
            for body in call.bodies.values():
                self.settle(body)
            for output in call.outputs:
                self._rewrite(output)
        for value in graph.outputs:
            self._rewrite(value)

    def _rewrite(self, value: Value) -> None:
        if value in self._rewritten:
            return
        self._rewritten.add(value)
        if value.shape is not None:
            value.shape = tuple(self._settled(dim) for dim in value.shape)
        if value.kind is Kind.HOST and value.array is not None:
            settled = np.empty(value.array.size, dtype=object)
            settled[:] = [self._settled(item) for item in value.array.flat]
            value.array = settled.reshape(value.array.shape)

    def _settled(self, symbol: Any) -> Any:
        return evaluate(symbol, lambda dim: self.known.get(key(dim), dim))

    def _infer(self, call: Call) -> None:
        """Finds the open sizes of the call's results among the sizes that it reads."""
        is_open = any(_is_open(output, axis) for output in call.outputs for axis in range(len(output.shape or ())))
        if not is_open or call.bodies or any(value is not None and value.shape is None for value in call.inputs):
            return
        shapes = self._shapes(call)
        if shapes is None:
            return
        known = {self._sizes(symbol): symbol for symbol in _sizes_read(call)}
        for position, output in enumerate(call.outputs[: len(shapes[0])]):
            found = [run[position] for run in shapes]
            if output.shape is not None and all(len(shape) == len(output.shape) for shape in found):
                for axis, sizes in enumerate(zip(*found, strict=True)):
                    if _is_open(output, axis):
                        self._note(key(output.shape[axis]), sizes, known)

    def _note(self, dim: Any, sizes: tuple[int, ...], known: dict[tuple[int, ...], Symbol]) -> None:
        """What an open size was in all runs: a known one, a number, or else what later calls are run with."""
        if sizes in known or len(set(sizes)) == 1:
            self.known[dim] = known.get(sizes, sizes[0])
        else:
            self.samples[dim] = dict(zip(self.runs, sizes, strict=True))

    def _shapes(self, call: Call) -> list[Shapes] | None:
        """The shapes of the call's results in the runs that count."""
        identity = self._identity(call)
        if identity not in self._results:
            found = {run: sampled_shapes(call, functools.partial(self._sample, run)) for run in self.runs}
            shapes = {run: shapes for run, shapes in found.items() if shapes is not None}
            if len(shapes) < _FEWEST_RUNS:
                return self._broadcast(call)
            self.runs = list(shapes)
            self._results[self._identity(call)] = list(shapes.values())
        return self._results[self._identity(call)]

    def _broadcast(self, call: Call) -> list[Shapes] | None:
        """The shapes where operands are broadcast against each other, and not all sizes are known to fit.

        Sizes that differ are 1 in one of the operands, or else the call fails: of that axis nothing is known.
        """
        shapes = [value.shape for value in call.inputs if value is not None and value.shape is not None]
        if not _broadcasts(call.op.function, tuple(map(len, shapes))):
            return None
        rank = max(map(len, shapes))
        one = (1,) * len(self.runs)
        axes = []
        for along in zip(*((1,) * (rank - len(shape)) + shape for shape in shapes), strict=True):
            sizes = {self._sizes(dim) for dim in along} - {one}
            axes.append(one if not sizes else sizes.pop() if len(sizes) == 1 else self._counting(next(self._fresh)))
        return [[shape] for shape in zip(*axes, strict=True)]

    def _counting(self, sizes: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sizes[run] for run in self.runs)

    def _identity(self, call: Call) -> Any:
        """What the shapes of a call's results depend on."""
        operands = [None if value is None else self._identity_of(value) for value in call.inputs]
        return call.op.function, repr(sorted(call.attributes.items())), tuple(operands)

    def _identity_of(self, value: Value) -> Any:
        shape = tuple(map(self._sizes, value.shape or ()))
        if value.array is None:
            return shape, value.dtype
        if value.array.dtype == object:
            return shape, tuple(map(self._sizes, value.array.flat))
        return shape, value.dtype, value.array.tobytes()

    def _sizes(self, symbol: Any) -> tuple[int, ...]:
        """The size in the runs that count."""
        return tuple(evaluate(symbol, functools.partial(self._sample, run)) for run in self.runs)

    def _sample(self, run: int, dim: Dim) -> int:
        identity = key(dim)
        if identity not in self.samples:
            self.samples[identity] = dict(enumerate(next(self._fresh)))
        return self.samples[identity][run]


def _is_open(value: Value, axis: int) -> bool:
    """Whether nothing is known of a size of a value but that it is its size."""
    dim = value.shape[axis] if value.shape is not None else None
    return isinstance(dim, Dim) and dim.value is value and dim.axis == axis


def _sizes_read(call: Call) -> list[Symbol]:
    """The symbolic sizes in the shapes of the operands, and in those operands that are sizes."""
    operands = [value for value in call.inputs if value is not None]
    given = [
        item for value in operands if value.kind is Kind.HOST and value.array is not None for item in value.array.flat
    ]
    found = [size for value in operands for size in value.shape or ()] + given
    symbols = [symbol for symbol in found if isinstance(symbol, Symbol)]
    return symbols + [dim for symbol in symbols for dim in dims(symbol)]


@functools.cache
def _broadcasts(function: Callable[..., Any], ranks: tuple[int, ...]) -> bool:
    """Whether a function of arrays broadcasts them: along each axis, the size that is not 1 is that of the result."""
    rank = max(ranks, default=0)
    longest, sizes = ranks.index(rank) if ranks else 0, range(2, rank + 2)
    shapes = [[1] * own for own in ranks]
    for axis, size in enumerate(sizes):
        owner = axis % len(ranks) if axis >= rank - ranks[axis % len(ranks)] else longest
        shapes[owner][axis - rank + ranks[owner]] = size
    for dtype in (jnp.float32, jnp.bool_):
        with contextlib.suppress(Exception):
            operands = [jax.ShapeDtypeStruct(tuple(shape), dtype) for shape in shapes]
            return len(ranks) > 1 and jax.eval_shape(function, *operands).shape == tuple(sizes)
    return False
