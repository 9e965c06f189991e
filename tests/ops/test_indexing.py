"""Elements by position: the ONNX suite, versions against ONNX Runtime, host values, gradients, symbolic shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onnxeqx import _errors
from onnxeqx.plugins import indexing, tensor

from . import shape_cases
from .shape_cases import Symbol, check_against_runtime, objects

X = np.arange(12, dtype=np.float32).reshape(3, 4)
INTEGERS = np.array([[3, -(2**31), 2**31 - 1, 3]], np.int32)
N, M = Symbol("n"), Symbol("m")

CASES = shape_cases.case_names("indexing")
TRACEABLE = [name for name in CASES if not shape_cases.data_dependent(name)]


@pytest.fixture(autouse=True)
def _strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        yield


def test_the_suite_is_there():
    assert len(CASES) >= 53
    assert set(shape_cases.WITHOUT_GRADIENT) <= set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_suite_on_host(name):
    shape_cases.check_on_host(name)


@pytest.mark.parametrize("name", TRACEABLE)
def test_suite_under_jit_vmap_and_grad(name):
    shape_cases.check_under_jit(name)


@pytest.mark.parametrize(
    ("opset", "text", "inputs"),
    [
        (1, "(float[3,4] x, int64[2] i) => (float y) { y = Gather<axis = 1>(x, i) }", (X, np.array([3, 0]))),
        (11, "(float[3,4] x, int32[2,1] i) => (float y) { y = Gather<axis = -1>(x, i) }",
         (X, np.array([[-1], [0]], np.int32))),
        (13, "(float[3,4] x, int64 i) => (float y) { y = Gather(x, i) }", (X, np.array(-3))),
        (11, "(float[3,4] x, int64[2,1] i) => (float y) { y = GatherElements<axis = -1>(x, i) }",
         (X, np.array([[-1], [2]]))),
        (13, "(float[3,4] x, int64[1,3] i) => (float y) { y = GatherElements(x, i) }", (X, np.array([[2, 0, -1]]))),
        (11, "(float[3,4] x, int64[2,1] i) => (float y) { y = GatherND(x, i) }", (X, np.array([[2], [-3]]))),
        (12, "(float[3,4] x, int64[3,1] i) => (float y) { y = GatherND<batch_dims = 1>(x, i) }",
         (X, np.array([[0], [3], [-1]]))),
        (13, "(float[3,4] x, int64[2] i) => (float y) { y = GatherND(x, i) }", (X, np.array([1, -1]))),
        (9, "(float[3,4] x, int64[1,2] i, float[1,2] u) => (float y) { y = Scatter<axis = 1>(x, i, u) }",
         (X, np.array([[1, 3]]), np.float32([[-1, -2]]))),
        (11, "(float[3,4] x, int64[1,2] i, float[1,2] u) => (float y) { y = ScatterElements(x, i, u) }",
         (X, np.array([[1, -1]]), np.float32([[-1, -2]]))),
        (16, '(float[3,4] x, int64[2,1] i, float[2,1] u) => (float y) {y=ScatterElements<reduction = "add">(x, i, u)}',
         (X, np.array([[1], [1]]), np.float32([[-1], [-2]]))),
        (18, '(float[3,4] x, int64[2,1] i, float[2,1] u) => (float y) {y=ScatterElements<reduction = "max">(x, i, u)}',
         (X, np.array([[1], [1]]), np.float32([[9], [-2]]))),
        (11, "(float[3,4] x, int64[2,1] i, float[2,4] u) => (float y) { y = ScatterND(x, i, u) }",
         (X, np.array([[2], [0]]), -X[:2])),
        (13, "(float[3,4] x, int64[2] i, float u) => (float y) { y = ScatterND(x, i, u) }",
         (X, np.array([1, -1]), np.float32(7))),
        (16, '(float[3,4] x, int64[2,2] i, float[2] u) => (float y) { y = ScatterND<reduction = "mul">(x, i, u) }',
         (X, np.array([[2, 1], [2, 1]]), np.float32([2, 3]))),
        (24, '(float[2,4,1] x, float[2,2,1] u, int64[2] w) => (float y) {y=TensorScatter<mode = "circular">(x, u, w)}',
         (X[:2, :, None], -1 - X[:2, :2, None], np.array([3, 1]))),
        (9, "(int64[3] x, int64 d, float[2] v) => (float y) { y = OneHot(x, d, v) }",
         (np.array([1, 2, 5]), np.array(3), np.float32([-1, 1]))),
        (11, "(float[2,2] x, float d, float[2] v) => (float y) { y = OneHot<axis = 1>(x, d, v) }",
         (np.float32([[1, -1], [-4, 0]]), np.float32(3), np.float32([5, 6]))),
        (1, "(float[3,4] x) => (float y, int64 z) { y, z = TopK<k = 2>(x) }", (X,)),
        (10, "(float[3,4] x) => (float y, int64 z) <int64[1] k = {2}> { y, z = TopK<axis = 0>(x, k) }", (X,)),
        (11, "(int32[1,4] x) => (int32 y, int64 z) <int64[1] k = {3}> { y, z = TopK<largest = 0>(x, k) }", (INTEGERS,)),
        (11, "(int32[1,4] x) => (int32 y, int64 z) <int64[1] k = {3}> { y, z = TopK<largest = 1>(x, k) }", (INTEGERS,)),
        (9, "(float[3,4] x) => (int64 y) { y = NonZero(x) }", (X % 3,)),
        (13, "(int64[3,4] x) => (int64 y) { y = NonZero(x) }", (X.astype(np.int64) % 2,)),
        (9, "(float[3,4] x, bool[3] c) => (float y) { y = Compress<axis = 1>(x, c) }",
         (X, np.array([True, False, True]))),
        (11, "(float[3,4] x, bool[5] c) => (float y) { y = Compress(x, c) }", (X, np.array([0, 1, 1, 0, 1], bool))),
        (11, "(float[3,4] x) => (float y, int64 a, int64 b, int64 c) { y, a, b, c = Unique<sorted = 0>(x) }",
         (X[::-1] % 5,)),
        (11, "(float[3,4] x) => (float y, int64 a, int64 b, int64 c) { y, a, b, c = Unique<axis = 1>(x) }",
         (X[:, ::-1] % 2,)),
        (11, "(float[3,4] x) => (float y) { y = Unique(x) }", (X % 5,)),
    ],
)  # fmt: skip
def test_versions_against_onnx_runtime(opset, text, inputs):
    check_against_runtime(opset, text, *inputs)


def test_scatter_under_its_deprecated_name():
    updated = indexing.scatter(X, np.array([[1]]), np.float32([[-1]]), axis=1)
    np.testing.assert_array_equal(updated, indexing.scatter_elements_11(X, np.array([[1]]), np.float32([[-1]]), axis=1))
    assert shape_cases.host().registry.lookup("", "Scatter", 20).function is indexing.scatter


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (indexing.gather(np.array([2**62, 7]), 0), 2**62),
        (indexing.gather(np.array([2**62, 7]), np.array([-1, 0])), [7, 2**62]),
        (indexing.gather((2, 3), np.array(1)), 3),
        (indexing.gather_elements(np.array([5, 6]), np.array([1])), [6]),
        (indexing.gather_nd(np.array([5, 6]), np.array([[1]])), [6]),
        (indexing.gather_nd(np.array([5, 6]), np.array([1])), 6),
        (indexing.scatter_elements(np.array([5, 6]), np.array([1]), np.array([2**62])), [5, 2**62]),
        (indexing.scatter_elements(np.array([5, 6]), np.array([1, 1]), np.array([1, 2]), reduction="add"), [5, 9]),
        (indexing.scatter_nd(np.array([5, 6]), np.array([[0]]), np.array([2**62])), [2**62, 6]),
        (indexing.scatter_nd(np.array([5, 6]), np.array([0]), 1), [1, 6]),
        (indexing.one_hot(np.array([1]), 2, np.array([0, 9])), [[0, 9]]),
        (indexing.one_hot(1, (2,), np.array([0, 9])), [0, 9]),
        (indexing.top_k(np.array([5, 2**62]), (1,)), [2**62]),
        (indexing.top_k(np.array([5, 2**62]), (1,), n_outputs=2)[1], [1]),
        (indexing.non_zero(np.array([False, True])), [[1]]),
        (indexing.non_zero(np.array(3)), np.zeros((1, 1))),
        (indexing.compress(np.array([5, 6]), (False, True)), [6]),
        (indexing.unique(np.array([6, 5, 6]), n_outputs=3)[2], [1, 0, 1]),
    ],
)
def test_host_values_stay_on_the_host_in_64_bits(result, expected):
    assert isinstance(result, np.ndarray)
    assert result.dtype == np.int64
    np.testing.assert_array_equal(result, np.array(expected))
    assert result.shape == np.shape(expected)


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (indexing.gather(objects(2, N, M), np.array(1)), [N]),
        (indexing.gather(objects(2, N, M), np.array([2, 0])), [M, 2]),
        (indexing.gather_elements(objects(N, M), np.array([1])), [M]),
        (indexing.gather_nd(objects(N, M), np.array([[1]])), [M]),
        (indexing.scatter_elements(np.array([5, 6]), np.array([1]), objects(N)), [5, N]),
        (indexing.scatter_nd(objects(N, M), np.array([[0]]), np.array([4])), [4, M]),
        (indexing.scatter_nd(np.array([5, 6]), np.array([0]), N), [N, 6]),
        (indexing.compress(objects(N, M), (False, True)), [M]),
    ],
)
def test_symbols_stay_symbols(result, expected):
    assert isinstance(result, np.ndarray)
    assert result.dtype == object
    assert all(item is wanted or item == wanted for item, wanted in zip(result.reshape(-1), expected, strict=True))


def test_what_depends_on_a_symbol_is_a_type_error():
    for attempt in (
        lambda: indexing.gather(np.arange(4), objects(N)),
        lambda: indexing.non_zero(objects(N)),
        lambda: indexing.one_hot(np.arange(4), N, np.arange(2)),
    ):
        with pytest.raises(TypeError):
            attempt()


def test_a_constant_index_is_a_static_slice():
    for index in (0, np.array(0), np.int64(0)):
        jaxpr = jax.make_jaxpr(lambda x, index=index: indexing.gather(x, index, axis=1))(X)
        assert {equation.primitive.name for equation in jaxpr.eqns} == {"slice", "squeeze"}
    np.testing.assert_array_equal(indexing.gather(jnp.asarray(X), -1, axis=1), X[:, -1])


def test_a_host_table_takes_traced_indices():
    table = np.array([10, 20, 30])
    np.testing.assert_array_equal(jax.jit(lambda i: indexing.gather(table, i))(jnp.array([2, -1])), [30, 30])
    np.testing.assert_array_equal(jax.jit(lambda i: indexing.gather_nd(table, i))(jnp.array([[2], [-1]])), [30, 30])


def test_gradients():
    x = jnp.asarray(X)
    counts = jax.grad(lambda x: indexing.gather(x, jnp.array([0, -1, -1])).sum())(x)
    np.testing.assert_array_equal(counts[:, 0], [1, 0, 2])
    chosen = jax.grad(lambda x: indexing.compress(x, x[0] > 1, axis=1).sum())(x)
    np.testing.assert_array_equal(chosen[0], [0, 0, 1, 1])
    different = jax.grad(lambda x: indexing.unique(x).sum())(jnp.array([3.0, 1.0, 3.0]))
    np.testing.assert_array_equal(different, [1, 1, 0])
    largest = jax.grad(lambda x: indexing.top_k(x, (1,)).sum())(x)
    np.testing.assert_array_equal(largest, np.tile([0, 0, 0, 1], (3, 1)))
    kept = jax.grad(lambda x: indexing.scatter_nd(x, jnp.array([[1]]), x[:1] * 2.0).sum())(x)
    np.testing.assert_array_equal(kept[:, 0], [3, 0, 1])
    assert indexing.non_zero(x).dtype == jnp.int32


def test_data_dependent_shapes_are_refused_under_jit():
    for function in (indexing.non_zero, indexing.unique, lambda x: indexing.compress(x, x > 0)):
        with pytest.raises(_errors.HostValueError, match="without jit"):
            jax.jit(function)(jnp.arange(3))
    known = np.array([True, False, True])
    np.testing.assert_array_equal(jax.jit(lambda x: indexing.compress(x, known))(jnp.arange(3)), [0, 2])


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x, i: indexing.gather(x, 0, axis=1), "(a, 4)"),
        (lambda x, i: indexing.gather(x, -1, axis=1), "(a, 4)"),
        (lambda x, i: indexing.gather(x, x.shape[1] - 1, axis=1), "(a, 4)"),
        (lambda x, i: indexing.gather(x, i[:, 0]), "(a, b, 4)"),
        (lambda x, i: indexing.gather(tensor.shape(x), 1).reshape(1), "(b,)"),
        (lambda x, i: indexing.gather_elements(x, i[:, :, None], axis=2), "(a, b, 1)"),
        (lambda x, i: indexing.gather_nd(x, i[:, :, None], batch_dims=2), "(a, b)"),
        (lambda x, i: indexing.scatter_elements(x, i[:, :, None], x[:, :, :1], axis=2), "(a, b, 4)"),
        (lambda x, i: indexing.scatter_nd(x, i[:, :1], x), "(a, b, 4)"),
        (lambda x, i: indexing.one_hot(i, 3, jnp.arange(2)), "(a, b, 3)"),
        (lambda x, i: indexing.one_hot(i, x.shape[1], jnp.arange(2)), "(a, b, b)"),
        (lambda x, i: indexing.one_hot(np.array(1), x.shape[1], np.arange(2)), "(b,)"),
        (lambda x, i: indexing.top_k(x, (2,)), "(a, b, 2)"),
        (lambda x, i: indexing.tensor_scatter(x, x), "(a, b, 4)"),
    ],
)
def test_sizes_stay_symbolic_under_export(function, expected):
    def shaped(x, i):
        result = function(x, i)
        return result if isinstance(result, jax.Array) else jnp.zeros(tuple(result.tolist()))

    a, b = jax.export.symbolic_shape("a, b")
    specifications = jax.ShapeDtypeStruct((a, b, 4), jnp.float32), jax.ShapeDtypeStruct((a, b), jnp.int32)
    (result,) = jax.export.export(jax.jit(shaped))(*specifications).out_avals
    assert str(result.shape) == expected
