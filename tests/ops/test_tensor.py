"""Shape and layout: the ONNX suite, old versions against ONNX Runtime, host values, symbolic shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onnxeqx.plugins import padding, tensor

from . import shape_cases
from .shape_cases import Symbol, check_against_runtime, objects

INT64_MAX, INT64_MIN = np.iinfo(np.int64).max, np.iinfo(np.int64).min
X = np.arange(6, dtype=np.float32).reshape(2, 3)
IMAGE = np.arange(8, dtype=np.float32)
N, M = Symbol("n"), Symbol("m")

CASES = shape_cases.case_names("tensor", "padding")
SEQUENCES = {"test_identity_opt", "test_identity_sequence"}  # no arrays: only in tests/conformance
DEVICE_CASES = [name for name in CASES if name not in SEQUENCES]


@pytest.fixture(autouse=True)
def _strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        yield


def test_the_suite_is_there():
    assert len(CASES) >= 124
    assert set(CASES) >= SEQUENCES


@pytest.mark.parametrize("name", CASES)
def test_suite_on_host(name):
    shape_cases.check_on_host(name)


@pytest.mark.parametrize("name", DEVICE_CASES)
def test_suite_under_jit_vmap_and_grad(name):
    shape_cases.check_under_jit(name)


@pytest.mark.parametrize(
    ("opset", "text", "inputs"),
    [
        (1, "(float[2,3] x) => (float y) { y = Reshape<shape = [3, -1]>(x) }", (X,)),
        (4, "(float[2,3] x) => (float y) { y = Reshape<shape = [0, -1, 1]>(x) }", (X,)),
        (5, "(float[2,3] x) => (float y) <int64[2] s = {-1, 2}> { y = Reshape(x, s) }", (X,)),
        (13, "(float[2,3] x) => (float y) <int64[3] s = {0, 1, -1}> { y = Reshape(x, s) }", (X,)),
        (1, "(float[2,3] x) => (float y) { y = Flatten<axis = 0>(x) }", (X,)),
        (9, "(int64[2,3] x) => (int64 y) { y = Flatten<axis = 2>(x) }", (X.astype(np.int64),)),
        (11, "(float[1,2,3] x) => (float y) { y = Flatten<axis = -1>(x) }", (X[None],)),
        (1, "(float[1,2,1,3] x) => (float y) { y = Squeeze<axes = [2]>(x) }", (X[None, :, None],)),
        (1, "(float[1,2,1,3] x) => (float y) { y = Squeeze(x) }", (X[None, :, None],)),
        (11, "(float[1,2,1,3] x) => (float y) { y = Squeeze<axes = [-2, 0]>(x) }", (X[None, :, None],)),
        (13, "(float[1,2,1,3] x) => (float y) { y = Squeeze(x) }", (X[None, :, None],)),
        (1, "(float[2,3] x) => (float y) { y = Unsqueeze<axes = [0, 3]>(x) }", (X,)),
        (11, "(float[2,3] x) => (float y) { y = Unsqueeze<axes = [-1, 0]>(x) }", (X,)),
        (4, "(float[2,3] x, float[2,3] z) => (float y) { y = Concat<axis = 0>(x, z) }", (X, X + 9)),
        (2, "(float[2,3] x) => (float y, float z) { y, z = Split<axis = 1, split = [1, 2]>(x) }", (X,)),
        (2, "(float[2,3] x) => (float y, float z) { y, z = Split(x) }", (X,)),
        (11, "(float[2,3] x) => (float y, float z) { y, z = Split<axis = -1, split = [2, 1]>(x) }", (X,)),
        (13, "(float[2,3] x) => (float y, float z) <int64[2] s = {0, 3}> { y, z = Split<axis = 1>(x, s) }", (X,)),
        (18, "(float[2,3] x) => (float y, float z) { y, z = Split<axis = 1, num_outputs = 2>(x) }", (X,)),
        (1, "(float[2,3] x) => (float y) { y = Slice<axes = [1], starts = [1], ends = [9223372036854775807]>(x) }",
         (X,)),
        (9, "(float[2,3] x) => (float y) { y = Slice<starts = [0, -2], ends = [-1, 1000]>(x) }", (X,)),
        (10, "(float[2,3] x, int64[1] s, int64[1] e, int64[1] a, int64[1] d) => (float y) { y = Slice(x, s, e, a, d) }",
         (X, np.array([INT64_MAX]), np.array([INT64_MIN]), np.array([1]), np.array([-2]))),
        (13, "(float[2,3] x, int64[1] s, int64[1] e, int64[1] a, int64[1] d) => (float y) { y = Slice(x, s, e, a, d) }",
         (X, np.array([-9]), np.array([INT64_MIN]), np.array([-1]), np.array([-1]))),
        (13, "(float[2,3] x, int64[2] s, int64[2] e) => (float y) { y = Slice(x, s, e) }",
         (X, np.array([INT64_MIN, 7]), np.array([INT64_MAX, INT64_MAX]))),
        (8, "(float[3,1] x) => (float y) <int64[3] s = {2, 1, 4}> { y = Expand(x, s) }", (X[:1].T,)),
        (8, "(float[2,3] x) => (float y) <int64[1] s = {1}> { y = Expand(x, s) }", (X,)),
        (6, "(float[2,3] x) => (float y) <int64[2] r = {2, 3}> { y = Tile(x, r) }", (X,)),
        (1, "(float[1,1,2,4] x) => (float y) { y = SpaceToDepth<blocksize = 2>(x) }", (IMAGE.reshape(1, 1, 2, 4),)),
        (1, "(float[1,8,1,1] x) => (float y) { y = DepthToSpace<blocksize = 2>(x) }", (IMAGE.reshape(1, 8, 1, 1),)),
        (11, '(float[1,8,1,1] x) => (float y) { y = DepthToSpace<blocksize = 2, mode = "CRD">(x) }',
         (IMAGE.reshape(1, 8, 1, 1),)),
        (2, "(float[2,3] x) => (float y) { y = Pad<pads = [0, 1, 0, -1], value = 2.5>(x) }", (X,)),
        (2, '(float[2,3] x) => (float y) { y = Pad<pads = [0, 1, 0, 2], mode = "reflect">(x) }', (X,)),
        (2, '(float[2,3] x) => (float y) { y = Pad<pads = [1, 0, 0, 2], mode = "edge">(x) }', (X,)),
        (11, "(float[2,3] x) => (float y) <int64[4] p = {0, -1, 2, 1}, float c = {3}> { y = Pad(x, p, c) }", (X,)),
        (13, '(int64[2,3] x) => (int64 y) <int64[4] p = {0, 1, 0, 1}> { y = Pad<mode = "reflect">(x, p) }',
         (X.astype(np.int64),)),
        (18, "(float[2,3] x) => (float y) <int64[2] p = {1, 2}, int64[1] a = {-1}> { y = Pad(x, p, , a) }", (X,)),
        (19, '(float[2,3] x) => (float y) <int64[4] p = {2, 1, 1, 1}> { y = Pad<mode = "wrap">(x, p) }', (X,)),
        (14, "(float[2,3] x) => (float y) <int64 k = {-1}> { y = Trilu<upper = 0>(x, k) }", (X,)),
        (18, "(float[2,3] x) => (float y) <int64[2] s = {5, 2}> { y = CenterCropPad(x, s) }", (X,)),
        (18, "(float[2,3] x) => (float y) <int64[1] s = {6}> { y = CenterCropPad<axes = [-1]>(x, s) }", (X,)),
        (10, "(float[2,3] x, int64[2] l) => (float y) { y = ReverseSequence<batch_axis = 0, time_axis = 1>(x, l) }",
         (X, np.array([3, 2]))),
        (1, "(float[2,3] x) => (int64 y, int64 z) { y = Shape(x) z = Size(x) }", (X,)),
        (1, "(float[2,3] x) => (float y) { t = Identity(x) y = Transpose(t) }", (X,)),
    ],
)  # fmt: skip
def test_versions_against_onnx_runtime(opset, text, inputs):
    check_against_runtime(opset, text, *inputs)


def test_versions_that_onnx_runtime_lacks():
    np.testing.assert_array_equal(tensor.concat_1(X, X), np.concatenate([X, X], 1))
    np.testing.assert_array_equal(tensor.concat_1(X, X, axis=0), np.concatenate([X, X], 0))
    np.testing.assert_array_equal(tensor.tile_1(X, np.float32(2), np.float32(1)), np.tile(X, (1, 2)))
    expected = np.pad(X, ((0, 0), (1, 2)), constant_values=2.5)
    np.testing.assert_array_equal(padding.pad_1(X, paddings=(0, 1, 0, 2), value=2.5), expected)
    for parts in (
        tensor.split_1(X, (1, 2), axis=1, n_outputs=2),
        tensor.split_1(X, split=(1, 2), axis=1, n_outputs=2),
        tensor.split_1(X, (1, 2), split=(2, 1), axis=1, n_outputs=2),
    ):
        np.testing.assert_array_equal(parts[0], X[:, :1])
        np.testing.assert_array_equal(parts[1], X[:, 1:])
    first, second = tensor.split_1(X, n_outputs=2)
    np.testing.assert_array_equal(np.concatenate([first, second]), X)


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (tensor.shape(X), [2, 3]),
        (tensor.shape(jnp.asarray(X)), [2, 3]),
        (tensor.shape(jnp.asarray(X), start=-1), [3]),
        (tensor.size(jnp.asarray(X)), 6),
        (tensor.identity(np.array([1])), [1]),
        (tensor.concat(np.array([INT64_MAX]), np.array([2]), axis=0), [INT64_MAX, 2]),
        (tensor.reshape(np.array([INT64_MAX]), ()), INT64_MAX),
        (tensor.flatten(np.array([1, 2])), [[1], [2]]),
        (tensor.squeeze(np.array([5])), 5),
        (tensor.squeeze(np.array([5]), ()), 5),
        (tensor.unsqueeze(5, (0,)), [5]),
        (tensor.unsqueeze(np.array(5), np.array([0])), [5]),
        (tensor.transpose(np.array([[1, 2]])), [[1], [2]]),
        (tensor.split(np.array([1, 2]), (1, 1), n_outputs=2)[1], [2]),
        (tensor.slice_(np.array([1, 2, 3]), (1,), (INT64_MAX,)), [2, 3]),
        (tensor.expand(7, (2,)), [7, 7]),
        (tensor.tile(np.array([1, 2]), (2,)), [1, 2, 1, 2]),
        (padding.pad(np.array([1, 2]), (1, 1), np.array(9)), [9, 1, 2, 9]),
        (padding.center_crop_pad(np.array([1, 2, 3]), (2,)), [1, 2]),
        (tensor.trilu(np.array([[1, 2], [3, 4]])), [[1, 2], [0, 4]]),
    ],
)
def test_host_values_stay_on_the_host_in_64_bits(result, expected):
    assert isinstance(result, np.ndarray)
    assert result.dtype == np.int64
    np.testing.assert_array_equal(result, np.array(expected))


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (tensor.identity(objects(N)), [N]),
        (tensor.concat(np.array([2]), objects(N, M), axis=0), [2, N, M]),
        (tensor.slice_(objects(2, N, M), (1,), (INT64_MAX,)), [N, M]),
        (tensor.slice_(objects(2, N, M), (-1,), (INT64_MIN,), (0,), (-1,)), [M, N, 2]),
        (tensor.reshape(objects(N, M), (-1,)), [N, M]),
        (tensor.squeeze(tensor.unsqueeze(objects(N, M), (0,)), (0,)), [N, M]),
        (tensor.unsqueeze(N, (0,)), [N]),
        (tensor.split(objects(N, M), n_outputs=2)[1], [M]),
        (tensor.expand(objects(N), (2,)), [N, N]),
        (tensor.tile(objects(N), (2,)), [N, N]),
        (tensor.transpose(objects(N, M)), [N, M]),
        (tensor.flatten(objects(N, M), axis=0)[0], [N, M]),
        (padding.pad(objects(N, M), (1, 0), np.array(1)), [1, N, M]),
        (padding.pad(objects(N, M), (0, -1)), [N]),
    ],
)
def test_symbols_stay_symbols(result, expected):
    assert isinstance(result, np.ndarray)
    assert result.dtype == object
    assert all(item is wanted or item == wanted for item, wanted in zip(result, expected, strict=True))


def test_a_symbolic_size_that_must_be_known_is_a_type_error():
    for attempt in (
        lambda: tensor.reshape(np.arange(4), objects(N)),
        lambda: tensor.expand(np.arange(1), objects(N)),
        lambda: tensor.slice_(np.arange(4), (0,), objects(N)),
        lambda: tensor.tile(np.arange(4), objects(N)),
    ):
        with pytest.raises(TypeError):
            attempt()


def test_sentinels_do_not_lose_the_last_element():
    x = jnp.arange(5)
    np.testing.assert_array_equal(tensor.slice_(x, np.array([1]), np.array([INT64_MAX])), np.arange(1, 5))
    np.testing.assert_array_equal(tensor.slice_(x, (INT64_MAX,), (INT64_MIN,), (0,), (-1,)), np.arange(4, -1, -1))
    np.testing.assert_array_equal(tensor.slice_(x, (INT64_MIN,), (2**31 - 1,)), np.arange(5))
    assert tensor.slice_(x, (INT64_MAX,), (INT64_MAX,)).shape == (0,)
    np.testing.assert_array_equal(tensor.trilu(jnp.ones((2, 2)), np.array(INT64_MAX)), np.zeros((2, 2)))


def test_shape_and_size_do_not_touch_data():
    specification = jax.ShapeDtypeStruct((2, 3), jnp.float32)
    np.testing.assert_array_equal(tensor.shape(specification), [2, 3])
    assert tensor.size(specification) == 6
    assert not jax.make_jaxpr(lambda x: tensor.shape(x).astype(np.int32))(X).eqns


def _exported_shape(function, *shapes):
    scope = jax.export.SymbolicScope()
    specifications = [
        jax.ShapeDtypeStruct(jax.export.symbolic_shape(shape, scope=scope), jnp.float32) for shape in shapes
    ]
    (result,) = jax.export.export(jax.jit(function))(*specifications).out_avals
    return str(result.shape)


@pytest.mark.parametrize(
    ("function", "shapes", "expected"),
    [
        (lambda x: tensor.reshape(x, (0, -1, 2, 2)), ["a, b, 4"], "(a, b, 2, 2)"),
        (
            lambda x: tensor.reshape(x, tensor.concat(tensor.shape(x, end=1), np.array([-1]), axis=0)),
            ["a, 2, 4"],
            "(a, 8)",
        ),
        (lambda x: tensor.slice_(x, (0, 1), (INT64_MAX, INT64_MAX)), ["a, b"], "(a, b - 1)"),
        (lambda x: tensor.slice_(x, (0,), (INT64_MAX,), (1,), (1,)), ["a, b"], "(a, b)"),
        (lambda x: tensor.slice_(x, (-1,), (INT64_MIN,), (1,), (-1,)), ["a, b"], "(a, b)"),
        (lambda x, y: tensor.slice_(x, (0,), tensor.shape(y)), ["512, 4", "a"], "(min(512, a), 4)"),
        (lambda x, y: tensor.concat(x, y, axis=1), ["a, 3", "a, b"], "(a, b + 3)"),
        (lambda x, y: tensor.expand(x, tensor.shape(y)), ["1, b", "a, 1"], "(a, b)"),
        (lambda x: tensor.expand(1.0, tensor.shape(x)), ["a, b"], "(a, b)"),
        (lambda x: tensor.slice_(np.arange(512)[None], (0,), tensor.shape(x), (1,)), ["a"], "(1, min(512, a))"),
        (lambda x: tensor.tile(np.arange(2), tensor.shape(x)), ["a"], "(2*a,)"),
        (lambda x: padding.pad(np.arange(2), (0, *x.shape)), ["a"], "(a + 2,)"),
        (lambda x: tensor.flatten(x), ["a, b, c"], "(a, b*c)"),
        (lambda x: tensor.squeeze(x), ["a, 1"], "(a,)"),
        (lambda x: tensor.unsqueeze(x, (1,)), ["a, b"], "(a, 1, b)"),
        (lambda x: tensor.split(x, n_outputs=2)[0], ["4, b"], "(2, b)"),
        (lambda x: tensor.split(x, n_outputs=2)[0], ["2*a, b"], "(a, b)"),
        (lambda x: tensor.tile(x, (2, 1)), ["a, b"], "(2*a, b)"),
        (lambda x: padding.pad(x, (0, 1, 0, 1)), ["a, b"], "(a, b + 2)"),
        (lambda x: padding.pad(x, (0, 1, 0, 1), mode="edge"), ["a, b"], "(a, b + 2)"),
        (lambda x: padding.pad(x, (0, -1, 0, 0)), ["a, b"], "(a, b - 1)"),
        (lambda x: tensor.trilu(x), ["a, b"], "(a, b)"),
        (lambda x: tensor.space_to_depth(x, blocksize=2), ["n, 3, 2*h, 2*w"], "(n, 12, h, w)"),
        (lambda x: tensor.depth_to_space(x, blocksize=2), ["n, 8, h, w"], "(n, 2, 2*h, 2*w)"),
    ],
)
def test_sizes_stay_symbolic_under_export(function, shapes, expected):
    assert _exported_shape(function, *shapes) == expected


def test_symbolic_shapes_are_object_arrays_that_jax_can_take():
    def sizes(x):
        shape = tensor.shape(x)
        assert shape.dtype == object
        assert tensor.size(x).shape == ()
        return tensor.concat(shape, jnp.asarray([7]), axis=0)

    exported = jax.export.export(jax.jit(sizes))(jax.ShapeDtypeStruct(jax.export.symbolic_shape("a, 3"), jnp.float32))
    np.testing.assert_array_equal(exported.call(jnp.ones((5, 3))), [5, 3, 7])


def test_strings_on_the_host():
    words = np.array([["a", "b"]], dtype=np.str_)
    assert tensor.identity(words) is words
    np.testing.assert_array_equal(tensor.concat(words, words, axis=0), [["a", "b"], ["a", "b"]])
    np.testing.assert_array_equal(tensor.transpose(words), [["a"], ["b"]])


def test_out_of_range_axis_is_refused():
    with pytest.raises(ValueError, match="axis 2 is out of range"):
        tensor.squeeze(jnp.asarray(X), (2,))
