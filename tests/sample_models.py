"""The models that tests share: real exports with seeded weights, and models written in ONNX text."""

import functools
import json
import pathlib

import numpy as np
import onnx
from onnx import helper, numpy_helper

FOLDER = pathlib.Path(__file__).parent / "models"
CNN, CONV_HEAD_CNN, ENCODER = "mobilenet_v3_small.tsbn", "squeezenet1_1.dyn", "bert_small.ts"


@functools.cache
def sample_model(name: str) -> onnx.ModelProto:
    """A model of `tests/models` with its weights filled in. Do not change it."""
    return fill(onnx.load(FOLDER / f"{name}.onnx"))


def fill(model: onnx.ModelProto) -> onnx.ModelProto:
    """Draws the large weights again from the metadata entry `fill` ({initializer: [seed, mean, std, min, max]})."""
    fills = json.loads({entry.key: entry.value for entry in model.metadata_props}.get("fill", "{}"))
    for tensor in model.graph.initializer:
        if tensor.name in fills:
            seed, mean, std, low, high = fills[tensor.name]
            values = np.random.default_rng(seed).standard_normal(tuple(tensor.dims), dtype=np.float32) * std + mean
            dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
            tensor.CopyFrom(numpy_helper.from_array(np.clip(values, low, high).astype(dtype), tensor.name))
    kept = [entry for entry in model.metadata_props if entry.key != "fill"]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    return model
