"""Patterns of attention masks, which exporters compute from the positions of queries and keys.

Positions are `arange` along one axis. They depend on sizes only, so that it does not matter who else reads them.
"""

import dataclasses
from typing import Any

import numpy as np

from .._graph import Kind, Value
from .._patterns import Match, Node, Replacement, Variable
from .._reads import has_size
from .._registry import pattern
from .._symbolic import Symbol, key
from .hookspecs import hookimpl

mask, index, shape = Variable("mask"), Variable("index"), Variable("shape")
row, column, width = Variable("row"), Variable("column"), Variable("width")
keys, queries = Variable("keys"), Variable("queries")


@dataclasses.dataclass(frozen=True)
class _Positions:
    """What a tensor of `rank` axes holds: `first`, `first + 1`, … along one axis, the same along all others.

    **Fields:** `count`, an integer or a symbol, of the positions; `axis`, counted from the front.
    """

    first: Any
    count: Any
    axis: int
    rank: int


def _positions(value: Value) -> _Positions | None:
    call = value.producer
    if call is None or value.shape is None or call.op_type not in ("Range", "Unsqueeze", "Expand", "Add"):
        return None
    if call.op_type == "Range":
        start, step = call.operand(0).array, call.operand(2).array
        counted = start is not None and step is not None and key(step.item()) == 1 and value.dtype == np.int64
        return _Positions(start.item(), value.shape[0], 0, 1) if counted and start is not None else None
    if call.op_type == "Add":
        return _shifted(call.operand(0), call.operand(1)) or _shifted(call.operand(1), call.operand(0))
    found = _positions(call.operand(0))
    if found is None:
        return None
    if call.op_type == "Expand":
        kept = len(value.shape) == found.rank and has_size(value, found.axis, found.count)
        return found if kept else None
    return _unsqueezed(found, call.inputs[1:], call.attributes, len(value.shape))


def _unsqueezed(
    found: _Positions, inputs: list[Value | None], attributes: dict[str, Any], rank: int
) -> _Positions | None:
    array = inputs[0].array if inputs and inputs[0] is not None else attributes.get("axes")
    if array is None:
        return None
    inserted = {int(axis) % rank for axis in array}
    kept = [axis for axis in range(rank) if axis not in inserted]
    return _Positions(found.first, found.count, kept[found.axis], rank)


def _shifted(value: Value, offset: Value) -> _Positions | None:
    """Positions, and a size that is added to them."""
    found = _positions(value)
    if found is None or offset.array is None or offset.array.size != 1 or offset.array.ndim > found.rank:
        return None
    return dataclasses.replace(found, first=found.first + offset.array.reshape(-1)[0])


def _is_from_zero(found: _Positions | None, axis: int, rank: int) -> bool:
    return found is not None and (found.axis, found.rank) == (axis, rank) and key(found.first) == 0


def _size(size: Any) -> Value:
    """A size as an operand."""
    symbolic = isinstance(size, Symbol)
    array = np.array(size, dtype=object if symbolic else np.int64)
    return Value("size", np.dtype(np.int64), (), Kind.HOST if symbolic else Kind.CONST, array)


def _sizes(*sizes: Any) -> Value:
    """Several of them."""
    symbolic = any(isinstance(size, Symbol) for size in sizes)
    array = np.array(sizes, dtype=object if symbolic else np.int64)
    return Value("sizes", np.dtype(np.int64), array.shape, Kind.HOST if symbolic else Kind.CONST, array)


@pattern(Node("LessOrEqual", keys, queries), Node("GreaterOrEqual", queries, keys))
def causal_mask(match: Match) -> Replacement | None:
    """Each query attends to the keys up to its own position."""
    of_keys, of_queries = _positions(match["keys"]), _positions(match["queries"])
    if of_queries is None or not _is_from_zero(of_keys, 3, 4) or (of_queries.axis, of_queries.rank) != (2, 4):
        return None
    assert of_keys is not None
    sizes = (of_queries.count, of_keys.count, of_queries.first)
    operands = [_size(size) for size in sizes]
    return Replacement("onnxeqx::CausalMask", 1, tuple(operands[: 2 if key(of_queries.first) == 0 else 3]))


_FLAT_INDEX = Node("Add", column, Node("Mul", row, width))


@pattern(Node("Reshape", Node("Reshape", Node("Gather", Node("Flatten", mask, axis=2), _FLAT_INDEX), index), shape))
def padding_mask(match: Match) -> Replacement | None:
    """Every key's mask for all queries: `mask[row, column]`, by way of the mask as one vector."""
    rows, columns, factor = _positions(match["row"]), _positions(match["column"]), match["width"].array
    target, values = match["shape"].array, match["mask"]
    if target is None or rows is None or columns is None or match.call("Gather").attributes.get("axis", 0):
        return None
    if not _is_from_zero(rows, 0, 4) or not _is_from_zero(columns, 3, 4) or len(values.shape or ()) != 2:
        return None
    of_rows = factor is not None and factor.size == 1 and has_size(values, 1, factor.reshape(-1)[0])
    wanted = (rows.count, 1, 1, columns.count)
    if not of_rows or not has_size(values, 1, columns.count) or list(map(key, target)) != list(map(key, wanted)):
        return None
    return _for_all_queries(values, rows.count, columns.count)


@pattern(Node("GatherND", mask, Node("Concat", row, column, axis=-1), batch_dims=0))
def padding_mask_by_gather_nd(match: Match) -> Replacement | None:
    """Every key's mask for all queries: `mask[row, column]`."""
    rows, columns, result = _positions(match["row"]), _positions(match["column"]), match.calls[0].outputs[0]
    if rows is None or columns is None or len(match["mask"].shape or ()) != 2 or len(result.shape or ()) != 4:
        return None
    if not _is_from_zero(rows, 0, 5) or not _is_from_zero(columns, 3, 5):
        return None
    if not all(has_size(result, axis, size) for axis, size in enumerate((rows.count, 1, 1, columns.count))):
        return None
    return _for_all_queries(match["mask"], rows.count, columns.count)


def _for_all_queries(values: Value, rows: Any, columns: Any) -> Replacement:
    """Shape (rows, 1, 1, columns), of the first rows and columns where there may be more."""
    cut = [(axis, size) for axis, size in enumerate((rows, columns)) if not has_size(values, axis, size)]
    source: Value | Replacement = values
    if cut:
        axes, ends = zip(*cut, strict=True)
        source = Replacement("Slice", 13, (values, _sizes(*[0] * len(axes)), _sizes(*ends), _sizes(*axes)))
    return Replacement("Unsqueeze", 13, (source, _sizes(1, 2)))


@pattern(Node("And", Node("GreaterOrEqual", queries, 0.0), mask))
def mask_for_all_queries(match: Match) -> Replacement | None:
    """No position is negative: the mask, for as many queries as there are positions."""
    found, result = _positions(match["queries"]), match.calls[0].outputs[0]
    if found is None or key(found.first) != 0 or result.shape is None:
        return None
    return Replacement("Expand", 13, (match["mask"], _sizes(*result.shape)))


@hookimpl
def onnxeqx_register_layers(registry: Any) -> None:
    registry.add_module(__name__)
