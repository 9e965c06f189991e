"""Choosing what a model returns: values inside its graph, by ONNX name or by key path."""

import difflib
from collections.abc import Sequence

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ._errors import ConversionError
from ._fold import fold
from ._graph import Graph, Value
from ._lift import lift
from ._lower import lower
from ._names import assign_paths, sanitized
from ._nest import Block, nest
from .plugins.manager import PluginHost


def cut(model: ir.Model, outputs: Sequence[str]) -> None:
    """Makes these values the outputs of the model, and drops what they do not need. Changes `model`.

    **Raises:** `ConversionError` if there is no value of a name.
    """
    values = _values(model)
    missing = [name for name in outputs if name not in values]
    if missing:
        raise ConversionError(_missing_text(missing[0], list(values)))
    model.graph.outputs[:] = [values[name] for name in dict.fromkeys(outputs)]
    RemoveUnusedNodesPass()(model)
    read = {*model.graph.outputs, *(value for node in _nodes(model) for value in node.inputs)}
    model.graph.inputs[:] = [value for value in model.graph.inputs if value in read]


def value_names(model: ir.Model, outputs: Sequence[str], plugins: PluginHost) -> list[str]:
    """The ONNX names of values that are given by ONNX name, or by the key path of the layer, block or sequence that ends there.

    Changes `model`, which is of no use afterwards.

    **Raises:** `ConversionError` if a name is neither.
    """
    values = _values(model)
    if all(name in values for name in outputs):
        return list(outputs)
    graph = fold(lower(model, plugins.registry))
    lift(graph, plugins.registry)
    assign_paths(graph)
    root = nest(graph)
    results = _last_of_each_scope(graph)
    results |= {".".join(block.path): block.outputs for block in _callable_blocks(root)}
    names = []
    for name in outputs:
        if name not in values and name not in results:
            raise ConversionError(_missing_text(name, [*results, *values]))
        names += [name] if name in values else [value.name for value in results[name]]
    return names


def _last_of_each_scope(graph: Graph) -> dict[str, list[Value]]:
    """The results of the last call in each scope: of a layer itself, and of sequences that are no blocks."""
    results: dict[str, list[Value]] = {}
    for call in graph.calls:
        path = sanitized(call.scope) if call.lifted is None else call.lifted.path
        results |= {".".join(path[: i + 1]): call.outputs for i in range(len(path))}
    return results


def _values(model: ir.Model) -> dict[str, ir.Value]:
    made = [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]
    return {value.name: value for value in made if value.name}


def _nodes(model: ir.Model) -> list[ir.Node]:
    return list(ir.traversal.RecursiveGraphIterator(model.graph))


def _callable_blocks(root: Block) -> list[Block]:
    found, stack = [], [root]
    while stack:
        block = stack.pop()
        stack.extend(child for child in block.children.values() if isinstance(child, Block))
        if block.items is not None and block.path:
            found.append(block)
    return found


def _missing_text(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.3)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else "."
    return (
        f"There is no value {name!r} to return: give the key path of a layer or block (onnxeqx inspect lists them), or the "
        f"ONNX name of a value{hint}"
    )
