"""Blocks that are found by their structure, in files whose exporter wrote down no names."""

import pathlib

import numpy as np
import onnx
import pytest

import onnxeqx
from onnxeqx._convert import convert
from onnxeqx._read import read, read_proto
from onnxeqx._verify import run_onnxruntime

LIGHT = pathlib.Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


def printed(name: str):
    return convert(read(LIGHT / f"light_{name}.onnx"), name)


def members(root, field: str) -> int:
    return len(root.children[field].children)


def test_resnet_is_a_stem_four_stages_and_a_head():
    """https://arxiv.org/abs/1512.03385, table 1."""
    found = printed("resnet50")
    assert list(found.root.children) == ["conv1", "res_conv1_bn", "stage1", "stage2", "stage3", "stage4", "pred"]
    assert [members(found.root, f"stage{k}") for k in (1, 2, 3, 4)] == [3, 4, 6, 3]
    assert found.source.count("\nclass ") <= 4
    assert "stage3.5.conv3.weight" in found.leaves


def test_densenet_is_dense_blocks_and_transitions():
    """https://arxiv.org/abs/1608.06993, table 1."""
    found = printed("densenet121")
    assert [members(found.root, f"stage{k}") for k in (1, 2, 3, 4)] == [6, 12, 24, 16]
    assert {"transition1", "transition2", "transition3"} <= set(found.root.children)


def test_googlenet_is_inception_modules():
    """https://arxiv.org/abs/1409.4842, table 1."""
    found = printed("inception_v1")
    assert [members(found.root, f"stage{k}") for k in (1, 2, 3)] == [2, 5, 2]
    assert found.source.count("\nclass ") == 2


@pytest.mark.parametrize(("name", "lines"), [("resnet50", 120), ("densenet121", 130), ("inception_v1", 120)])
def test_they_print_short(name, lines):
    assert len(printed(name).source.splitlines()) < lines


def residual_network(blocks: int, leak: int | None = None) -> onnx.ModelProto:
    """A linear layer, then blocks of `x + W2 relu(W1 relu(x))`; inside block `leak` a value is read from outside too."""
    generator = np.random.default_rng(0)
    names = ["w", *(f"w{k}{part}" for k in range(blocks) for part in "ab")]
    tensors = [
        onnx.numpy_helper.from_array(generator.standard_normal((8, 8)).astype(np.float32) * np.float32(0.3), name)
        for name in names
    ]
    nodes, x = [onnx.helper.make_node("MatMul", ["x", "w"], ["stem"])], "stem"
    for k in range(blocks):
        nodes += [
            onnx.helper.make_node("Relu", [x], [f"r{k}"]),
            onnx.helper.make_node("MatMul", [f"r{k}", f"w{k}a"], [f"a{k}"]),
            onnx.helper.make_node("Relu", [f"a{k}"], [f"s{k}"]),
            onnx.helper.make_node("MatMul", [f"s{k}", f"w{k}b"], [f"b{k}"]),
            onnx.helper.make_node("Add", [x, f"b{k}"], [f"x{k}"]),
        ]
        x = f"x{k}"
    outputs = [x] if leak is None else [x, f"s{leak}"]
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "residual",
        [value("x", onnx.TensorProto.FLOAT, ["N", 8])],
        [value(name, onnx.TensorProto.FLOAT, ["N", 8]) for name in outputs],
        tensors,
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("leak", [None, 1])
def test_the_blocks_compute_what_the_file_computes(leak, tmp_path):
    proto = residual_network(4, leak)
    onnx.save(proto, tmp_path / "residual.onnx")
    x = np.random.default_rng(1).standard_normal((3, 8)).astype(np.float32)
    expected = run_onnxruntime(tmp_path / "residual.onnx", {"x": x})
    results = onnxeqx.load_model(proto)(x)
    for got, wanted in zip(results if leak is not None else [results], expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


def test_equal_regions_are_one_class_in_a_loop():
    source = convert(read_proto(residual_network(4)), "residual").source
    assert source.count("\nclass ") == 2
    assert "for layer in self.stage1:" in source


def test_a_region_that_others_read_from_is_no_block():
    root = convert(read_proto(residual_network(4, leak=1)), "residual").root
    assert list(root.children) == ["w", "block1", "w1a", "w1b", "stage1"]


def test_a_file_with_names_keeps_them():
    proto = residual_network(4)
    for node in proto.graph.node:
        node.input[:] = [f"net.{name}.weight" if name.startswith("w") else name for name in node.input]
    for tensor in proto.graph.initializer:
        tensor.name = f"net.{tensor.name}.weight"
    assert set(convert(read_proto(proto), "residual").leaves) == {tensor.name for tensor in proto.graph.initializer}
