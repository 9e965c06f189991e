"""Lowering: from ONNX nodes to calls of operator functions, versions resolved, nothing evaluated yet."""

import collections
import dataclasses
import heapq
from typing import Any, TypeGuard

import numpy as np
import onnx_ir as ir

from . import _errors, _map_types
from ._graph import Call, Graph, Kind, Leaf, Value
from ._names import scope_of
from ._read import Inferred, infer_types, tensor_of, value_name
from ._registry import Op, Registry
from ._symbolic import Dim


def lower(model: ir.Model, registry: Registry) -> Graph:
    """Turns every node into a `Call`, in topological order.

    **Raises:** `UnsupportedOpsError` listing every operator that no plugin provides; `ConversionError` where the graph
    is not a directed acyclic graph of known values, or a node does not fit its operator's schema.
    """
    lowering = _Lowering(model, _resolve(model, registry))
    graph = lowering.graph(model.graph)
    _set_types(lowering.values, [value.name for value in graph.inputs], infer_types(model))
    for twin, value in lowering.twins:
        twin.dtype, twin.shape = value.dtype, value.shape
    return graph


class _Lowering:
    """Lowers the main graph and the bodies of its nodes, whose values all have names of their own.

    `values` are the values so far, by name, and `calls` the calls; `twins` are copies of values, with the originals.
    """

    def __init__(self, model: ir.Model, ops: dict[ir.Node, Op]) -> None:
        self.model, self.ops = model, ops
        self.values: dict[str, Value] = {}
        self.calls: list[Call] = []
        self.twins: list[tuple[Value, Value]] = []

    def graph(self, graph: ir.Graph) -> Graph:
        inputs = {value_name(value): value for value in graph.inputs if value.name not in graph.initializers}
        output_names = tuple(value_name(value) for value in graph.outputs)
        self.values |= {name: Value(name, _numpy_dtype(value.dtype)) for name, value in inputs.items()}
        self.values |= {name: _stored(name, initializer) for name, initializer in graph.initializers.items()}
        calls = [self.call(node) for node in _sorted(list(graph), set(self.values))]
        missing = next((name for name in output_names if name not in self.values), None)
        if missing is not None:
            raise _errors.ConversionError(f"Graph output {missing!r} is computed by no node; export the model again.")
        declared = {name: declared_type(value) for name, value in inputs.items()}
        outputs = [self.values[name] for name in output_names]
        return Graph(graph.name or "", [self.values[name] for name in inputs], outputs, calls, output_names, declared)

    def call(self, node: ir.Node) -> Call:
        scope, class_names = scope_of(node)
        inputs = [self.values[value.name] if value is not None and value.name else None for value in node.inputs]
        while inputs and inputs[-1] is None:
            inputs.pop()
        op = self.ops[node]
        name = node.name or (value_name(node.outputs[0]) if node.outputs else "")
        call = Call(name, op.full_name, opset_of(node, self.model), op, inputs, [], {}, scope, class_names)
        call.attributes = _attributes(node, op, call)
        call.bodies = {key: self.graph(body) for key, body in _bodies(node).items()}
        if op.cuts_out is not None:
            call.bodies["body"] = self._cut_out(*op.cuts_out(call.attributes), call)
        _check_arity(call)
        for output in node.outputs:
            value = Value(value_name(output), _numpy_dtype(output.dtype), producer=call)
            call.outputs.append(value)
            if output.name:
                if output.name in self.values:
                    raise _errors.ConversionError(
                        f"Value {output.name!r} is given twice, the second time by {call.describe()}; export the model again."
                    )
                self.values[output.name] = value
        self.calls.append(call)
        return call

    def _cut_out(self, begin: tuple[str, ...], end: tuple[str, ...], asking: Call) -> Graph:
        """A copy of the calls that lead from some values to others."""
        unknown = [name for name in (*begin, *end) if name not in self.values]
        if unknown:
            raise _errors.ConversionError(
                f"The {asking.describe()} names {unknown[0]!r}, which no earlier node gives; export the model again."
            )
        copies = {self.values[name]: self._twin(self.values[name]) for name in begin}
        needed, kept = {self.values[name] for name in end} - set(copies), []
        for call in reversed(self.calls):
            if any(output in needed for output in call.outputs):
                kept.append(call)
                needed |= set(call.reads) - set(copies)
        inputs = list(copies.values())
        calls = []
        for call in reversed(kept):
            copies |= {output: self._twin(output) for output in call.outputs}
            twin = dataclasses.replace(
                call, inputs=[None if value is None else copies.get(value, value) for value in call.inputs]
            )
            twin.outputs = [copies[output] for output in call.outputs]
            for output in twin.outputs:
                output.producer = twin
            calls.append(twin)
        return Graph("body", inputs, [copies[self.values[name]] for name in end], calls, end, {})

    def _twin(self, value: Value) -> Value:
        name, number = f"{value.name}_inside", 1
        while name in self.values:
            number += 1
            name = f"{value.name}_inside_{number}"
        self.values[name] = Value(name)
        self.twins.append((self.values[name], value))
        return self.values[name]


def _bodies(node: ir.Node) -> dict[str, ir.Graph]:
    return {name: attribute.as_graph() for name, attribute in node.attributes.items() if _is_body(attribute)}


def _is_body(attribute: ir.Attr) -> bool:
    return attribute.type is ir.AttributeType.GRAPH


def _resolve(model: ir.Model, registry: Registry) -> dict[ir.Node, Op]:
    found: dict[ir.Node, Op] = {}
    missing: dict[tuple[str, str, int], list[str]] = {}
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        opset = opset_of(node, model)
        op = registry.lookup(node.domain, node.op_type, opset)
        if op is None:
            missing.setdefault((node.domain, node.op_type, opset), []).append(node.name or "(unnamed)")
        else:
            found[node] = op
    if missing:
        raise _errors.UnsupportedOpsError(_missing_text(missing))
    return found


def opset_of(node: ir.Node, model: ir.Model) -> int:
    """The opset that a node is written for: that of its own function, or of the model."""
    return node.version if node.version is not None else model.opset_imports.get(node.domain, 1)


def _missing_text(missing: dict[tuple[str, str, int], list[str]]) -> str:
    lines = [f"No loaded plugin provides {len(missing)} operator{'s' if len(missing) > 1 else ''} of this model:"]
    for (domain, op_type, opset), nodes in sorted(missing.items()):
        shown = ", ".join(map(repr, nodes[:3])) + (f" and {len(nodes) - 3} more" if len(nodes) > 3 else "")
        lines.append(
            f"  {domain + '::' if domain else ''}{op_type} at opset {opset}, node{'s' if len(nodes) > 1 else ''} {shown}"
        )
    domain, op_type, opset = min(missing)
    domain_text = f", domain={domain!r}" if domain else ""
    lines += [
        "Install a plugin that has them (`onnxeqx plugins` lists the loaded ones), or write one:",
        f"  @onnxeqx.op({op_type!r}{domain_text}, since={opset})",
        f"  def {snake_case(op_type)}(x, *, attribute=default): ...",
        "  @onnxeqx.hookimpl",
        "  def onnxeqx_register_ops(registry): registry.add_module(__name__)",
    ]
    return "\n".join(lines)


def snake_case(op_type: str) -> str:
    """The operator's name in snake case, as functions are named."""
    return "".join(
        "_" + c.lower() if c.isupper() and i and not op_type[i - 1].isupper() else c.lower()
        for i, c in enumerate(op_type)
    )


def declared_type(value: ir.Value) -> str:
    """The declared type: `float32[batch, 3, 224, 224]`, `string[2]`, `map`, `sequence`, `optional`, or `any`."""
    if _map_types.is_map(value):
        return "map"
    if isinstance(value.type, ir.SequenceType | ir.OptionalType):
        return "sequence" if isinstance(value.type, ir.SequenceType) else "optional"
    dtype = _numpy_dtype(value.dtype)
    name = "string" if value.dtype is ir.DataType.STRING else "any" if dtype is None else dtype.name
    if value.shape is None:
        return name
    dims = [dim if isinstance(dim, int) else dim.value for dim in value.shape.dims]
    texts = ["?" if dim in (None, "") or (isinstance(dim, int) and dim <= 0) else str(dim) for dim in dims]
    return f"{name}[{', '.join(texts)}]"


def _numpy_dtype(dtype: ir.DataType | None) -> np.dtype | None:
    return None if dtype in (None, ir.DataType.UNDEFINED, ir.DataType.STRING) else np.dtype(dtype.numpy())


def _stored(name: str, initializer: ir.Value) -> Value:
    tensor = tensor_of(initializer)
    return stored_value(name, tensor.numpy, tuple(tensor.shape.numpy()), np.dtype(tensor.dtype.numpy()))


def stored_value(name: str, load: Any, shape: tuple[int, ...], dtype: np.dtype) -> Value:
    """An initializer as a value: floating-point tensors are parameters, everything else is a constant."""
    if is_weight(shape, dtype):
        return Value(name, dtype, shape, leaf=Leaf(name, load, shape, dtype))
    return Value(name, dtype, shape, Kind.CONST, np.asarray(load()), stored=True)


def is_weight(shape: tuple[int, ...], dtype: np.dtype) -> bool:
    """Whether a stored tensor is a weight: floating point, and more than a scalar."""
    return is_floating(dtype) and len(shape) > 0


def is_floating(dtype: np.dtype | None) -> TypeGuard[np.dtype]:
    # ml_dtypes (bfloat16, float8) are of NumPy kind "V".
    return dtype is not None and (dtype.kind == "f" or (dtype.kind == "V" and "float" in dtype.name))


def _reads(node: ir.Node) -> list[ir.Value]:
    """The values that a node reads, those that only its bodies read included."""
    read = [value for value in node.inputs if value is not None]
    made: set[ir.Value] = set()
    for body in _bodies(node).values():
        made |= {*body.inputs, *body.initializers.values()}
        for inner in body:
            read += _reads(inner)
            made |= set(inner.outputs)
        read += list(body.outputs)
    return [value for value in dict.fromkeys(read) if value not in made]


def _sorted(nodes: list[ir.Node], known: set[str]) -> list[ir.Node]:
    """Topological order (Kahn): the file's own order, where that is one."""
    produced = {value.name: node for node in nodes for value in node.outputs if value.name}
    waiting: dict[ir.Node, int] = {}
    readers: dict[ir.Node, list[ir.Node]] = collections.defaultdict(list)
    for node in nodes:
        sources = [value for value in _reads(node) if value.name and value.name not in known]
        for value in sources:
            if value.name not in produced:
                raise _errors.ConversionError(
                    f"Node {node.name!r} ({node.op_type}) reads {value.name!r}, which no node, input or initializer gives; "
                    "export the model again."
                )
            readers[produced[value.name]].append(node)
        waiting[node] = len(sources)
    position = {node: index for index, node in enumerate(nodes)}
    ready = [position[node] for node in nodes if not waiting[node]]
    heapq.heapify(ready)
    order = []
    while ready:
        node = nodes[heapq.heappop(ready)]
        order.append(node)
        for reader in readers[node]:
            waiting[reader] -= 1
            if not waiting[reader]:
                heapq.heappush(ready, position[reader])
    if len(order) < len(nodes):
        stuck = next(node for node in nodes if waiting[node])
        raise _errors.ConversionError(
            f"Node {stuck.name!r} ({stuck.op_type}) depends on its own output; the graph must have no cycles."
        )
    return order


def _attributes(node: ir.Node, op: Op, call: Call) -> dict[str, Any]:
    known = op.attributes
    attributes = {
        name: _python(attribute, call) for name, attribute in node.attributes.items() if not _is_body(attribute)
    }
    unknown = sorted(set(node.attributes) - set(known))
    if unknown:
        raise _errors.ConversionError(
            f"Attribute {unknown[0]!r} of {call.describe()} is not one of {', '.join(known) or 'none'}; the file does not "
            "follow the operator's schema."
        )
    given = {*node.attributes, *(["body"] if op.cuts_out else [])}
    missing = sorted(name for name, default in known.items() if default is op.REQUIRED and name not in given)
    if missing:
        raise _errors.ConversionError(
            f"Attribute {missing[0]!r} of {call.describe()} is required but absent; export the model again."
        )
    if "n_outputs" in known and len(node.outputs) != 1:
        attributes["n_outputs"] = len(node.outputs)
    return attributes


def _python(attribute: ir.Attr, call: Call) -> Any:
    kind = ir.AttributeType
    match attribute.type:
        case kind.TENSOR:
            return attribute.value.numpy()
        case kind.SPARSE_TENSOR:
            return attribute.value
        case kind.INT | kind.FLOAT | kind.STRING:
            return attribute.value
        case kind.INTS | kind.FLOATS | kind.STRINGS:
            return tuple(attribute.value)
        case kind.TYPE_PROTO | kind.TYPE_PROTOS:
            return None  # says what an empty optional would hold
        case kind.TENSORS:
            return tuple(tensor.numpy() for tensor in attribute.value)
    raise _errors.ConversionError(
        f"Attribute {attribute.name!r} of {call.describe()} is of type {attribute.type.name}, which operators cannot take yet."
    )


def _check_arity(call: Call) -> None:
    parameters = call.op.inputs
    if len(call.inputs) > len(parameters) and not call.op.variadic:
        raise _errors.ConversionError(
            f"The {call.describe()} has {len(call.inputs)} inputs, but the operator takes at most {len(parameters)}: "
            f"{', '.join(parameters)}."
        )
    for position, name in enumerate(call.op.required_inputs):
        if position >= len(call.inputs) or call.inputs[position] is None:
            raise _errors.ConversionError(
                f"Input {name!r} of {call.describe()} is required but absent; export the model again."
            )


def _set_types(values: dict[str, Value], inputs: list[str], inferred: dict[str, Inferred]) -> None:
    """Puts inferred types on values. A symbolic dimension stands for the size of the first value that has it."""
    roots: dict[str, Dim] = {}
    for name in dict.fromkeys((*inputs, *values)):
        value, found = values[name], inferred.get(name)
        if found is None:
            continue
        if value.dtype is None and found.elem_type:
            value.dtype = _numpy_dtype(ir.DataType(found.elem_type))
        if found.shape is not None and value.shape is None:
            own = [Dim(value, axis) for axis in range(len(found.shape))]
            value.shape = tuple(
                dim if isinstance(dim, int) else own[axis] if dim is None else roots.setdefault(dim, own[axis])
                for axis, dim in enumerate(found.shape)
            )
