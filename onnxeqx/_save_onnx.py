"""Writing back: a model's present weights into its ONNX graph, so that ONNX Runtime serves what was fine-tuned."""

import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ._convert import Provenance
from ._errors import WeightsError
from ._origin import Origin, origin_of, single_arrays
from ._read import graph_protos
from ._weights import TRANSFORMS, whole_path

# Protobuf cannot hold 2 GiB; beyond this size weights go to an external file.
_MAX_PROTO_BYTES = 1_800_000_000


def save_onnx(
    model: Any, path: str | os.PathLike[str], *, metadata: Mapping[str, str] | None = None, force: bool = True
) -> None:
    """Writes the model as ONNX: the graph it came from, with its present weights.

    **Arguments:**

    - `model`: a model that came from [`onnxeqx.load`][], its architecture unchanged but for linear or convolution layers of
      another output width (a replaced head).
    - `path`: the `.onnx` file. Weights of over 1.8 GB go to `<name>.data` beside it.
    - `metadata`: entries to add to the file's `metadata_props`.
    - `force`: overwrite a file that is there.

    **Raises:** `WeightsError` if the model's key paths do not fit its graph; `ConversionError` if it has no graph.
    """
    proto = to_onnx(model, origin_of(model), metadata=metadata)
    path = pathlib.Path(path)
    with whole_path(path, force=force) as scratch:
        if proto.ByteSize() < _MAX_PROTO_BYTES:
            onnx.save(proto, scratch)
            return
        data = path.with_name(f"{path.name}.data")
        with whole_path(data, force=force) as scratch_data:
            onnx.save(proto, scratch, save_as_external_data=True, location=scratch_data.name, convert_attribute=False)
            _rename_external(scratch, scratch_data.name, data.name)


def to_onnx(model: Any, origin: Origin, *, metadata: Mapping[str, str] | None = None) -> onnx.ModelProto:
    """As [`onnxeqx.save_onnx`][], in memory."""
    proto = onnx.ModelProto.FromString(origin.graph)
    weights = single_arrays(model)
    heads = _replaced_heads(weights, origin.provenance)
    writer = _Writer(proto)
    _write(writer, origin, weights, heads, list(origin.provenance))
    writer.drop_unread()
    helper.set_model_props(proto, {entry.key: entry.value for entry in proto.metadata_props} | dict(metadata or {}))
    return proto


def resized(model: Any, origin: Origin) -> onnx.ModelProto:
    """The graph that a model came from, still without weights, but with its heads as wide as they are now."""
    proto = onnx.ModelProto.FromString(origin.graph)
    weights = single_arrays(model)
    heads = _replaced_heads(weights, origin.provenance)
    _write(_Writer(proto), origin, weights, heads, [path for path in origin.provenance if _layer(path) in heads])
    return proto


def _write(
    writer: "_Writer", origin: Origin, weights: dict[str, np.ndarray], heads: dict[str, int], paths: list[str]
) -> None:
    """Stores these leaves, and lets the graph follow the widths of the heads."""
    for path in paths:
        entry = origin.provenance[path]
        if entry.folded:
            continue
        array = weights.get(path)
        if array is None:
            array = np.zeros(heads[_layer(path)], np.float32)
        writer.write(path, entry, TRANSFORMS[entry.transform](array))
    for path in [path for path in weights if path not in origin.provenance]:
        writer.add_bias(origin.provenance[f"{_layer(path)}.weight"], weights[path])
    if heads:
        entries = {layer: origin.provenance[f"{layer}.weight"] for layer in heads}
        writer.widen(
            {entry.shape[0]: heads[layer] for layer, entry in entries.items()},
            {entry.initializer for entry in entries.values()},
        )


def _layer(path: str) -> str:
    return path.rpartition(".")[0]


def _replaced_heads(weights: Mapping[str, np.ndarray], provenance: Mapping[str, Provenance]) -> dict[str, int]:
    """The layers whose output width differs from the file's, with that width; everything else must fit."""
    problems, heads = [], {}
    for path, entry in provenance.items():
        array, (layer, _, field) = weights.get(path), path.rpartition(".")
        if (
            array is not None
            and array.shape != entry.shape
            and field == "weight"
            and array.shape[1:] == entry.shape[1:]
            and array.ndim > 1
        ):
            heads[layer] = array.shape[0]
    for path, entry in provenance.items():
        array, (layer, _, field) = weights.get(path), path.rpartition(".")
        width = heads.get(layer)
        if array is None:
            # A head without a bias, or a layer that lost it: the graph then adds zeros.
            if not entry.folded and not (field == "bias" and f"{layer}.weight" in weights):
                problems.append(f"missing: {path}")
            elif field == "bias":
                heads.setdefault(layer, entry.shape[0])
        elif array.shape != entry.shape and not (
            width is not None and array.shape in ((width, *entry.shape[1:]), (width, 1, 1))
        ):
            problems.append(f"shape of {path}: {array.shape} in the model, {entry.shape} in its ONNX graph")
    for path in weights:
        layer, _, field = path.rpartition(".")
        if path not in provenance and not (field == "bias" and f"{layer}.weight" in provenance):
            problems.append(f"unexpected: {path}")
    if problems:
        raise WeightsError(
            f"The model does not fit the ONNX graph it came from ({len(problems)} key paths); only linear and convolution "
            "layers may change, and only their output width. Export another architecture with the `export` extra:\n  "
            + "\n  ".join(problems)
        )
    return heads


class _Writer:
    """Puts tensors into a weightless graph."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.graph = proto.graph
        self.proto = proto
        graphs = list(graph_protos(proto.graph))
        self.initializers = {tensor.name: tensor for graph in graphs for tensor in graph.initializer}
        self.producers = {name: node for graph in graphs for node in graph.node for name in node.output}
        self.graph_of = {name: graph for graph in graphs for node in graph.node for name in node.output}
        self.names = set(self.initializers) | set(self.producers) | {value.name for value in proto.graph.input}

    def write(self, path: str, entry: Provenance, array: np.ndarray) -> None:
        """Stores the tensor under the name that its reader knows."""
        name = entry.initializer
        if entry.reader is not None:
            name = self._rewire(path, *entry.reader)
        elif entry.from_node and name in self.producers:
            # The tensor becomes an initializer of the main graph, which the subgraphs see.
            self.graph_of[name].node.remove(self.producers.pop(name))
        self._store(
            name,
            array.reshape(array.shape[:1]) if array.shape[1:] == (1, 1) and len(entry.shape) == 1 else array,
            entry,
        )

    def add_bias(self, weight: Provenance, array: np.ndarray) -> None:
        """Gives a layer that had no bias one."""
        (node,) = [node for node in self.graph.node if weight.initializer in node.input]
        name = self._fresh(f"{weight.initializer}_bias")
        self._store(name, array.reshape(array.shape[0]), weight)
        if node.op_type in ("Gemm", "Conv"):
            node.input.append(name)
            return
        output = node.output[0]
        node.output[0] = self._fresh(f"{output}_without_bias")
        position = list(self.graph.node).index(node) + 1
        self.graph.node.insert(
            position, helper.make_node("Add", [node.output[0], name], [output], name=self._fresh(f"{node.name}_bias"))
        )

    def drop_unread(self) -> None:
        """Removes tensors that no node reads any more: those that a dropped node converted."""
        graphs = list(graph_protos(self.graph))
        read = {name for graph in graphs for node in graph.node for name in node.input}
        read |= {value.name for graph in graphs for value in graph.output}
        kept = [tensor for tensor in self.graph.initializer if tensor.name in read]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)
        self.initializers = {tensor.name: tensor for graph in graphs for tensor in graph.initializer}

    def widen(self, widths: Mapping[int, int], changed: set[str]) -> None:
        """After heads of another width: reshapes to the old width downstream, and declared shapes, follow.

        `widths` maps old to new ones, `changed` are the tensors of the heads.
        """
        for node in self.graph.node:
            if any(name in changed for name in node.input):
                changed |= set(node.output)
                if node.op_type == "Reshape":
                    self._reshape_to(node, widths)
        del self.graph.value_info[:]
        for output in self.graph.output:
            for dim in output.type.tensor_type.shape.dim:
                if dim.dim_value in widths:
                    dim.Clear()
        inferred = (
            onnx.shape_inference.infer_shapes(self.proto) if self.proto.ByteSize() < _MAX_PROTO_BYTES else self.proto
        )
        for output, found in zip(self.graph.output, inferred.graph.output, strict=True):
            output.CopyFrom(found)

    def _reshape_to(self, node: onnx.NodeProto, widths: Mapping[int, int]) -> None:
        shape = self.initializers.get(node.input[1])
        target = numpy_helper.to_array(shape) if shape is not None else self._constant(node.input[1])
        if target is None or target.ndim != 1 or len(target) != 2 or int(target[1]) not in widths:
            return
        name = self._fresh(f"{node.input[1]}_widened")
        self.graph.initializer.append(
            numpy_helper.from_array(np.array([target[0], widths[int(target[1])]], np.int64), name)
        )
        node.input[1] = name

    def _constant(self, name: str) -> np.ndarray | None:
        node = self.producers.get(name)
        if node is None or node.op_type != "Constant":
            return None
        values = [attribute.t for attribute in node.attribute if attribute.name == "value"]
        return numpy_helper.to_array(values[0]) if values else None

    def _rewire(self, path: str, output: str, position: int) -> str:
        """Gives a reader a tensor of its own, named so that it has the same key path when it is read again."""
        name = self._fresh(path)
        self.producers[output].input[position] = name
        return name

    def _store(self, name: str, array: np.ndarray, entry: Provenance) -> None:
        present = self.initializers.get(name)
        original = self.initializers.get(entry.initializer)
        dtype = helper.tensor_dtype_to_np_dtype(original.data_type) if original is not None else None
        if dtype is not None and array.dtype != dtype:
            array = np.asarray(array).astype(dtype)
        tensor = numpy_helper.from_array(np.ascontiguousarray(array), name)
        if present is not None:
            present.CopyFrom(tensor)
        else:
            self.graph.initializer.append(tensor)

    def _fresh(self, stem: str) -> str:
        name, counter = stem, 1
        while name in self.names:
            counter += 1
            name = f"{stem}_{counter}"
        self.names.add(name)
        return name


def _rename_external(path: pathlib.Path, old: str, new: str) -> None:
    proto = onnx.load(path, load_external_data=False)
    for tensor in _external(proto):
        for entry in tensor.external_data:
            if entry.key == "location" and entry.value == old:
                entry.value = new
    onnx.save(proto, path)


def _external(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    yield from (tensor for tensor in proto.graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL)
