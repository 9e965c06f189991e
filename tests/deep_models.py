"""Real exports of two layers made deeper: the second layer is copied, with weights of its own."""

import re

import numpy as np
import onnx
from onnx import numpy_helper

from .sample_models import sample_model

# Which part of a name counts the layers.
_LAYER = {
    "bert_small.ts": "layer.{}",
    "gpt2_small_past.ts": "h.{}",
    "llama_small.ts": "layers.{}",
    "t5_small_enc.ts": "encoder/block.{}",
    "whisper_small_enc.ts": "layers.{}",
}
_CACHE = re.compile(r"(past|present)_(key|value)_1$")


def deepened(name: str, layers: int) -> onnx.ModelProto:
    """A sample model of a transformer with so many layers, at least two."""
    model = onnx.ModelProto()
    model.CopyFrom(sample_model(name))
    _deepen(model.graph, _LAYER[name], layers)
    onnx.checker.check_model(model)
    return model


def _deepen(graph: onnx.GraphProto, layer: str, layers: int) -> None:
    second = re.compile(rf"(?<!\w){re.escape(layer.format(1))}(?!\w)")
    inside = [node for node in graph.node if second.search(node.name)]
    outside = [node for node in graph.node if not second.search(node.name)]
    made = {name for node in inside for name in node.output}
    read_outside = {name for node in outside for name in node.input}
    own = {name for node in inside for name in node.input} - read_outside - made
    outputs = {value.name for value in graph.output}
    (result,) = (name for name in made & (read_outside | outputs) if second.search(name))

    def result_of(number: int) -> str:
        return second.sub(layer.format(number), result)

    copies = []
    for number in range(2, layers):
        names = {name: _renamed(name, second, layer, number) for name in made | _copied(graph, own)}
        _copy_values(graph, names, number)
        names[result_of(0)] = result_of(number - 1)
        for node in inside:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.name = second.sub(layer.format(number), node.name)
            copy.input[:] = [names.get(name, name) for name in node.input]
            copy.output[:] = [names.get(name, name) for name in node.output]
            copies.append(copy)
    for node in outside:
        node.input[:] = [result_of(layers - 1) if name == result else name for name in node.input]
    for output in graph.output:
        output.name = result_of(layers - 1) if output.name == result else output.name
    end = 1 + max(i for i, node in enumerate(graph.node) if second.search(node.name))
    nodes = [*graph.node[:end], *copies, *graph.node[end:]]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)


def _renamed(name: str, second: re.Pattern[str], layer: str, number: int) -> str:
    if second.search(name):
        return second.sub(layer.format(number), name)
    return re.sub("_1$", f"_{number}", name) if _CACHE.search(name) else f"{name}_{number}"


def _copied(graph: onnx.GraphProto, own: set[str]) -> set[str]:
    """What each layer is given for itself: weights and caches."""
    weights = {tensor.name for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT}
    return own & (weights | {value.name for value in graph.input})


def _copy_values(graph: onnx.GraphProto, names: dict[str, str], number: int) -> None:
    """Weights, with their numbers in another order, and inputs and outputs of another name."""
    for tensor in [tensor for tensor in graph.initializer if tensor.name in names]:
        numbers = np.random.default_rng(number).permuted(numpy_helper.to_array(tensor).reshape(-1))
        graph.initializer.append(numpy_helper.from_array(numbers.reshape(tuple(tensor.dims)), names[tensor.name]))
    for values in (graph.input, graph.output):
        for value in [value for value in values if value.name in names and _CACHE.search(value.name)]:
            copy = values.add()
            copy.CopyFrom(value)
            copy.name = names[value.name]
