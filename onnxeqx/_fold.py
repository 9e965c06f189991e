"""Folding: what is known at load is computed at load; shape arithmetic becomes symbolic expressions.

Integers and small tables are folded, parameters never are. Every value ends as CONST (known now), HOST (known while
tracing) or DEVICE, and every stored tensor as parameter, buffer or constant.
"""

import collections
import dataclasses
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from ._errors import ConversionError
from ._graph import Call, Graph, Kind, Leaf, Role, Value, settled
from ._lower import is_floating, is_weight
from ._names import is_dotted
from ._shapes import infer_call, settle_shape
from ._symbolic import Dim, Symbol, UndecidedError, dims
from .runtime import host_limit

# A file of a few bytes must not become a load-time bomb (ConstantOfShape, Expand, Tile, Range of 10^12 elements).
_MAX_FOLDED = 1 << 24
# A tensor that stands in the file, or is a weight that a node fills (VGG's widest has 10^8 elements).
_MAX_STORED = 1 << 28
_MAX_SYMBOLS = 1024
# Up to this many elements a constant stands in the source; larger ones are leaves.
LITERAL_SIZE = 16


@dataclasses.dataclass(frozen=True)
class _Shaped:
    """What an operator that reads shapes only is given in place of an array."""

    shape: tuple[Any, ...]
    dtype: np.dtype | None

    @property
    def ndim(self) -> int:
        return len(self.shape)


def fold(graph: Graph) -> Graph:
    """Evaluates what it can, drops those calls, and classifies what is left. Changes `graph` and returns it."""
    _fold_calls(graph)
    _make_leaves(graph)
    return graph


def _fold_calls(graph: Graph) -> None:
    remaining = []
    pending = graph.calls[::-1]
    reads = collections.Counter(settled(value) for call in graph.calls for value in call.reads)
    while pending:
        call = pending.pop()
        call.settle()
        for value in call.reads:
            settle_shape(value)
        body = _chosen_body(call)
        if body is not None:
            for output, result in zip(call.outputs, body.outputs, strict=True):
                output.replaced_by = result
            pending.extend(reversed(body.calls))
            reads.update(settled(value) for inner in body.calls for value in inner.reads)
            continue
        source = call.inputs[0] if call.inputs else None
        sole_reader = source is not None and reads[source] == 1
        if not (sole_reader and _convert_stored(call)) and not _evaluate(call, sole_reader):
            remaining.append(call)
            infer_call(call)
            for body in call.bodies.values():
                _fold_calls(body)
    graph.calls = remaining
    graph.settle()
    graph.calls = _reachable(graph, remaining)


def _chosen_body(call: Call) -> Graph | None:
    """The body whose results are those of the call, where that is known at load."""
    arrays = [None if value is None else value.array for value in call.inputs]
    if call.op.chooses is None or any(array is None or array.dtype == object for array in arrays):
        return None
    return call.bodies[call.op.chooses(*arrays)]


def _convert_stored(call: Call) -> bool:
    """Whether the call converts a stored floating-point tensor that nobody else reads, which is then stored as converted.

    Files keep weights in half precision and widen them in the graph; they are parameters all the same. A tensor that is
    named after a module keeps the shape it has there.
    """
    source, *others = call.inputs
    leaf = source.leaf if call.op.converts and source is not None else None
    output = call.outputs[0]
    operands = [None if value is None else value.array for value in others]
    known = all(value is None or (value.array is not None and value.array.dtype != object) for value in others)
    if leaf is None or not known or not is_floating(output.dtype):
        return False
    blank = np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)
    shape = np.asarray(call.op.function(blank, *operands, **call.attributes)).shape
    if shape != leaf.shape and is_dotted(leaf.initializer):
        return False

    def load() -> np.ndarray:
        return leaf.load().astype(output.dtype).reshape(shape)

    stored_as = leaf.stored_as or leaf.initializer
    output.leaf = Leaf(output.name, load, shape, output.dtype, leaf.role, from_node=True, stored_as=stored_as)
    return True


def _evaluate(call: Call, sole_reader: bool) -> bool:
    """Whether the call was evaluated, in which case its outputs have become CONST or HOST.

    `sole_reader`: nobody else reads its first input.
    """
    if call.op.draws:
        return False
    operands = _operands(call)
    if operands is None:
        if call.op.on_host and all(_is_host(value) for value in call.inputs if value is not None) and call.inputs:
            for output in call.outputs:
                output.kind = Kind.HOST
        elif call.op.from_shapes:
            call.outputs[0].kind = Kind.HOST
        return False
    limit = _MAX_STORED if call.op.stores else _MAX_FOLDED
    try:
        with warnings.catch_warnings(action="ignore"), np.errstate(all="ignore"), host_limit(limit):
            result = call.op.function(*operands, **call.attributes)
            results = result if isinstance(result, tuple) else (result,)
            arrays = [_normalized(array, output.dtype) for array, output in zip(results, call.outputs, strict=False)]
    except (UndecidedError, TypeError, NotImplementedError, MemoryError, OverflowError):
        return _computed_later(call)
    except (ValueError, IndexError, ArithmeticError) as error:
        if any(operand is not None and operand.dtype == object for operand in operands):
            return _computed_later(call)
        raise ConversionError(
            f"{call.describe()} cannot be computed from its constant inputs: {error}; export the model again.".replace(
                "\n", " "
            )
        ) from error
    kept = [array for array in arrays if array is not None and (call.op.stores or array.size <= limit)]
    if len(kept) < len(arrays):
        return False
    for array, output in zip(kept, call.outputs, strict=False):
        output.kind = Kind.HOST if array.dtype == object else Kind.CONST
        output.array, output.shape, output.dtype = array, array.shape, output.dtype or array.dtype
        keeps = _is_view(call) if len(call.inputs) == 1 else False
        keeps = keeps or (call.op.converts and sole_reader)
        output.stored = call.op.stores or (keeps and call.operand(0).stored)
    return True


def _computed_later(call: Call) -> bool:
    for output in call.outputs:
        output.kind = Kind.HOST
    return False


def _is_view(call: Call) -> bool:
    return (
        call.outputs[0].array is not None
        and call.inputs[0] is not None
        and call.outputs[0].array is call.inputs[0].array
    )


def _operands(call: Call) -> list[Any] | None:
    """The inputs as NumPy arrays, if all of them are known or symbolic and the operator runs on the host."""
    if call.op.from_shapes:
        value = call.inputs[0]
        if value is None or value.shape is None:
            return None
        return [_Shaped(value.shape, value.dtype)]
    if not call.op.on_host and not (call.op.stores and all(value.array is not None for value in call.inputs if value)):
        return None
    if any(value is not None and value.array is None for value in call.inputs):
        return None
    return [None if value is None else value.array for value in call.inputs]


def _is_host(value: Value) -> bool:
    return value.kind is Kind.HOST or (
        value.kind is Kind.CONST and value.array is not None and value.array.size <= LITERAL_SIZE
    )


def _normalized(result: Any, dtype: np.dtype | None) -> np.ndarray | None:
    """A NumPy array of plain numbers, or an object array of integers and symbols; `None` if it is neither."""
    if isinstance(result, jax.Array):
        return None
    array = np.asarray(result, dtype=object if isinstance(result, Symbol) else None)
    if array.dtype != object:
        return array
    items = [item.item() if isinstance(item, np.generic) else item for item in array.reshape(-1)]
    if any(isinstance(item, Symbol) for item in items):
        if array.size > _MAX_SYMBOLS:
            return None
        objects = np.empty(array.size, dtype=object)
        objects[:] = items
        return objects.reshape(array.shape)
    if all(isinstance(item, bool) for item in items):
        return np.array(items, dtype=bool).reshape(array.shape)
    return np.array(items, dtype=dtype or np.int64).reshape(array.shape)


def _reachable(graph: Graph, calls: list[Call]) -> list[Call]:
    """The calls that an output depends on."""
    needed = {id(value) for value in graph.outputs}
    kept = []
    for call in reversed(calls):
        if any(id(output) in needed for output in call.outputs):
            kept.append(call)
            needed |= {id(value) for value in call.reads}
            needed |= {id(dim.value) for value in call.reads for dim in symbol_dims(value)}
    needed_by_outputs = {id(dim.value) for value in graph.outputs for dim in symbol_dims(value)}
    return _reachable_dims(calls, kept, needed_by_outputs)


def _reachable_dims(calls: list[Call], kept: list[Call], needed: set[int]) -> list[Call]:
    if not needed:
        return kept[::-1]
    chosen = {id(call) for call in kept}
    for call in reversed(calls):
        if id(call) in chosen or any(id(output) in needed for output in call.outputs):
            chosen.add(id(call))
            needed |= {id(value) for value in call.reads}
    return [call for call in calls if id(call) in chosen]


def symbol_dims(value: Value) -> list[Dim]:
    """The dimensions that a HOST value reads."""
    if value.kind is not Kind.HOST or value.array is None:
        return []
    return [dim for item in value.array.reshape(-1) for dim in dims(item)]


def host_inputs(graph: Graph) -> tuple[str, ...]:
    """The graph inputs whose values an operator needs while tracing: a shape, an axis, or what that is computed from."""
    needed: set[Value] = set()
    for call in _calls_backwards(graph):
        needed |= _needed_by(call, needed, call.outputs)
    return tuple(value.name for value in graph.inputs if value in needed)


def needed_on_host(graph: Graph) -> set[Value]:
    """The values that an operator may need while tracing, if loops that are unrolled hand them from step to step."""
    needed: set[Value] = set()
    size = -1
    while size < len(needed):
        size = len(needed)
        for call in _calls_backwards(graph):
            ends = [value for body in call.bodies.values() for value in body.outputs]
            handed = [*call.outputs, *(value for body in call.bodies.values() for value in body.inputs)]
            needed |= _needed_by(call, needed, handed)
            if not needed.isdisjoint(handed):
                needed |= set(ends)
    return needed


def _calls_backwards(graph: Graph) -> Iterator[Call]:
    for inner in reversed(list(graph.graphs())):
        yield from reversed(inner.calls)


def _needed_by(call: Call, needed: set[Value], results: list[Value]) -> set[Value]:
    """The values that a call needs while tracing, given those that are needed of its results."""
    wanted = (*call.op.host, *call.op.prefers_host)
    found = {value for i, value in enumerate(call.inputs) if value and call.op.input_name(i) in wanted}
    return found | set(call.reads) if not call.op.from_shapes and not needed.isdisjoint(results) else found


def _make_leaves(graph: Graph) -> None:
    """Turns large constants into leaves, and classifies all leaves."""
    _unmake_host_leaves(graph)
    constants: dict[int, Value] = {}
    operands = [
        (call, position, value)
        for call in graph.all_calls()
        for position, value in enumerate(call.inputs)
        if value is not None
    ]
    for call, position, value in operands:
        if value.kind is Kind.CONST and value.leaf is None and call.op.input_name(position) not in call.op.host:
            constants[id(value)] = value
    for value in [value for body in graph.graphs() for value in body.outputs]:
        if value.kind is Kind.CONST and value.leaf is None:
            constants[id(value)] = value
    nodes_hold_weights = _nodes_hold_weights(graph, list(constants.values()))
    for value in constants.values():
        array = value.known_array
        if array.dtype.kind in "USO":  # text, which JAX has no arrays of, stays a literal of any size
            continue
        if array.size > LITERAL_SIZE or (value.stored and is_weight(array.shape, array.dtype) and array.size > 1):
            value.leaf = _leaf_of_constant(value, nodes_hold_weights)
            value.kind = Kind.DEVICE
    _mark_buffers(operands)


def _unmake_host_leaves(graph: Graph) -> None:
    """A stored tensor that is read as a host operand only (the scales of a `Resize`) is no weight: it stands in the source."""
    elsewhere = {id(value) for body in graph.graphs() for value in body.outputs}
    on_host: dict[int, Value] = {}
    for call in graph.all_calls():
        for position, value in enumerate(call.inputs):
            if value is not None and value.leaf is not None:
                if call.op.input_name(position) in call.op.host:
                    on_host[id(value)] = value
                else:
                    elsewhere.add(id(value))
    for key, value in on_host.items():
        if key not in elsewhere and value.leaf is not None:
            value.array, value.kind, value.leaf = value.leaf.load(), Kind.CONST, None


def _leaf_of_constant(value: Value, nodes_hold_weights: bool) -> Leaf:
    array = value.known_array
    if not is_floating(array.dtype):
        role = Role.CONSTANT
    else:
        role = Role.PARAMETER if value.stored and nodes_hold_weights else Role.BUFFER
    return Leaf(
        value.name,
        lambda: array,
        array.shape,
        array.dtype,
        role,
        from_node=value.stored and value.producer is not None,
        folded=not value.stored,
        stored_as=_stored_as(value),
    )


def _stored_as(value: Value) -> str | None:
    """The tensor of the file that nodes reshaped to this one."""
    source = value
    while source.stored and source.producer is not None and source.producer.op.converts:
        source = source.producer.operand(0)
    return None if source is value else source.name


def _nodes_hold_weights(graph: Graph, constants: list[Value]) -> bool:
    """Whether this file keeps its weights in nodes: Paddle's, Caffe2's and silero's do, and have few initializers or none."""
    arrays = [value.known_array for value in constants if value.stored]
    stored = sum(array.size for array in arrays if is_weight(array.shape, array.dtype))
    initializers = sum(int(np.prod(leaf.shape)) for leaf in graph.leaves() if leaf.role is Role.PARAMETER)
    return stored > initializers


def _mark_buffers(operands: list[tuple[Call, int, Value]]) -> None:
    """A weight that every reader takes as a statistic is a buffer."""
    trained: dict[int, bool] = {}
    leaves = {}
    for call, position, value in operands:
        if value.leaf is not None and value.leaf.role is Role.PARAMETER:
            leaves[id(value.leaf)] = value.leaf
            as_buffer = call.op.input_name(position) in call.op.buffers
            trained[id(value.leaf)] = trained.get(id(value.leaf), False) or not as_buffer
    for key, leaf in leaves.items():
        if not trained[key]:
            leaf.role = Role.BUFFER
