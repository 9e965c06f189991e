"""Small ONNX networks for whole runs: a classifier of images, one of rows, an encoder and a language model of tokens."""

import pathlib

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import onnx.parser

WEIGHTS = {
    "features.0.weight": (8, 3, 3, 3),
    "features.0.bias": (8,),
    "features.1.weight": (8,),
    "features.1.bias": (8,),
    "features.1.running_mean": (8,),
    "features.1.running_var": (8,),
    "features.3.weight": (16, 8, 3, 3),
    "features.3.bias": (16,),
    "classifier.weight": (7, 16),
    "classifier.bias": (7,),
}

GRAPH = """
<ir_version: 8, opset_import: ["" : 17]>
tiny (float[batch, 3, 12, 12] image) => (float[batch, 7] scores) {
  a = Conv<kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]>(image, "features.0.weight", "features.0.bias")
  n = BatchNormalization(
    a, "features.1.weight", "features.1.bias", "features.1.running_mean", "features.1.running_var")
  r = Relu(n)
  b = Conv<kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]>(r, "features.3.weight", "features.3.bias")
  s = Relu(b)
  g = GlobalAveragePool(s)
  f = Flatten(g)
  LAST = Gemm<transB=1>(f, "classifier.weight", "classifier.bias")
}
"""


def write_tiny(path: pathlib.Path, *, softmax: bool = False) -> pathlib.Path:
    """Writes the network, with seeded weights; with `softmax`, its output is probabilities."""
    text = GRAPH.replace("LAST", "z" if softmax else "scores")
    if softmax:
        text = text.rstrip().removesuffix("}") + "  scores = Softmax(z)\n}\n"
    model = onnx.parser.parse_model(text)
    random = np.random.default_rng(0)
    for name, shape in WEIGHTS.items():
        values = random.normal(size=shape) / np.sqrt(np.prod(shape[1:]))
        if name.endswith("var"):
            values = np.abs(values) + 0.5
        model.graph.initializer.append(onnx.numpy_helper.from_array(values.astype(np.float32), name))
    onnx.save(model, path)
    return path


TABLE = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[batch, 3] row) => (float[batch, 5] scores) {
  h = Gemm<transB=1>(row, "hidden.weight", "hidden.bias")
  r = Relu(h)
  scores = Gemm<transB=1>(r, "head.weight", "head.bias")
}
"""
ENCODER = """
<ir_version: 8, opset_import: ["" : 17]>
net (int64[batch, length] input_ids, int64[batch, length] attention_mask) => (float[batch, length, 8] states) {
  e = Gather("embedding.weight", input_ids)
  p = MatMul(e, "dense.weight")
  m = Cast<to=1>(attention_mask)
  c = Unsqueeze(m, last)
  s = Tanh(p)
  states = Mul(s, c)
}
"""
LANGUAGE = """
<ir_version: 8, opset_import: ["" : 17]>
net (int64[batch, length] input_ids) => (float[batch, length, 14] logits) {
  e = Gather("embedding.weight", input_ids)
  logits = MatMul(e, "head.weight")
}
"""
SHAPES = {
    "hidden.weight": (16, 3), "hidden.bias": (16,), "head.weight": (5, 16), "head.bias": (5,), "embedding.weight": (14, 8),
    "dense.weight": (8, 8),
}  # fmt: skip


def write_net(path, text, **shapes):
    """Writes a network with seeded weights; `shapes` are those of weights that differ."""
    proto, random = onnx.parser.parse_model(text), np.random.default_rng(0)
    for name, shape in (SHAPES | shapes).items():
        if f'"{name}"' in text:
            values = (random.normal(size=shape) / 2).astype(np.float32)
            proto.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    if "(m, last)" in text:
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array([-1]), "last"))
    onnx.save(proto, path)
    return path
