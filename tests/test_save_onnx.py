"""Back to ONNX: what was fine-tuned is what ONNX Runtime serves."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest

import onnxeqx
from onnxeqx._verify import compare, session
from tests.sample_models import CNN, CONV_HEAD_CNN, ENCODER, sample_model

IMAGES = {"input": ("batch", 3, 64, 64)}


def inputs_of(name: str) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    if name == ENCODER:
        ids = generator.integers(0, 1000, (2, 9))
        return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    return {"input": generator.standard_normal((2, 3, 64, 64)).astype(np.float32)}


def load(name: str):
    return onnxeqx.load_model(sample_model(name), input_shapes=IMAGES if name != ENCODER else None)


def fine_tuned(model, inputs):
    """The model after two steps of gradient descent on every parameter."""
    mask = onnxeqx.parameters(model)
    params, static = eqx.partition(model, mask)

    def loss(params):
        return jnp.mean(eqx.combine(params, static)(**inputs) ** 2)

    for _ in range(2):
        gradients = eqx.filter_jit(eqx.filter_grad(loss))(params)
        norm = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradients)))
        params = jax.tree.map(lambda p, g, n=norm: p - 0.1 * g / n, params, gradients)
    return eqx.combine(params, static)


def assert_served(model, path, inputs):
    (served,) = session(str(path)).run(None, inputs)
    result = compare("output", "", np.asarray(eqx.filter_jit(model)(**inputs)), served, rtol=1e-4, atol=1e-4)
    assert result.agrees, result


@pytest.mark.parametrize("name", [CNN, CONV_HEAD_CNN, ENCODER])
def test_fine_tuned_weights_are_served(tmp_path, name):
    inputs = inputs_of(name)
    model = load(name)
    tuned = fine_tuned(model, inputs)
    onnxeqx.save_onnx(tuned, tmp_path / "tuned.onnx")
    onnx.checker.check_model(tmp_path / "tuned.onnx", full_check=True)
    assert_served(tuned, tmp_path / "tuned.onnx", inputs)
    (before,) = session(sample_with_shapes(name, tmp_path)).run(None, inputs)
    (after,) = session(str(tmp_path / "tuned.onnx")).run(None, inputs)
    assert np.abs(before - after).max() > 1e-3 * np.abs(before).max(), "fine-tuning changed nothing"


def sample_with_shapes(name, tmp_path) -> str:
    onnxeqx.save_onnx(load(name), tmp_path / "original.onnx")
    return str(tmp_path / "original.onnx")


def test_an_unchanged_model_is_written_with_the_original_numbers(tmp_path):
    original = sample_model(CNN)
    onnxeqx.save_onnx(onnxeqx.load_model(original), tmp_path / "same.onnx")
    written = {
        tensor.name: onnx.numpy_helper.to_array(tensor)
        for tensor in onnx.load(tmp_path / "same.onnx").graph.initializer
    }
    read = {name for node in original.graph.node for name in node.input}
    for tensor in original.graph.initializer:
        if tensor.name in read:
            np.testing.assert_array_equal(written[tensor.name], onnx.numpy_helper.to_array(tensor))


def test_metadata_is_added(tmp_path):
    onnxeqx.save_onnx(load(CNN), tmp_path / "m.onnx", metadata={"labels": "cat,dog"})
    assert {entry.key: entry.value for entry in onnx.load(tmp_path / "m.onnx").metadata_props}["labels"] == "cat,dog"


@pytest.mark.parametrize("use_bias", [True, False])
def test_a_linear_head_of_another_width(tmp_path, use_bias):
    model, inputs = load(CNN), inputs_of(CNN)
    old = model.classifier[3]
    head = eqx.nn.Linear(old.in_features, 7, use_bias=use_bias, key=jax.random.key(1))
    model = eqx.tree_at(lambda m: m.classifier[3], model, head)
    assert model(**inputs).shape == (2, 7)
    onnxeqx.save_onnx(model, tmp_path / "head.onnx")
    assert_served(model, tmp_path / "head.onnx", inputs)


def test_a_convolutional_head_of_another_width(tmp_path):
    model, inputs = load(CONV_HEAD_CNN), inputs_of(CONV_HEAD_CNN)
    for head in (onnxeqx.nn.Conv(2, 512, 7, 1, key=jax.random.key(1)), eqx.nn.Conv2d(512, 7, 1, key=jax.random.key(2))):
        replaced = eqx.tree_at(lambda m: m.classifier[1], model, head)
        assert replaced(**inputs).shape == (2, 7)
        onnxeqx.save_onnx(replaced, tmp_path / "head.onnx")
        assert_served(replaced, tmp_path / "head.onnx", inputs)


def test_a_bias_can_be_added_to_a_linear_head_without_one(tmp_path):
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[n, 4] x) => (float[n, 3] y) <float[4, 3] w> { y = MatMul(x, w) }'
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((4, 3), np.float32), "w"))
    model = onnxeqx.load_model(proto)
    model = eqx.tree_at(lambda m: m.w, model, eqx.nn.Linear(4, 5, key=jax.random.key(0)))
    onnxeqx.save_onnx(model, tmp_path / "m.onnx")
    assert_served(model, tmp_path / "m.onnx", {"x": np.ones((2, 4), np.float32)})


def test_a_converted_folder_goes_back_too(tmp_path):
    onnx.save(sample_model(ENCODER), tmp_path / "encoder.onnx")
    onnxeqx.convert(tmp_path / "encoder.onnx", tmp_path / "folder")
    tuned = fine_tuned(onnxeqx.load(tmp_path / "folder"), inputs_of(ENCODER))
    onnxeqx.save_onnx(tuned, tmp_path / "tuned.onnx")
    assert_served(tuned, tmp_path / "tuned.onnx", inputs_of(ENCODER))


def test_a_folder_of_a_live_model_with_a_new_head(tmp_path):
    model = load(CNN)
    head = eqx.nn.Linear(model.classifier[3].in_features, 7, key=jax.random.key(1))
    model = eqx.tree_at(lambda m: m.classifier[3], model, head)
    onnxeqx.save(model, tmp_path / "folder")
    again = onnxeqx.load(tmp_path / "folder")
    assert again.classifier[3].out_features == 7
    np.testing.assert_array_equal(again(**inputs_of(CNN)), model(**inputs_of(CNN)))


def test_half_precision_weights_widened_in_the_graph_are_parameters(tmp_path):
    from examples.compact import compact

    original = sample_model(CONV_HEAD_CNN)
    compacted = onnx.ModelProto()
    compacted.CopyFrom(original)
    model = onnxeqx.load_model(compact(compacted), input_shapes=IMAGES)
    assert model.classifier[1].weight.dtype == jnp.float32
    assert set(onnxeqx.key_paths(model)) == set(onnxeqx.key_paths(load(CONV_HEAD_CNN)))
    tuned = fine_tuned(model, inputs_of(CONV_HEAD_CNN))
    onnxeqx.save_onnx(tuned, tmp_path / "tuned.onnx")
    assert_served(tuned, tmp_path / "tuned.onnx", inputs_of(CONV_HEAD_CNN))


def test_another_architecture_is_refused_with_all_reasons(tmp_path):
    model = load(CNN)
    other = eqx.tree_at(lambda m: m.classifier[0], model, eqx.nn.Linear(3, 1024, key=jax.random.key(0)))
    with pytest.raises(onnxeqx.WeightsError, match=r"(?s)export.*classifier\.0\.weight"):
        onnxeqx.save_onnx(other, tmp_path / "never.onnx")
    assert not list(tmp_path.iterdir())


def test_a_model_that_came_from_nowhere_is_refused(tmp_path):
    with pytest.raises(onnxeqx.ConversionError, match="keeps no ONNX graph"):
        onnxeqx.save_onnx(eqx.nn.Linear(2, 2, key=jax.random.key(0)), tmp_path / "never.onnx")


def test_weights_beyond_the_protobuf_limit_go_beside_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr("onnxeqx._save_onnx._MAX_PROTO_BYTES", 1000)
    model = load(ENCODER)
    onnxeqx.save_onnx(model, tmp_path / "large.onnx")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["large.onnx", "large.onnx.data"]
    assert_served(model, tmp_path / "large.onnx", inputs_of(ENCODER))
