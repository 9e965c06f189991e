"""Pooling: the ONNX suite, ONNX Runtime over the edges of windows, and either formulation against the other."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.test_util import check_grads

from onnxeqx import _pooling
from onnxeqx.plugins import pooling

from . import shape_cases
from .window_cases import check, normal, ours, runtime

CASES = shape_cases.case_names("pooling")
X = normal(1, 2, 7, 8)
WINDOWS = {
    "k2 s1": {"kernel_shape": (2, 2)},
    "k3 s2": {"kernel_shape": (3, 3), "strides": (2, 2)},
    "k3x2 s3x2": {"kernel_shape": (3, 2), "strides": (3, 2)},
}
PADS = [
    {},
    {"pads": (1, 0, 1, 1)},
    {"pads": (0, 1, 1, 0)},
    {"auto_pad": "SAME_UPPER"},
    {"auto_pad": "SAME_LOWER"},
    {"auto_pad": "VALID"},
]


@pytest.fixture(autouse=True)
def _strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.mark.parametrize("name", CASES[::3])
def test_suite_under_jit_vmap_and_grad(name):
    shape_cases.check_under_jit(name)


def test_the_suite_has_cases():
    assert len(CASES) >= 50


@pytest.mark.parametrize("padding", PADS, ids=str)
@pytest.mark.parametrize(("opset", "windows"), [(10, "k2 s1"), (12, "k3 s2"), (22, "k3x2 s3x2")])
def test_pools_against_onnx_runtime(opset, windows, padding):
    for ceil_mode in (0, 1):
        options = WINDOWS[windows] | padding | {"ceil_mode": ceil_mode}
        check("MaxPool", opset, (X,), n_outputs=2, **options)
        check("MaxPool", opset, (X,), **options)
        for count_include_pad in (0, 1):
            check("AveragePool", opset, (X,), count_include_pad=count_include_pad, **options)
    check("LpPool", max(opset, 18), (X,), p=3, **options)


@pytest.mark.parametrize("padding", PADS[:3], ids=str)
@pytest.mark.parametrize("windows", WINDOWS)
def test_dilated_windows_against_onnx_runtime(windows, padding):
    for ceil_mode, dilations in itertools.product((0, 1), ((2, 1), (1, 3))):
        options = WINDOWS[windows] | padding | {"ceil_mode": ceil_mode, "dilations": dilations}
        check("MaxPool", 12, (X,), n_outputs=2, **options)
        check("MaxPool", 12, (X,), **options)
        check("AveragePool", 19, (X,), count_include_pad=1, **options)
        check("AveragePool", 19, (X,), **options)
        check("LpPool", 18, (X,), **options)


@pytest.mark.parametrize("padding", PADS, ids=str)
def test_old_versions_against_onnx_runtime(padding):
    options = WINDOWS["k3 s2"] | padding
    check("MaxPool", 1, (X,), **options)
    check("MaxPool", 8, (X,), n_outputs=2, **options)
    check("MaxPool", 8, (X,), n_outputs=2, storage_order=1, **options)
    (oldest,) = ours("AveragePool", 1, (X,), **options)  # which ONNX Runtime lacks
    np.testing.assert_allclose(oldest, runtime("AveragePool", 7, (X,), **options)[0], 1e-4, 1e-5)
    check("AveragePool", 7, (X,), count_include_pad=1, **options)
    for p in (1, 2, 3):
        check("LpPool", 2, (X,), p=p, **options)
    check("LpPool", 11, (X,), **options)


@pytest.mark.parametrize("name", ["GlobalAveragePool", "GlobalMaxPool"])
@pytest.mark.parametrize("opset", [1, 22])
def test_global_pools_against_onnx_runtime(name, opset):
    check(name, opset, (X,))
    check(name, opset, (normal(2, 3, 4, 5, 6),))


@pytest.mark.parametrize("p", [1, 2, 3])
def test_global_lp_pool_against_onnx_runtime(p):
    check("GlobalLpPool", 2, (X,), p=p)
    (old,) = ours("GlobalLpPool", 1, (X,), p=float(p))
    np.testing.assert_allclose(old, runtime("GlobalLpPool", 2, (X,), p=p)[0], 1e-5)


def test_lp_pool_1_takes_any_exponent_and_the_whole_map():
    (y,) = ours("LpPool", 1, (X,), p=2.5)
    np.testing.assert_allclose(y, (np.abs(X) ** 2.5).sum((2, 3), keepdims=True) ** 0.4, 1e-5)


def test_dilated_same_padding_keeps_sizes_as_the_specification_says():
    options = {"kernel_shape": (3, 3), "dilations": (2, 1), "auto_pad": "SAME_UPPER"}
    assert runtime("MaxPool", 12, (X,), **options)[0].shape == (1, 2, 5, 8)
    assert ours("MaxPool", 12, (X,), **options)[0].shape == (1, 2, 7, 8)


@pytest.mark.parametrize("spatial", [(9,), (5, 4, 6)])
def test_one_and_three_axes(spatial):
    options = {"kernel_shape": (3,) * len(spatial), "strides": (2,) * len(spatial), "pads": (1,) * 2 * len(spatial)}
    for name, opset in (("MaxPool", 12), ("AveragePool", 19), ("LpPool", 18)):
        check(name, opset, (normal(2, 3, *spatial),), ceil_mode=1, **options)
    for storage_order in (0, 1):
        check("MaxPool", 12, (normal(2, 3, *spatial),), n_outputs=2, storage_order=storage_order, **options)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_max_pool_of_integers(dtype):
    x = np.random.default_rng(0).integers(np.iinfo(dtype).min, 100, (1, 2, 6, 6)).astype(dtype)
    check("MaxPool", 12, (x,), kernel_shape=(3, 3), pads=(1, 1, 1, 1))
    check("MaxPool", 12, (x,), n_outputs=2, kernel_shape=(3, 3), pads=(1, 1, 1, 1))


@pytest.mark.parametrize("pads", [None, (0, 1, 1, 0)])
def test_max_unpool_against_onnx_runtime(pads):
    options = {"kernel_shape": (2, 2), "strides": (2, 2)} | ({"pads": pads} if pads else {})
    maxima, indices = runtime("MaxPool", 11, (normal(2, 3, *((5, 7) if pads else (6, 8))),), n_outputs=2, **options)
    for opset in (9, 11, 22):
        check("MaxUnpool", opset, (maxima, indices), **options)


def test_max_unpool_grows_and_shrinks_to_the_output_shape():
    x, indices = np.ones((1, 1, 2, 2), np.float32), np.array([[[[5, 7], [13, 15]]]])
    options = {"kernel_shape": (2, 2), "strides": (2, 2)}
    (whole,) = ours("MaxUnpool", 11, (x, indices), **options)
    (larger,) = ours("MaxUnpool", 11, (x, indices, np.array([1, 1, 5, 6])), **options)
    (smaller,) = ours("MaxUnpool", 11, (x, indices, np.array([1, 1, 3, 4])), **options)
    np.testing.assert_array_equal(larger, np.pad(whole, ((0, 0), (0, 0), (0, 1), (0, 2))))
    np.testing.assert_array_equal(smaller, whole[:, :, :3])


# sizes, kernel, strides, dilations, pads, ceil_mode
FORMULATIONS = {
    "k3 s2": ((9, 8), (3, 3), (2, 2), None, (1, 1, 1, 1), 0),
    "ceil": ((9, 8), (3, 2), (2, 3), None, (1, 0, 1, 1), 1),
    "k1 s2": ((5, 4), (1, 1), (2, 2), None, None, 0),
    "one axis": ((9,), (4,), (1,), None, (2, 1), 0),
    "three axes": ((4, 5, 6), (2, 3, 2), (1, 2, 2), None, (0, 1, 0, 1, 1, 0), 0),
}


def windows_of(name):
    sizes, kernel, strides, dilations, pads, ceil_mode = FORMULATIONS[name]
    x = jnp.asarray(normal(2, 3, *sizes))
    return x, _pooling.Windows.of(x, kernel, strides, dilations, "NOTSET", pads, ceil_mode)


@pytest.mark.parametrize("name", FORMULATIONS)
@pytest.mark.parametrize(
    ("function", "reduced"),
    [
        (_pooling.window_maxima, _pooling._reduced_maxima),
        (_pooling.window_sums, _pooling._reduced_sums),
    ],
)
def test_formulations_agree(function, reduced, name):
    x, windows = windows_of(name)

    def derivatives(function):
        def loss(x):
            return jnp.sin(function(x, windows)).sum()

        def all_of_them(x):
            return (
                function(x, windows),
                jax.grad(loss)(x),
                jax.jvp(lambda x: function(x, windows), (x,), (x * x,)),
                jax.vmap(jax.grad(loss))(x[None] * jnp.arange(1.0, 3.0).reshape(2, *(1,) * x.ndim)),
                jax.grad(lambda x: (jax.grad(loss)(x) ** 2).sum())(x),
            )

        return jax.jit(all_of_them)

    expected = jax.tree.leaves(derivatives(reduced)(x))
    for result, wanted in zip(jax.tree.leaves(derivatives(function)(x)), expected, strict=True):
        np.testing.assert_allclose(result, wanted, 1e-4, 1e-5)


def test_of_equal_maxima_the_first_gets_the_gradient():
    x = jnp.zeros((1, 1, 5, 5))
    expected = np.zeros((5, 5))
    expected[::2, ::2][:2, :2] = 1

    def loss(n_outputs):
        def of_maxima(x):
            y = pooling.max_pool(x, kernel_shape=(3, 3), strides=(2, 2), n_outputs=n_outputs)
            return (y if n_outputs == 1 else y[0]).sum()

        return of_maxima

    for n_outputs in (1, 2):
        np.testing.assert_array_equal(jax.grad(loss(n_outputs))(x)[0, 0], expected)
    _, indices = pooling.max_pool(x, kernel_shape=(3, 3), strides=(2, 2), n_outputs=2)
    np.testing.assert_array_equal(indices[0, 0], [[0, 2], [10, 12]])


def test_a_maximum_of_nan_is_nan():
    x = jnp.asarray(X).at[0, 0, 3, 3].set(jnp.nan)
    y = pooling.max_pool(x, kernel_shape=(3, 3))
    expected = lax.reduce_window(x, np.float32(-np.inf), lax.max, (1, 1, 3, 3), (1, 1, 1, 1), "VALID")
    np.testing.assert_array_equal(y, expected)


def test_padding_is_never_an_index():
    x = np.full((1, 1, 3, 3), -np.inf, np.float32)
    _, indices = ours("MaxPool", 12, (x,), n_outputs=2, kernel_shape=(3, 3), pads=(1, 1, 1, 1))
    assert indices[0, 0, 0, 0] == 0


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_adds_up_in_float32(dtype):
    x = jnp.asarray(normal(1, 2, 64, 64)).astype(dtype) + 3
    wide = x.astype(jnp.float32)
    for function in (
        lambda x: pooling.average_pool(x, kernel_shape=(32, 32), strides=(16, 16)),
        lambda x: pooling.lp_pool(x, kernel_shape=(32, 32)),
        pooling.global_average_pool,
        pooling.global_lp_pool,
    ):
        y = function(x)
        assert y.dtype == dtype
        np.testing.assert_array_equal(y, function(wide).astype(dtype))


def test_norms_of_zeros_have_zero_gradients():
    for function in (lambda x: pooling.lp_pool(x, kernel_shape=(2, 2)), pooling.global_lp_pool):
        for p in (1, 2, 3):
            gradient = jax.grad(lambda x, function=function: function(x).sum())(jnp.zeros((1, 1, 3, 3)))
            np.testing.assert_array_equal(gradient, jnp.zeros((1, 1, 3, 3)), err_msg=str(p))


def test_numerical_gradients():
    options = {"kernel_shape": (3, 2), "strides": (2, 1), "pads": (1, 0, 1, 1), "dilations": (1, 2), "ceil_mode": 1}

    def function(x):
        return (
            pooling.max_pool(x, **options),
            pooling.average_pool(x, **options),
            pooling.lp_pool(x, p=3, **options),
            pooling.global_lp_pool(x),
        )

    with jax.enable_x64(True):
        check_grads(jax.jit(function), (normal(1, 2, 6, 7, dtype=np.float64),), order=1)


def pools(x):
    options = {"kernel_shape": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1), "ceil_mode": 1}
    return pooling.max_pool(x, **options), pooling.average_pool(x, **options), pooling.lp_pool(x, **options)


def test_a_tpu_gets_reduce_window():
    x = jax.ShapeDtypeStruct(X.shape, X.dtype)
    program = jax.export.export(jax.jit(pools), platforms=["tpu"])(x).mlir_module()
    assert program.count('"stablehlo.reduce_window"') == 2  # a maximum, and a sum that two pools share

    def loss(x):
        return sum(y.sum() for y in pools(x))

    program = jax.export.export(jax.jit(jax.grad(loss)), platforms=["tpu"])(x).mlir_module()
    assert program.count('"stablehlo.select_and_scatter"') == 1


def test_a_cpu_gets_one_formulation():
    def loss(x):
        return sum(y.sum() for y in pools(x))

    program = jax.jit(jax.grad(loss)).lower(X).compile().as_text()
    assert not any(name in program for name in ("conditional(", "reduce-window(", "select-and-scatter("))


@pytest.mark.parametrize("platforms", [["cpu"], ["tpu"], ["cpu", "tpu"]])
@pytest.mark.parametrize("shape", ["batch, 2, 7, 8", "batch, 2, h, w"])
def test_symbolic_dimensions(shape, platforms):
    dims = jax.export.symbolic_shape(shape)
    exported = jax.export.export(jax.jit(pools), platforms=platforms)(jax.ShapeDtypeStruct(dims, X.dtype))
    if "cpu" in platforms:
        for result, wanted in zip(exported.call(X), pools(jnp.asarray(X)), strict=True):
            np.testing.assert_allclose(result, wanted, 1e-5)
