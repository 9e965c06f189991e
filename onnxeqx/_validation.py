"""Validation: what an ONNX file must not hold is refused before anything is built from it.

The checks take time linear in the size of the file, and need no recursion.
"""

import math
import pathlib
from collections import Counter
from collections.abc import Iterator

import onnx
import onnx_ir as ir

from ._errors import ReadError

_MAX_INLINED_NODES = 1_000_000
_MAX_RANK = 64
_MAX_ELEMENTS = 1 << 48
_ITEM_BITS = {
    int(dtype): round(dtype.itemsize * 8)
    for dtype in ir.DataType
    if dtype not in (ir.DataType.UNDEFINED, ir.DataType.STRING)
}


def validate(
    proto: onnx.ModelProto,
    folder: pathlib.Path | None,
    resolved: pathlib.Path | None,
    name: str,
    *,
    weightless: bool = False,
) -> None:
    """Refuses a malformed or dangerous model.

    **Arguments:**

    - `proto`: the model.
    - `folder`: where it lies; `None` for a model in memory, which then has no external data.
    - `resolved`: the folder that holds the file itself, where `folder` holds a link to it.
    - `name`: what error messages call it.
    - `weightless`: whether tensors may lack their data.

    **Raises:** `ReadError`.
    """
    if not proto.graph.node and not proto.graph.output:
        raise ReadError(f"{name!r} holds no graph: it is no ONNX model, or it is truncated; fetch or export it again.")
    _check_names(proto, name)
    for tensor in _tensors(proto):
        problem = _tensor_problem(tensor, weightless)
        if problem:
            raise ReadError(
                f"Tensor {tensor.name[:100]!r} of {name!r} {problem}; the file is malformed, export the model again."
            )
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            _check_external(tensor, folder, resolved, name)
    _check_functions(proto, name)


def _check_names(proto: onnx.ModelProto, name: str) -> None:
    """Each value has one source, as the specification's static single assignment demands.

    https://onnx.ai/onnx/repo-docs/IR.html#names-within-a-graph
    """
    graph = proto.graph
    for node in (*graph.node, *(node for function in proto.functions for node in function.node)):
        # protobuf hands out text that is not UTF-8 as bytes.
        if not all(isinstance(text, str) for text in (node.op_type, node.domain, node.name, *node.input, *node.output)):
            raise ReadError(
                f"A node of {name!r} has a name that is not UTF-8 text; the file is malformed, export it again."
            )
    produced = [output for node in graph.node for output in node.output if output]
    for kind, names in (
        ("input", [value.name for value in graph.input]),
        ("initializer", [tensor.name for tensor in graph.initializer]),
        ("node output or input", [*produced, *{value.name for value in graph.input}]),
    ):
        twice = [found for found, count in Counter(names).items() if count > 1]
        if twice:
            raise ReadError(
                f"{name!r} has more than one {kind} of the name {twice[0][:100]!r}; names are given once, export the model again."
            )


def _tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of the file: of the graph, its subgraphs and attributes, and of the function bodies."""
    bodies: list[onnx.GraphProto | onnx.FunctionProto] = [proto.graph, *proto.functions]
    while bodies:
        body = bodies.pop()
        if isinstance(body, onnx.GraphProto):
            yield from body.initializer
            for sparse in body.sparse_initializer:
                yield from (sparse.values, sparse.indices)
        else:
            yield from (attribute.t for attribute in body.attribute_proto if attribute.HasField("t"))
        for node in body.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors
                for sparse in (
                    *[attribute.sparse_tensor] * attribute.HasField("sparse_tensor"),
                    *attribute.sparse_tensors,
                ):
                    yield from (sparse.values, sparse.indices)
                bodies.extend([attribute.g] if attribute.HasField("g") else attribute.graphs)


def _tensor_problem(tensor: onnx.TensorProto, weightless: bool) -> str | None:
    """What is wrong with a tensor's data, given its shape and dtype."""
    strings = tensor.data_type == onnx.TensorProto.STRING
    if not strings and tensor.data_type not in _ITEM_BITS:
        return f"has the unknown dtype {tensor.data_type}"
    if len(tensor.dims) > _MAX_RANK:
        return f"has {len(tensor.dims)} dimensions, more than the {_MAX_RANK} that NumPy takes"
    elements = math.prod(tensor.dims)
    if any(dim < 0 for dim in tensor.dims) or elements > _MAX_ELEMENTS:
        return f"has the impossible shape {tuple(tensor.dims)}"
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        return "holds strings in an external file" if strings else None
    if tensor.HasField("raw_data"):
        if strings:
            return "holds strings as raw bytes"
        expected = _nbytes(tensor)
        if len(tensor.raw_data) != expected:
            return f"has {len(tensor.raw_data)} bytes, but its shape and dtype need {expected}"
        return None
    field = onnx.helper.tensor_dtype_to_field(tensor.data_type)
    found, expected = len(getattr(tensor, field)), _field_items(tensor)
    if found != expected and not (weightless and found == 0):
        return f"has {found} items of {field}, but its shape and dtype need {expected}"
    return None


def _nbytes(tensor: onnx.TensorProto) -> int:
    return (math.prod(tensor.dims) * _ITEM_BITS[tensor.data_type] + 7) // 8


def _field_items(tensor: onnx.TensorProto) -> int:
    """How many items a typed data field has: complex numbers take two, types below 8 bits share one."""
    if tensor.data_type in (onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128):
        return 2 * math.prod(tensor.dims)
    if _ITEM_BITS.get(tensor.data_type, 8) < 8:
        return _nbytes(tensor)
    return math.prod(tensor.dims)


def _check_external(
    tensor: onnx.TensorProto, folder: pathlib.Path | None, resolved: pathlib.Path | None, name: str
) -> None:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    if folder is None:
        raise ReadError(
            f"Tensor {tensor.name!r} of {name!r} is stored in the external file {location!r}, which a model in memory "
            "does not bring along; load it by path."
        )
    relative = pathlib.PurePosixPath(location.replace("\\", "/"))
    target = folder / relative
    if not location or relative.is_absolute() or ".." in relative.parts or not _inside(target, folder, resolved):
        raise ReadError(
            f"Tensor {tensor.name!r} of {name!r} points to {location!r}, outside the model's folder; "
            "external data must lie beside the model."
        )
    if not target.is_file():
        raise ReadError(
            f"External data {location!r} of {name!r} is missing; put it beside the model, in {str(folder)!r}."
        )
    size, needed = target.stat().st_size, _nbytes(tensor)
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", needed))
    except ValueError:
        offset, length = -1, -1
    if offset < 0 or length != needed:
        raise ReadError(
            f"Tensor {tensor.name!r} of {name!r} states offset {entries.get('offset', 0)} and length "
            f"{entries.get('length', needed)} in {location!r}, but its shape and dtype need {needed} bytes."
        )
    if offset + length > size:
        raise ReadError(
            f"External data {location!r} of {name!r} has {size} bytes, but tensor {tensor.name!r} needs bytes "
            f"{offset} to {offset + length}; the file is truncated, fetch it again."
        )


def _inside(target: pathlib.Path, folder: pathlib.Path, resolved: pathlib.Path | None) -> bool:
    # The Hugging Face cache keeps model.onnx and model.onnx_data as links into one folder of blobs.
    real = target.resolve()
    return real.is_relative_to(folder.resolve()) or (resolved is not None and real.parent == resolved)


def _check_functions(proto: onnx.ModelProto, name: str) -> None:
    """Refuses functions that call themselves, and doubling ones that would inline into billions of nodes."""
    functions = {(function.domain, function.name): function for function in proto.functions}
    sizes: dict[tuple[str, str], int] = {}
    pending: set[tuple[str, str]] = set()
    for root in functions:
        stack = [(root, False)]
        while stack:
            current, done = stack.pop()
            calls = [
                (node.domain, node.op_type)
                for node in functions[current].node
                if (node.domain, node.op_type) in functions
            ]
            if done:
                pending.discard(current)
                sizes[current] = len(functions[current].node) + sum(sizes[call] for call in calls)
                if sizes[current] > _MAX_INLINED_NODES:
                    raise ReadError(
                        f"Function {current[1]!r} of {name!r} expands to over {_MAX_INLINED_NODES:,} nodes; the file is refused."
                    )
            elif current not in sizes and current not in pending:
                pending.add(current)
                stack.append((current, True))
                cycle = next((call for call in calls if call in pending), None)
                if cycle is not None:
                    raise ReadError(
                        f"Function {cycle[1]!r} of {name!r} calls itself, which ONNX forbids; export the model again."
                    )
                stack.extend((call, False) for call in calls if call not in sizes)
