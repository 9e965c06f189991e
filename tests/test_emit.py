"""The printed source: readable, deterministic, and never a way for a model's text to execute."""

import ast

import numpy as np
import onnx
import pytest

import onnxeqx
from onnxeqx._convert import convert
from onnxeqx._read import read_proto
from tests.sample_models import CNN, ENCODER, sample_model


def printed(text_or_model, name: str = "m.onnx"):
    model = onnx.parser.parse_model(text_or_model) if isinstance(text_or_model, str) else text_or_model
    return convert(read_proto(model), name)


def with_weights(text: str, **shapes: tuple[int, ...]) -> onnx.ModelProto:
    """The model with seeded initializers; `__` in a name stands for a dot."""
    model = onnx.parser.parse_model(text)
    generator = np.random.default_rng(0)
    for name, shape in shapes.items():
        dotted = name.replace("__", ".")
        for node in model.graph.node:
            node.input[:] = [dotted if item == name else item for item in node.input]
        array = generator.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, dotted))
    return model


def name_nodes(model: onnx.ModelProto, names: list[str]) -> None:
    """Gives the nodes the names by which an exporter places them."""
    for node, name in zip(model.graph.node, names, strict=True):
        node.name = name


HEADER = '<ir_version: 8, opset_import: ["" : 17]>'


def test_equal_consecutive_blocks_are_a_loop():
    lines, shapes, value = [], {}, "x"
    for i in range(4):
        shapes |= {f"layer__{i}__fc__weight": (4, 4), f"layer__{i}__fc__bias": (4,)}
        lines.append(f"h{i} = Gemm <transB: int = 1> ({value}, layer__{i}__fc__weight, layer__{i}__fc__bias)")
        lines.append(f"x{i} = Relu(h{i})")
        value = f"x{i}"
    lines[-1] = lines[-1].replace("x3 =", "y =")
    model = with_weights(f"{HEADER} g (float[n, 4] x) => (float[n, 4] y) {{ {' '.join(lines)} }}", **shapes)
    name_nodes(model, [f"/layer.{i // 2}/{i}" for i in range(8)])
    source = printed(model).source
    assert "for layer in self.layer:" in source
    assert "tuple(Layer() for _ in range(4))" in source
    assert source.count("class ") == 2
    live = onnxeqx.load_model(model)
    assert live.layer[3].fc.weight.shape == (4, 4)


def test_what_differs_between_equal_blocks_is_an_argument():
    text = f"""{HEADER} g (float[n, 4] x) => (float[n, 6] y) {{
        a = MatMul(x, block__0__fc__weight) b = Relu(a) c = MatMul(b, block__1__fc__weight) y = Relu(c) }}"""
    model = with_weights(text, block__0__fc__weight=(4, 5), block__1__fc__weight=(5, 6))
    name_nodes(model, ["/block.0/a", "/block.0/b", "/block.1/c", "/block.1/y"])
    source = printed(model).source
    assert "def __init__(self, in_features, out_features):" in source
    assert "for in_features, out_features in ((4, 5), (5, 6))" in source


def test_shape_arithmetic_prints_as_python():
    text = f"""{HEADER} g (float[batch, seq, 8] x) => (float[a, b, c, d] y) {{
        s = Shape(x) zero = Constant <value_int: int = 0> () b = Gather(s, zero)
        axes = Constant <value_ints: ints = [0]> () b1 = Unsqueeze(b, axes)
        rest = Constant <value_ints: ints = [-1, 2, 4]> () shape = Concat <axis: int = 0> (b1, rest)
        y = Reshape(x, shape) }}"""
    source = printed(text).source
    assert "x.reshape(x.shape[0], -1, 2, 4)" in source
    assert "gather" not in source


def test_a_tie_has_one_owner_and_others_read_it():
    text = f"""{HEADER} g (int64[n, s] ids) => (float[n, s, 10] y) {{
        h = Gather(wte__weight, ids) t = Transpose <perm: ints = [1, 0]> (wte__weight) y = MatMul(h, t) }}"""
    model = with_weights(text, wte__weight=(10, 4))
    live = onnxeqx.load_model(model)
    assert list(onnxeqx.key_paths(live)) == ["wte.weight"]
    ids = np.array([[1, 2]])
    table = np.asarray(live.wte.weight)
    np.testing.assert_allclose(live(ids), table[ids] @ table.T, rtol=1e-5)


def test_uniform_tensors_merged_by_an_exporter_are_separate_weights():
    text = f"""{HEADER} g (float[n, 4] x) => (float[n, 4] y) {{
        a = MatMul(x, first__weight) b = Add(a, first__bias) c = MatMul(b, second__weight)
        shared = Identity(first__bias) y = Add(c, shared) }}"""
    model = with_weights(text, first__weight=(4, 4), second__weight=(4, 4))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(4, np.float32), "first.bias"))
    for node in model.graph.node:
        node.input[:] = ["first.bias" if item == "first__bias" else item for item in node.input]
    live = onnxeqx.load_model(model)
    assert list(onnxeqx.key_paths(live)) == ["first.weight", "first.bias", "second.weight", "second.bias"]


def test_the_same_layer_called_twice_is_one_layer():
    text = f"{HEADER} g (float[n, 4] x) => (float[n, 4] y) {{ a = MatMul(x, fc__weight) b = Relu(a) y = MatMul(b, fc__weight) }}"
    live = onnxeqx.load_model(with_weights(text, fc__weight=(4, 4)))
    assert list(onnxeqx.key_paths(live)) == ["fc.weight"]
    x = np.ones((1, 4), np.float32)
    weight = np.asarray(live.fc.weight).T
    np.testing.assert_allclose(live(x), np.maximum(x @ weight, 0) @ weight, rtol=1e-5)


@pytest.mark.parametrize(
    "name",
    [
        '"""; import os; os.system("touch PWNED"); """',
        "class",
        "__init__",
        "../../etc/passwd",
        "a\nb",
        "self",
        "é" * 5,
        "x" * 10_000,
        "0",
    ],
)
def test_names_of_a_model_never_become_code(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = f"{HEADER} g (float[n, 4] x) => (float[n, 4] y) {{ a = MatMul(x, w) y = Relu(a) }}"
    model = with_weights(text, w=(4, 4))
    model.graph.initializer[0].name = f"{name}.weight"
    model.graph.node[0].input[1] = f"{name}.weight"
    model.graph.node[0].name = name
    model.graph.input[0].name = model.graph.node[0].input[0] = name
    model.graph.name = name
    result = printed(model, name)
    tree = ast.parse(result.source)
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    assert called <= {"over_batch", "model_call", "compute_dtype", "tuple", "range"} | defined
    assert printed(model, name).source == result.source
    live = onnxeqx.load_model(model)
    assert live(**{name: np.ones((2, 4), np.float32)}).shape == (2, 4)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [CNN, ENCODER])
def test_real_models_print_short_lines_of_parseable_code(name):
    result = printed(sample_model(name))
    ast.parse(result.source)
    assert "tmp" not in result.source
    assert not [path for path in result.leaves if "node_" in path]


def test_constants_of_the_file_follow_a_cast_of_the_model():
    import jax
    import jax.numpy as jnp

    text = f"""{HEADER} g (float[n, 4] x, bool[n, 4] mask) => (float[n, 4] y) {{
        low = Constant <value: tensor = float {{-3.4028234663852886e+38}}> () zero = Constant <value: tensor = float {{0}}> ()
        a = MatMul(x, w) m = Where(mask, zero, low) s = Add(a, m) y = Softmax <axis: int = -1> (s) }}"""
    live = onnxeqx.load_model(with_weights(text, w=(4, 4)))
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), live)
    mask = np.array([[True, False, True, False]])
    result = half(np.ones((1, 4), np.float32), mask)
    assert result.dtype == jnp.bfloat16
    assert np.isfinite(np.asarray(result, np.float32)).all()
    np.testing.assert_array_equal(np.asarray(result, np.float32)[~mask], 0)


def test_a_block_without_weights_is_given_the_dtype_of_the_model():
    import equinox as eqx
    import jax
    import jax.numpy as jnp

    text = f"""{HEADER} g (int64[n, 20] ids) => (float[n, 3] y) {{
        p = Cast <to: int = 1> (ids) zero = Constant <value_int: int = 0> () one = Constant <value_int: int = 1> ()
        size = Constant <value_int: int = 20> () r = Range(zero, size, one) f = Cast <to: int = 1> (r)
        m = Mul(p, f) y = MatMul(m, fc__weight) }}"""
    model = with_weights(text, fc__weight=(20, 3))
    name_nodes(
        model,
        ["/rot/Cast", "/rot/zero", "/rot/one", "/rot/size", "/rot/Range", "/rot/Cast_1", "/rot/Mul", "/fc/MatMul"],
    )
    model.graph.node[5].output[0] = model.graph.node[6].input[1] = "/rot/f_output_0"
    source = printed(model).source
    assert "*, dtype=jnp.float32):" in source
    assert "self.rot(ids, dtype=dtype)" in source
    weights, rest = eqx.partition(onnxeqx.load_model(model), eqx.is_inexact_array)
    half = eqx.combine(jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), weights), rest)
    with jax.numpy_dtype_promotion("strict"):
        assert half(np.ones((2, 20), np.int64)).dtype == jnp.bfloat16
