"""Control flow in printed models: against ONNX Runtime, eagerly, under jit, and differentiated."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from jax.test_util import check_grads
from onnx import numpy_helper

import onnxeqx
from onnxeqx._convert import unlifted
from onnxeqx._interpret import interpret
from onnxeqx._origin import origin_of
from onnxeqx._read import read_proto

X = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)
WEIGHT = np.random.default_rng(1).standard_normal((4, 4)).astype(np.float32) * 0.3

IF = """<ir_version: 8, opset_import: ["" : 17]> g (float[n, 4] x, bool c) => (float[n, 4] y) {
    h = MatMul(x, w)
    y = If (c) <
        then_branch = t () => (float[n, 4] r) { r = Relu(h) },
        else_branch = e () => (float[n, 4] r) { s = MatMul(h, w) r = Add(s, x) }> }"""
LOOP = """<ir_version: 8, opset_import: ["" : 17]> g (float[n, 4] x, int64 m) => (float[n, 4] y, float[k, n, 4] all) {
    yes = Constant <value: tensor = bool {1}> ()
    y, all = Loop (m, yes, x) <
        body = b (int64 i, bool c, float[n, 4] s) => (bool go, float[n, 4] next, float[n, 4] seen) {
            p = MatMul(s, w) next = Tanh(p) seen = Identity(next) go = Identity(c) }> }"""
WHILE = """<ir_version: 8, opset_import: ["" : 17]> g (float[n, 4] x) => (float[n, 4] y) {
    none = Constant <value: tensor = int64 {100}> () yes = Constant <value: tensor = bool {1}> ()
    y = Loop (none, yes, x) <
        body = b (int64 i, bool c, float[n, 4] s) => (bool go, float[n, 4] next) {
            half = Constant <value: tensor = float {0.5}> () next = Mul(s, half)
            a = Abs(next) m = ReduceMax <keepdims = 0> (a) limit = Constant <value: tensor = float {0.1}> () go = Greater(m, limit) }> }"""
SCAN = """<ir_version: 8, opset_import: ["" : 17]> g (float[4] s, float[n, 4] x) => (float[4] last, float[n, 4] sums) {
    last, sums = Scan (s, x) <num_scan_inputs = 1, scan_input_directions = [1], scan_output_directions = [1],
        body = b (float[4] a, float[4] row) => (float[4] next, float[4] out) {
            t = MatMul(row, w) next = Add(a, t) out = Identity(next) }> }"""
GROWING = """<ir_version: 8, opset_import: ["" : 17]> g (float[n, 4] x) => (float[k, 4] y) {
    three = Constant <value: tensor = int64 {3}> () yes = Constant <value: tensor = bool {1}> ()
    y = Loop (three, yes, x) <
        body = b (int64 i, bool c, float[r, 4] s) => (bool c2, float[q, 4] next) { c2 = Identity(c) next = Concat <axis = 0> (s, x) }> }"""
NESTED = """<ir_version: 8, opset_import: ["" : 17]> g (float[n, 4] x, bool c, bool d) => (float[n, 4] y) {
    y = If (c) <
        then_branch = t () => (float[n, 4] r) {
            r = If (d) <
                then_branch = tt () => (float[n, 4] r) { r = MatMul(x, w) },
                else_branch = te () => (float[n, 4] r) { r = Neg(x) }> },
        else_branch = e () => (float[n, 4] r) { r = Sin(x) }> }"""
BY_RANK = """<ir_version: 8, opset_import: ["" : 17]> g (float[n, m] x) => (y) {
    s = Shape(x) one = Constant <value: tensor = int64 {1}> () zero = Constant <value: tensor = int64 {0}> ()
    rows = Gather <axis = 0> (s, zero) single = Equal(rows, one)
    y = If (single) <
        then_branch = t () => (r) { axes = Constant <value_ints = [0]> () r = Squeeze(x, axes) },
        else_branch = e () => (r) { r = Relu(x) }> }"""
CASES = {
    "If then": (IF, {"x": X, "c": np.array(True)}),
    "If else": (IF, {"x": X, "c": np.array(False)}),
    "Loop": (LOOP, {"x": X, "m": np.array(3)}),
    "Loop once": (LOOP, {"x": X, "m": np.array(1)}),
    "Loop while": (WHILE, {"x": X}),
    "Scan": (SCAN, {"s": np.zeros(4, np.float32), "x": X}),
    "growing": (GROWING, {"x": X}),
    "nested then": (NESTED, {"x": X, "c": np.array(True), "d": np.array(True)}),
    "nested else": (NESTED, {"x": X, "c": np.array(True), "d": np.array(False)}),
    "by shape": (BY_RANK, {"x": X}),
    "by shape, other rank": (BY_RANK, {"x": X[:1]}),
}
# How often these repeat, or which rank they have, depends on an input's data.
EAGER_ONLY = {"Loop", "Loop once"}


def proto(text: str) -> onnx.ModelProto:
    model = onnx.parser.parse_model(text)
    if "w)" in text:
        model.graph.initializer.append(numpy_helper.from_array(WEIGHT, "w"))
    return model


def runtime(model: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, inputs)


def as_list(results) -> list:
    return list(results) if isinstance(results, tuple) else [results]


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_onnxruntime(name):
    text, inputs = CASES[name]
    model = onnxeqx.load_model(proto(text))
    expected = runtime(proto(text), inputs)
    calls = [model] if name in EAGER_ONLY else [model, eqx.filter_jit(model)]
    results = [as_list(call(**inputs)) for call in calls] + [interpret(unlifted(read_proto(proto(text))), inputs)]
    for result in results:
        for got, wanted in zip(result, expected, strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def test_bodies_print_as_functions_and_share_the_weights_of_the_model():
    model = onnxeqx.load_model(proto(IF))
    source = origin_of(model).source
    assert "def then_branch():" in source
    assert len(jax.tree.leaves(eqx.filter(model, onnxeqx.parameters(model)))) == 1
    gradient = eqx.filter_grad(lambda m: (m(x=X, c=np.array(False)) ** 2).sum())(model)
    assert all(jnp.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))


def test_a_condition_known_at_load_leaves_its_branch_only():
    text = IF.replace(", bool c)", ")").replace(
        "h = MatMul(x, w)", "h = MatMul(x, w) c = Constant <value: tensor = bool {0}> ()"
    )
    model = onnxeqx.load_model(proto(text))
    assert "control_flow" not in origin_of(model).source
    np.testing.assert_allclose(model(X), X @ WEIGHT @ WEIGHT + X, rtol=1e-5)


def test_branches_of_different_shapes_are_refused_under_jit_in_one_sentence():
    text = IF.replace("r = Relu(h)", "a = Constant <value_ints = [0]> () r = ReduceSum(h, a)").replace(
        "(float[n, 4] r) { a", "(float[1, 4] r) { a"
    )
    model = onnxeqx.load_model(proto(text))
    assert model(X, np.array(True)).shape == (1, 4)
    with pytest.raises(onnxeqx.HostValueError, match="branches of an If"):
        eqx.filter_jit(model)(X, np.array(True))


def test_a_traced_number_of_iterations_with_stacked_outputs_is_refused_under_jit():
    with pytest.raises(onnxeqx.HostValueError, match="How often a Loop repeats"):
        eqx.filter_jit(onnxeqx.load_model(proto(LOOP)))(X, np.array(3))


def test_a_known_number_of_iterations_is_a_scan_and_differentiates():
    text = LOOP.replace(", int64 m)", ")").replace("yes =", "m = Constant <value: tensor = int64 {3}> () yes =")
    model = onnxeqx.load_model(proto(text))
    y, steps = eqx.filter_jit(model)(X)
    for got, wanted in zip((y, steps), runtime(proto(text), {"x": X}), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)
    assert "scan" in str(jax.make_jaxpr(lambda x: model(x))(X))
    check_grads(lambda x: model(x)[0], (X,), order=1, modes=("fwd", "rev"), rtol=2e-2)


def test_no_iteration_gives_the_initial_state_and_empty_outputs():
    y, steps = onnxeqx.load_model(proto(LOOP))(X, np.array(0))
    np.testing.assert_array_equal(y, X)
    assert steps.shape == (0, 2, 4)


@pytest.mark.parametrize("in_node", [False, True])
def test_weights_inside_bodies_are_parameters_and_are_written_back(in_node, tmp_path):
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[n, 4] x, bool c) => (float[n, 4] y) {
        y = If (c) <then_branch = t () => (float[n, 4] r) { r = Relu(x) }, else_branch = e () => (float[n, 4] r) { r = MatMul(x, w) }> }"""
    model = onnx.parser.parse_model(text)
    branch = next(a.g for a in model.graph.node[0].attribute if a.name == "else_branch")
    if in_node:
        branch.node.insert(0, onnx.helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(WEIGHT)))
    else:
        branch.initializer.append(numpy_helper.from_array(WEIGHT, "w"))
    live = onnxeqx.load_model(model)
    np.testing.assert_allclose(live(X, np.array(False)), X @ WEIGHT, rtol=1e-5)
    assert [leaf.size for leaf in jax.tree.leaves(eqx.filter(live, onnxeqx.parameters(live)))] == [16]
    trained = jax.tree.map(lambda leaf, train: leaf * 2 if train else leaf, live, onnxeqx.parameters(live))
    onnxeqx.save_onnx(trained, tmp_path / "trained.onnx")
    (served,) = runtime(onnx.load(tmp_path / "trained.onnx"), {"x": X, "c": np.array(False)})
    np.testing.assert_allclose(served, 2 * X @ WEIGHT, rtol=1e-5)


def test_scan_8_runs_a_batch_with_lengths():
    from onnxeqx.plugins.control_flow import scan_8

    x = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    last, sums = scan_8(
        np.array([3, 1]),
        np.zeros((2, 2), np.float32),
        x,
        body=lambda a, row: (a + row, a + row),
        num_scan_inputs=1,
        n_outputs=2,
    )
    np.testing.assert_array_equal(last, [x[0].sum(0), x[1, 0]])
    np.testing.assert_array_equal(sums[1], [x[1, 0], [0, 0], [0, 0]])
    last, _ = scan_8(
        None, np.zeros((2, 2), np.float32), x, body=lambda a, row: (a + row, a), num_scan_inputs=1, n_outputs=2
    )
    np.testing.assert_array_equal(last, x.sum(1))
