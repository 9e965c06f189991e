"""Inspecting: everything that is shown of a model, as plain data."""

import dataclasses
import os
import pathlib
from typing import Any

import equinox as eqx
import onnx_ir as ir

from .._convert import convert
from .._graph import Graph, Role
from .._lower import declared_type
from .._module import import_source
from .._read import InputShapes, read, value_name
from ._batch_norm import BatchNorm, batch_norm
from ._diagram import Item, diagrams
from ._parts import Part, parts


@dataclasses.dataclass(frozen=True)
class Tie:
    """A layer or tensor, by key path, that several nodes use."""

    path: str
    nodes: tuple[str, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Inspection:
    """A model as `onnxeqx inspect` shows it.

    **Fields:**

    - `name`: of the file; `exporter`: who wrote it, with the version; `opsets`: by domain, `""` for ONNX's own.
    - `inputs`, `outputs`: the declared types by name, such as `float32[batch, 3, 224, 224]`.
    - `root`: the tree of parts; `diagrams`: the inside of each callable block, by key path.
    - `ties`: what several nodes share; `batch_norm`: where BatchNorm went.
    - `source`: the printed model.
    """

    name: str
    exporter: str
    opsets: dict[str, int]
    inputs: dict[str, str]
    outputs: dict[str, str]
    root: Part
    diagrams: dict[str, tuple[Item, ...]]
    ties: tuple[Tie, ...]
    batch_norm: BatchNorm
    source: str

    @property
    def dtypes(self) -> dict[str, int]:
        """How many tensors of parameters there are of each dtype, the most frequent first."""
        found: dict[str, int] = {}
        for tensor in (tensor for part in self.root.walk() for tensor in part.tensors):
            if tensor.role == Role.PARAMETER.value:
                found[tensor.dtype] = found.get(tensor.dtype, 0) + 1
        return dict(sorted(found.items(), key=lambda entry: -entry[1]))

    def to_json(self) -> dict[str, Any]:
        """The summary and the tree, for `json.dumps`."""
        return {
            "name": self.name,
            "exporter": self.exporter,
            "opsets": self.opsets,
            "inputs": self.inputs,
            "outputs": self.outputs,
            "numbers": self.root.numbers,
            "dtypes": self.dtypes,
            "ties": {tie.path: tie.nodes for tie in self.ties},
            "batch_norm": self.batch_norm.sentences(),
            "model": part_json(self.root),
        }


def part_json(part: Part) -> dict[str, Any]:
    """A part for `json.dumps`; what is empty is left out."""
    entries = {
        "path": part.path,
        "kind": part.kind,
        "class": part.class_name,
        "made_by": part.constructor,
        "outputs": [text for text in part.outputs if text],
        "parameters": part.parameters,
        "tensors": [dataclasses.asdict(tensor) for tensor in part.tensors],
        "children": [part_json(child) for child in part.children],
    }
    return {key: value for key, value in entries.items() if value or key == "path"}


def inspect(path: str | os.PathLike[str], *, input_shapes: InputShapes | None = None) -> Inspection:
    """Converts an ONNX file without loading its weights, and gathers what there is to see.

    **Arguments:**

    - `path`: an `.onnx` file.
    - `input_shapes`: as in [`onnxeqx.load`][].

    **Raises:** `ReadError`, `UnsupportedOpsError`, `ConversionError`.
    """
    path = pathlib.Path(path)
    model = read(path, input_shapes)
    traces = batch_norm(model)
    inputs, outputs = (
        {value_name(value): declared_type(value) for value in values if value.name not in model.graph.initializers}
        for values in (model.graph.inputs, model.graph.outputs)
    )
    printed = convert(model, path.name)
    skeleton = eqx.filter_eval_shape(import_source(printed.source).Model)
    return Inspection(
        path.name,
        _exporter(model),
        dict(model.opset_imports),
        inputs,
        outputs,
        parts(printed, skeleton),
        diagrams(printed.root, printed.lifted),
        _ties(printed.lifted),
        traces,
        printed.source,
    )


def _exporter(model: ir.Model) -> str:
    return " ".join(text for text in (model.producer_name, model.producer_version) if text)


def _ties(graph: Graph) -> tuple[Tie, ...]:
    """Parameters that several calls use: a layer that is called again, or a tensor that another call reads too."""
    readers: dict[int, list[str]] = {}
    paths: dict[int, str] = {}
    for call in graph.all_calls():
        layer = call.lifted
        own = [leaf for leaf, _ in layer.weights.values()] if layer is not None else []
        read = [value.leaf for value in call.inputs if value is not None and value.leaf is not None]
        for leaf in dict.fromkeys([*own, *read]):
            if leaf.role is Role.PARAMETER:
                readers.setdefault(id(leaf), []).append(f"{call.name} ({call.op_type})")
                paths.setdefault(id(leaf), ".".join(layer.path if layer is not None else leaf.path))
    found = {(paths[key], tuple(nodes)) for key, nodes in readers.items() if len(nodes) > 1}
    return tuple(Tie(path, nodes) for path, nodes in sorted(found))
