"""Loading and converting: one type for equal files, the same bytes twice, folders that people edit."""

import pathlib

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest

import onnxeqx
from tests.sample_models import CNN, CONV_HEAD_CNN, ENCODER, sample_model

TWO_LAYERS = """
<ir_version: 8, opset_import: ["" : 17]>
mlp (float[batch, 4] x) => (float[batch, 3] y)
<float[4, 5] w1, float[5] b1, float[5, 3] w2>
{
    h = MatMul(x, w1)
    a = Add(h, b1)
    r = Relu(a)
    y = MatMul(r, w2)
}
"""


def mlp(seed: int = 0) -> onnx.ModelProto:
    model = onnx.parser.parse_model(TWO_LAYERS)
    generator = np.random.default_rng(seed)
    shapes = {"fc1.weight": (4, 5), "fc1.bias": (5,), "fc2.weight": (5, 3)}
    for old, new in zip(("w1", "b1", "w2"), shapes, strict=True):
        for node in model.graph.node:
            node.input[:] = [new if name == old else name for name in node.input]
    del model.graph.initializer[:]
    for name, shape in shapes.items():
        array = generator.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return model


def expected(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return np.maximum(x @ weights["fc1.weight"] + weights["fc1.bias"], 0) @ weights["fc2.weight"]


@pytest.fixture
def mlp_file(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "mlp.onnx"
    onnx.save(mlp(), path)
    return path


def test_layers_have_the_names_and_layout_of_equinox(mlp_file):
    model = onnxeqx.load(mlp_file)
    assert isinstance(model.fc1, eqx.nn.Linear)
    assert model.fc1.weight.shape == (5, 4)
    assert model.fc2.bias is None
    assert (model.input_names, model.output_names) == (("x",), ("y",))
    assert list(onnxeqx.key_paths(model)) == ["fc1.weight", "fc1.bias", "fc2.weight"]


@pytest.mark.parametrize("call", [lambda f: f, eqx.filter_jit], ids=["eager", "jit"])
def test_computes_what_the_file_says_at_any_batch_size(mlp_file, call):
    model = onnxeqx.load(mlp_file)
    for batch in (1, 3):
        x = np.random.default_rng(batch).standard_normal((batch, 4)).astype(np.float32)
        np.testing.assert_allclose(call(model)(x), expected(mlp(), x), rtol=1e-5, atol=1e-5)


def test_loading_twice_gives_one_type_and_one_tree_structure(mlp_file, tmp_path):
    first, second = onnxeqx.load(mlp_file), onnxeqx.load(mlp_file)
    assert type(first) is type(second)
    assert jax.tree.structure(first) == jax.tree.structure(second)
    # The same graph with other weights, under the same file name, is the same type.
    (tmp_path / "elsewhere").mkdir()
    onnx.save(mlp(seed=1), tmp_path / "elsewhere" / "mlp.onnx")
    third = onnxeqx.load(tmp_path / "elsewhere" / "mlp.onnx")
    assert type(third) is type(first)
    assert not np.array_equal(third.fc1.weight, first.fc1.weight)


def test_loading_leaves_the_given_model_alone():
    model = mlp()
    before = model.SerializeToString(deterministic=True)
    onnxeqx.load_model(model)
    assert model.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("name", [CNN, CONV_HEAD_CNN, ENCODER])
def test_converting_twice_gives_the_same_bytes(tmp_path, name):
    onnx.save(sample_model(name), tmp_path / "model.onnx")
    for folder in ("a", "b"):
        onnxeqx.convert(tmp_path / "model.onnx", tmp_path / folder)
    for file in ("model.py", "weights.safetensors", "graph.onnx"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_a_converted_folder_is_the_same_model(mlp_file, tmp_path):
    onnxeqx.convert(mlp_file, tmp_path / "mlp")
    model, again = onnxeqx.load(mlp_file), onnxeqx.load(tmp_path / "mlp")
    assert type(model) is type(again)
    assert eqx.tree_equal(model, again)


def test_a_folder_edited_by_hand_loads(mlp_file, tmp_path):
    onnxeqx.convert(mlp_file, tmp_path / "mlp")
    source = tmp_path / "mlp" / "model.py"
    text = source.read_text()
    assert "jax.nn.relu(" in text
    source.write_text(text.replace("jax.nn.relu(", "jax.nn.silu("))
    x = np.ones((2, 4), np.float32)
    model = onnxeqx.load(tmp_path / "mlp")
    hidden = jax.vmap(model.fc1)(x)
    np.testing.assert_allclose(model(x), jax.vmap(model.fc2)(jax.nn.silu(hidden)), rtol=1e-5)


def test_a_printed_file_runs_on_its_own(mlp_file, tmp_path):
    onnxeqx.convert(mlp_file, tmp_path / "mlp")
    namespace = {"__name__": "model"}
    exec(compile((tmp_path / "mlp" / "model.py").read_text(), "model.py", "exec"), namespace)
    assert namespace["Model"].__name__ == "Model"


def test_tracebacks_show_the_printed_line(mlp_file):
    model = onnxeqx.load(mlp_file)
    broken = eqx.tree_at(lambda m: m.fc2.weight, model, jnp.zeros((3, 9)))
    with pytest.raises(TypeError) as caught:
        broken(np.ones((2, 4), np.float32))
    assert any("over_batch(self.fc2" in str(entry.statement) for entry in caught.traceback)


def test_nothing_is_overwritten_or_left_half_written(mlp_file, tmp_path):
    target = tmp_path / "mlp"
    target.mkdir()
    (target / "precious.txt").write_text("mine")
    with pytest.raises(onnxeqx.OutputExistsError, match="force=True"):
        onnxeqx.convert(mlp_file, target)
    assert [file.name for file in target.iterdir()] == ["precious.txt"]
    onnxeqx.convert(mlp_file, target, force=True)
    assert sorted(file.name for file in target.iterdir()) == ["graph.onnx", "model.py", "weights.safetensors"]
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    with pytest.raises(onnxeqx.ReadError):
        onnxeqx.convert(tmp_path / "bad.onnx", tmp_path / "never")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bad.onnx", "mlp", "mlp.onnx"]


@pytest.mark.parametrize("missing", ["model.py", "weights.safetensors"])
def test_an_incomplete_folder_is_one_clear_error(mlp_file, tmp_path, missing):
    onnxeqx.convert(mlp_file, tmp_path / "mlp")
    (tmp_path / "mlp" / missing).unlink()
    with pytest.raises(onnxeqx.ReadError, match=missing):
        onnxeqx.load(tmp_path / "mlp")


def test_a_folder_whose_source_does_not_run_is_one_clear_error(mlp_file, tmp_path):
    onnxeqx.convert(mlp_file, tmp_path / "mlp")
    (tmp_path / "mlp" / "model.py").write_text("class Other: pass\n")
    with pytest.raises(onnxeqx.ConversionError, match="class Model"):
        onnxeqx.load(tmp_path / "mlp")
    (tmp_path / "mlp" / "model.py").write_text("this is not python\n")
    with pytest.raises(onnxeqx.ConversionError, match="does not run"):
        onnxeqx.load(tmp_path / "mlp")


def test_layers_lists_what_is_in_a_file(mlp_file):
    found = onnxeqx.layers(mlp_file)
    assert [(layer.name, layer.kind, layer.parameters) for layer in found if layer.parameters] == [
        ("fc1", "Linear", 25),
        ("fc2", "Linear", 15),
    ]
    assert all(layer.supported for layer in found)
    assert found[-1].output_shapes == (("x.shape[0]", 3),)


def test_layers_lists_unsupported_operators_too(tmp_path):
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17, "org.acme" : 1]> g (float[2] x) => (float[2] y) { h = Relu(x) y = org.acme.Warp(h) }'
    )
    onnx.save(model, tmp_path / "warp.onnx")
    found = onnxeqx.layers(tmp_path / "warp.onnx")
    assert [(layer.kind, layer.supported) for layer in found] == [("Relu", True), ("org.acme::Warp", False)]


def test_input_shapes_free_a_fixed_dimension(tmp_path):
    model = mlp()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, tmp_path / "fixed.onnx")
    x = np.ones((3, 4), np.float32)
    with pytest.raises(onnxeqx.InputError, match="input_shapes"):
        onnxeqx.load(tmp_path / "fixed.onnx")(x)
    freed = onnxeqx.load(tmp_path / "fixed.onnx", input_shapes={"x": ("batch", 4)})
    np.testing.assert_allclose(freed(x), expected(mlp(), x), rtol=1e-5, atol=1e-5)
