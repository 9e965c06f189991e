"""What is in a file, layer by layer, without its weights: the `ONNX.layers` of ONNX.jl."""

import dataclasses
import math
import os
import pathlib
from collections.abc import Iterator

import onnx_ir as ir

from ._errors import ConversionError
from ._expand import expand
from ._fold import fold
from ._graph import Call, Graph, Role
from ._lift import lift
from ._lower import lower, opset_of
from ._names import assign_paths, scope_of
from ._nest import nest
from ._read import InputShapes, infer_types, read, value_name
from ._registry import Registry
from .plugins.manager import host


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer or operator of a model.

    **Fields:**

    - `name`: the key path of a layer, the node's name otherwise.
    - `kind`: the class of the layer (`Linear`, `Conv`), or the operator (`Softmax`).
    - `output_shapes`: of each output, symbolic dimensions by name; `None` for an unknown rank.
    - `parameters`: how many trained numbers it holds; `buffers`: how many stored numbers are never trained.
    - `supported`: whether a loaded plugin provides it.
    """

    name: str
    kind: str
    output_shapes: tuple[tuple[int | str, ...] | None, ...]
    parameters: int
    buffers: int
    supported: bool


def layers(path: str | os.PathLike[str], *, input_shapes: InputShapes | None = None) -> list[Layer]:
    """The layers of an ONNX file in order of evaluation, without loading its weights.

    Unsupported operators are listed too, node by node, with `supported=False`; layers are then not recognised.

    **Arguments:**

    - `path`: an `.onnx` file.
    - `input_shapes`: as in [`onnxeqx.load`][].

    **Raises:** `ReadError`.
    """
    model = read(pathlib.Path(path), input_shapes)
    registry = host().registry
    expand(model, registry)
    nodes = ir.traversal.RecursiveGraphIterator(model.graph)
    if all(registry.lookup(node.domain, node.op_type, opset_of(node, model)) for node in nodes):
        return _of_graph(recognised(model, registry))
    return _of_nodes(model, registry)


def recognised(model: ir.Model, registry: Registry) -> Graph:
    """The lifted graph, its paths assigned."""
    graph = lift(fold(lower(model, registry)), registry)
    assign_paths(graph)
    nest(graph)
    return graph


def _in_order(graph: Graph) -> Iterator[Call]:
    """The calls, each followed by those of its bodies."""
    for call in graph.calls:
        yield call
        for body in call.bodies.values():
            yield from _in_order(body)


def _of_graph(graph: Graph) -> list[Layer]:
    seen: set[int] = set()
    found = []
    for call in _in_order(graph):
        leaves = [leaf for leaf, _ in call.lifted.weights.values()] if call.lifted else []
        leaves += [value.leaf for value in call.inputs if value is not None and value.leaf is not None]
        # A tensor that several layers share counts once.
        fresh = [leaf for leaf in dict.fromkeys(leaves) if id(leaf) not in seen]
        seen |= {id(leaf) for leaf in fresh}
        found.append(
            Layer(
                ".".join(call.lifted.path) if call.lifted else call.name,
                call.lifted.layer.__name__ if call.lifted else call.op_type,
                tuple(
                    None if value.shape is None else tuple(d if isinstance(d, int) else repr(d) for d in value.shape)
                    for value in call.outputs
                ),
                sum(math.prod(leaf.shape) for leaf in fresh if leaf.role is Role.PARAMETER),
                sum(math.prod(leaf.shape) for leaf in fresh if leaf.role is not Role.PARAMETER),
                True,
            )
        )
    return found


def _of_nodes(model: ir.Model, registry: Registry) -> list[Layer]:
    inferred = infer_types(model)
    found = []
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        names = [value_name(value) for value in node.inputs if value is not None]
        weights = [model.graph.initializers[name] for name in names if name in model.graph.initializers]
        shapes = [inferred[value.name].shape if value.name in inferred else None for value in node.outputs]
        found.append(
            Layer(
                node.name or ".".join(scope_of(node)[0]) or value_name(node.outputs[0]),
                f"{node.domain}::{node.op_type}" if node.domain else node.op_type,
                tuple(
                    None if shape is None else tuple(dim if dim is not None else "?" for dim in shape)
                    for shape in shapes
                ),
                sum(
                    math.prod(value.const_value.shape.numpy())
                    for value in weights
                    if value.const_value is not None and len(value.const_value.shape)
                ),
                0,
                registry.lookup(node.domain, node.op_type, opset_of(node, model)) is not None,
            )
        )
    if not found:
        raise ConversionError("The graph has no nodes.")
    return found
