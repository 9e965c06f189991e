"""Verification against ONNX Runtime, and finding the node that is wrong."""

import jax.numpy as jnp
import numpy as np
import onnx
import pytest

import onnxeqx
from onnxeqx._verify import compare
from onnxeqx.plugins import activation
from onnxeqx.plugins.manager import host
from tests.sample_models import CNN, ENCODER, sample_model


@pytest.fixture(params=[CNN, ENCODER])
def model_file(request, tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(sample_model(request.param), path)
    return path


def test_real_models_agree_whole_and_node_by_node(model_file):
    result = onnxeqx.verify(model_file, per_node=True)
    assert result
    assert len(result.outputs) == 1
    assert len(result.nodes) > 40
    assert result.first is None


def test_the_first_wrong_node_is_named(tmp_path, monkeypatch):
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[2, 3] x) => (float[2, 3] y) {
        a = Neg(x) b = Sigmoid(a) c = Exp(b) y = Neg(c) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    registry = host().registry
    (entry,) = [entry for entry in registry.ops("Sigmoid") if entry.covers(17)]
    entries = registry._ops["", "Sigmoid"]
    import dataclasses

    wrong = dataclasses.replace(entry, function=lambda X: activation.sigmoid(X) + jnp.float32(0.1), prints=None)
    monkeypatch.setitem(registry._ops, ("", "Sigmoid"), [wrong if item is entry else item for item in entries])
    monkeypatch.setattr(activation, "wrong_sigmoid", wrong.function, raising=False)
    wrong.function.__qualname__, wrong.function.__module__ = "wrong_sigmoid", activation.__name__
    result = onnxeqx.verify(tmp_path / "m.onnx", per_node=True)
    assert not result
    assert result.first is not None
    assert result.first.node.endswith("(Sigmoid)")
    assert [entry.agrees for entry in result.nodes] == [True, False, True, True]


def test_given_inputs_are_used(tmp_path):
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[n] x) => (float[n] y) { y = Exp(x) }'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    result = onnxeqx.verify(tmp_path / "m.onnx", {"x": np.array([3.0], np.float32)})
    assert result.outputs[0].scale == pytest.approx(np.exp(3), rel=1e-6)
    with pytest.raises(onnxeqx.InputError, match="'z'"):
        onnxeqx.verify(tmp_path / "m.onnx", {"z": np.zeros(1, np.float32)})


@pytest.mark.parametrize(
    ("got", "wanted", "agrees"),
    [
        ([1.0, 2.0], [1.0, 2.0], True),
        ([1.0, 2.0], [1.0, 2.1], False),
        ([1.0, np.nan], [1.0, np.nan], True),
        ([1.0, np.nan], [1.0, 2.0], False),
        ([np.inf], [np.inf], True),
        ([-np.inf], [np.inf], False),
        ([1.0], [1.0, 1.0], False),
        ([3], [3], True),
        ([3], [4], False),
        ([], [], True),
    ],
)
def test_comparison(got, wanted, agrees):
    assert compare("y", "", np.array(got), np.array(wanted), 1e-3, 1e-4).agrees is agrees
