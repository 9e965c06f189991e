"""Printing a model once more without its weights: stand-ins of which printing asks the same as it asked of the weights.

Printing asks two things of a weight's numbers: whether they are all equal, where several nodes read it (equal tensors that
exporters merged by accident are separate weights). What it asks of buffers and constants, their own numbers answer.
"""

import math
from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir

from ._convert import Provenance
from ._graph import Role
from ._read import graph_protos, read_proto, value_name
from ._weights import TRANSFORMS


def with_stand_ins(
    proto: onnx.ModelProto, provenance: Mapping[str, Provenance], stored: Mapping[str, np.ndarray]
) -> ir.Model:
    """A graph without weights, as printing saw it when it had them.

    **Arguments:**

    - `proto`: the graph.
    - `provenance`: where the leaves that were printed came from.
    - `stored`: the leaves by key path, of which those that are never trained are used.
    """
    without_data = _without_data(proto)
    entries = {entry.initializer: (path, entry) for path, entry in provenance.items() if not entry.folded}
    uniform = _uniform(proto, list(provenance.values()))

    def tensor(name: str, empty: ir.TensorProtocol) -> ir.TensorProtocol:
        path, entry = entries.get(name, ("", None))
        if entry is not None and entry.role != Role.PARAMETER.value and path in stored:
            array = TRANSFORMS[entry.transform](stored[path]).astype(empty.dtype.numpy(), copy=False)
        else:
            array = _stand_in(tuple(empty.shape.numpy()), empty.dtype.numpy(), name in uniform)
        return ir.Tensor(array, dtype=empty.dtype, name=name)

    model = read_proto(proto, weightless=True)
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value_name(value) in without_data and value.const_value is not None:
                value.const_value = tensor(value_name(value), value.const_value)
        for node in graph:
            name = value_name(node.outputs[0]) if node.outputs else ""
            for attribute in list(node.attributes.values()) if name in without_data else ():
                if attribute.type is ir.AttributeType.TENSOR:
                    node.attributes[attribute.name] = ir.AttrTensor(attribute.name, tensor(name, attribute.as_tensor()))
    return model


def _without_data(proto: onnx.ModelProto) -> set[str]:
    """The names of tensors that lack their data: initializers, and outputs of nodes that hold a tensor."""
    graphs = list(graph_protos(proto.graph))
    found = {tensor.name for graph in graphs for tensor in graph.initializer if _lacks_data(tensor)}
    for node in (node for graph in graphs for node in graph.node):
        if any(attribute.HasField("t") and _lacks_data(attribute.t) for attribute in node.attribute):
            found.add(node.output[0])
    return found


def _lacks_data(tensor: onnx.TensorProto) -> bool:
    present = {field.name for field, _ in tensor.ListFields()} - {"name", "dims", "data_type", "doc_string"}
    return not present and math.prod(tensor.dims) > 0


def _uniform(proto: onnx.ModelProto, entries: list[Provenance]) -> set[str]:
    """The tensors that were merged by accident: several copies were made of them, or nodes hand them on as several leaves."""
    found = {entry.initializer for entry in entries if entry.reader is not None}
    handed_on = {entry.initializer for entry in entries if entry.from_node}
    for graph in graph_protos(proto.graph):
        found |= {name for node in graph.node if handed_on.intersection(node.output) for name in node.input}
    return found


def _stand_in(shape: tuple[int, ...], dtype: np.dtype, uniform: bool) -> np.ndarray:
    """Numbers of this shape that take no memory: all equal, or not."""
    axis = next((axis for axis, size in enumerate(shape) if size > 1), None)
    array = np.zeros([size if i == axis else 1 for i, size in enumerate(shape)], dtype)
    if not uniform:
        array.reshape(-1)[:1] = 1
    return np.broadcast_to(array, shape)
