"""Other outputs than the file's: features of a layer or block, by key path or by ONNX name."""

import functools

import equinox as eqx
import jax
import numpy as np
import onnx
import onnxruntime
import pytest

import onnxeqx

from .sample_models import CNN, ENCODER, sample_model

IMAGES = np.random.default_rng(0).standard_normal((2, 3, 64, 64)).astype(np.float32)
TOKENS = {
    "input_ids": np.random.default_rng(0).integers(0, 100, (2, 6)),
    "attention_mask": np.ones((2, 6), np.int64),
    "token_type_ids": np.zeros((2, 6), np.int64),
}
# What a person asks for, and the value of the graph that this is.
FEATURES = {
    "features.3": "/features/features.3/Add_output_0",  # a block
    "features.0": "/features/features.0/features.0.2/HardSwish_output_0",  # a sequence of layers
    "classifier.0": "/classifier/classifier.0/Gemm_output_0",  # a layer
    "avgpool": "/avgpool/GlobalAveragePool_output_0",  # a scope without weights
}


@functools.cache
def small_cnn() -> onnx.ModelProto:
    """The network for images of 64x64. Do not change it."""
    proto = onnx.ModelProto()
    proto.CopyFrom(sample_model(CNN))
    del proto.graph.value_info[:]
    for dim in proto.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.dim_value = 64
    return proto


def in_runtime(proto: onnx.ModelProto, name: str, given: dict) -> np.ndarray:
    """The value of this name, according to ONNX Runtime."""
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    changed.graph.output.append(onnx.ValueInfoProto(name=name))
    return onnxruntime.InferenceSession(changed.SerializeToString()).run([name], given)[0]


@pytest.fixture(scope="module")
def cnn():
    return onnxeqx.load_model(small_cnn())


@pytest.mark.parametrize("at", FEATURES)
def test_features_are_those_of_the_runtime(cnn, at):
    part = onnxeqx.truncate(cnn, at)
    assert part.output_names == (FEATURES[at],)
    expected = in_runtime(small_cnn(), FEATURES[at], {"input": IMAGES})
    np.testing.assert_allclose(eqx.filter_jit(part)(IMAGES), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("at", FEATURES)
def test_key_paths_stay_and_what_is_not_needed_goes(cnn, at):
    whole, part = onnxeqx.key_paths(cnn), onnxeqx.key_paths(onnxeqx.truncate(cnn, at))
    assert set(part) < set(whole)
    if at.startswith("features."):
        assert max(int(path.split(".")[1]) for path in part) == int(at.split(".")[1])


def test_present_weights_are_kept(cnn):
    def bias(model):
        return model.features[0][1].bias

    changed = eqx.tree_at(bias, cnn, bias(cnn) + 1)
    difference = onnxeqx.truncate(changed, "features.0.1")(IMAGES) - onnxeqx.truncate(cnn, "features.0.1")(IMAGES)
    np.testing.assert_allclose(difference, 1, rtol=1e-4)


def test_several_outputs_by_key_path_and_by_onnx_name():
    names = ["features.0.1", "/features/features.3/Add_output_0", "output"]
    model = onnxeqx.load_model(small_cnn(), outputs=names)
    early, late, logits = model(IMAGES)
    np.testing.assert_allclose(logits, onnxeqx.load_model(small_cnn())(IMAGES), rtol=1e-4, atol=1e-5)
    expected = in_runtime(small_cnn(), names[1], {"input": IMAGES})
    np.testing.assert_allclose(late, expected, rtol=1e-3, atol=1e-4)
    assert early.shape == (2, 16, 32, 32)
    gradient = jax.jit(jax.grad(lambda images: model(images)[1].sum()))(IMAGES)
    assert np.isfinite(gradient).all()
    assert gradient.any()


def test_layers_of_an_encoder():
    encoder = onnxeqx.load_model(sample_model(ENCODER))
    part = onnxeqx.truncate(encoder, "mods.0.bert.encoder.layer.0")
    given = {name: TOKENS[name] for name in part.input_names}
    (name,) = part.output_names
    runtime = {value.name: TOKENS[value.name] for value in sample_model(ENCODER).graph.input}
    np.testing.assert_allclose(part(**given), in_runtime(sample_model(ENCODER), name, runtime), rtol=1e-3, atol=1e-4)
    paths = set(onnxeqx.key_paths(part))
    assert not [path for path in paths if "layer.1" in path or "pooler" in path]
    assert paths < set(onnxeqx.key_paths(encoder))


def test_a_part_is_saved_like_any_model(cnn, tmp_path):
    part = onnxeqx.truncate(cnn, "features.3")
    onnxeqx.save_onnx(part, tmp_path / "part.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "part.onnx")
    (served,) = session.run(None, {"input": IMAGES})
    np.testing.assert_allclose(part(IMAGES), served, rtol=1e-3, atol=1e-4)
    onnx.save(small_cnn(), tmp_path / "whole.onnx")
    onnxeqx.convert(tmp_path / "whole.onnx", tmp_path / "part", outputs=["features.3"])
    np.testing.assert_array_equal(onnxeqx.load(tmp_path / "part")(IMAGES), part(IMAGES))
    again = onnxeqx.load(tmp_path / "whole.onnx", outputs=["features.3"])
    assert jax.tree.structure(again) == jax.tree.structure(
        onnxeqx.load(tmp_path / "whole.onnx", outputs=["features.3"])
    )
    with pytest.raises(onnxeqx.ReadError, match="give outputs when converting the ONNX file"):
        onnxeqx.load(tmp_path / "part", outputs=["features.0"])


def test_unknown_names_are_refused_with_near_ones(cnn):
    with pytest.raises(onnxeqx.ConversionError, match=r"no value 'features\.99'.*did you mean 'features"):
        onnxeqx.truncate(cnn, "features.99")
