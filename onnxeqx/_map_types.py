"""Types with maps, as models of scikit-learn have them: onnx-ir reads none, so they are set aside, and put back on writing.

https://onnx.ai/onnx/repo-docs/IR.html#non-tensor-data
"""

import onnx
import onnx_ir as ir

_META_KEY = "onnxeqx.map_type"


def set_aside(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, onnx.TypeProto]]:
    """The model without types that hold a map, and those of the graph's inputs and outputs by name.

    The model is `proto` itself, unchanged, if it has none.
    """
    graph = proto.graph
    declared = [*graph.input, *graph.output]
    types = {value.name: value.type for value in declared if _holds_map(value.type)}
    if not types and not any(_holds_map(value.type) for value in graph.value_info):
        return proto, {}
    bare = onnx.ModelProto()
    bare.CopyFrom(proto)
    for value in (*bare.graph.input, *bare.graph.output, *bare.graph.value_info):
        if _holds_map(value.type):
            value.ClearField("type")
    return bare, types


def remember(model: ir.Model, types: dict[str, onnx.TypeProto]) -> None:
    """Keeps the types with the values that they are of."""
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.name in types:
            value.meta[_META_KEY] = types[value.name]


def is_map(value: ir.Value) -> bool:
    """Whether the value is a map, as the file declares it."""
    return _META_KEY in value.meta and value.meta[_META_KEY].HasField("map_type")


def put_back(proto: onnx.ModelProto, model: ir.Model) -> onnx.ModelProto:
    """Writes the types into the protobuf of `model`."""
    types = {
        value.name: value.meta[_META_KEY]
        for value in (*model.graph.inputs, *model.graph.outputs)
        if _META_KEY in value.meta
    }
    for value in (*proto.graph.input, *proto.graph.output):
        if value.name in types:
            value.type.CopyFrom(types[value.name])
    return proto


def _holds_map(type_: onnx.TypeProto) -> bool:
    match type_.WhichOneof("value"):
        case "map_type":
            return True
        case "sequence_type":
            return _holds_map(type_.sequence_type.elem_type)
        case "optional_type":
            return _holds_map(type_.optional_type.elem_type)
    return False
