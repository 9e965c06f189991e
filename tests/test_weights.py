"""Weights by key path: saving, strict loading, masks from patterns, buffers."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import onnxeqx
from tests.sample_models import CNN, ENCODER, sample_model


class Net(eqx.Module):
    fc: eqx.nn.Linear
    norm: onnxeqx.nn.BatchNorm
    layer: tuple
    table: jax.Array

    def __init__(self, seed: int = 0):
        first, second, third = jax.random.split(jax.random.key(seed), 3)
        self.fc = eqx.nn.Linear(3, 2, key=first)
        self.norm = onnxeqx.nn.BatchNorm(4)
        self.layer = (eqx.nn.Linear(2, 2, key=second), None, eqx.nn.Linear(2, 2, use_bias=False, key=third))
        self.table = jnp.arange(5)


def paths(tree) -> set[str]:
    return {path for path, chosen in onnxeqx.key_paths(tree).items() if chosen}


def test_key_paths_are_dotted_and_buffers_are_one_leaf():
    assert list(onnxeqx.key_paths(Net())) == [
        "fc.weight",
        "fc.bias",
        "norm.weight",
        "norm.bias",
        "norm.running_mean",
        "norm.running_var",
        "layer.0.weight",
        "layer.0.bias",
        "layer.2.weight",
        "table",
    ]


def chosen(mask) -> set[str]:
    from onnxeqx._weights import dotted_path

    return {dotted_path(path) for path, leaf in jax.tree_util.tree_flatten_with_path(mask)[0] if leaf is True}


def test_every_parameter_and_nothing_else_is_chosen_by_default():
    expected = {"fc.weight", "fc.bias", "norm.weight", "norm.bias", "layer.0.weight", "layer.0.bias", "layer.2.weight"}
    assert chosen(onnxeqx.parameters(Net())) == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"trainable": "fc.*"}, {"fc.weight", "fc.bias"}),
        ({"trainable": "fc"}, {"fc.weight", "fc.bias"}),
        ({"trainable": ["fc.bias", "layer.[02].weight"]}, {"fc.bias", "layer.0.weight", "layer.2.weight"}),
        ({"freeze": ["layer.*", "norm.*"]}, {"fc.weight", "fc.bias"}),
        ({"trainable": "*.weight", "freeze": "layer.*"}, {"fc.weight", "norm.weight"}),
    ],
)
def test_patterns_choose_by_key_path(options, expected):
    assert chosen(onnxeqx.parameters(Net(), **options)) == expected


def test_a_mask_partitions_the_model():
    trainable, frozen = eqx.partition(Net(), onnxeqx.parameters(Net(), trainable="fc.*"))
    assert len(jax.tree.leaves(trainable)) == 2
    assert eqx.tree_equal(eqx.combine(trainable, frozen), Net())


@pytest.mark.parametrize("option", ["trainable", "freeze"])
def test_a_pattern_without_a_match_is_an_error_that_shows_key_paths(option):
    with pytest.raises(onnxeqx.WeightsError, match=r"'head\.\*' matches no parameter.*fc, layer, norm"):
        onnxeqx.parameters(Net(), **{option: "head.*"})


def test_round_trip_is_bitwise(tmp_path):
    model = Net(seed=1)
    statistics = onnxeqx.nn.Buffer(np.array([0.1, -0.0, 3e38, 1e-40], np.float32))
    model = eqx.tree_at(lambda m: m.norm.running_mean, model, statistics)
    onnxeqx.save_weights(model, tmp_path / "w.safetensors")
    assert eqx.tree_equal(onnxeqx.load_weights(Net(seed=2), tmp_path / "w.safetensors"), model)
    skeleton = eqx.filter_eval_shape(Net)
    assert eqx.tree_equal(onnxeqx.load_weights(skeleton, tmp_path / "w.safetensors"), model)


def test_buffers_are_stored_as_the_floats_they_are(tmp_path):
    import safetensors.numpy

    onnxeqx.save_weights(Net(), tmp_path / "w.safetensors")
    stored = safetensors.numpy.load_file(tmp_path / "w.safetensors")
    assert stored["norm.running_var"].dtype == np.float32
    np.testing.assert_array_equal(stored["norm.running_var"], np.ones(4, np.float32))


def test_all_mismatches_are_listed_at_once(tmp_path):
    class Other(eqx.Module):
        fc: eqx.nn.Linear
        table: jax.Array
        extra: jax.Array

    other = Other(eqx.nn.Linear(3, 5, key=jax.random.key(0)), jnp.zeros(5), jnp.zeros(1))
    onnxeqx.save_weights(other, tmp_path / "w.safetensors")
    with pytest.raises(onnxeqx.WeightsError) as caught:
        onnxeqx.load_weights(Net(), tmp_path / "w.safetensors")
    text = str(caught.value)
    for part in (
        "missing: norm.weight",
        "missing: layer.2.weight",
        "unexpected: extra",
        "shape of fc.weight: (5, 3)",
        "dtype of table",
    ):
        assert part in text, part


def test_equal_shapes_are_not_swapped(tmp_path):
    model = Net(seed=3)
    onnxeqx.save_weights(model, tmp_path / "w.safetensors")
    loaded = onnxeqx.load_weights(Net(seed=4), tmp_path / "w.safetensors")
    np.testing.assert_array_equal(loaded.layer[0].weight, model.layer[0].weight)
    np.testing.assert_array_equal(loaded.layer[2].weight, model.layer[2].weight)


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x10\x00\x00\x00\x00\x00\x00\x00{not json here}"])
def test_a_damaged_file_is_one_clear_error(tmp_path, content):
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(onnxeqx.WeightsError, match="damaged"):
        onnxeqx.load_weights(Net(), tmp_path / "w.safetensors")


def test_a_missing_file_and_a_missing_folder_are_clear_errors(tmp_path):
    with pytest.raises(onnxeqx.WeightsError, match="no weights file"):
        onnxeqx.load_weights(Net(), tmp_path / "none.safetensors")
    with pytest.raises(onnxeqx.OnnxeqxError, match="no folder"):
        onnxeqx.save_weights(Net(), tmp_path / "none" / "w.safetensors")


def test_a_file_is_not_overwritten_unless_asked_and_never_half_written(tmp_path, monkeypatch):
    target = tmp_path / "w.safetensors"
    onnxeqx.save_weights(Net(), target)
    before = target.read_bytes()
    with pytest.raises(onnxeqx.OutputExistsError):
        onnxeqx.save_weights(Net(seed=9), target, force=False)
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        onnxeqx.save_weights(Net(seed=9), target)
    assert target.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["w.safetensors"]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_a_buffer_keeps_its_bits_and_is_no_inexact_array(dtype):
    values = jnp.array([1.5, -2.25, 0.0], dtype)
    buffer = onnxeqx.nn.Buffer(values)
    assert not eqx.is_inexact_array(buffer.bits)
    assert buffer.value.dtype == dtype
    np.testing.assert_array_equal(np.asarray(buffer.value, np.float32), np.asarray(values, np.float32))
    assert buffer.astype(jnp.float32).dtype == jnp.float32


@pytest.mark.parametrize("name", [CNN, ENCODER])
def test_a_loaded_model_round_trips(tmp_path, name):
    model = onnxeqx.load_model(sample_model(name))
    onnxeqx.save_weights(model, tmp_path / "w.safetensors")
    zeros = jax.tree.map(jnp.zeros_like, model)
    assert eqx.tree_equal(onnxeqx.load_weights(zeros, tmp_path / "w.safetensors"), model)
