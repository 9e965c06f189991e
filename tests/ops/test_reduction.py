"""Reductions and running sums: every version against ONNX Runtime, empty sets, host values, symbolic dimensions."""

import functools

import jax
import jax.export
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest

from onnxeqx.plugins import reduction

from . import shape_cases
from .family_cases import (
    M,
    N,
    check,
    check_against_runtime,
    check_host_case,
    host_case_names,
    lookup,
    objects,
    texts,
)

CASES = shape_cases.case_names("reduction")
HOST_CASES = host_case_names("reduction")
X = np.random.default_rng(0).uniform(0.5, 2, (2, 3, 4)).astype(np.float32)
NAMES = ["Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare"]
HOST_NAMES = ["Sum", "Mean", "Max", "Min", "Prod"]


@pytest.mark.parametrize("name", HOST_CASES)
def test_suite_on_host(name):
    check_host_case(name)


def test_the_suite_has_cases():
    assert len(HOST_CASES) >= 60
    assert len(CASES) >= 120


@pytest.mark.parametrize("name", NAMES)
def test_axes_as_attribute(name):
    for opset in (1, 11, 13):
        if opset > 12 and name == "Sum":
            continue
        check_against_runtime(f"Reduce{name}", opset, X)
        check_against_runtime(f"Reduce{name}", opset, X, keepdims=0)
        check_against_runtime(f"Reduce{name}", opset, X, axes=[1])
        check_against_runtime(f"Reduce{name}", opset, X, axes=[0, 2], keepdims=0)
    check_against_runtime(f"Reduce{name}", 11, X, axes=[-1, 0])


@pytest.mark.parametrize("name", NAMES)
def test_axes_as_input(name):
    opset = 13 if name == "Sum" else 18
    check_against_runtime(f"Reduce{name}", opset, X)
    check_against_runtime(f"Reduce{name}", opset, X, np.array([1, -1]))
    check_against_runtime(f"Reduce{name}", opset, X, np.array([-2]), keepdims=0)
    check_against_runtime(f"Reduce{name}", opset, X, np.zeros(0, np.int64))
    check_against_runtime(f"Reduce{name}", opset, X, np.zeros(0, np.int64), noop_with_empty_axes=1)
    check_against_runtime(f"Reduce{name}", opset, np.float32(3))


@pytest.mark.parametrize("name", ["Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "SumSquare"])
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_integers_stay_integers(name, dtype):
    check_against_runtime(f"Reduce{name}", 18, np.array([[-3, 0, 1], [4, 5, -2]], dtype), np.array([1]))


def test_max_of_bool():
    for name in ("ReduceMax", "ReduceMin"):
        x = np.array([[True, False], [True, True]])
        expected = x.any(1, keepdims=True) if name == "ReduceMax" else x.all(1, keepdims=True)
        check(name, 20, [x, np.array([1])], expected)
        check(name, 20, [np.zeros((1, 0), bool), np.array([1])], np.array([[name == "ReduceMin"]]))


@pytest.mark.parametrize("dtype", ["float32", "float16", "int32", "uint32", "uint8", "int8"])
def test_empty_sets(dtype):
    empty, axes = np.zeros((2, 0), dtype), np.array([1])
    bounds = (-np.inf, np.inf) if dtype.startswith("float") else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    check("ReduceMax", 20, [empty, axes], np.full((2, 1), bounds[0], dtype))
    check("ReduceMin", 20, [empty, axes], np.full((2, 1), bounds[1], dtype))
    for name, neutral in (("Sum", 0), ("Prod", 1), ("L1", 0), ("L2", 0), ("SumSquare", 0)):
        check(f"Reduce{name}", 18, [empty, axes], np.full((2, 1), neutral, dtype))


def test_logarithms_of_empty_sets():
    empty = np.zeros((2, 0), np.float32)
    for name in ("ReduceLogSum", "ReduceLogSumExp"):
        check(name, 18, [empty, np.array([1])], np.full((2, 1), -np.inf, np.float32))


@pytest.mark.parametrize("name", HOST_NAMES)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int32, np.int64])
def test_host_results_keep_their_dtype(name, dtype):
    function = lookup(f"Reduce{name}", 18).function
    for keepdims in (0, 1):
        result = function(np.array([[1, 2], [3, 6]], dtype), (1,), keepdims=keepdims)
        assert isinstance(result, np.ndarray)
        assert result.dtype == dtype


def test_python_scalars():
    for name in HOST_NAMES:
        result = lookup(f"Reduce{name}", 18).function(7)
        assert (result, result.dtype) == (7, np.int64)


def test_symbols_stay_symbols():
    shape = objects(N, M, 3)
    assert texts(reduction.reduce_sum(shape)) == ["((x.shape[0] + x.shape[1]) + 3)"]
    assert texts(reduction.reduce_prod(shape, (0,))) == ["((x.shape[0] * x.shape[1]) * 3)"]
    assert repr(reduction.reduce_prod(objects(N, 2), keepdims=0)) == "(x.shape[0] * 2)"
    assert texts(reduction.reduce_mean(objects(N, M))) == ["((x.shape[0] + x.shape[1]) // 2)"]
    assert texts(reduction.reduce_max(objects(N, -1))) == ["x.shape[0]"]
    assert texts(reduction.cum_sum(objects(2, N, 3), 0)) == ["2", "(2 + x.shape[0])", "((2 + x.shape[0]) + 3)"]
    assert texts(reduction.cum_sum(objects(2, N), 0, exclusive=1, reverse=1)) == ["x.shape[0]", "0"]
    with pytest.raises(TypeError):
        reduction.reduce_max(shape)


@pytest.mark.parametrize("name", ["ArgMax", "ArgMin"])
def test_positions_at_every_opset(name):
    x = np.array([[1, 2, 2], [1, 1, 3]], np.float32)
    for opset in (1, 11, 12, 13):
        check_against_runtime(name, opset, x)
        check_against_runtime(name, opset, x, axis=1, keepdims=0)
    for opset in (12, 13):
        check_against_runtime(name, opset, x, axis=-1, select_last_index=1)
    check_against_runtime(name, 13, x.astype(np.int32), axis=-1)


@pytest.mark.parametrize("exclusive", [0, 1])
@pytest.mark.parametrize("reverse", [0, 1])
def test_running_sums(exclusive, reverse):
    for opset in (11, 14):
        for axis in (0, 1, -1):
            check_against_runtime("CumSum", opset, X, np.array(axis), exclusive=exclusive, reverse=reverse)
    check_against_runtime("CumSum", 14, np.array([1, 2, 3]), np.array(0), exclusive=exclusive, reverse=reverse)
    check("CumSum", 14, [X[:, :0], np.array(1)], X[:, :0], exclusive=exclusive, reverse=reverse)


def test_running_products():
    x = np.array([2, 3, 4], np.float32)
    check("CumProd", 26, [x, np.array(0)], np.array([2, 6, 24], np.float32))
    check("CumProd", 26, [x, np.array(0)], np.array([1, 2, 6], np.float32), exclusive=1)
    check("CumProd", 26, [x, np.array(0)], np.array([12, 4, 1], np.float32), exclusive=1, reverse=1)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_narrow_floats_do_not_overflow(dtype):
    ones, large = jnp.ones(70_000, dtype), jnp.array([300, 400], dtype)
    with jax.numpy_dtype_promotion("strict"):
        results = reduction.reduce_mean(ones), reduction.reduce_l2(large), reduction.reduce_log_sum(ones)
    for result, wanted in zip(results, (1, 500, np.log(70_000)), strict=True):
        assert result.dtype == dtype
        np.testing.assert_allclose(result.astype(jnp.float32), wanted, rtol=5e-3)
    on_host = reduction.reduce_mean(np.asarray(ones))
    assert isinstance(on_host, np.ndarray)
    assert (on_host, on_host.dtype) == (1, dtype)


@pytest.mark.parametrize("name", NAMES)
def test_gradients(name):
    function = lookup(f"Reduce{name}", 18).function
    jax.test_util.check_grads(lambda x: function(x, (1,)), (X,), order=1, modes=["rev"], atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("function", [reduction.cum_sum, reduction.cum_prod])
def test_gradients_of_running_values(function):
    for options in ({}, {"exclusive": 1}, {"reverse": 1}):
        running = functools.partial(function, axis=1, **options)
        jax.test_util.check_grads(running, (X,), order=1, modes=["rev"], atol=2e-2, rtol=2e-2)


def test_the_norm_of_zeros_has_the_gradient_zero():
    np.testing.assert_array_equal(jax.grad(lambda x: reduction.reduce_l2(x, keepdims=0))(jnp.zeros(3)), np.zeros(3))


@pytest.mark.parametrize("name", NAMES)
def test_sizes_stay_symbolic_under_export(name):
    function = lookup(f"Reduce{name}", 18).function
    assert exported_shape(lambda x: function(x, (1,))) == "(b, 1, n)"
    assert exported_shape(lambda x: function(x[1:], (0,), keepdims=0)) == "(3, n)"


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: reduction.arg_max(x, axis=0, select_last_index=1), "(1, 3, n)"),
        (lambda x: reduction.arg_min(x, axis=2, keepdims=0), "(b, 3)"),
        (lambda x: reduction.cum_sum(x, 0, exclusive=1, reverse=1), "(b, 3, n)"),
        (lambda x: reduction.cum_prod(x, -1), "(b, 3, n)"),
        (lambda x: reduction.reduce_mean(x.astype(jnp.int32), (0,)), "(1, 3, n)"),
    ],
)
def test_positions_and_running_values_of_symbolic_size(function, expected):
    assert exported_shape(function) == expected


def exported_shape(function):
    specification = jax.ShapeDtypeStruct(jax.export.symbolic_shape("b, 3, n"), jnp.float32)
    (result,) = jax.export.export(jax.jit(function))(specification).out_avals
    return str(result.shape)


def test_running_sums_of_a_shape_stay_in_64_bits():
    result = reduction.cum_sum((2**40, 2**40), 0)
    assert isinstance(result, np.ndarray)
    np.testing.assert_array_equal(result, np.array([2**40, 2**41]))


@pytest.mark.parametrize("name", NAMES)
def test_under_jit_vmap_and_grad(name):
    function = lookup(f"Reduce{name}", 18).function
    x = jnp.asarray(X)
    with jax.numpy_dtype_promotion("strict"):
        wanted = function(x, (1,))
        np.testing.assert_allclose(jax.jit(lambda x: function(x, (1,)))(x), wanted, rtol=1e-6)
        np.testing.assert_allclose(jax.vmap(lambda x: function(x, (0,)))(x), wanted, rtol=1e-6)
        assert bool(jnp.isfinite(jax.grad(lambda x: function(x, (1,)).sum())(x)).all())
