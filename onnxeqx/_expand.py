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
        types = [_type(inferred.get(value.name or "") if value is not None else None) for value in node.inputs]
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


def _type(inferred: Inferred | None) -> bytes:
    proto = onnx.TypeProto()
    if inferred is not None and inferred.elem_type:
        shape = None if inferred.shape is None else list(inferred.shape)
        proto = onnx.helper.make_tensor_type_proto(inferred.elem_type, shape)
    return proto.SerializeToString()


def _call_body(node: ir.Node, body: onnx.FunctionProto, model: ir.Model, number: int) -> None:
    body.domain, body.name, body.overload = _DOMAIN, f"{node.op_type}_{number}", ""
    function = ir.from_proto(body)
    # ONNX gives an operator another body wherever an operator inside it changes, so this one holds at the model's opset.
    function.opset_imports.update({domain: model.opset_imports.get(domain, 1) for domain in function.opset_imports})
    model.functions[function.identifier()] = function
    node.domain, node.op_type, node.version = body.domain, body.name, None
    for name in [name for name in node.attributes if name not in function.attributes]:
        del node.attributes[name]
