"""The pipeline: read, expand, lower, fold, lift, nest, emit."""

import dataclasses
import functools
import hashlib
import importlib.metadata
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from ._emit import Header, emit, emit_stacked
from ._errors import ConversionError
from ._expand import expand
from ._fold import fold
from ._graph import Graph, Leaf
from ._insert import Dropout, insert
from ._lift import lift
from ._lower import lower
from ._names import assign_paths
from ._nest import Block, nest
from ._patterns import Patterns
from ._read import graph_protos, proto_without, tensor_of
from ._stacks import Stacks, by_stack
from ._weights import TRANSFORMS
from .plugins.manager import PluginHost, host


@dataclasses.dataclass(frozen=True, eq=False)
class Provenance:
    """Where a leaf comes from, so that trained values go back there.

    **Fields:** `initializer` (its name in the file), `transform` (see `onnxeqx._weights.TRANSFORMS`), `shape` (in the model),
    `role`, `from_node` (it is the output of a node), `folded` (it was computed at load and does not stand in the file),
    `reader` (see [`onnxeqx._graph.Leaf`][]).
    """

    initializer: str
    transform: str
    shape: tuple[int, ...]
    role: str
    from_node: bool
    folded: bool
    reader: tuple[str, int] | None = None

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> "Provenance":
        reader = entry.get("reader")
        return cls(
            **entry | {"shape": tuple(entry["shape"]), "reader": None if reader is None else (reader[0], reader[1])}
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Printed:
    """A converted model.

    **Fields:** `source` (the text of `model.py`), `leaves` (leaf and layout by key path), `graph` (the weightless ONNX model),
    `root` (the tree of blocks), `lifted` (the graph it was printed from), `patterns` and `dropouts` (those
    that it was printed with), `stacks` (which of its blocks are stacked layers), `remat` (whether these are computed again in
    the backward pass).
    """

    source: str
    leaves: dict[str, tuple[Leaf, str]]
    graph: bytes
    root: Block
    lifted: Graph
    patterns: Patterns = True
    dropouts: tuple[Dropout, ...] = ()
    stacks: Stacks = dataclasses.field(default_factory=dict)
    remat: bool = False

    @functools.cached_property
    def provenance(self) -> dict[str, Provenance]:
        return {
            path: Provenance(
                leaf.initializer,
                transform,
                _laid_out(leaf.shape, transform),
                leaf.role.value,
                leaf.from_node,
                leaf.folded,
                leaf.reader,
            )
            for path, (leaf, transform) in self.leaves.items()
        }

    def weights(self) -> dict[str, np.ndarray]:
        """The stored tensors by key path, in the model's layout."""
        single = {path: TRANSFORMS[transform](leaf.load()) for path, (leaf, transform) in self.leaves.items()}
        return by_stack(single, self.stacks, lambda _, layers: np.stack(layers))


def convert(
    model: ir.Model,
    title: str,
    plugins: PluginHost | None = None,
    *,
    patterns: Patterns = True,
    dropouts: tuple[Dropout, ...] = (),
    scan_layers: bool = False,
    remat: bool = False,
    weightless: bytes | None = None,
) -> Printed:
    """Runs the pipeline on a model that was read: with these patterns, with dropouts put in, and with layers stacked.

    `weightless` is the ONNX model without weights, if it is known.

    **Raises:** `UnsupportedOpsError`, `ConversionError`.
    """
    check_remat(remat, scan_layers=scan_layers)
    plugins = plugins or host()
    expand(model, plugins.registry)
    graph = fold(lower(model, plugins.registry))
    lift(graph, plugins.registry, patterns=patterns)
    assign_paths(graph)
    insert(graph, dropouts, plugins.registry)
    root = nest(graph)
    leaves = _leaves_by_path(graph)
    if weightless is None:
        weightless = _weightless(model, [leaf for leaf, _ in leaves.values()])
    header = Header(
        title=title,
        graph_digest=hashlib.sha256(weightless).hexdigest(),
        version=importlib.metadata.version("onnxeqx"),
        plugins=_third_party(graph, plugins),
    )
    if scan_layers:
        source, stacks = emit_stacked(graph, root, header, remat=remat)
    else:
        source, stacks = emit(graph, root, header), {}
    return Printed(source, leaves, weightless, root, graph, patterns, dropouts, stacks, remat)


def check_remat(remat: bool, *, scan_layers: bool) -> None:
    """**Raises:** `ConversionError` if layers are to be computed again that are not stacked."""
    if remat and not scan_layers:
        raise ConversionError("remat (--remat) is of stacked layers; give scan_layers=True (--scan-layers) as well.")


def _leaves_by_path(graph: Graph) -> dict[str, tuple[Leaf, str]]:
    found: dict[str, tuple[Leaf, str]] = {}
    for call in graph.all_calls():
        if call.lifted is not None:
            found |= {".".join(leaf.path): (leaf, transform) for leaf, transform in call.lifted.weights.values()}
    for leaf in graph.leaves():
        found.setdefault(".".join(leaf.path), (leaf, ""))
    return found


def _laid_out(shape: tuple[int, ...], transform: str) -> tuple[int, ...]:
    return TRANSFORMS[transform](np.broadcast_to(np.float32(0), shape)).shape


def _third_party(graph: Graph, plugins: PluginHost) -> tuple[str, ...]:
    used = {call.op.plugin for call in graph.all_calls()}
    return tuple(
        sorted(
            f"{plugin.distribution} {plugin.version}"
            for plugin in plugins.plugins
            if plugin.name in used and plugin.distribution != "onnxeqx"
        )
    )


def _weightless(model: ir.Model, leaves: list[Leaf]) -> bytes:
    """The ONNX model with the data of the leaves taken out: names, types and shapes stay."""
    names = {name for leaf in leaves for name in (leaf.initializer, leaf.stored_as) if name is not None}
    taken = [name for name in model.graph.initializers if name in names]
    given = {value.name for value in model.graph.inputs}
    proto = proto_without(model, taken)
    kept = [value for value in proto.graph.input if value.name not in names or value.name in given]
    shapes = {value.name: value.type.tensor_type for value in proto.graph.input}
    del proto.graph.input[:]
    proto.graph.input.extend(kept)
    for name in taken:
        tensor = proto.graph.initializer.add(name=name, data_type=shapes[name].elem_type)
        tensor.dims.extend(tensor_of(model.graph.initializers[name]).shape.numpy())
    for graph in graph_protos(proto.graph):
        for tensor in graph.initializer if graph is not proto.graph else ():
            if tensor.name in names:
                _clear_data(tensor)
        for node in graph.node:
            if node.output and node.output[0] in names:
                for attribute in node.attribute:
                    if attribute.type == onnx.AttributeProto.TENSOR and len(attribute.t.dims):
                        _clear_data(attribute.t)
    return proto.SerializeToString(deterministic=True)


def _clear_data(tensor: onnx.TensorProto) -> None:
    for field in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data"):
        tensor.ClearField(field)


def unlifted(model: ir.Model, plugins: PluginHost | None = None) -> Graph:
    """The graph of plain operator calls, folded but not lifted: for the interpreter."""
    plugins = plugins or host()
    expand(model, plugins.registry)
    return fold(lower(model, plugins.registry))
