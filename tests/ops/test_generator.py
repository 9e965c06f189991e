"""Tensors from sizes and attributes: the ONNX suite, versions against ONNX Runtime, exact dtypes, symbolic sizes."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import helper

from onnxeqx import _errors
from onnxeqx.plugins import generator

from . import shape_cases
from .shape_cases import Symbol, check_against_runtime, objects

CASES = shape_cases.case_names("generator")
TEN = np.array(10, np.int64)


@pytest.fixture(autouse=True)
def _strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        yield


def test_the_suite_is_there():
    assert len(CASES) >= 17


@pytest.mark.parametrize("name", CASES)
def test_suite_on_host(name):
    shape_cases.check_on_host(name)


@pytest.mark.parametrize("name", CASES)
def test_suite_under_jit_vmap_and_grad(name):
    shape_cases.check_under_jit(name)


@pytest.mark.parametrize(
    ("opset", "text", "inputs"),
    [
        (1, "() => (float y) { y = Constant<value = float[2] {1, 2}>() }", ()),
        (9, "() => (int64 y) { y = Constant<value = int64[2] {1, 2}>() }", ()),
        (11, "() => (float y) { y = Constant<value = float[2] {1, 2}>() }", ()),
        (12, "() => (float y) { y = Constant<value_float = 1.5>() }", ()),
        (12, "() => (float y) { y = Constant<value_floats = [1.5, 2.5]>() }", ()),
        (13, "() => (int64 y) { y = Constant<value_int = 4611686018427387904>() }", ()),
        (13, "() => (int64 y) { y = Constant<value_ints = [1, -2]>() }", ()),
        (9, "(int64[2] s) => (float y) { y = ConstantOfShape(s) }", (np.array([2, 3]),)),
        (9, "(int64[0] s) => (int64 y) { y = ConstantOfShape<value = int64[1] {7}>(s) }", (np.zeros(0, np.int64),)),
        (11, "(float a, float b, float c) => (float y) { y = Range(a, b, c) }",
         (np.float32(1), np.float32(2), np.float32(0.3))),
        (11, "(int64 a, int64 b, int64 c) => (int64 y) { y = Range(a, b, c) }", (TEN, np.array(-4), np.array(-3))),
        (11, "(int16 a, int16 b, int16 c) => (int16 y) { y = Range(a, b, c) }",
         (np.int16(3), np.int16(3), np.int16(1))),
        (11, "(double a, double b, double c) => (double y) { y = Range(a, b, c) }",
         (np.float64(0), np.float64(1), np.float64(0.1))),
        (9, "(int32[2,3] x) => (int32 y) { y = EyeLike<k = 1>(x) }", (np.zeros((2, 3), np.int32),)),
        (9, "(int32[2,3] x) => (float y) { y = EyeLike<dtype = 1, k = -1>(x) }", (np.zeros((2, 3), np.int32),)),
        (17, "(int64 n) => (float y) { y = HannWindow(n) }", (TEN,)),
        (17, "(int64 n) => (double y) { y = HannWindow<output_datatype = 11, periodic = 0>(n) }", (TEN,)),
        (17, "(int64 n) => (float y) { y = HammingWindow(n) }", (TEN,)),
        (17, "(int64 n) => (float y) { y = HammingWindow<periodic = 0>(n) }", (TEN,)),
        (17, "(int64 n) => (float y) { y = BlackmanWindow(n) }", (TEN,)),
        (17, "(int64 n) => (double y) { y = BlackmanWindow<output_datatype = 11, periodic = 0>(n) }", (TEN,)),
    ],
)  # fmt: skip
def test_versions_against_onnx_runtime(opset, text, inputs):
    check_against_runtime(opset, text, *inputs)


@pytest.mark.parametrize("indices", [np.array([1, 5]), np.array([[0, 1], [1, 2]])])
def test_sparse_constant(indices):
    values = helper.make_tensor("v", onnx.TensorProto.FLOAT, [2], [3.0, 4.0])
    sparse = helper.make_sparse_tensor(values, onnx.numpy_helper.from_array(indices), [2, 3])
    for function in (generator.constant, generator.constant_11):
        np.testing.assert_array_equal(function(sparse_value=sparse), np.float32([[0, 3, 0], [0, 0, 4]]))


def test_string_constants():
    assert generator.constant(value_string=b"a").item() == "a"
    np.testing.assert_array_equal(generator.constant(value_strings=("a", b"bc")), ["a", "bc"])
    assert generator.constant(value_strings=()).shape == (0,)


def test_constant_keeps_every_dtype():
    for dtype in (np.int64, np.float64, np.float16, ml_dtypes.bfloat16, np.bool_):
        array = np.ones((2,), dtype)
        assert generator.constant_1(value=array) is array
        assert generator.constant_of_shape((3,), value=array[:1]).dtype == dtype


@pytest.mark.parametrize(
    ("result", "expected", "dtype"),
    [
        (generator.range_(0, 5, 2), [0, 2, 4], np.int64),
        (generator.range_(2**62, 2**62 + 2, 1), [2**62, 2**62 + 1], np.int64),
        (generator.range_(5, 5, 1), [], np.int64),
        (generator.range_(0.0, 1.0, 0.5), [0, 0.5], np.float32),
        (generator.range_(0, np.array(3, np.int32), 1), [0, 1, 2], np.int32),
        (generator.range_11((0,), np.array([3]), 2), [0, 2], np.int64),
        (generator.range_(np.float16(2046), np.float16(2054), np.float16(2)), [2046, 2048, 2050, 2052], np.float16),
        (generator.range_(*(ml_dtypes.bfloat16(x) for x in (0, 3, 1))), [0, 1, 2], ml_dtypes.bfloat16),
        (generator.range_(jnp.asarray(0), jnp.asarray(3), jnp.asarray(1)), [0, 1, 2], np.int32),
        (generator.constant_of_shape((2,)), [0, 0], np.float32),
        (generator.constant_of_shape(np.array([2]), value=np.array([2**62])), [2**62, 2**62], np.int64),
        (generator.constant_of_shape(jnp.array([1]), value=np.array([True])), [True], np.bool_),
        (generator.eye_like(np.zeros((1, 2), np.int64), k=1), [[0, 1]], np.int64),
        (generator.eye_like(np.zeros((1, 2)), dtype=np.float16), [[1, 0]], np.float16),
        (generator.hann_window(2, output_datatype=onnx.TensorProto.INT64), [0, 1], np.int64),
        (generator.hann_window((1,), periodic=0), [0], np.float32),
    ],
)
def test_host_values_in_the_dtype_of_onnx(result, expected, dtype):
    assert isinstance(result, np.ndarray)
    assert result.dtype == dtype
    np.testing.assert_array_equal(result, np.array(expected, dtype))


def test_symbols_of_the_importer_are_type_errors():
    n = Symbol("n")
    for attempt in (
        lambda: generator.range_(0, n, 1),
        lambda: generator.range_(np.array(0), objects(n).reshape(()), np.array(1)),
        lambda: generator.constant_of_shape(objects(2, n)),
        lambda: generator.hann_window(n),
    ):
        with pytest.raises(TypeError, match="not known"):
            attempt()


def test_a_traced_size_is_refused():
    for function in (generator.constant_of_shape, generator.hann_window, lambda n: generator.range_(0, n, 1)):
        with pytest.raises(_errors.HostValueError):
            jax.jit(function)(jnp.asarray(3))


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: generator.range_(0, x.shape[0], 1), "(a,)"),
        (lambda x: generator.range_(np.array(1), x.shape[0] + 1, np.array(1)), "(a,)"),
        (lambda x: generator.range_(0, objects(x.shape[0]).reshape(()), 1), "(a,)"),
        (lambda x: generator.constant_of_shape((x.shape[0], 2)), "(a, 2)"),
        (lambda x: generator.constant_of_shape(objects(*x.shape), value=np.array([1])), "(a, b)"),
        (lambda x: generator.eye_like(x, dtype=onnx.TensorProto.DOUBLE), "(a, b)"),
        (lambda x: generator.hann_window(x.shape[0]), "(a,)"),
        (lambda x: generator.blackman_window(x.shape[0], periodic=0), "(a,)"),
    ],
)
def test_sizes_stay_symbolic_under_export(function, expected):
    specification = jax.ShapeDtypeStruct(jax.export.symbolic_shape("a, b"), jnp.float32)
    exported = jax.export.export(jax.jit(function))(specification)
    (result,) = exported.out_avals
    assert str(result.shape) == expected
    np.testing.assert_allclose(exported.call(jnp.ones((6, 3))), function(jnp.ones((6, 3))), atol=1e-6)
