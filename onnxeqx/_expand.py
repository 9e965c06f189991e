"""Expanding: a node whose operator no plugin provides becomes the nodes of the function body that ONNX gives for it.

https://onnx.ai/onnx/intro/concepts.html#functions
"""

import itertools
from typing import Any

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from ._lower import opset_of
from ._read import Inferred, infer_types
from ._registry import Registry, canonical_domain

# The domain of expanded bodies, between their making and their inlining.
_DOMAIN = "onnxeqx.expanded"


def expand(model: ir.Model, registry: Registry) -> None:
    """Inlines function bodies until every node that has one is provided by a plugin. Changes `model`."""
    numbers = itertools.count()
    while nodes := [
        node for node in ir.traversal.RecursiveGraphIterator(model.graph) if _is_missing(node, model, registry)
    ]:
        inferred = infer_types(model)
        expanded = False
        for node in nodes:
            body = _body(node, opset_of(node, model), inferred)
            if body is not None:
                _call_body(node, body, model, next(numbers))
                expanded = True
        if not expanded:
            return
        model.opset_imports[_DOMAIN] = 1
        InlinePass()(model)
        model.opset_imports.pop(_DOMAIN, None)


def _is_missing(node: ir.Node, model: ir.Model, registry: Registry) -> bool:
    return registry.lookup(node.domain, node.op_type, opset_of(node, model)) is None


def _body(node: ir.Node, opset: int, inferred: dict[str, Inferred]) -> onnx.FunctionProto | None:
    """The function body for this opset: the same for every node, or made for its types and attributes."""
    schema: Any  # onnx's type stub leaves out the methods about function bodies
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, canonical_domain(node.domain))
    except onnx.defs.SchemaError:
        return None
    _fill_defaults(node, schema)
    proto = onnx.FunctionProto()
    if schema.has_function:
        version = max((v for v in schema.function_opset_versions if v <= opset), default=None)
        if version is None:
            return None
        proto.ParseFromString(schema.get_function_with_opset_version(version))
        return proto
    if schema.has_context_dependent_function:
        version = max((v for v in schema.context_dependent_function_opset_versions if v <= opset), default=None)
        if version is None:
            return None
        found = [inferred.get(value.name or "") for value in node.inputs if value is not None]
        if any(value is None or value.type.WhichOneof("value") is None for value in found):
            return None  # onnx would crash on a type that is not there
        types = [_type(inferred, value) for value in node.inputs]
        serialized = ir.to_proto(node).SerializeToString()
        text = schema.get_context_dependent_function_with_opset_version(version, serialized, types)
        if text:
            proto.ParseFromString(text)
            return proto
    return None


def _fill_defaults(node: ir.Node, schema: onnx.defs.OpSchema) -> None:
    """A body refers to attributes of its node; those that the node leaves out have the schema's defaults."""
    for name, attribute in schema.attributes.items():
        if name not in node.attributes and attribute.default_value.type:
            node.attributes[name] = ir.from_proto(attribute.default_value)


def _type(inferred: dict[str, Inferred], value: ir.Value | None) -> bytes:
    return b"" if value is None else inferred[value.name or ""].type.SerializeToString()


def _call_body(node: ir.Node, body: onnx.FunctionProto, model: ir.Model, number: int) -> None:
    body.domain, body.name, body.overload = _DOMAIN, f"{node.op_type}_{number}", ""
    made = {*body.input, *(name for inner in body.node for name in inner.output)}
    del body.output[len(node.outputs) :]
    for name in [name for name in body.output if name not in made]:
        # An optional output that this node does not ask for: nobody reads it, but functions make what they declare.
        body.node.append(onnx.helper.make_node("Constant", [], [name], value_int=0))
    function = ir.from_proto(body)
    # ONNX gives an operator another body wherever an operator inside it changes, so this one holds at the model's opset.
    function.opset_imports.update({domain: model.opset_imports.get(domain, 1) for domain in function.opset_imports})
    model.functions[function.identifier()] = function
    node.domain, node.op_type, node.version = body.domain, body.name, None
    for name in [name for name in node.attributes if name not in function.attributes]:
        del node.attributes[name]
