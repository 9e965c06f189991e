"""Blocks of models whose exporter wrote down names: where lines go, which blocks are one class, what arguments are called."""

import numpy as np
import onnx
import onnx.helper as oh
import pytest

import onnxeqx
from onnxeqx._convert import convert
from onnxeqx._names import assign_paths
from onnxeqx._read import read_proto
from onnxeqx._scopes import sequences
from onnxeqx._verify import run_onnxruntime


class Network:
    """Writes an ONNX graph node by node, each in a scope, with `(8, 8)` weights named `{prefix}{scope}.weight`."""

    def __init__(self, prefix: str = "") -> None:
        self.prefix, self.nodes, self.tensors = prefix, [], []
        self.generator = np.random.default_rng(0)

    def node(self, op: str, *inputs: str, scope: str, **attributes) -> str:
        number = len(self.nodes)
        name = f"/{scope.replace('.', '/')}/{op}_{number}"
        self.nodes.append(oh.make_node(op, inputs, [f"{name}_output_0"], name=name, **attributes))
        return f"{name}_output_0"

    def linear(self, x: str, scope: str) -> str:
        name = f"{self.prefix}{scope}.weight"
        array = self.generator.standard_normal((8, 8)).astype(np.float32) * np.float32(0.3)
        self.tensors.append(onnx.numpy_helper.from_array(array, name))
        return self.node("MatMul", x, name, scope=scope)

    def model(self, *outputs: str, inputs: tuple[str, ...] = ("x",)) -> onnx.ModelProto:
        """`x` and the outputs have `N` rows, an input `y` has `M`."""
        value = [
            oh.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["M" if name == "y" else "N", 8])
            for name in (*inputs, *outputs)
        ]
        graph = oh.make_graph(self.nodes, "network", value[: len(inputs)], value[len(inputs) :], self.tensors)
        return oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=8)


def source_of(model: onnx.ModelProto) -> str:
    return convert(read_proto(model), "network").source


def check(model: onnx.ModelProto, tmp_path, *inputs: str) -> None:
    """The model against ONNX Runtime."""
    onnx.save(model, tmp_path / "model.onnx")
    generator = np.random.default_rng(1)
    arrays = {name: generator.standard_normal((3, 8)).astype(np.float32) for name in inputs or ("x",)}
    results = onnxeqx.load_model(model)(**arrays)
    results = results if isinstance(results, tuple) else (results,)
    for got, wanted in zip(results, run_onnxruntime(tmp_path / "model.onnx", arrays), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


# Scopes and names.


def test_scopes_follow_the_names_of_the_tensors(tmp_path):
    """A wrapper's prefix stands in the tensors' names and not in the scopes."""
    network = Network(prefix="wrapped.model.")
    x = "x"
    for k in range(2):
        x = network.node("Relu", network.linear(x, f"layers.{k}.fc"), scope=f"layers.{k}")
    model = network.model(x)
    check(model, tmp_path)
    assert set(convert(read_proto(model), "network").leaves) == {t.name for t in model.graph.initializer}
    assert "for layer in self.layers:\n            x = layer(x)" in source_of(model)


def test_scopes_that_agree_are_left_alone():
    network = Network()
    model = network.model(network.node("Relu", network.linear("x", "body.fc"), scope="body"))
    assert list(convert(read_proto(model), "network").leaves) == ["body.fc.weight"]


@pytest.mark.parametrize(
    ("names", "moved"),
    [
        ([f"layer_{k}" for k in range(6)], "layer.3"),
        ([f"layer{k}" for k in range(1, 7)], "layer.3"),
        ([f"layer{k}" for k in range(1, 5)], "layer3"),  # few: names that people know
        ([f"layer{k}" for k in range(2, 9)], "layer3"),  # does not begin at 0 or 1
        ([f"layer{k}" for k in (0, 1, 3, 4, 5, 6)], "layer3"),  # has a gap
        (["layer", *(f"layer{k}" for k in range(6))], "layer3"),  # the name of the tuple is taken
    ],
)
def test_long_runs_of_numbered_blocks_are_tuples(names, moved):
    rename = sequences([("encoder", name, *rest) for name in names for rest in (("fc",), ("norm", "weight"))])
    three = next(name for name in names if name.endswith("3"))
    assert ".".join(rename(("encoder", three, "fc"))) == f"encoder.{moved}.fc"
    assert ".".join(rename(("encoder", three))) == f"encoder.{moved}"


def test_blocks_with_other_fields_are_no_run():
    paths = [("encoder", f"layer{k}", "fc" if k != 3 else "conv") for k in range(6)]
    assert all(sequences(paths)(path) == path for path in paths)


def test_a_short_run_is_a_tuple_where_a_long_one_is():
    """All dense blocks read alike, whether they have six layers or two."""
    paths = [(block, f"dense{k}", "conv") for block, size in (("a", 6), ("b", 2)) for k in range(size)]
    assert sequences(paths)(("b", "dense1", "conv")) == ("b", "dense", "1", "conv")


def test_a_run_of_named_blocks_prints_as_a_loop(tmp_path):
    network = Network()
    x = "x"
    for k in range(6):
        x = network.node("Relu", network.linear(x, f"body.layer_{k}.fc"), scope=f"body.layer_{k}")
    model = network.model(x)
    check(model, tmp_path)
    source = source_of(model)
    assert "for layer in self.layer:" in source
    assert source.count("\nclass ") == 3
    assert "body.layer.5.fc.weight" in convert(read_proto(model), "network").leaves


# What several blocks share.


def shared_table() -> onnx.ModelProto:
    """An exporter that computes `cos(y)` in layer 0, and reads it in all layers."""
    network = Network()
    x, table = "x", None
    for k in range(3):
        table = table or network.node("Cos", "y", scope="layers.0")
        x = network.node("Mul", network.linear(x, f"layers.{k}.fc"), table, scope=f"layers.{k}")
    return network.model(x, inputs=("x", "y"))


def test_what_blocks_share_is_computed_where_they_meet(tmp_path):
    model = shared_table()
    check(model, tmp_path, "x", "y")
    source = source_of(model)
    assert source.count("\nclass ") == 2
    assert source.count("jnp.cos") == 1
    assert source.index("jnp.cos") > source.index("class Model")


def test_an_argument_is_called_after_what_made_it():
    assert "def __call__(self, x, cos):" in source_of(shared_table())


def test_what_a_block_computes_from_its_own_values_stays_there():
    network = Network()
    first = network.node("Relu", network.linear("x", "layers.0.fc"), scope="layers.0")
    second = network.linear(first, "layers.1.fc")
    model = network.model(network.node("Add", first, second, scope="layers.1"))
    assert "jax.nn.relu" in source_of(model).split("class Model")[0]


# Arguments.


def cached(order: int) -> onnx.ModelProto:
    """Two layers that each read a cache of their own and give one; `order` swaps the nodes of the second."""
    network = Network()
    x, caches = "x", []
    for k in range(2):
        scope = f"h.{k}"
        projected = network.linear(x, f"{scope}.fc")
        start = len(network.nodes)
        cache = network.node("Add", f"past_{k}", projected, scope=scope)
        activation = network.node("Relu", projected, scope=scope)
        if k == order:
            network.nodes[start:] = reversed(network.nodes[start:])
        x = network.node("Mul", activation, cache, scope=scope)
        caches.append(network.node("Identity", cache, scope=scope))
    return network.model(x, *caches, inputs=("x", "past_0", "past_1"))


@pytest.mark.parametrize("order", [0, 1, 2])
def test_blocks_with_caches_are_one_class_whatever_the_order_of_nodes(order, tmp_path):
    model = cached(order)
    check(model, tmp_path, "x", "past_0", "past_1")
    source = source_of(model)
    assert "def __call__(self, x, past):" in source
    assert source.count("\nclass ") == 2


def test_lines_come_after_the_block_whose_result_tells_a_size(tmp_path):
    """Ones as many as the result of a block, whose size no argument tells, come first in operand order."""
    network = Network()
    embedded = network.node("Add", network.linear("x", "embed.fc"), "y", scope="embed")
    normed = network.linear(embedded, "embed.norm")
    one = network.node("Constant", scope="", value_float=1.0)
    ones = network.node("Expand", one, network.node("Shape", embedded, scope=""), scope="")
    scaled = network.node("Mul", network.linear(normed, "body.fc"), ones, scope="")
    check(network.model(network.node("Add", ones, scaled, scope=""), inputs=("x", "y")), tmp_path, "x", "y")


# Loops.


def test_a_loop_may_have_several_lines(tmp_path):
    network = Network()
    x = network.linear("x", "stem")
    for k in range(4):
        y = network.node("Relu", network.linear(x, f"layers.{k}.fc"), scope=f"layers.{k}")
        x = network.node("Sub", x, network.node("Abs", y, scope=""), scope="")
    model = network.model(x)
    check(model, tmp_path)
    assert "for layer in self.layers:" in source_of(model)


def test_assigning_paths_twice_gives_the_same_paths():
    from onnxeqx._fold import fold
    from onnxeqx._lift import lift
    from onnxeqx._lower import lower
    from onnxeqx.plugins.manager import host

    registry = host().registry
    graph = lift(fold(lower(read_proto(shared_table()), registry)), registry)
    assign_paths(graph)
    paths = [leaf.path for leaf in graph.leaves()]
    assign_paths(graph)
    assert [leaf.path for leaf in graph.leaves()] == paths


# What a block has for others.


def bias_network(*, other_size: bool = False) -> onnx.ModelProto:
    """As T5: the first layer makes a table for all of them, of a weight of its own and of a size of the input."""
    network = Network()
    network.tensors += [
        onnx.numpy_helper.from_array(np.array(number, np.int64), name) for name, number in (("zero", 0), ("one", 1))
    ]
    network.tensors.append(
        onnx.numpy_helper.from_array(np.arange(64, dtype=np.float32).reshape(8, 8) / 64, "layers.0.table.weight")
    )
    x, table = "x", ""
    for number in range(4):
        scope = f"layers.{number}"
        y = network.linear(x, f"{scope}.fc")
        if number == 0 or (other_size and number == 1):
            shape = network.node("Shape", y, scope=scope, start=0, end=1)
            size = network.node("Squeeze", shape, scope=scope)
            rows = network.node("Range", "zero", size, "one", scope=scope)
            name = f"{scope}.table.weight"
            if number:
                array = np.arange(80, dtype=np.float32).reshape(10, 8) / 80
                network.tensors.append(onnx.numpy_helper.from_array(array, name))
            table = network.node("Gather", name, rows, scope=f"{scope}.table")
        x = network.node("Add", y, table, scope=scope)
    return network.model(x)


def renamed(model: onnx.ModelProto) -> onnx.ModelProto:
    output = model.graph.output[0].name
    model.graph.node.append(oh.make_node("Identity", [output], ["result"], name="/Identity"))
    model.graph.output[0].name = "result"
    return model


def test_a_table_for_all_layers_is_made_around_them(tmp_path):
    model = renamed(bias_network())
    source = source_of(model)
    assert source.count("\nclass ") == 2
    assert "table: eqx.nn.Embedding | None" in source
    assert "self.table = eqx.nn.Embedding(8, 8, key=KEY) if has_table else None" in source
    assert "for layer in self.layers:\n            x = layer(x, y)" in source
    check(model, tmp_path)
    live = onnxeqx.load_model(model)
    assert live.layers[1].table is None
    assert [path for path in onnxeqx.key_paths(live) if "table" in path] == ["layers.0.table.weight"]
    onnxeqx.save(live, tmp_path / "folder")
    np.testing.assert_array_equal(
        onnxeqx.load(tmp_path / "folder")(np.ones((3, 8), np.float32)), live(np.ones((3, 8), np.float32))
    )


def test_tables_of_other_sizes_are_of_other_classes(tmp_path):
    model = renamed(bias_network(other_size=True))
    source = source_of(model)
    assert "eqx.nn.Embedding(8, 8, key=KEY)" in source
    assert "eqx.nn.Embedding(10, 8, key=KEY)" in source
    check(model, tmp_path)


def test_layers_that_take_a_weight_of_the_first_are_stacked(tmp_path):
    """As ConvNeXt's, whose exporter merged the equal scales of all layers into that of the first."""
    network = Network()
    network.tensors.append(onnx.numpy_helper.from_array(np.linspace(0.5, 1.5, 8, dtype=np.float32), "layers.0.scale"))
    x = "x"
    for number in range(6):
        y = network.linear(x, f"layers.{number}.fc")
        x = network.node(
            "Add", network.node("Mul", y, "layers.0.scale", scope=f"layers.{number}"), x, scope=f"layers.{number}"
        )
    model = renamed(network.model(x))
    stacked = convert(read_proto(model), "network", scan_layers=True)
    assert stacked.stacks == {"layers.1": tuple(f"layers.{number}" for number in range(1, 6))}
    assert "scan_layers(lambda layer, x: layer(x, self.layers[0].scale), self.layers[1], x)" in stacked.source
    values = np.random.default_rng(2).standard_normal((3, 8)).astype(np.float32)
    single, scanned = onnxeqx.load_model(model), onnxeqx.load_model(model, scan_layers=True)
    np.testing.assert_allclose(scanned(values), single(values), rtol=1e-5, atol=1e-5)
