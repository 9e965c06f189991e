"""What happens inside the blocks of a model: the items of each, and which reads what of which."""

import dataclasses
from collections.abc import Iterator

from .._graph import Call, Graph, Kind, Value
from .._nest import Block, BlockCall
from ._parts import Shapes


@dataclasses.dataclass(frozen=True)
class Item:
    """One box of a diagram.

    **Fields:**

    - `kind`: `input`, `output`, `operator`, `layer` or `block`.
    - `label`: the name of an input, or the operator.
    - `path`: the key path of a layer or block.
    - `nodes`: the names of the ONNX nodes that it stands for.
    - `outputs`: shapes, as text.
    - `reads`: the positions of the items before it whose results it takes.
    """

    kind: str
    label: str
    path: str = ""
    nodes: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    reads: tuple[int, ...] = ()


def diagrams(root: Block, graph: Graph) -> dict[str, tuple[Item, ...]]:
    """For each callable block, by key path, its inputs, its items in topological order, and its result.

    Shape arithmetic, which the host does while tracing, is left out.
    """
    shapes = Shapes(graph)
    return {".".join(block.path): _items(block, shapes) for block in _callable(root)}


def _callable(root: Block) -> Iterator[Block]:
    stack = [root]
    while stack:
        block = stack.pop()
        stack.extend(child for child in block.children.values() if isinstance(child, Block))
        if block.items is not None:
            yield block


def _items(block: Block, shapes: Shapes) -> tuple[Item, ...]:
    items: list[Item] = []
    made_by: dict[Value, int] = {}
    for number, value in enumerate(block.inputs, 1):
        made_by[value] = len(items)
        items.append(Item("input", _input_name(block, value, number), outputs=(shapes.text(value),)))
    for item in block.items or ():
        if isinstance(item, Call) and all(value.kind is not Kind.DEVICE for value in item.outputs):
            continue
        made_by |= dict.fromkeys(item.outputs, len(items))
        items.append(_item(item, shapes, _positions(_reads(item), made_by)))
    items.append(
        Item("output", "output", outputs=shapes.texts(block.outputs), reads=_positions(block.outputs, made_by))
    )
    return tuple(items)


def _input_name(block: Block, value: Value, number: int) -> str:
    if value.leaf is not None:
        return ".".join(value.leaf.path)
    if not block.path:
        return value.name
    return "input" if len(block.inputs) == 1 else f"input {number}"


def _reads(item: Call | BlockCall) -> list[Value]:
    return item.inputs if isinstance(item, BlockCall) else item.reads


def _positions(values: list[Value], made_by: dict[Value, int]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(made_by[value] for value in values if value in made_by))


def _item(item: Call | BlockCall, shapes: Shapes, reads: tuple[int, ...]) -> Item:
    outputs = shapes.texts(item.outputs)
    if isinstance(item, BlockCall):
        return Item("block", "", ".".join(item.block.path), (), outputs, reads)
    if item.lifted is None:
        return Item("operator", item.op_type, "", (item.name,), outputs, reads)
    # A layer that is called once more stands for the nodes of its first call only as far as its weights go.
    absorbed = [call.name for call in item.lifted.absorbs]
    nodes = absorbed if item.name in absorbed else [item.name]
    return Item("layer", item.op_type, ".".join(item.lifted.path), tuple(nodes), outputs, reads)
