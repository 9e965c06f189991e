"""Sizes that the graph's shapes leave open, in terms of other sizes: those of the model's inputs, in the end.

ONNX infers no shape behind a computed target (`Reshape`, `Expand`, `Range`). Here each operator's function is run on
sample sizes: what it gives in all runs for one and the same known size is that size.
"""

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._graph import Call, Graph, Kind, Value
from ._shapes import sampled_shapes
from ._symbolic import Dim, Symbol, dims, evaluate, key

# Sizes in each run: that of the first dimension, and the step to the next. Small and large ones, for models that take only
# one of them; odd and even ones side by side, and highly composite ones, to tell roundings apart; 1 and 2, to tell what is
# cut off at a small limit.
_RUNS = ((1, 0), (2, 0), (4, 3), (5, 3), (12, 13), (64, 65), (1009, 12), (20_160, 20_160), (3001, 4))
# At least so many runs must be left in which dimensions differ.
_FEWEST_RUNS = 3

Shapes = list[tuple[int, ...]]


def settle_sizes(graph: Graph) -> None:
    """Puts known sizes in the place of open ones, in the shapes and in the known sizes that calls read."""
    _Settling().settle(graph)


@dataclasses.dataclass(frozen=True)
class _Sample:
    """The sizes of a dimension by run; `age` counts the dimensions that were met before."""

    dim: Dim
    age: int
    sizes: dict[int, int]


class _Settling:
    """The runs so far, over a graph in topological order.

    **Fields:** `runs` of `_RUNS` that count: with the sizes of the others the model fails, so that they say nothing;
    `samples`: the sizes of each dimension in them; `known`: what open dimensions turned out to be.
    """

    def __init__(self) -> None:
        self.runs = list(range(len(_RUNS)))
        self.samples: dict[Any, _Sample] = {}
        self.known: dict[Any, Any] = {}
        self._fresh = zip(*(itertools.count(first, step) for first, step in _RUNS), strict=True)
        self._results: dict[Any, list[Shapes] | None] = {}
        self._rewritten: set[Value] = set()

    def settle(self, graph: Graph) -> None:
        self._visit(graph, is_body=False)
        # What was found out late holds for the sizes before, too.
        self._unify()
        self._rewritten.clear()
        self._visit(graph, is_body=False)

    def _visit(self, graph: Graph, *, is_body: bool) -> None:
        self._rewrite(*graph.inputs)
        for value in graph.inputs:
            self._meet(value)
        for call in graph.calls:
            self._rewrite(*call.reads)
            self._infer(call, is_body=is_body)
            for body in call.bodies.values():
                self._visit(body, is_body=True)
            self._rewrite(*call.outputs)
            for output in call.outputs:
                self._meet(output)
        self._rewrite(*graph.outputs)

    def _meet(self, value: Value) -> None:
        """Gives the sizes of a value that are still open a sample."""
        for dim in value.shape or ():
            self._sizes(dim)

    def _unify(self) -> None:
        """Of sizes that are equal in all runs that count, the first stands for the others."""
        first: dict[tuple[int, ...], Dim] = {}
        for identity, sample in self.samples.items():
            other = first.setdefault(tuple(sample.sizes[run] for run in self.runs), sample.dim)
            if other is not sample.dim:
                self.known[identity] = other

    def _rewrite(self, *values: Value) -> None:
        for value in values:
            if value not in self._rewritten:
                self._rewritten.add(value)
                self._rewrite_sizes(value)

    def _rewrite_sizes(self, value: Value) -> None:
        if value.shape is not None:
            value.shape = tuple(self._settled(dim) for dim in value.shape)
        if value.kind is Kind.HOST and value.array is not None:
            settled = np.empty(value.array.size, dtype=object)
            settled[:] = [self._settled(item) for item in value.array.flat]
            value.array = settled.reshape(value.array.shape)

    def _settled(self, symbol: Any) -> Any:
        return evaluate(symbol, lambda dim: self.known.get(key(dim), dim))

    def _infer(self, call: Call, *, is_body: bool) -> None:
        """Finds the open sizes of the call's results among the sizes that it reads."""
        is_open = any(self._is_open(dim) for output in call.outputs for dim in output.shape or ())
        if not is_open or call.bodies or any(value is not None and value.shape is None for value in call.inputs):
            return
        shapes = self._shapes(call, is_body=is_body)
        if shapes is None:
            return
        known: dict[tuple[int, ...], Symbol] = {}
        for symbol in sorted(_sizes_read(call), key=self._age):
            known.setdefault(self._sizes(symbol), symbol)
        for position, output in enumerate(call.outputs[: len(shapes[0])]):
            found = [run[position] for run in shapes]
            if output.shape is not None and all(len(shape) == len(output.shape) for shape in found):
                for dim, sizes in zip(output.shape, zip(*found, strict=True), strict=True):
                    if self._is_open(dim):
                        self._note(dim, sizes, known)

    def _is_open(self, dim: Any) -> bool:
        """Whether this is the first that is heard of a size."""
        return isinstance(dim, Dim) and key(dim) not in self.samples and key(dim) not in self.known

    def _note(self, dim: Dim, sizes: tuple[int, ...], known: dict[tuple[int, ...], Symbol]) -> None:
        """What an open size was in all runs: a known one, a number, or else what later calls are run with."""
        if sizes in known or len(set(sizes)) == 1:
            self.known[key(dim)] = known.get(sizes, sizes[0])
        else:
            self._add(dim, dict(zip(self.runs, sizes, strict=True)))

    def _age(self, symbol: Symbol) -> int:
        """Dimensions come in the order in which they were met, before expressions."""
        met = self.samples.get(key(symbol))
        return len(self.samples) if met is None else met.age

    def _shapes(self, call: Call, *, is_body: bool) -> list[Shapes] | None:
        """The shapes of the call's results in the runs that count.

        Where it fails with some sizes, so does the model, unless the call stands in a body that may not be evaluated.
        """
        identity = self._identity(call)
        if identity not in self._results:
            found = {run: sampled_shapes(call, functools.partial(self._sample, run)) for run in self.runs}
            shapes = {run: shapes for run, shapes in found.items() if shapes is not None}
            if _telling(shapes) < (_telling(self.runs) if is_body else _FEWEST_RUNS):
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
            self._add(dim, dict(enumerate(next(self._fresh))))
        return self.samples[identity].sizes[run]

    def _add(self, dim: Dim, sizes: dict[int, int]) -> None:
        self.samples[key(dim)] = _Sample(dim, len(self.samples), sizes)


def _telling(runs: Iterable[int]) -> int:
    """In how many of the runs dimensions differ."""
    return sum(step > 0 for _, step in (_RUNS[run] for run in runs))


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
