"""Comparisons, Boolean and bitwise logic: the suite on the host, old versions, symbolic dimensions."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import onnx.parser
import pytest

import onnxeqx
from onnxeqx.plugins import logical

from .family_cases import N, check, check_against_runtime, check_host_case, host_case_names, objects

HOST_CASES = host_case_names("logical")
A = np.array([[True, True], [False, False]])
B = np.array([True, False])
NUMBERS = np.array([[1, 2], [3, 4]], np.float32)
BOOLEAN = {"And": np.logical_and, "Or": np.logical_or, "Xor": np.logical_xor}
COMPARISONS = {"Less": np.less, "Greater": np.greater, "Equal": np.equal}


@pytest.mark.parametrize("name", HOST_CASES)
def test_suite_on_host(name):
    check_host_case(name)


def test_the_suite_has_host_cases():
    assert len(HOST_CASES) >= 70


@pytest.mark.parametrize("name", BOOLEAN)
def test_boolean_logic_at_every_opset(name):
    check(name, 1, [A, A[::-1]], BOOLEAN[name](A, A[::-1]))
    check(name, 1, [A, B], BOOLEAN[name](A, B), broadcast=1)
    check(name, 6, [A, B], BOOLEAN[name](A, B[:, None]), broadcast=1, axis=0)
    check_against_runtime(name, 7, A, B[:, None])


@pytest.mark.parametrize("name", COMPARISONS)
def test_comparisons_at_every_opset(name):
    a, b = (NUMBERS.astype(np.int32), np.array([1, 4], np.int32)) if name == "Equal" else (NUMBERS, NUMBERS[0])
    check(name, 1, [a, b], COMPARISONS[name](a, b), broadcast=1)
    check(name, 6, [a, b], COMPARISONS[name](a, b[:, None]), broadcast=1, axis=0)
    for opset in (7, 9, 11, 13, 19):
        check_against_runtime(name, opset, a, b)


@pytest.mark.parametrize("name", ["LessOrEqual", "GreaterOrEqual"])
def test_inclusive_comparisons(name):
    for opset in (12, 16):
        check_against_runtime(name, opset, NUMBERS, NUMBERS[:, :1])


def test_nan_is_unequal_and_unordered():
    special = np.array([np.nan, np.inf, 0], np.float32)
    for name in ("Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual"):
        check_against_runtime(name, 16, special, special)


def test_not():
    check_against_runtime("Not", 1, A)
    assert not logical.not_(True)  # `~True` is -2
    assert logical.not_(np.array(False))


def test_shifts():
    for dtype in (np.uint8, np.uint32, np.uint64):
        a, b = np.array([1, 255, 128], dtype), np.array([0, 1, 3], dtype)
        check_against_runtime("BitShift", 11, a, b, direction="RIGHT")
        check_against_runtime("BitShift", 11, a, b, direction="LEFT")


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32])
def test_bitwise_logic(dtype):
    a, b = np.array([[12, 10]], dtype), np.array([[6], [3]], dtype)
    for name in ("BitwiseAnd", "BitwiseOr", "BitwiseXor"):
        check_against_runtime(name, 18, a, b)
    check_against_runtime("BitwiseNot", 18, a)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.int8])
def test_python_scalars(dtype):
    x = jnp.array([1, 2, 3], dtype)
    with jax.numpy_dtype_promotion("strict"):
        np.testing.assert_array_equal(logical.less(x, 2), [True, False, False])
        np.testing.assert_array_equal(logical.greater_or_equal(2, x), [True, True, False])
        np.testing.assert_array_equal(logical.and_(x > 1, True), [False, True, True])


def test_symbols_compare_where_that_is_decided():
    shape = objects(N, 3)
    assert logical.equal(shape, np.array(-1)).tolist() == [False, False]
    assert logical.less(shape, np.array(0)).tolist() == [False, False]
    assert logical.greater_or_equal(shape, np.array(0)).tolist() == [True, True]
    assert logical.not_(logical.equal(shape, np.array(-1))).tolist() == [True, True]
    with pytest.raises(TypeError):
        logical.equal(shape, np.array(1))


def test_strings_on_the_host():
    assert logical.equal(np.array(["a", "b"]), np.array(["a"])).tolist() == [True, False]


def test_models_negate_conditions_on_shapes():
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[n] x) => (float[n] y) <int64 three = {3}, int64 zero = {0}>
    {
        shape = Shape(x) n = Gather(shape, zero) equal = Equal(n, three) other = Not(equal)
        negative = Neg(x) y = Where(other, negative, x)
    }"""
    model = onnxeqx.load_model(onnx.parser.parse_model(text))
    for n, expected in ((3, 1), (4, -1)):
        np.testing.assert_array_equal(model(np.ones(n, np.float32)), np.full(n, expected))
        np.testing.assert_array_equal(eqx.filter_jit(model)(np.ones(n, np.float32)), np.full(n, expected))
