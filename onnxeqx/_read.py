"""Reading: from an ONNX file to a checked `onnx_ir.Model` with local functions inlined and shapes inferred."""

import dataclasses
import functools
import math
import os
import pathlib
from collections.abc import Collection, Iterator, Mapping, Sequence

import google.protobuf.message
import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from . import _map_types
from ._errors import ConversionError, ReadError
from ._registry import canonical_domain
from ._sparse import with_dense_initializers
from ._validation import validate

InputShapes = Mapping[str, Sequence[int | str | None]]

_LARGE_TENSOR_BYTES = 1 << 10


def read(
    path: str | os.PathLike[str], input_shapes: InputShapes | None = None, *, weightless: bool = False
) -> ir.Model:
    """Reads an ONNX file. External data stays on disk, memory-mapped, until a weight is bound.

    **Arguments:**

    - `path`: the `.onnx` file. Its external data lies in the same folder, or, for a symbolic link as in the Hugging Face
      cache, where the file itself really lies.
    - `input_shapes`: shapes that replace the declared ones, by input name: an integer fixes a dimension, a string or
      `None` frees it.
    - `weightless`: whether initializers may lack their data, as in the `graph.onnx` of a converted folder.

    **Raises:** `ReadError` if the file is missing, truncated, no ONNX model, of an unknown opset, or malformed.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise ReadError(f"There is no file {str(path)!r}; give the path of an .onnx file or of a converted folder.")
    if path.stat().st_size == 0:
        raise ReadError(f"{str(path)!r} is empty (0 bytes); fetch or export the model again.")
    try:
        proto = onnx.load(path, load_external_data=False)
    except google.protobuf.message.DecodeError:
        raise ReadError(
            f"{str(path)!r} is truncated or is no ONNX file: its protobuf does not parse; fetch or export it again."
        ) from None
    return read_proto(
        proto,
        folder=path.parent,
        resolved=path.resolve().parent,
        name=path.name,
        input_shapes=input_shapes,
        weightless=weightless,
    )


def read_proto(
    proto: onnx.ModelProto,
    *,
    folder: pathlib.Path | None = None,
    resolved: pathlib.Path | None = None,
    name: str = "model",
    input_shapes: InputShapes | None = None,
    weightless: bool = False,
) -> ir.Model:
    """As [`onnxeqx._read.read`][], from a model in memory; the model is not changed."""
    validate(proto, folder, resolved, name, weightless=weightless)
    opsets = _opsets(proto, name)
    proto, map_types = _map_types.set_aside(with_dense_initializers(proto))
    try:
        model = ir.from_proto(proto)
    except Exception as error:  # onnx-ir raises many types on malformed protobufs
        raise ReadError(
            f"{name!r} is malformed: {error}".splitlines()[0] + "; check it with onnx.checker.check_model."
        ) from error
    model.opset_imports.update(opsets)
    _map_types.remember(model, map_types)
    if folder is not None:
        _map_external_data(model, folder)
    if proto.functions:
        _align_functions(model, name)
        InlinePass()(model)
    _name_values_once(model)
    _override_shapes(model, input_shapes or {}, name)
    return model


def _align_functions(model: ir.Model, name: str) -> None:
    """Lets functions import the model's opsets, where that changes none of their operators.

    ONNX allows no other difference: https://onnx.ai/onnx/repo-docs/IR.html#functions

    **Raises:** `ReadError` if it would change one.
    """
    for function in model.functions.values():
        for node in ir.traversal.RecursiveGraphIterator(function.graph):
            domain = canonical_domain(node.domain)
            own, shared = function.opset_imports.get(domain, 1), model.opset_imports.get(domain, 1)
            if own != shared and _version(node, domain, own) != _version(node, domain, shared):
                raise ReadError(
                    f"Function {function.name!r} of {name!r} is written for opset {own}, where {node.op_type} is not what it is "
                    f"in opset {shared} of the model, which ONNX does not allow; export the model with one opset."
                )
        function.opset_imports.update(
            {domain: model.opset_imports.get(domain, version) for domain, version in function.opset_imports.items()}
        )


def _version(node: ir.Node, domain: str, opset: int) -> int | None:
    """Since when the operator is what it is in this opset; `None` if ONNX does not know it."""
    try:
        return onnx.defs.get_schema(node.op_type, opset, domain).since_version
    except onnx.defs.SchemaError:
        return None


def _name_values_once(model: ir.Model) -> None:
    """Renames values of subgraphs whose name another value has: branches of an `If` may use the same names."""
    taken: set[str] = set()
    for graph in _graphs(model.graph):
        made = [*graph.inputs, *graph.initializers.values(), *(value for node in graph for value in node.outputs)]
        for value in dict.fromkeys(value for value in made if value.name):
            name, number = value_name(value), 1
            while name in taken:
                number += 1
                name = f"{value.name}_{number}"
            if name != value.name:
                value.name = name
            taken.add(name)


def _graphs(graph: ir.Graph) -> Iterator[ir.Graph]:
    """A graph and the subgraphs of its nodes, at any depth, the outer ones first."""
    yield graph
    for node in graph:
        for attribute in node.attributes.values():
            if attribute.type is ir.AttributeType.GRAPH:
                yield from _graphs(attribute.as_graph())


def _map_external_data(model: ir.Model, folder: pathlib.Path) -> None:
    """Maps external tensors into memory when they are asked for.

    Their places were checked. onnx-ir's own tensors refuse hard links and the links of the Hugging Face cache as well.
    """
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = _lazy(value.const_value, folder)
    for node in _nodes(model):
        for attribute in list(node.attributes.values()):
            if isinstance(attribute.value, ir.ExternalTensor):
                node.attributes[attribute.name] = ir.AttrTensor(attribute.name, _lazy(attribute.value, folder))


def _nodes(model: ir.Model) -> Iterator[ir.Node]:
    for body in (model.graph, *model.functions.values()):
        yield from ir.traversal.RecursiveGraphIterator(body)


def _lazy(tensor: ir.ExternalTensor, folder: pathlib.Path) -> ir.LazyTensor:
    shape = tuple(tensor.shape.numpy())
    array = functools.partial(_mapped, folder / str(tensor.location), tensor.offset or 0, tensor.dtype, shape)
    return ir.LazyTensor(array, dtype=tensor.dtype, shape=tensor.shape, name=tensor.name)


def _mapped(path: pathlib.Path, offset: int, dtype: ir.DataType, shape: tuple[int, ...]) -> ir.Tensor:
    elements = math.prod(shape)
    if dtype.bitwidth < 8:
        packed = np.fromfile(path, np.uint8, (elements * dtype.bitwidth + 7) // 8, offset=offset)
        proto = onnx.TensorProto(data_type=int(dtype), dims=shape, raw_data=packed.tobytes())
        return ir.Tensor(onnx.numpy_helper.to_array(proto), dtype=dtype)
    if not elements:
        return ir.Tensor(np.zeros(shape, dtype.numpy()), dtype=dtype)
    return ir.Tensor(np.memmap(path, dtype.numpy(), "r", offset, shape), dtype=dtype)


def _opsets(proto: onnx.ModelProto, name: str) -> dict[str, int]:
    """The opset of each domain. A domain imported twice counts with its highest version, a missing one by the IR version."""
    found: dict[str, int] = {}
    for entry in proto.opset_import:
        domain = "" if entry.domain == "ai.onnx" else entry.domain
        found[domain] = max(found.get(domain, 0), entry.version)
    newest = onnx.defs.onnx_opset_version()
    if found.get("", 1) > newest:
        raise ReadError(
            f"{name!r} needs opset {found['']}, but the installed onnx {onnx.__version__} knows opsets up to {newest}; "
            "upgrade onnx or export the model for an older opset."
        )
    if found.get("", 1) < 1:
        raise ReadError(f"{name!r} imports opset {found['']}; opsets are numbered from 1, export the model again.")
    for domain in {node.domain for node in proto.graph.node} | {""}:
        domain = "" if domain == "ai.onnx" else domain
        found.setdefault(domain, _opset_of_ir_version(proto.ir_version) if not domain else 1)
    return found


@functools.cache
def _opset_of_ir_version(ir_version: int) -> int:
    known = [row[2] for row in onnx.helper.VERSION_TABLE if row[1] <= ir_version]
    return max(known, default=1)


def _override_shapes(model: ir.Model, input_shapes: InputShapes, name: str) -> None:
    inputs = {value.name: value for value in model.graph.inputs}
    for key, dims in input_shapes.items():
        if key not in inputs:
            raise ReadError(f"{name!r} has no input {key!r}; its inputs are {', '.join(map(repr, inputs))}.")
        declared = inputs[key].shape
        if declared is not None and len(declared) != len(dims):
            raise ReadError(f"Input {key!r} of {name!r} has {len(declared)} dimensions, not {len(dims)}: {declared}.")
        # Shapes that the file states for other values were computed from the declared ones.
        for node in model.graph:
            for output in node.outputs:
                output.shape = None
        inputs[key].shape = ir.Shape([dim if isinstance(dim, int) else ir.SymbolicDim(dim) for dim in dims])

    if input_shapes:
        inferred = infer_types(model)
        for output in model.graph.outputs:
            found = inferred.get(value_name(output))
            output.shape = ir.Shape(found.shape) if found is not None and found.shape is not None else None


def value_name(value: ir.Value) -> str:
    """The value's name; empty, as in ONNX, if it has none."""
    return value.name or ""


def tensor_of(initializer: ir.Value) -> ir.TensorProtocol:
    """The data of an initializer.

    **Raises:** `ConversionError` if it has none.
    """
    if initializer.const_value is None:
        raise ConversionError(f"Initializer {initializer.name!r} has no data; export the model again.")
    return initializer.const_value


@dataclasses.dataclass(frozen=True)
class Inferred:
    """Shape (`None` if the rank is unknown) and element type (an ONNX integer) of a value, and its whole type."""

    shape: tuple[int | str | None, ...] | None
    elem_type: int
    type: onnx.TypeProto


def infer_types(model: ir.Model) -> dict[str, Inferred]:
    """Shapes and dtypes of all values by ONNX's own inference, from the graph inputs alone.

    Shapes that the file states for inner values are left out: exporters invent them or record a sample's. Dimensions of
    an input that are 0, negative or `?` are unknown.

    https://onnx.ai/onnx/repo-docs/ShapeInference.html
    """
    initializers = model.graph.initializers.items()
    large = [
        name
        for name, value in initializers
        if value.const_value is not None and value.const_value.nbytes > _LARGE_TENSOR_BYTES
    ]
    try:
        proto = proto_without(model, large)
    except ir.serde.SerdeError as error:
        cause = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise ReadError(f"The model is malformed: {cause}".splitlines()[0] + "; export it again.") from error
    for body in graph_protos(proto.graph):
        del body.value_info[:]
        inner = () if body is proto.graph else body.input
        for value in (*body.output, *inner):
            value.type.tensor_type.ClearField("shape")
    for value in proto.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if (dim.HasField("dim_value") and dim.dim_value <= 0) or dim.dim_param == "?":
                dim.Clear()
    try:
        proto = onnx.shape_inference.infer_shapes(proto)
    except Exception:  # noqa: BLE001  inference is a help; without it ranks come from the operators themselves
        return {}
    found = {}
    bodies = graph_protos(proto.graph)
    for value in [value for body in bodies for value in (*body.input, *body.value_info, *body.output)]:
        tensor_type = value.type.tensor_type
        shape = None
        if tensor_type.HasField("shape"):
            shape = tuple(
                dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in tensor_type.shape.dim
            )
        found[value.name] = Inferred(shape, tensor_type.elem_type, value.type)
    return found


def graph_protos(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and the subgraphs of its nodes, at any depth."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from graph_protos(attribute.g)


def proto_without(model: ir.Model, names: Collection[str]) -> onnx.ModelProto:
    """The model as protobuf, without the data of these initializers: each becomes a typed input of the graph."""
    graph = model.graph
    given = {value.name for value in graph.inputs}
    taken = {name: graph.initializers[name] for name in names}
    for name, value in taken.items():
        del graph.initializers[name]
        tensor = tensor_of(value)
        value.shape = ir.Shape(tensor.shape.numpy())
        value.dtype = tensor.dtype
        if name not in given:
            graph.inputs.append(value)
    try:
        return _map_types.put_back(ir.to_proto(model), model)
    finally:
        for name, value in taken.items():
            if name not in given:
                graph.inputs.remove(value)
            graph.initializers[name] = value
