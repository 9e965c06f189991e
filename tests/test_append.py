"""A head behind the output of an encoder, in its graph."""

import jax
import numpy as np
import onnx
import onnxruntime
import pytest

import onnxeqx

ENCODER = """
<ir_version: 8, opset_import: ["" : OPSET]>
encoder (int64[batch, length] ids INPUTS) => (int64[batch, length] same, float[batch, length, 6] states, float[batch, 6] first) {
  same = Identity(ids)
  embedded = Gather(table, ids)
  product = MatMul(embedded, "layer.weight")
  states = Tanh(product)
  first = Gather<axis=1>(states, zero)
}
"""
IDS = np.random.default_rng(0).integers(0, 20, (3, 5))
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]])


def encoder(*, mask=False, opset=17):
    text = ENCODER.replace("OPSET", str(opset)).replace("INPUTS", ", int64[batch, length] attention_mask" * mask)
    if mask:  # an input that nothing reads is no input of the model
        kept = "kept = Cast<to=1>(attention_mask)\n  column = Unsqueeze(kept, last)\n  states = Mul(product, column)"
        text = text.replace("states = Tanh(product)", kept)
    proto, random = onnx.parser.parse_model(text), np.random.default_rng(1)
    for name, shape in {"table": (20, 4), "layer.weight": (4, 6)}.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(random.normal(size=shape).astype(np.float32), name))
    for name, axis in {"zero": np.array(0), "last": np.array([-1])}.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(axis, name))
    return onnxeqx.load_model(proto)


def served(model, path, **inputs):
    onnxeqx.save_onnx(model, path)
    session = onnxruntime.InferenceSession(path)
    assert [value.name for value in session.get_outputs()] == list(type(model).output_names)
    return session.run(None, inputs)[0]


def states_of(model, *inputs):
    return np.asarray(model(*inputs)[1])


@pytest.mark.parametrize("opset", [11, 13, 18])  # axes are attributes, then inputs of ReduceSum, then of ReduceMean
def test_the_mean_over_positions_goes_through_the_head(opset, tmp_path):
    model = encoder(opset=opset)
    classifier = onnxeqx.append_head(model, 3, key=jax.random.key(0))
    assert type(classifier).output_names == ("logits",)
    wanted = states_of(model, IDS).mean(1) @ classifier.classifier.weight.T + classifier.classifier.bias
    np.testing.assert_allclose(classifier(IDS), wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(served(classifier, tmp_path / "net.onnx", ids=IDS), wanted, rtol=1e-5, atol=1e-6)
    assert classifier(IDS[:1, :2]).shape == (1, 3)  # batch and length stay free
    again = onnxeqx.load(tmp_path / "net.onnx")
    assert set(onnxeqx.key_paths(again)) == set(onnxeqx.key_paths(classifier))


def test_padding_does_not_count_and_a_row_of_nothing_else_is_finite(tmp_path):
    model = encoder(mask=True)
    classifier = onnxeqx.append_head(model, 3, key=jax.random.key(0))
    states = states_of(model, IDS, MASK)
    means = (states * MASK[..., None]).sum(1) / np.maximum(MASK.sum(1, keepdims=True), 1)
    wanted = means @ classifier.classifier.weight.T + classifier.classifier.bias
    np.testing.assert_allclose(classifier(IDS, MASK), wanted, rtol=1e-5, atol=1e-6)
    found = served(classifier, tmp_path / "net.onnx", ids=IDS, attention_mask=MASK)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_without_pooling_each_position_has_its_classes(tmp_path):
    model = encoder()
    tagger = onnxeqx.append_head(model, 4, key=jax.random.key(0), pool=False, name="tagger")
    wanted = states_of(model, IDS) @ tagger.tagger.weight.T + tagger.tagger.bias
    np.testing.assert_allclose(tagger(IDS), wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(served(tagger, tmp_path / "net.onnx", ids=IDS), wanted, rtol=1e-5, atol=1e-6)


def test_an_output_can_be_chosen_and_its_layers_keep_their_weights(tmp_path):
    model = encoder()
    classifier = onnxeqx.append_head(model, 2, key=jax.random.key(0), output="first")
    wanted = np.asarray(model(IDS)[2]) @ classifier.classifier.weight.T + classifier.classifier.bias
    np.testing.assert_allclose(classifier(IDS), wanted, rtol=1e-5, atol=1e-6)
    before, after = onnxeqx.key_paths(model), onnxeqx.key_paths(classifier)
    assert set(after) == set(before) | {"classifier.weight", "classifier.bias"}
    for path, leaf in before.items():
        np.testing.assert_array_equal(leaf, after[path])


def test_a_second_head_has_an_output_of_its_own_name(tmp_path):
    classifier = onnxeqx.append_head(encoder(), 3, key=jax.random.key(0))
    second = onnxeqx.append_head(classifier, 2, key=jax.random.key(1), name="second")
    wanted = classifier(IDS) @ second.second.weight.T + second.second.bias
    np.testing.assert_allclose(served(second, tmp_path / "net.onnx", ids=IDS), wanted, rtol=1e-5, atol=1e-6)


def test_it_can_be_saved_as_a_folder_and_loaded(tmp_path):
    classifier = onnxeqx.append_head(encoder(), 3, key=jax.random.key(0))
    onnxeqx.save(classifier, tmp_path / "folder")
    np.testing.assert_array_equal(onnxeqx.load(tmp_path / "folder")(IDS), classifier(IDS))


def test_outputs_that_no_head_can_read():
    with pytest.raises(onnxeqx.HeadError, match="has no output 'last' to append a head to; it has same, states"):
        onnxeqx.append_head(encoder(), 2, key=jax.random.key(0), output="last")
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[n, 2, 3, 4] x) => (float[n, 2, 3, 4] y) { y = Relu(x) }'
    images = onnxeqx.load_model(onnx.parser.parse_model(text))
    with pytest.raises(onnxeqx.HeadError, match=r"'y' has shape .*; a head takes \(batch, width\)"):
        onnxeqx.append_head(images, 2, key=jax.random.key(0))
