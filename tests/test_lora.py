"""Low-rank updates on an encoder: key paths, training, merging, and the file of the updates alone."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import optax
import pytest

import onnxeqx
from onnxeqx.nn import LoRALinear

from .sample_models import ENCODER, sample_model

TOKENS = {
    "input_ids": np.random.default_rng(0).integers(0, 100, (2, 6)),
    "attention_mask": np.ones((2, 6), np.int64),
    "token_type_ids": np.zeros((2, 6), np.int64),
}
LAYERS = "*.query|*.value"


@pytest.fixture(scope="module")
def base():
    return onnxeqx.load_model(sample_model(ENCODER))


@pytest.fixture(scope="module")
def call(base):
    given = {name: TOKENS[name] for name in base.input_names}
    run = eqx.filter_jit(lambda model: model(**given))

    def first(model):
        result = run(model)
        return result[0] if isinstance(result, tuple) else result

    return first


@pytest.fixture(scope="module")
def adapted(base):
    return onnxeqx.lora(base, LAYERS, rank=4, alpha=8, key=jax.random.key(0))


@pytest.fixture(scope="module")
def trained(adapted, call):
    """After three steps on the updates alone."""
    mask = onnxeqx.parameters(adapted, trainable="*.lora_*")
    updates, rest = eqx.partition(adapted, mask)
    optimizer = optax.adam(1e-2)
    state = optimizer.init(updates)
    for _ in range(3):
        gradients = jax.grad(lambda updates: jnp.mean(call(eqx.combine(updates, rest)) ** 2))(updates)
        changes, state = optimizer.update(gradients, state)
        updates = optax.apply_updates(updates, changes)
    return eqx.combine(updates, rest)


def test_a_new_update_changes_nothing(base, adapted, call):
    np.testing.assert_allclose(call(adapted), call(base), rtol=1e-5, atol=1e-7)


def test_key_paths_stay_and_gain_two(base, adapted):
    before, after = onnxeqx.key_paths(base), onnxeqx.key_paths(adapted)
    new = set(after) - set(before)
    assert set(before) <= set(after)
    assert {path.rpartition(".")[2] for path in new} == {"lora_down", "lora_up"}
    layers = {path.rpartition(".")[0] for path in new}
    assert layers
    assert all(layer.endswith((".query", ".value")) for layer in layers)


def test_training_moves_the_updates_only(adapted, trained, base, call):
    before, after = onnxeqx.key_paths(adapted), onnxeqx.key_paths(trained)
    for path, leaf in after.items():
        same = np.array_equal(
            np.asarray(getattr(leaf, "bits", leaf)), np.asarray(getattr(before[path], "bits", before[path]))
        )
        assert same != (".lora_" in path), path
    assert np.abs(call(trained) - call(base)).max() > 1e-4


def test_merged_weights_compute_the_same(trained, call, base):
    merged = onnxeqx.merge_lora(trained)
    np.testing.assert_allclose(call(merged), call(trained), rtol=1e-4, atol=1e-5)
    assert jax.tree.structure(merged) == jax.tree.structure(base)


def test_merged_models_go_back_to_onnx(trained, call, tmp_path):
    onnxeqx.save_onnx(onnxeqx.merge_lora(trained), tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    given = {value.name: TOKENS[value.name] for value in session.get_inputs()}
    np.testing.assert_allclose(session.run(None, given)[0], call(trained), rtol=1e-3, atol=1e-4)
    with pytest.raises(onnxeqx.WeightsError, match=r"lora_down"):
        onnxeqx.save_onnx(trained, tmp_path / "other.onnx")


def test_the_updates_alone_make_a_file(base, trained, call, tmp_path):
    onnxeqx.save_lora(trained, tmp_path / "updates.safetensors")
    onnxeqx.save_weights(trained, tmp_path / "all.safetensors")
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("updates", "all")]
    assert sizes[0] < sizes[1] / 5
    again = onnxeqx.load_lora(base, tmp_path / "updates.safetensors")
    np.testing.assert_array_equal(call(again), call(trained))
    assert jax.tree.structure(again) == jax.tree.structure(trained)
    with pytest.raises(onnxeqx.WeightsError, match="has no layer"):
        onnxeqx.load_lora(trained, tmp_path / "updates.safetensors")
    with pytest.raises(onnxeqx.WeightsError, match="holds no low-rank updates"):
        onnxeqx.load_lora(base, tmp_path / "all.safetensors")
    with pytest.raises(onnxeqx.WeightsError, match="has no low-rank updates"):
        onnxeqx.save_lora(base, tmp_path / "none.safetensors")


def test_bad_patterns_and_ranks(base):
    with pytest.raises(
        onnxeqx.WeightsError, match=r"'\*\.nothing' matches no linear layer or convolution; the model has "
    ):
        onnxeqx.lora(base, ["*.query", "*.nothing"], key=jax.random.key(0))
    with pytest.raises(ValueError, match="at least 1, not 0"):
        onnxeqx.lora(base, LAYERS, rank=0, key=jax.random.key(0))


def test_a_layer_without_a_bias_keeps_none():
    linear = eqx.nn.Linear(3, 2, use_bias=False, key=jax.random.key(0))
    layer = LoRALinear(linear, 1, 0.5, key=jax.random.key(1))
    layer = eqx.tree_at(lambda layer: layer.lora_up, layer, jnp.ones((2, 1)))
    x = jnp.arange(3.0)
    merged = layer.merged()
    assert merged.bias is None
    np.testing.assert_allclose(merged(x), layer(x), rtol=1e-6)
    np.testing.assert_allclose(layer(x), linear(x) + 0.5 * (layer.lora_down @ x), rtol=1e-6)


CONVOLUTIONS = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[batch, 4, 9, 9] image) => (float[batch, 6, q, r] map) {
  a = Conv<kernel_shape=[3, 3], strides=[2, 2], pads=[1, 0, 1, 2], dilations=[2, 1]>(image, "first.weight", "first.bias")
  b = Conv<kernel_shape=[1, 1]>(a, "second.weight")
  c = Conv<kernel_shape=[3, 3], group=2>(b, "grouped.weight")
  map = Relu(c)
}
"""


@pytest.fixture(scope="module")
def convolutions():
    proto, random = onnx.parser.parse_model(CONVOLUTIONS), np.random.default_rng(0)
    for name, shape in {
        "first.weight": (8, 4, 3, 3),
        "first.bias": (8,),
        "second.weight": (4, 8, 1, 1),
        "grouped.weight": (6, 2, 3, 3),
    }.items():
        values = random.normal(size=shape).astype(np.float32) / 3
        proto.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return onnxeqx.load_model(proto)


def test_convolutions_are_adapted_too(convolutions, tmp_path):
    image = np.random.default_rng(1).normal(size=(2, 4, 9, 9)).astype(np.float32)
    adapted = onnxeqx.lora(convolutions, "*", rank=2, alpha=4, key=jax.random.key(0))
    np.testing.assert_array_equal(adapted(image), convolutions(image))
    updates, rest = eqx.partition(adapted, onnxeqx.parameters(adapted, trainable="*.lora_*"))
    assert len(jax.tree.leaves(updates)) == 6

    @jax.grad
    def gradients(updates):
        return jnp.mean(eqx.combine(updates, rest)(image) ** 2)

    for _ in range(2):  # after the first step, lora_down has a gradient too
        found = gradients(updates)
        updates = jax.tree.map(lambda leaf, gradient: leaf - gradient, updates, found)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(found))
    trained = eqx.combine(updates, rest)
    merged = onnxeqx.merge_lora(trained)
    assert jax.tree.structure(merged) == jax.tree.structure(convolutions)
    assert np.abs(trained(image) - convolutions(image)).max() > 1e-2
    np.testing.assert_allclose(merged(image), trained(image), rtol=1e-5, atol=1e-6)
    # The rank of what was added to a kernel, flattened, is that of the update.
    added = merged.first.weight - convolutions.first.weight
    assert np.linalg.matrix_rank(np.asarray(added).reshape(8, -1), tol=1e-5) == 2
    np.testing.assert_allclose(
        added.reshape(8, -1), 2 * trained.first.lora_up @ trained.first.lora_down, rtol=1e-3, atol=1e-6
    )
    onnxeqx.save_onnx(merged, tmp_path / "net.onnx")
    (served,) = onnxruntime.InferenceSession(tmp_path / "net.onnx").run(None, {"image": image})
    np.testing.assert_allclose(served, trained(image), rtol=1e-4, atol=1e-5)
    onnxeqx.save_lora(trained, tmp_path / "updates.safetensors")
    again = onnxeqx.load_lora(convolutions, tmp_path / "updates.safetensors")
    np.testing.assert_array_equal(again(image), trained(image))
