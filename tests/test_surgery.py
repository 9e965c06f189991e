"""Surgery on a loaded model: another head, and dropout between its layers."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest

import onnxeqx
from onnxeqx import HeadError, WeightsError
from onnxeqx._origin import origin_of
from tests.sample_models import CNN, CONV_HEAD_CNN, ENCODER, sample_model

KEYS = jax.random.split(jax.random.key(0), 2)
TOKENS = {
    "input_ids": np.random.default_rng(0).integers(0, 100, (2, 6)),
    "attention_mask": np.ones((2, 6), np.int64),
    "token_type_ids": np.zeros((2, 6), np.int64),
}
LINEAR = """<ir_version: 8, opset_import: ["": 17]>
g (float[n, 6] x) => (float[n, 4] y) <float[6, 5] w, float[5, 4] v> {{ h = MatMul (x, w) {} y = MatMul (h2, v) }}"""
PLAIN = LINEAR.format("h2 = Identity (h)")
NAMES = {"w": "first.weight", "v": "second.weight"}
X = np.random.default_rng(1).standard_normal((3, 6)).astype(np.float32)


def proto_of(text: str, names: dict[str, str] | None = None) -> onnx.ModelProto:
    """A model of ONNX text, its declared values random weights under other names."""
    model, names = onnx.parser.parse_model(text), names or {}
    generator = np.random.default_rng(0)
    for value in model.graph.value_info:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        array = generator.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, names.get(value.name, value.name)))
    del model.graph.value_info[:]
    for graph in (model.graph, *(a.g for node in model.graph.node for a in node.attribute if a.HasField("g"))):
        for node in graph.node:
            node.input[:] = [names.get(name, name) for name in node.input]
    return model


def build(text: str, names: dict[str, str] | None = None) -> eqx.Module:
    return onnxeqx.load_model(proto_of(text, names))


def served(path, *inputs) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return session.run(None, dict(zip(names, inputs, strict=True)))[0]


@pytest.fixture(scope="module")
def encoder():
    return onnxeqx.load_model(sample_model(ENCODER))


def arrays_of(model) -> dict[str, jax.Array]:
    leaves = onnxeqx.key_paths(model).items()
    return {path: leaf.bits if isinstance(leaf, onnxeqx.nn.Buffer) else leaf for path, leaf in leaves}


def tokens(model) -> list[np.ndarray]:
    return [TOKENS[name] for name in model.input_names]


# A new head.


@pytest.mark.parametrize(
    ("name", "head"), [(CNN, "classifier.3"), (CONV_HEAD_CNN, "classifier.1"), (ENCODER, "mods.0.classifier")]
)
def test_the_head_is_found_by_the_declared_inputs(name, head):
    model = onnxeqx.load_model(sample_model(name))
    replaced = onnxeqx.replace_head(model, 5, key=KEYS[0])
    old, new = arrays_of(model), arrays_of(replaced)
    assert {path for path in old if new[path] is not old[path]} == {f"{head}.weight"} | (old.keys() & {f"{head}.bias"})
    assert new.keys() - old.keys() <= {f"{head}.bias"}
    assert new[f"{head}.weight"].shape == (5, *old[f"{head}.weight"].shape[1:])
    assert jax.tree.structure(model) == jax.tree.structure(onnxeqx.load_model(sample_model(name))), (
        "the old one changed"
    )


def test_a_new_head_is_drawn_by_its_key_and_served(encoder, tmp_path):
    one, again, other = (onnxeqx.replace_head(encoder, 7, key=KEYS[i]) for i in (0, 0, 1))
    assert eqx.tree_equal(one, again)
    assert not eqx.tree_equal(one, other)
    onnxeqx.save_onnx(one, tmp_path / "seven.onnx")
    result = one(*tokens(one))
    assert result.shape == (2, 7)
    np.testing.assert_allclose(served(tmp_path / "seven.onnx", *tokens(one)), result, rtol=1e-4, atol=1e-5)


def test_a_head_for_every_position():
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (int64[batch, seq] ids, int64[batch, seq] mask) => (float[batch, seq, 9] y) <float[20, 6] e, float[6, 9] w>
    { h = Gather (e, ids) m = Cast <to = 1> (mask) one = Constant <value_ints = [2]> () u = Unsqueeze (m, one)
      k = Mul (h, u) y = MatMul (k, w) }"""
    model = build(text, {"e": "embedding.weight", "w": "tagger.weight"})
    replaced = onnxeqx.replace_head(model, 3, key=KEYS[0])
    assert replaced.tagger.weight.shape == (3, 6)
    assert replaced(np.ones((2, 4), np.int64), np.ones((2, 4), np.int64)).shape == (2, 4, 3)


TIED_TO_EMBEDDING = """<ir_version: 8, opset_import: ["": 17]>
g (int64[batch, seq] ids) => (float[batch, seq, 9] y) <float[9, 6] w>
{ h = Gather (w, ids) t = Transpose (w) y = MatMul (h, t) }"""
TIED_LINEAR = """<ir_version: 8, opset_import: ["": 17]>
g (float[batch, 6] x, int64[m] ids) => (float[batch, 9] y, float[6, m] z) <float[6, 9] w>
{ y = MatMul (x, w) z = Gather <axis = 1> (w, ids) }"""


@pytest.mark.parametrize(
    ("text", "head", "message"),
    [
        (TIED_TO_EMBEDDING, None, "tied to the embedding at tied: .* silently untie"),
        (TIED_LINEAR, "tied", "head at tied is tied: Gather and MatMul nodes read it, .* silently untie"),
    ],
)
def test_a_tied_head_is_not_untied(text, head, message):
    with pytest.raises(HeadError, match=message):
        onnxeqx.replace_head(build(text, {"w": "tied.weight"}), 3, key=KEYS[0], head=head)


def test_a_head_by_name_among_several_outputs():
    text = LINEAR.format("h2 = Relu (h)").replace("(float[n, 4] y)", "(float[n, 4] y, float[n, 5] h2)")
    model = build(text, NAMES)
    with pytest.raises(HeadError, match="2 outputs"):
        onnxeqx.replace_head(model, 3, key=KEYS[0])
    replaced = onnxeqx.replace_head(model, 3, key=KEYS[0], head="second")
    assert [y.shape for y in replaced(X)] == [(3, 3), (3, 5)]
    with pytest.raises(HeadError, match="does not run with 3 classes at first"):
        onnxeqx.replace_head(model, 3, key=KEYS[0], head="first")


def test_shapes_that_depend_on_data_need_inputs():
    text = LINEAR.format("h2 = Reshape (h, s)").replace("[n, 6] x", "[n, 6] x, int64[2] s")
    model = build(text, NAMES)
    with pytest.raises(HeadError, match="does not run on inputs as its file declares them"):
        onnxeqx.replace_head(model, 3, key=KEYS[0])


def test_a_model_of_ones_own_needs_inputs():
    model = eqx.nn.MLP(4, 3, 8, 1, key=KEYS[0])
    with pytest.raises(onnxeqx.ConversionError, match="keeps no ONNX graph"):
        onnxeqx.replace_head(model, 5, key=KEYS[0])


# Dropout.


@pytest.fixture(scope="module")
def dropped(encoder):
    return onnxeqx.insert_dropout(encoder, "*.dense|*.embeddings.LayerNorm", 0.5)


def test_dropout_draws_from_the_key_and_is_the_identity_without(encoder, dropped):
    run = eqx.filter_jit(lambda model, key: model(*tokens(model), key=key))
    plain = encoder(*tokens(encoder))
    np.testing.assert_array_equal(dropped(*tokens(dropped)), plain)
    one, again, other = (run(dropped, KEYS[i]) for i in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert not np.isclose(one, other).any()
    assert not np.isclose(one, plain).any()
    np.testing.assert_allclose(one, dropped(*tokens(dropped), key=KEYS[0]), rtol=1e-4, atol=1e-5)


def test_leaves_and_key_paths_stay(encoder, dropped):
    old, new = arrays_of(encoder), arrays_of(dropped)
    assert list(old) == list(new)
    assert all(old[path] is new[path] for path in old)


def test_the_expectation_over_keys_is_the_model_where_it_is_linear():
    model = onnxeqx.insert_dropout(build(PLAIN, NAMES), "first", 0.25)
    number, plain = 4000, model(X)
    drawn = jax.vmap(lambda key: model(X, key=key))(jax.random.split(KEYS[0], number))
    assert (np.std(drawn, 0) > 0.1 * np.abs(plain)).all()
    np.testing.assert_array_less(np.abs(np.mean(drawn, 0) - plain), 5 * np.std(drawn, 0) / np.sqrt(number))


def test_values_are_dropped_or_scaled_and_gradients_with_them():
    text = '<ir_version: 8, opset_import: ["": 17]> g (float[n, 6] x) => (float[n, 50] y) <float[6, 50] w> { y = MatMul (x, w) }'
    plain = build(text, {"w": "only.weight"})
    model = onnxeqx.insert_dropout(plain, "only", 0.25)
    factor = model(X, key=KEYS[0]) / plain(X)
    kept = np.isclose(factor, 1 / 0.75)
    assert np.all(kept | (factor == 0))
    assert 0.6 < kept.mean() < 0.9
    gradient = jax.grad(lambda x: model(x, key=KEYS[0]).sum())(X)
    np.testing.assert_allclose(gradient, kept / 0.75 @ plain.only.weight, rtol=1e-5)
    weights = eqx.filter_grad(lambda model: model(X, key=KEYS[0]).sum())(model)
    np.testing.assert_allclose(weights.only.weight, (kept / 0.75).T @ X, rtol=1e-5)


def test_before_a_layer_its_input_is_dropped():
    model = onnxeqx.insert_dropout(build(PLAIN, NAMES), "second", 0.5, before=True)
    other = onnxeqx.insert_dropout(build(PLAIN, NAMES), "first", 0.5)
    np.testing.assert_allclose(model(X, key=KEYS[0]), other(X, key=KEYS[0]), rtol=1e-6)
    assert not np.isclose(model(X, key=KEYS[0]), model(X)).all()


def test_rate_zero_is_the_identity_and_a_later_rate_counts():
    plain = build(PLAIN, NAMES)
    model = onnxeqx.insert_dropout(onnxeqx.insert_dropout(plain, "first", 0.9), "*", 0)
    np.testing.assert_array_equal(model(X, key=KEYS[0]), plain(X))
    both = onnxeqx.insert_dropout(onnxeqx.insert_dropout(plain, "first", 0.9), "second", 0.5)
    assert (both(X, key=KEYS[0]) == 0).any()
    alone = onnxeqx.insert_dropout(plain, "second", 0.5)
    assert not np.isclose(both(X, key=KEYS[0]), alone(X, key=KEYS[0]))[alone(X, key=KEYS[0]) != 0].any()


def test_each_call_of_a_shared_layer_draws_for_itself():
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[n, 6] x) => (float[n, 6] y, float[n, 6] z) <float[6, 6] w, float[6] b>
    { h = MatMul (x, w) y = Add (h, b) k = MatMul (x, w) z = Add (k, b) }"""
    model = onnxeqx.insert_dropout(build(text, {"w": "same.weight", "b": "same.bias"}), "same", 0.5)
    y, z = model(X, key=KEYS[0])
    assert ((y == 0) != (z == 0)).any()
    np.testing.assert_array_equal(*model(X))


def test_layers_in_branches_drop_too():
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[n, 6] x, bool c) => (float[n, 5] y) <float[6, 5] w>
    { y = If (c) <then_branch = a () => (float[n, 5] p) { p = MatMul (x, w) },
                  else_branch = b () => (float[n, 5] q) { k = MatMul (x, w) q = Neg (k) }> }"""
    plain = build(text, {"w": "first.weight"})
    model = onnxeqx.insert_dropout(plain, "first", 0.5)
    for condition in (np.array(True), np.array(False)):
        y = model(X, condition, key=KEYS[0])
        assert (y == 0).any()
        np.testing.assert_array_equal(model(X, condition), plain(X, condition))


def test_replaced_layers_and_dtypes_stay(encoder):
    model = onnxeqx.replace_head(encoder, 7, key=KEYS[0])
    model = onnxeqx.lora(model, "*.query", rank=2, key=KEYS[0])
    model = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16) if eqx.is_inexact_array(leaf) else leaf, model)
    dropped = onnxeqx.insert_dropout(model, "*.dense", 0.5)
    assert eqx.tree_equal(jax.tree.leaves(model), jax.tree.leaves(dropped))
    assert type(dropped.mods[0].bert.encoder.layer[0].attention.self.query) is onnxeqx.nn.LoRALinear
    result = dropped(*tokens(dropped), key=KEYS[0])
    assert (result.shape, result.dtype) == ((2, 7), jnp.bfloat16)


def test_a_folder_keeps_dropout_and_an_onnx_file_does_not(encoder, dropped, tmp_path):
    onnxeqx.save(dropped, tmp_path / "folder")
    loaded = onnxeqx.load(tmp_path / "folder")
    np.testing.assert_array_equal(loaded(*tokens(loaded), key=KEYS[0]), dropped(*tokens(dropped), key=KEYS[0]))
    graphs = []
    for number, model in enumerate((encoder, dropped, loaded)):
        onnxeqx.save_onnx(model, tmp_path / f"{number}.onnx")
        graph = onnx.load(tmp_path / f"{number}.onnx").graph
        graphs.append((list(graph.node), sorted(graph.initializer, key=lambda tensor: tensor.name)))
    assert graphs[0] == graphs[1] == graphs[2]


def test_what_prints_the_model_anew_keeps_dropout(dropped, tmp_path):
    inner = onnxeqx.truncate(dropped, at="mods.0.bert.encoder")
    assert not np.isclose(inner(*tokens(inner), key=KEYS[0]), inner(*tokens(inner))).all()
    onnxeqx.save(onnxeqx.replace_head(dropped, 7, key=KEYS[0]), tmp_path / "seven")
    loaded = onnxeqx.load(tmp_path / "seven")
    assert not np.isclose(loaded(*tokens(loaded), key=KEYS[0]), loaded(*tokens(loaded))).any()
    again = onnxeqx.insert_dropout(loaded, "*.dense|*.embeddings.LayerNorm", 0)
    np.testing.assert_array_equal(again(*tokens(again), key=KEYS[0]), loaded(*tokens(loaded)))


def test_an_edited_source_is_not_printed_over(tmp_path):
    onnx.save(proto_of(PLAIN, NAMES), tmp_path / "plain.onnx")
    onnxeqx.convert(tmp_path / "plain.onnx", tmp_path / "folder")
    onnxeqx.insert_dropout(onnxeqx.load(tmp_path / "folder"), "first", 0.5)
    source = tmp_path / "folder" / "model.py"
    source.write_text(source.read_text() + "\n# mine\n")
    for _ in range(2):
        model = onnxeqx.load(tmp_path / "folder")
        with pytest.raises(onnxeqx.ConversionError, match="source of this model was edited"):
            onnxeqx.insert_dropout(model, "first", 0.5)
        onnxeqx.save(model, tmp_path / "folder", force=True)


def test_a_replaced_block_is_named(encoder):
    model = eqx.tree_at(lambda model: model.mods[0].bert.pooler, encoder, _Renamed(encoder.mods[0].bert.pooler.dense))
    with pytest.raises(onnxeqx.ConversionError, match=r"printed with \(no mods\.0\.bert\.pooler"):
        onnxeqx.insert_dropout(model, "*.query", 0.5)


class _Renamed(eqx.Module):
    dense: eqx.nn.Linear

    def __call__(self, x):
        return jax.vmap(self.dense)(x[:, 0])


@pytest.mark.parametrize(
    ("layers", "rate", "before", "error", "text"),
    [
        ("*.nothing", 0.5, False, WeightsError, "'\\*.nothing' matches no layer"),
        ("*.word_embeddings", 0.5, True, WeightsError, "matches no layer with floating-point numbers"),
        ("*", 1.0, False, ValueError, "below 1, not 1.0"),
        ("*", -0.1, False, ValueError, "at least 0"),
    ],
)
def test_what_cannot_be_dropped_is_said(encoder, layers, rate, before, error, text):
    with pytest.raises(error, match=text):
        onnxeqx.insert_dropout(encoder, layers, rate, before=before)


MERGED = """<ir_version: 8, opset_import: ["": 17]>
g (float[n, 6] x) => (float[n, 6] y) <float[6] one, float[6] zero, float[6, 6] v>
{ a = LayerNormalization (x, one, zero) b = Relu (a) c = LayerNormalization (b, one, zero) k = MatMul (c, v) y = Add (k, zero) }"""


def merged() -> eqx.Module:
    """All biases are one tensor of zeros in the file, and all scales one of ones, by accident: training makes them differ."""
    names = {"v": "blocks.1.out.weight", "one": "blocks.0.norm.weight", "zero": "blocks.0.norm.bias"}
    proto = proto_of(MERGED, names)
    for tensor in proto.graph.initializer:
        if tensor.name in (names["one"], names["zero"]):
            array = np.full(6, tensor.name == names["one"], np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    places = ("blocks.0/norm", "blocks.0", "blocks.1/norm", "blocks.1/out", "blocks.1/out")
    for node, place in zip(proto.graph.node, places, strict=True):
        node.name = f"/{place}/{node.op_type}"
    return onnxeqx.load_model(proto)


def test_weights_that_the_exporter_merged_stay_separate():
    plain = merged()
    paths = list(onnxeqx.key_paths(plain))
    assert paths == [
        f"blocks.{layer}"
        for layer in ("0.norm.weight", "0.norm.bias", "1.norm.weight", "1.norm.bias", "1.out.weight", "1.out.bias")
    ]
    trained = jax.tree.map(lambda leaf: leaf + jnp.arange(float(leaf.size)).reshape(leaf.shape), plain)
    for model in (plain, trained):
        dropped = onnxeqx.insert_dropout(model, "*", 0.5)
        assert list(onnxeqx.key_paths(dropped)) == paths
        np.testing.assert_array_equal(dropped(X), model(X))


def test_what_is_printed_anew_keeps_the_key_paths_of_merged_weights(tmp_path):
    plain = merged()
    trained = jax.tree.map(lambda leaf: leaf + jnp.arange(float(leaf.size)).reshape(leaf.shape), plain)
    whole = onnxeqx.truncate(trained, at="y")
    assert list(onnxeqx.key_paths(whole)) == list(onnxeqx.key_paths(trained))
    np.testing.assert_array_equal(whole(X), trained(X))
    replaced = onnxeqx.replace_head(trained, 4, key=KEYS[0])
    onnxeqx.save(replaced, tmp_path / "folder")
    np.testing.assert_array_equal(onnxeqx.load(tmp_path / "folder")(X), replaced(X))
    onnxeqx.save_onnx(replaced, tmp_path / "again.onnx")
    again = onnxeqx.load(tmp_path / "again.onnx")
    assert list(onnxeqx.key_paths(again)) == list(onnxeqx.key_paths(replaced))
    np.testing.assert_allclose(served(tmp_path / "again.onnx", X), replaced(X), rtol=1e-5)


def test_what_is_printed_anew_has_the_patterns_it_was_loaded_with():
    sources = []
    for patterns in (True, False):
        model = onnxeqx.load_model(sample_model(ENCODER), patterns=patterns)
        whole = onnxeqx.truncate(model, at=model.output_names[0])
        # Below the header, which names the graph by its digest.
        sources += ["\n".join(origin_of(each).source.splitlines()[8:]) for each in (model, whole)]
    assert sources[0] == sources[1] != sources[2] == sources[3]
