"""Bad and unusual files: one clear sentence, quickly, within memory; and what is legal loads."""

import os
import pathlib
import time

import equinox as eqx
import jax
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxeqx

TEXT = '<ir_version: 8, opset_import: ["" : 17]> g (float[n, 4] x) => (float[n, 4] y) { h = MatMul(x, w) y = Relu(h) }'
X = np.ones((2, 4), np.float32)


def small() -> onnx.ModelProto:
    model = onnx.parser.parse_model(TEXT)
    model.graph.initializer.append(numpy_helper.from_array(np.eye(4, dtype=np.float32), "w"))
    return model


def saved(model: onnx.ModelProto, folder: pathlib.Path, **options) -> pathlib.Path:
    path = folder / "m.onnx"
    onnx.save(model, path, **options)
    return path


def refused(path, error=onnxeqx.OnnxeqxError, match: str | None = None, seconds: float = 5.0) -> str:
    start = time.perf_counter()
    with pytest.raises(error, match=match) as caught:
        onnxeqx.load(path)
    assert time.perf_counter() - start < seconds
    return str(caught.value)


# Files that are no models.


@pytest.mark.parametrize(
    "content", [b"", b"hello, world", os.urandom(1000), b"\x08\x08"], ids=["empty", "text", "random", "header"]
)
def test_files_that_are_no_models(tmp_path, content):
    (tmp_path / "m.onnx").write_bytes(content)
    assert "\n" not in refused(tmp_path / "m.onnx", onnxeqx.ReadError)


def test_a_truncated_file(tmp_path):
    data = small().SerializeToString()
    (tmp_path / "m.onnx").write_bytes(data[: len(data) // 2])
    refused(tmp_path / "m.onnx", onnxeqx.ReadError, "truncated")


def test_a_missing_file(tmp_path):
    refused(tmp_path / "none.onnx", onnxeqx.ReadError, "no file")


# Opsets and operators.


def test_an_unknown_opset(tmp_path):
    model = small()
    model.opset_import[0].version = 999
    refused(saved(model, tmp_path), onnxeqx.ReadError, "opset 999.*upgrade onnx")


def test_all_unknown_operators_are_listed_at_once(tmp_path):
    text = """<ir_version: 8, opset_import: ["" : 17, "org.acme" : 2]> g (float[n] x) => (float[n] y) {
        a = org.acme.Warp(x) b = org.acme.Warp(a) y = org.acme.Weft(b) }"""
    model = onnx.parser.parse_model(text)
    for node, name in zip(model.graph.node, ("first", "second", "third"), strict=True):
        node.name = name
    message = refused(saved(model, tmp_path), onnxeqx.UnsupportedOpsError)
    for part in (
        "org.acme::Warp at opset 2",
        "'first', 'second'",
        "org.acme::Weft",
        "'third'",
        "@onnxeqx.op('Warp', domain='org.acme'",
    ):
        assert part in message, part


def test_a_missing_opset_import_goes_by_the_ir_version():
    model = small()
    del model.opset_import[:]
    np.testing.assert_array_equal(onnxeqx.load_model(model)(X), X)


def test_a_domain_imported_twice_counts_with_its_highest_version():
    model = small()
    model.opset_import.extend([helper.make_opsetid("", 9), helper.make_opsetid("ai.onnx", 17)])
    np.testing.assert_array_equal(onnxeqx.load_model(model)(X), X)


# External data.


def external(folder: pathlib.Path) -> pathlib.Path:
    return saved(small(), folder, save_as_external_data=True, location="m.data", size_threshold=0)


def test_external_data_beside_the_model(tmp_path):
    np.testing.assert_array_equal(onnxeqx.load(external(tmp_path))(X), X)


def test_missing_external_data(tmp_path):
    path = external(tmp_path)
    (tmp_path / "m.data").unlink()
    refused(path, onnxeqx.ReadError, "'m.data'.*missing")


def test_truncated_external_data(tmp_path):
    path = external(tmp_path)
    (tmp_path / "m.data").write_bytes(b"1234")
    refused(path, onnxeqx.ReadError, "truncated")


@pytest.mark.parametrize("location", ["../outside.data", "/etc/passwd", "a/../../outside.data", ""])
def test_external_data_outside_the_folder(tmp_path, location):
    folder = tmp_path / "inside"
    folder.mkdir()
    path = external(folder)
    (folder / "m.data").rename(tmp_path / "outside.data")
    model = onnx.load(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = location
    path.write_bytes(model.SerializeToString())
    refused(path, onnxeqx.ReadError, "outside the model's folder")


def in_function(tensor: onnx.TensorProto) -> onnx.ModelProto:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
        g (float[n, 4] x) => (float[n, 4] y) { y = local.shift(x) }
        <domain: "local", opset_import: ["" : 17]> shift (a) => (b) { w = Constant <value_float: float = 1.0> () b = Add(a, w) }"""
    )
    attribute = model.functions[0].node[0].attribute[0]
    attribute.CopyFrom(helper.make_attribute("value", tensor))
    return model


@pytest.mark.parametrize("location", ["../outside.data", "/etc/passwd"])
def test_external_data_of_a_function_body_outside_the_folder(tmp_path, location):
    tensor = onnx.TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    (tmp_path / "models").mkdir()
    (tmp_path / "outside.data").write_bytes(np.ones(4, np.float32).tobytes())
    refused(saved(in_function(tensor), tmp_path / "models"), onnxeqx.ReadError, "outside the model's folder")


def test_external_data_of_a_function_body(tmp_path, monkeypatch):
    tensor = onnx.TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="w.data")
    (tmp_path / "w.data").write_bytes(np.full(4, 2, np.float32).tobytes())
    path = saved(in_function(tensor), tmp_path)
    np.testing.assert_array_equal(onnxeqx.load(path)(X), X + 2)


@pytest.mark.parametrize(("key", "value"), [("length", "4"), ("length", "-1"), ("offset", "-4"), ("offset", "zero")])
def test_external_data_of_another_length(tmp_path, key, value):
    model = small()
    path = external(tmp_path)
    model = onnx.load(path, load_external_data=False)
    entries = {entry.key: entry for entry in model.graph.initializer[0].external_data}
    entries[key].value = value
    path.write_bytes(model.SerializeToString())
    refused(path, onnxeqx.ReadError, "need 64 bytes")


def test_a_symbolic_link_out_of_the_folder(tmp_path):
    folder = tmp_path / "inside"
    folder.mkdir()
    path = external(folder)
    (folder / "m.data").rename(tmp_path / "outside.data")
    (folder / "m.data").symlink_to(tmp_path / "outside.data")
    refused(path, onnxeqx.ReadError, "outside the model's folder")


def test_the_hugging_face_cache_layout(tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    path = external(tmp_path)
    path.rename(blobs / "0123")
    (tmp_path / "m.data").rename(blobs / "4567")
    (snapshot / "model.onnx").symlink_to("../../blobs/0123")
    (snapshot / "m.data").symlink_to("../../blobs/4567")
    np.testing.assert_array_equal(onnxeqx.load(snapshot / "model.onnx")(X), X)


def test_hard_links(tmp_path):
    path = external(tmp_path)
    (tmp_path / "site").mkdir()
    for name in ("m.onnx", "m.data"):
        os.link(tmp_path / name, tmp_path / "site" / name)
    assert path.is_file()
    np.testing.assert_array_equal(onnxeqx.load(tmp_path / "site" / "m.onnx")(X), X)


# Graphs.


def test_initializers_that_are_also_inputs():
    model = small()
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 4]))
    live = onnxeqx.load_model(model)
    assert live.input_names == ("x",)
    np.testing.assert_array_equal(live(X), X)


def test_local_functions_are_inlined():
    text = """<ir_version: 8, opset_import: ["" : 17, "local" : 1]> g (float[n, 4] x) => (float[n, 4] y) { y = local.twice(x) }
        <domain: "local", opset_import: ["" : 17, "local" : 1]> once (a) => (b) { b = Exp(a) }
        <domain: "local", opset_import: ["" : 17, "local" : 1]> twice (a) => (c) { b = local.once(a) c = local.once(b) }"""
    live = onnxeqx.load_model(onnx.parser.parse_model(text))
    np.testing.assert_allclose(live(X), np.exp(np.exp(X)), rtol=1e-6)


def with_function(opset: int, op_type: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
        g (float[2, 3] x) => (float[2, 3] y) {{ y = local.f(x) }}
        <domain: "local", opset_import: ["" : {opset}]> f (a) => (b) {{ b = {op_type}(a) }}"""
    )


def test_functions_of_another_opset_are_inlined_where_it_means_the_same():
    x = np.array([[1.0, -2.0, 3.0]] * 2, np.float32)
    np.testing.assert_array_equal(onnxeqx.load_model(with_function(14, "Relu"))(x), np.maximum(x, 0))
    onnx.checker.check_model(with_function(14, "Relu"))


def test_functions_of_another_opset_that_means_something_else_are_refused(tmp_path):
    message = "Function 'f' of 'm.onnx' is written for opset 12, where Softmax is not what it is in opset 17"
    refused(saved(with_function(12, "Softmax"), tmp_path), onnxeqx.ReadError, message)


def test_functions_that_call_themselves_are_refused(tmp_path):
    text = """<ir_version: 8, opset_import: ["" : 17, "local" : 1]> g (float[n] x) => (float[n] y) { y = local.a(x) }
        <domain: "local", opset_import: ["" : 17, "local" : 1]> a (x) => (y) { y = local.b(x) }
        <domain: "local", opset_import: ["" : 17, "local" : 1]> b (x) => (y) { y = local.a(x) }"""
    refused(saved(onnx.parser.parse_model(text), tmp_path), onnxeqx.ReadError, "calls itself", seconds=1)


def test_doubling_functions_are_refused(tmp_path):
    functions = ['<domain: "local", opset_import: ["" : 17, "local" : 1]> f0 (x) => (y) { y = Exp(x) }']
    for i in range(1, 31):
        body = f"a = local.f{i - 1}(x) y = local.f{i - 1}(a)"
        functions.append(f'<domain: "local", opset_import: ["" : 17, "local" : 1]> f{i} (x) => (y) {{ {body} }}')
    head = '<ir_version: 8, opset_import: ["" : 17, "local" : 1]> g (float[n] x) => (float[n] y) { y = local.f30(x) }'
    refused(
        saved(onnx.parser.parse_model("\n".join([head, *functions])), tmp_path),
        onnxeqx.ReadError,
        "expands to over",
        seconds=1,
    )


def test_nodes_in_any_order_load():
    model = small()
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    np.testing.assert_array_equal(onnxeqx.load_model(model)(X), X)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda g: g.node[0].input.__setitem__(0, "y"), "depends on its own output"),
        (lambda g: g.node[0].input.__setitem__(0, "h"), "depends on its own output"),
        (lambda g: g.node[0].input.__setitem__(0, "nowhere"), "'nowhere'"),
        (lambda g: g.output[0].__setattr__("name", "nowhere"), "'nowhere'"),
        (lambda g: g.node[1].attribute.append(helper.make_attribute("slope", 1.0)), "'slope'"),
        (lambda g: g.node[0].input.pop(), "required but absent"),
        (lambda g: g.node[1].input.append("x"), "takes at most 1"),
    ],
    ids=["cycle", "self-loop", "dangling", "no output", "attribute", "missing input", "extra input"],
)
def test_malformed_graphs(tmp_path, change, match):
    model = small()
    change(model.graph)
    refused(saved(model, tmp_path), match=match)


@pytest.mark.parametrize("dim", [0, -1, "?"])
def test_dimensions_that_mean_unknown(dim):
    model = small()
    first = model.graph.input[0].type.tensor_type.shape.dim[0]
    first.Clear()
    if isinstance(dim, int):
        first.dim_value = dim
    else:
        first.dim_param = dim
    for size in (1, 3):
        assert onnxeqx.load_model(model)(np.ones((size, 4), np.float32)).shape == (size, 4)


# Bombs.

HUGE = 10**12
BOMBS = {
    "ConstantOfShape": f"s = Constant <value_ints: ints = [{HUGE}]> () big = ConstantOfShape(s)",
    "Expand": f"s = Constant <value_ints: ints = [{HUGE}]> () one = Constant <value: tensor = float[1] {{1}}> () big = Expand(one, s)",
    "Tile": f"s = Constant <value_ints: ints = [{HUGE}]> () one = Constant <value: tensor = float[1] {{1}}> () big = Tile(one, s)",
    "Range": f"a = Constant <value_int: int = 0> () b = Constant <value_int: int = {HUGE}> () c = Constant <value_int: int = 1> () "
    "r = Range(a, b, c) big = Cast <to: int = 1> (r)",
}


@pytest.mark.parametrize("name", BOMBS)
def test_folding_is_bounded(name):
    import resource

    text = (
        f'<ir_version: 8, opset_import: ["" : 17]> g (float[n] x) => (float[m] y) {{ {BOMBS[name]} y = Add(x, big) }}'
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    onnxeqx.load_model(onnx.parser.parse_model(text))
    assert time.perf_counter() - start < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # kB


def test_a_constant_above_the_folding_limit_is_a_weight_and_not_text(monkeypatch):
    monkeypatch.setattr("onnxeqx._fold._MAX_FOLDED", 8)
    model = small()
    weight = model.graph.initializer.pop()
    model.graph.node.insert(0, helper.make_node("Constant", [], ["w"], value=weight))
    loaded = onnxeqx.load_model(model)
    assert sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(loaded, onnxeqx.parameters(loaded)))) == 16
    np.testing.assert_array_equal(loaded(X), X)


def test_a_chain_of_many_nodes_needs_no_recursion():
    nodes = [helper.make_node("Neg", [f"v{i}"], [f"v{i + 1}"]) for i in range(5000)]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("v0", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info("v5000", TensorProto.FLOAT, [2])],
    )
    start = time.perf_counter()
    onnxeqx.load_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    assert time.perf_counter() - start < 20


@pytest.mark.parametrize(
    "spoil",
    [
        lambda t: t.dims.__setitem__(slice(None), [1] * 5000),
        lambda t: t.dims.__setitem__(slice(None), [2**40, 2**40]),
        lambda t: t.__setattr__("raw_data", t.raw_data[:-1]),
        lambda t: t.__setattr__("data_type", 999),
        lambda t: (t.ClearField("raw_data"), t.float_data.extend([1.0] * 15)),
        lambda t: (t.ClearField("raw_data"), t.int32_data.extend([1] * 16)),
        lambda t: t.__setattr__("data_type", TensorProto.STRING),
    ],
    ids=["rank", "overflow", "raw data", "dtype", "float data", "wrong field", "strings"],
)
def test_malformed_tensors(tmp_path, spoil):
    model = small()
    tensor = model.graph.initializer[0]
    spoil(tensor)
    refused(saved(model, tmp_path), seconds=2)


def test_symbolic_sizes_that_double_do_not_grow_exponentially():
    doublings = " ".join(f"s{i + 1} = Add(s{i}, s{i})" for i in range(64))
    text = f"""<ir_version: 8, opset_import: ["" : 17]> g (float[n] x) => (float[m] y) {{
        s0 = Shape(x) {doublings} zero = Constant <value_ints: ints = [0]> ()
        s = Mul(s64, zero) one = Constant <value: tensor = float[1] {{1}}> () none = Expand(one, s) y = Concat <axis: int = 0> (x, none) }}"""
    start = time.perf_counter()
    model = onnxeqx.load_model(onnx.parser.parse_model(text))
    assert time.perf_counter() - start < 5
    x = np.ones(3, np.float32)
    np.testing.assert_array_equal(model(x), x)


# Names and sparse tensors.


def test_names_given_twice_are_refused(tmp_path):
    model = small()
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((4, 4), np.float32), "w"))
    refused(saved(model, tmp_path), onnxeqx.ReadError, "more than one initializer of the name 'w'")
    model = small()
    model.graph.input.append(model.graph.input[0])
    refused(saved(model, tmp_path), onnxeqx.ReadError, "more than one input of the name 'x'")
    model = small()
    model.graph.node[1].output[0] = "h"
    refused(saved(model, tmp_path), onnxeqx.ReadError, "the name 'h'")


@pytest.mark.parametrize("coordinates", [False, True])
def test_sparse_initializers(coordinates):
    model = small()
    where = np.array([[0, 0], [1, 1], [2, 2], [3, 3]]) if coordinates else np.array([0, 5, 10, 15])
    values = numpy_helper.from_array(np.ones(4, np.float32), "w")
    del model.graph.initializer[:]
    model.graph.sparse_initializer.append(
        helper.make_sparse_tensor(values, numpy_helper.from_array(where, "where"), [4, 4])
    )
    loaded = onnxeqx.load_model(model)
    np.testing.assert_array_equal(loaded(X), X)
    assert len(model.graph.sparse_initializer) == 1


def test_a_malformed_sparse_initializer(tmp_path):
    model = small()
    values, where = numpy_helper.from_array(np.ones(1, np.float32), "w"), numpy_helper.from_array(np.array([99]), "i")
    del model.graph.initializer[:]
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, where, [4, 4]))
    refused(saved(model, tmp_path), onnxeqx.ReadError, "Sparse tensor 'w'.*malformed")


# Calls.


@pytest.mark.parametrize(
    ("args", "kwargs", "match"),
    [
        ((), {}, "'x' is missing"),
        ((X, X), {}, "1 inputs"),
        ((X,), {"x": X}, "given twice"),
        ((), {"z": X}, "no input 'z'"),
        ((X.astype(np.int32),), {}, "dtype int32"),
        ((X > 0,), {}, "dtype bool"),
        ((np.array([["a"] * 4]),), {}, "must be an array"),
        ((X[0],), {}, "1 dimensions"),
        ((X[:, :3],), {}, "fixes it to 4"),
    ],
)
def test_wrong_calls(args, kwargs, match):
    with pytest.raises(onnxeqx.InputError, match=match):
        onnxeqx.load_model(small())(*args, **kwargs)


def test_dimensions_of_one_name_must_be_equal():
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[n] a, float[n] b) => (float[n] y) { y = Add(a, b) }'
    live = onnxeqx.load_model(onnx.parser.parse_model(text))
    with pytest.raises(onnxeqx.InputError, match="must be equal"):
        live(np.ones(3, np.float32), np.ones(1, np.float32))


def test_data_dependent_shapes_work_eagerly_and_are_refused_under_jit_by_name():
    import equinox as eqx

    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[n] x, int64[2] shape) => (float[a, b] y) { y = Reshape(x, shape) }"""
    model = onnx.parser.parse_model(text)
    model.graph.node[0].name = "the reshape"
    live = onnxeqx.load_model(model)
    arguments = (np.arange(6, dtype=np.float32), np.array([2, 3]))
    assert live(*arguments).shape == (2, 3)
    with pytest.raises(onnxeqx.HostValueError, match="'shape' of node 'the reshape'"):
        eqx.filter_jit(live)(*arguments)
