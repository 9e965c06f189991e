"""Stores the weights of an ONNX file in half precision, widened to float32 where they are read: half the size.

usage: python compact.py IN.onnx OUT.onnx

`efficientnet_lite0.onnx` in this folder was made by this script from the float32 export of the published network.
"""

import sys

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def compact(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with float32 initializers of two and more dimensions stored as float16, each behind a `Cast`."""
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) >= 2:
            name = tensor.name
            tensor.CopyFrom(
                numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), f"{name}_float16")
            )
            casts.append(helper.make_node("Cast", [tensor.name], [name], name=f"{name}_widened", to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


if __name__ == "__main__":
    source, target = sys.argv[1:]
    compacted = compact(onnx.load(source))
    onnx.checker.check_model(compacted)
    onnx.save(compacted, target)
