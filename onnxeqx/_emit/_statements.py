"""Which lines a block has: its calls in canonical order, short ones nested into their reader."""

import dataclasses

from .._fold import symbol_dims
from .._graph import Call, Value
from .._nest import Block, BlockCall
from .._reads import data_reads, dim_reads, has_dim
from .._symbolic import Dim

Item = Call | BlockCall

# How many calls one line may nest.
_MAX_NESTED = 3


@dataclasses.dataclass(eq=False)
class Statement:
    """One assignment: an item, with the items that are written inside it."""

    item: Item
    nested: list[Item]

    @property
    def items(self) -> list[Item]:
        return [*self.nested, self.item]


@dataclasses.dataclass(eq=False)
class Plan:
    """The lines of a block.

    **Fields:** `statements` in order; `producer` of each value that the block computes; `nested`, the values that have no
    name because the line that reads them contains their expression.
    """

    statements: list[Statement]
    producer: dict[Value, Item]
    nested: dict[Value, Call]


def plan(block: Block) -> Plan:
    """Decides the lines of a callable block."""
    producer = {output: item for item in block.items or () for output in item.outputs}
    order = _depth_first(block, producer)
    nested = _nested(block, order, producer)
    inner = {id(call) for call in nested.values()}
    statements = [Statement(item, _inside(item, nested)) for item in order if id(item) not in inner]
    return Plan(statements, producer, nested)


def operands(item: Item) -> list[Value]:
    """The values that an item reads, in operand order."""
    return item.inputs if isinstance(item, BlockCall) else data_reads(item)


def open_dims(item: Item) -> list[Dim]:
    """The dimensions that an item's symbolic operands read, and that none of its arrays has."""
    return [] if isinstance(item, BlockCall) else dim_reads(item)


def _holders(item: Item) -> list[Value]:
    """The arrays among an item's operands whose shapes its symbolic operands read."""
    if isinstance(item, BlockCall):
        return []
    dims = [dim for value in data_reads(item) for dim in symbol_dims(value)]
    found = [
        next((value for value in data_reads(item) if value.array is None and has_dim(value, dim)), None) for dim in dims
    ]
    return [value for value in found if value is not None]


def _nested(block: Block, order: list[Item], producer: dict[Value, Item]) -> dict[Value, Call]:
    uses: dict[Value, int] = {}
    for item in order:
        for value in operands(item):
            uses[value] = uses.get(value, 0) + 1
    for value in block.outputs:
        uses[value] = uses.get(value, 0) + 2
    for item in order:
        # What a body reads must have a name.
        for value in item.captures if isinstance(item, Call) else ():
            uses[value] = uses.get(value, 0) + 1
    needed_for_shape = {dim.value for item in order for dim in open_dims(item)}
    needed_for_shape |= {value for item in order for value in _holders(item)}
    nested: dict[Value, Call] = {}
    cost: dict[int, int] = {}
    for item in order:
        cost[id(item)] = 1
        if isinstance(item, BlockCall):
            continue
        for value in dict.fromkeys(operands(item)):
            source = producer.get(value)
            if (
                not isinstance(source, Call)
                or source.bodies
                or uses[value] != 1
                or len(source.outputs) != 1
                or value in needed_for_shape
            ):
                continue
            if cost[id(item)] + cost[id(source)] <= _MAX_NESTED:
                cost[id(item)] += cost[id(source)]
                nested[value] = source
    return nested


def _inside(item: Item, nested: dict[Value, Call]) -> list[Item]:
    found: list[Item] = []
    stack = [item]
    while stack:
        for value in operands(stack.pop()):
            if value in nested:
                found.append(nested[value])
                stack.append(nested[value])
    return found


def _depth_first(block: Block, producer: dict[Value, Item]) -> list[Item]:
    """From the outputs in operand order, so that equal blocks have their lines in the same order."""
    order: list[Item] = []
    seen: set[int] = set()
    stack: list[tuple[Item, bool]] = [
        (producer[value], False) for value in reversed(block.outputs) if value in producer
    ]
    while stack:
        item, done = stack.pop()
        if done:
            order.append(item)
        elif id(item) not in seen:
            seen.add(id(item))
            stack.append((item, True))
            sources = [producer[value] for value in operands(item) if value in producer]
            sources += [source for dim in open_dims(item) if (source := _source_of(dim, block, producer)) is not None]
            stack.extend((source, False) for source in reversed(sources) if id(source) not in seen)
    return order


def _source_of(dim: Dim, block: Block, producer: dict[Value, Item]) -> Item | None:
    """The item after which a dimension can be read from a shape; `None` if an argument has it."""
    if dim.value in producer:
        return producer[dim.value]
    if any(has_dim(value, dim) for value in block.inputs):
        return None
    return next((item for item in block.items or () if any(has_dim(value, dim) for value in item.outputs)), None)
