"""Conversions: every opset against ONNX Runtime, narrow floats and integers by the tables of the specification."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto

from onnxeqx.plugins import casting

from .family_cases import N, check, check_against_runtime, check_host_case, host_case_names, lookup, objects, texts

HOST_CASES = host_case_names("casting")
SPECIAL = np.array([np.inf, -np.inf, 1e9, -1e9, np.nan, 0.3], np.float32)
LARGEST = {"float8_e4m3fn": 448, "float8_e4m3fnuz": 240, "float8_e5m2": 57344, "float8_e5m2fnuz": 57344}


@pytest.mark.parametrize("name", HOST_CASES)
def test_suite_on_host(name):
    check_host_case(name)


def test_the_suite_has_host_cases():
    assert len(HOST_CASES) >= 100


@pytest.mark.parametrize("to", ["BOOL", "INT8", "UINT8", "INT32", "INT64", "FLOAT16", "DOUBLE", "BFLOAT16"])
def test_floats_at_every_opset(to):
    x = np.array([0, 0.5, 2.7, 100.2], np.float32)
    number = TensorProto.DataType.Value(to)
    expected = np.asarray(lookup("Cast", 13).function(x, to=number))
    for opset in (1, 5):
        check("Cast", opset, [x], expected, to=to)
        check("Cast", opset, [x], expected, to=to.lower())
    for opset in (6, 9, 13, 19, 21, 23, 24, 25, 28):
        check("Cast", opset, [x], expected, to=number)
    if to != "BFLOAT16":  # of which ONNX Runtime's Python interface has no arrays
        check_against_runtime("Cast", 13, x, to=number)


def test_floats_become_integers_towards_zero():
    for opset in (6, 13, 21):
        check_against_runtime("Cast", opset, np.array([2.7, -2.7, 0], np.float32), to=TensorProto.INT64)


def test_integers_lose_their_upper_bits():
    check_against_runtime("Cast", 13, np.array([200, -200, 300], np.int32), to=TensorProto.INT8)
    check("Cast", 21, [np.array([200, -9, 7])], np.array([-8, 7, 7], ml_dtypes.int4), to=TensorProto.INT4)
    check("Cast", 21, [np.array([7.2, 15, 1], np.float32)], np.array([7, 15, 1], ml_dtypes.uint4), to=TensorProto.UINT4)


def test_bool():
    check_against_runtime("Cast", 13, np.array([True, False]), to=TensorProto.FLOAT)
    check_against_runtime("Cast", 13, np.array([0.5, 0, -0.0, np.nan], np.float32), to=TensorProto.BOOL)


@pytest.mark.parametrize("name", LARGEST)
def test_saturated_floats(name):
    dtype = np.dtype(getattr(ml_dtypes, name))
    to, top = getattr(TensorProto, name.replace("float8_", "float8").upper()), LARGEST[name]
    near = np.array(0.3, np.float32).astype(dtype).astype(np.float32)
    check("Cast", 19, [SPECIAL], np.array([top, -top, top, -top, np.nan, near]).astype(dtype), to=to)
    over = np.inf if name == "float8_e5m2" else np.nan
    check("Cast", 19, [SPECIAL], np.array([over, -over, over, -over, np.nan, near]).astype(dtype), to=to, saturate=0)


def test_narrow_floats_and_integers_are_saturated_too():
    e4m3 = np.array([1, 448, -448], ml_dtypes.float8_e4m3fn)
    check("Cast", 19, [e4m3], e4m3.astype(ml_dtypes.float8_e5m2), to=TensorProto.FLOAT8E5M2)
    check("Cast", 19, [e4m3], np.array([1, 240, -240], ml_dtypes.float8_e4m3fnuz), to=TensorProto.FLOAT8E4M3FNUZ)
    numbers = np.array([1, 448, 448], ml_dtypes.float8_e4m3fn)
    check("Cast", 19, [np.array([1, 1000, 100000], np.int32)], numbers, to=TensorProto.FLOAT8E4M3FN)
    check("Cast", 19, [np.array([True])], numbers[:1], to=TensorProto.FLOAT8E4M3FN)


@pytest.mark.parametrize(
    ("round_mode", "expected"),
    [("up", [0.125, 2, 2, 4, 1]), ("down", [0.0625, 1, 1, 2, 1]), ("nearest", [0.125, 1, 2, 4, 1])],
)
def test_powers_of_two_are_rounded_as_asked(round_mode, expected):
    x = np.array([0.124, 1.1, 1.5, 3.5, 1], np.float32)
    expected = np.array(expected, ml_dtypes.float8_e8m0fnu)
    for dtype in (np.float32, np.float16):
        check("Cast", 24, [x.astype(dtype)], expected, to=TensorProto.FLOAT8E8M0, round_mode=round_mode)


def test_powers_of_two_beyond_the_range():
    x = np.array([np.inf, 3.4e38, np.nan], np.float32)
    saturated = np.array([254, 254, 255], np.uint8).view(ml_dtypes.float8_e8m0fnu)
    check("Cast", 24, [x], saturated, to=TensorProto.FLOAT8E8M0)
    nan = np.full(3, 255, np.uint8).view(ml_dtypes.float8_e8m0fnu)
    check("Cast", 24, [x], nan, to=TensorProto.FLOAT8E8M0, saturate=0, round_mode="nearest")


def test_to_may_be_a_dtype():
    assert casting.cast(jnp.ones(2), to=jnp.bfloat16).dtype == jnp.bfloat16
    assert casting.cast(np.ones(2), to=np.int64).dtype == np.int64


def test_python_scalars_become_arrays_of_the_host():
    for value in (3, 3.0, True):
        result = casting.cast(value, to=TensorProto.FLOAT16)
        assert isinstance(result, np.ndarray)
        assert result.dtype == np.float16


def test_cast_like():
    check_against_runtime("CastLike", 15, np.array([1.7, -1.7], np.float32), np.array([1]))
    x = np.array([2.5], np.float32)
    for target, dtype in ((3, np.int64), (3.0, np.float32), (True, np.bool_), (objects(N), np.int64)):
        assert casting.cast_like(x, target).dtype == dtype
    assert casting.cast_like(jnp.asarray(x), jnp.ones(1, jnp.float16)).dtype == jnp.float16


def test_bit_cast():
    x = jnp.array([1.0, -2.5])
    bits = casting.bit_cast(x, to=TensorProto.INT32)
    np.testing.assert_array_equal(bits, np.asarray(x).view(np.int32))
    np.testing.assert_array_equal(casting.bit_cast(bits, to=TensorProto.FLOAT), x)


def test_symbols_are_integers():
    shape = objects(N, 3)
    assert texts(casting.cast(shape, to=TensorProto.INT32)) == ["x.shape[0]", "3"]
    assert texts(casting.cast(shape, to=TensorProto.INT64)) == ["x.shape[0]", "3"]
    for to in (TensorProto.FLOAT, TensorProto.BOOL):
        with pytest.raises(TypeError, match="symbolic dimensions cannot be"):
            casting.cast(shape, to=to)


def test_symbolic_sizes_become_floats_under_export():
    def mean(x):
        count = casting.cast(x.shape[0], to=TensorProto.FLOAT)
        return x.sum() / count, casting.cast(objects(*x.shape), to=TensorProto.FLOAT)

    (n,) = jax.export.symbolic_shape("n")
    exported = jax.export.export(jax.jit(mean))(jax.ShapeDtypeStruct((n, 2), jnp.float32))
    average, shape = exported.call(jnp.ones((3, 2)))
    assert average == 2
    np.testing.assert_array_equal(shape, np.array([3, 2], np.float32))


def test_strings_on_the_host():
    words = np.array(["1.5", "INF", "-inf", "NaN", "1e-5"])
    for array in (words, words.astype(object)):
        result = casting.cast(array, to=TensorProto.FLOAT)
        np.testing.assert_array_equal(result, np.array([1.5, np.inf, -np.inf, np.nan, 1e-5], np.float32))
    assert casting.cast(np.array([1.5, -2], np.float32), to=TensorProto.STRING).tolist() == ["1.5", "-2.0"]
