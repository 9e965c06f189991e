"""Stacked layers compute what single ones do, and everything that is said of single layers still works."""

import functools
import re
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import onnx
import optax
import pytest

import onnxeqx
from onnxeqx._origin import origin_of, single_arrays
from onnxeqx._save_onnx import to_onnx
from onnxeqx.runtime import scan_layers, split_layers, stacked
from tests.deep_models import deepened
from tests.sample_models import CNN, sample_model

LAYERS = 5
BERT, CACHED = "bert_small.ts", "gpt2_small_past.ts"
LAYER = "mods.0.bert.encoder.layer"
# The key path of the stacked block, and the first layer that is in it: T5's first layer also makes the position bias.
STACKS = {
    BERT: (LAYER, 0),
    CACHED: ("mods.0.transformer.h", 0),
    "llama_small.ts": ("mods.0.model.layers", 0),
    "t5_small_enc.ts": ("mods.0.encoder.block.1", 1),
    "whisper_small_enc.ts": ("mods.0.model.encoder.layers", 0),
}


@functools.cache
def deep(name: str = BERT) -> onnx.ModelProto:
    return deepened(name, LAYERS)


@functools.cache
def unrolled(name: str = BERT) -> Any:
    return onnxeqx.load_model(deep(name))


@functools.cache
def scanned(name: str = BERT) -> Any:
    return onnxeqx.load_model(deep(name), scan_layers=True)


def inputs_of(name: str = BERT) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    sizes = {"past": 3, "total": 8}
    found = []
    for value in deep(name).graph.input:
        shape = [dim.dim_value or sizes.get(dim.dim_param, 5) for dim in value.type.tensor_type.shape.dim]
        shape[0] = 2
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            found.append(rng.standard_normal(shape, dtype=np.float32))
        else:
            found.append(np.ones(shape, np.int64) if "mask" in value.name else rng.integers(0, 2, shape))
    return found


@eqx.filter_jit
def outputs_and_gradients(model: Any, inputs: list[Any]) -> Any:
    def loss(model: Any) -> Any:
        outputs = jax.tree.leaves(model(*inputs))
        return sum(jnp.sum(jnp.sin(output)) for output in outputs), outputs

    (_, outputs), gradients = eqx.filter_value_and_grad(loss, has_aux=True)(model)
    return outputs, gradients


@pytest.mark.parametrize("name", STACKS)
def test_the_same_numbers_and_gradients(name):
    inputs = inputs_of(name)
    outputs, gradients = outputs_and_gradients(unrolled(name), inputs)
    rematerialised = [onnxeqx.stack(unrolled(name), remat=True)] if name == BERT else []
    for model in (scanned(name), *rematerialised):
        found, found_gradients = outputs_and_gradients(model, inputs)
        for a, b in zip(found, outputs, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5 * float(jnp.abs(b).max()), rtol=0)
        wanted = single_arrays(gradients)
        scale = max(np.abs(array).max() for array in wanted.values())
        assert scale > 0
        assert single_arrays(found_gradients).keys() == wanted.keys()
        for path, array in single_arrays(found_gradients).items():
            np.testing.assert_allclose(array, wanted[path], atol=1e-5 * scale, rtol=0, err_msg=path)


@pytest.mark.parametrize("name", STACKS)
def test_key_paths_stay_without_the_number(name):
    path, first = STACKS[name]
    arrays = {key: leaf for key, leaf in onnxeqx.key_paths(scanned(name)).items() if key.startswith(f"{path}.")}
    assert arrays
    sequence = path.removesuffix(f".{first}")
    for key, leaf in arrays.items():
        rest = key.removeprefix(path)
        assert leaf.shape[0] == LAYERS - first
        for number, row in enumerate(np.asarray(leaf)):
            np.testing.assert_array_equal(row, onnxeqx.key_paths(unrolled(name))[f"{sequence}.{number + first}{rest}"])


@pytest.mark.parametrize("name", STACKS)
def test_stack_and_unstack_are_inverse(name):
    assert eqx.tree_equal(onnxeqx.stack(unrolled(name)), scanned(name))
    assert eqx.tree_equal(onnxeqx.unstack(scanned(name)), unrolled(name))
    assert onnxeqx.unstack(unrolled(name)) is unrolled(name)
    assert onnxeqx.stack(scanned(name)) is scanned(name)


@pytest.mark.parametrize("name", STACKS)
def test_single_layers_are_written_to_onnx(name):
    one, other = (to_onnx(model, origin_of(model)) for model in (unrolled(name), scanned(name)))
    assert one.SerializeToString(deterministic=True) == other.SerializeToString(deterministic=True)


def test_a_folder_keeps_the_stacks(tmp_path):
    onnxeqx.save(scanned(), tmp_path / "stacked")
    loaded = onnxeqx.load(tmp_path / "stacked")
    assert eqx.tree_equal(loaded, scanned())
    assert eqx.tree_equal(onnxeqx.unstack(loaded), unrolled())
    onnxeqx.save(unrolled(), tmp_path / "single")
    assert eqx.tree_equal(onnxeqx.load(tmp_path / "single", scan_layers=True), scanned())


def test_a_file_converts_to_stacked_source(tmp_path):
    onnx.save(deep(), tmp_path / "bert.onnx")
    onnxeqx.convert(tmp_path / "bert.onnx", tmp_path / "bert", scan_layers=True, remat=True)
    source = (tmp_path / "bert" / "model.py").read_text()
    assert f"self.layer = stacked(Layer() for _ in range({LAYERS}))" in source
    assert "scan_layers(lambda layer, x: layer(x, mask), self.layer, x, remat=True)" in source
    single = onnxeqx.load(tmp_path / "bert.onnx")
    assert eqx.tree_equal(onnxeqx.load(tmp_path / "bert"), onnxeqx.stack(single, remat=True))


def test_caches_are_scanned_over():
    source = " ".join(origin_of(scanned(CACHED)).source.split())
    assert "lambda layer, x, past_key, past_value: layer(x, past_key, past_value, mask)" in source
    assert re.search(r"x, \( ?present_key_0, .*, present_key_4 ?\), \( ?present_value_0, .*\) = scan_layers\(", source)


def test_remat_stores_less():
    inputs = [np.ones((16, 256), np.int64), np.ones((16, 256), np.int64), np.zeros((16, 256), np.int64)]

    def memory(model: Any) -> int:
        compiled = outputs_and_gradients.lower(model, inputs).compile().compiled
        return compiled.memory_analysis().temp_size_in_bytes

    assert memory(onnxeqx.stack(unrolled(), remat=True)) < 0.7 * memory(scanned())


def test_an_operation_stands_once_in_the_program():
    def products(model: Any) -> int:
        return str(jax.make_jaxpr(lambda *inputs: model(*inputs))(*inputs_of())).count("dot_general")

    in_a_layer = 8  # 6 linear layers, 2 of attention
    assert products(unrolled()) - products(scanned()) == (LAYERS - 1) * in_a_layer


def test_layers_are_frozen_by_number():
    params, static = eqx.partition(scanned(), eqx.is_inexact_array)
    optimizer = optax.chain(optax.adamw(1e-2), onnxeqx.freeze_layers(f"{LAYER}.[0-2].*"))
    _, gradients = outputs_and_gradients(scanned(), inputs_of())
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    after = single_arrays(eqx.combine(eqx.apply_updates(params, updates), static))
    before = single_arrays(scanned())
    moved = {path for path in before if not np.array_equal(before[path], after[path])}
    frozen = {path for path in before if re.match(rf"{re.escape(LAYER)}\.[0-2]\.", path)}
    assert frozen
    assert moved == {path for path in before if path not in frozen and before[path].dtype == np.float32}


def test_patterns_choose_stacked_leaves_whole():
    everything = onnxeqx.parameters(scanned(), f"{LAYER}.*")
    assert eqx.tree_equal(onnxeqx.parameters(scanned(), [f"{LAYER}.[0-1].*", f"{LAYER}.[2-9].*"]), everything)
    assert sum(jax.tree.leaves(everything)) == 16
    assert sum(jax.tree.leaves(onnxeqx.parameters(scanned(), f"{LAYER}.output.dense.*"))) == 2
    with pytest.raises(
        onnxeqx.WeightsError, match=r"holds 5 layers, of which the patterns choose some; .*freeze_layers"
    ):
        onnxeqx.parameters(scanned(), freeze=f"{LAYER}.0.*")
    with pytest.raises(onnxeqx.WeightsError, match="holds 5 layers"):
        onnxeqx.partition({"a": optax.sgd(1.0), "b": optax.sgd(2.0)}, {"a": f"{LAYER}.0.*"}, default="b").init(
            eqx.filter(scanned(), eqx.is_inexact_array)
        )


def test_adapters_are_stacked_too(tmp_path):
    key = jax.random.key(0)
    one, other = (onnxeqx.lora(model, "*.query|*.value", rank=4, key=key) for model in (unrolled(), scanned()))
    assert onnxeqx.key_paths(other)[f"{LAYER}.attention.self.query.lora_down"].shape == (LAYERS, 4, 128)
    assert eqx.tree_equal(onnxeqx.unstack(other), one)
    assert eqx.tree_equal(onnxeqx.merge_lora(other), scanned())
    onnxeqx.save_lora(other, tmp_path / "updates.safetensors")
    assert eqx.tree_equal(onnxeqx.load_lora(unrolled(), tmp_path / "updates.safetensors"), one)
    assert eqx.tree_equal(onnxeqx.load_lora(scanned(), tmp_path / "updates.safetensors"), other)
    with pytest.raises(onnxeqx.ConversionError, match="not of one kind and shape in all of them"):
        onnxeqx.lora(scanned(), f"{LAYER}.3.*.query", key=key)


def test_dropout_draws_what_single_layers_draw():
    one, other = (onnxeqx.insert_dropout(model, "*.dense", 0.5) for model in (unrolled(), scanned()))
    source = " ".join(origin_of(one).source.split())
    assert "for number, layer in enumerate(self.layer): x = layer(x, mask, key=subkey(key, number))" in source
    assert f"layer(x, mask, key=key), self.layer, x, subkeys(key, 0, {LAYERS}))" in origin_of(other).source
    inputs, key = inputs_of(), jax.random.key(1)
    expected = eqx.filter_jit(one)(*inputs, key=key)
    np.testing.assert_allclose(eqx.filter_jit(other)(*inputs, key=key), expected, atol=1e-6)
    plain = eqx.filter_jit(scanned())(*inputs)
    assert np.abs(expected - plain).max() > 1e-3
    np.testing.assert_array_equal(eqx.filter_jit(other)(*inputs), plain)


def test_heads_and_truncation():
    inputs = inputs_of()
    assert eqx.filter_jit(onnxeqx.replace_head(scanned(), LAYERS, key=jax.random.key(0)))(*inputs).shape == (2, LAYERS)
    part, whole = (onnxeqx.truncate(model, f"{LAYER}.3") for model in (scanned(), unrolled()))
    assert onnxeqx.key_paths(part)[f"{LAYER}.output.dense.weight"].shape[0] == 4
    np.testing.assert_allclose(eqx.filter_jit(part)(*inputs), eqx.filter_jit(whole)(*inputs), atol=1e-5)
    # Too few layers to stack.
    assert eqx.tree_equal(onnxeqx.truncate(scanned(), f"{LAYER}.1"), onnxeqx.truncate(unrolled(), f"{LAYER}.1"))


def test_a_cast_computes_in_the_new_dtype():
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16) if eqx.is_inexact_array(leaf) else leaf, scanned())
    found = eqx.filter_jit(half)(*inputs_of())
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(np.float32), eqx.filter_jit(scanned())(*inputs_of()), atol=0.05)


def test_it_is_a_pytree_like_any_other():
    model, inputs = scanned(), inputs_of()
    batched = eqx.filter_vmap(lambda model, ids: model(ids, *inputs[1:]), in_axes=(None, 0))(model, inputs[0][None])
    np.testing.assert_allclose(batched[0], eqx.filter_jit(model)(*inputs), atol=1e-6)
    shapes = eqx.filter_eval_shape(model, *inputs)
    assert shapes.shape == (2, 3)


def test_nothing_to_stack():
    with pytest.raises(onnxeqx.ConversionError, match=r"no 4 equal layers in a row .* without scan_layers"):
        onnxeqx.load_model(sample_model(CNN), scan_layers=True)
    with pytest.raises(onnxeqx.ConversionError, match="no 4 equal layers"):
        onnxeqx.stack(onnxeqx.load_model(sample_model(BERT)))  # it has two


def test_remat_is_of_stacked_layers(tmp_path):
    with pytest.raises(onnxeqx.ConversionError, match="give scan_layers=True"):
        onnxeqx.load_model(deep(), remat=True)
    onnxeqx.save(unrolled(), tmp_path / "folder")
    with pytest.raises(onnxeqx.ConversionError, match="give scan_layers=True"):
        onnxeqx.load(tmp_path / "folder", remat=True)


def test_edited_source_is_not_undone(tmp_path):
    onnxeqx.save(unrolled(), tmp_path / "folder")
    source = tmp_path / "folder" / "model.py"
    source.write_text(source.read_text().replace("jnp.tanh(", "jax.nn.relu("))
    with pytest.raises(onnxeqx.ConversionError, match="was edited"):
        onnxeqx.load(tmp_path / "folder", scan_layers=True)


# The functions that printed source calls.


def linear_layers(count: int, width: int = 3) -> list[eqx.nn.Linear]:
    return [eqx.nn.Linear(width, width, key=key) for key in jax.random.split(jax.random.key(0), count)]


def test_scan_layers_is_a_loop():
    layers, x = linear_layers(4), jnp.arange(3.0)
    expected, given = x, []
    for layer, scale in zip(layers, (1.0, 2.0, 3.0, 4.0), strict=True):
        expected = jnp.tanh(layer(expected)) * scale
        given.append(expected[:2])
    scales = tuple(jnp.array(scale) for scale in (1.0, 2.0, 3.0, 4.0))

    def call(layer: Any, x: Any, scale: Any) -> Any:
        y = jnp.tanh(layer(x)) * scale
        return y, y[:2]

    for each, kept in ((scales, stacked(layers)), (jnp.stack(scales), jax.device_get(stacked(layers)))):
        found, outputs = scan_layers(call, kept, x, each)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        np.testing.assert_allclose(outputs, jnp.stack(given), rtol=1e-6)


def test_layers_that_change_the_dtype_come_before_the_scan():
    layers, x = linear_layers(4), jnp.arange(3.0, dtype=jnp.bfloat16)
    expected, given = x, []
    for layer in layers:
        expected = layer(expected)
        given.append(expected.sum())
    found, sums = scan_layers(lambda layer, x: (layer(x), layer(x).sum()), stacked(layers), x)
    assert found.dtype == expected.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(sums, jnp.stack(given), rtol=1e-5)


def test_layers_that_always_change_the_shape_are_a_loop():
    found = scan_layers(lambda layer, x: jnp.concatenate([x, layer(x[:3])]), stacked(linear_layers(3)), jnp.arange(3.0))
    assert found.shape == (12,)


def test_stacking_takes_equal_layers():
    with pytest.raises(ValueError, match="differ in nothing but"):
        stacked(
            [eqx.nn.Linear(3, 3, key=jax.random.key(0)), eqx.nn.Linear(3, 3, use_bias=False, key=jax.random.key(0))]
        )
    with pytest.raises(ValueError, match="of 4 layers, not of 5"):
        split_layers(stacked(linear_layers(5)), 4)
    odd = eqx.tree_at(lambda layer: layer.bias, stacked(linear_layers(4)), jnp.zeros(3))
    with pytest.raises(ValueError, match="one leading axis of layers"):
        scan_layers(lambda layer, x: layer(x), odd, jnp.zeros(3))
