"""Normalisation: the ONNX suite under jit, every version against ONNX Runtime, dtypes, gradients, symbolic sizes."""

import functools

import jax
import jax.export
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest

from onnxeqx.plugins import normalization

from . import shape_cases
from .family_cases import check, check_against_runtime, lookup

RNG = np.random.default_rng(0)
X = RNG.normal(1, 2, (2, 4, 3, 5)).astype(np.float32)
SCALE, BIAS, MEAN = (RNG.normal(size=4).astype(np.float32) for _ in range(3))
VAR = RNG.uniform(0.5, 2, 4).astype(np.float32)
STATISTICS = (SCALE, BIAS, MEAN, VAR)
CASES = shape_cases.case_names("normalization")

# Each function of one array, whose first axis is the batch.
FUNCTIONS = {
    "batch": lambda x: normalization.batch_normalization(x, *map(jnp.asarray, STATISTICS)),
    "batch in training": lambda x: normalization.batch_normalization(x, *map(jnp.asarray, STATISTICS), training_mode=1),
    "instance": lambda x: normalization.instance_normalization(x, jnp.asarray(SCALE), jnp.asarray(BIAS)),
    "group": lambda x: normalization.group_normalization(x, jnp.asarray(SCALE), jnp.asarray(BIAS), num_groups=2),
    "layer": lambda x: normalization.layer_normalization(x, 1.5, 0.5),
    "rms": lambda x: normalization.rms_normalization(x, 1.5),
    "lrn": functools.partial(normalization.lrn, size=3, alpha=0.5),
    "l1": functools.partial(normalization.lp_normalization, p=1),
    "l2": normalization.lp_normalization,
    "mean variance": normalization.mean_variance_normalization,
}


@pytest.fixture(autouse=True)
def _strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        yield


def standardized(x, axes, epsilon=1e-5):
    x = x.astype(np.float64)
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + epsilon)


def test_the_suite_has_cases():
    assert len(CASES) >= 40


@pytest.mark.parametrize("name", CASES)
def test_suite_under_jit_vmap_and_grad(name):
    shape_cases.check_under_jit(name)


@pytest.mark.parametrize("opset", [7, 9, 14, 15])
@pytest.mark.parametrize("shape", [(2, 4), (2, 4, 3), (2, 4, 3, 5)])
def test_stored_statistics(opset, shape):
    x = RNG.normal(size=shape).astype(np.float32)
    check_against_runtime("BatchNormalization", opset, x, *STATISTICS)
    check_against_runtime("BatchNormalization", opset, x, *STATISTICS, epsilon=0.5, momentum=0.1)


@pytest.mark.parametrize("opset", [1, 6])
def test_first_versions_are_for_inference(opset):
    expected = np.asarray(lookup("BatchNormalization", 7).function(jnp.asarray(X), *map(jnp.asarray, STATISTICS)))
    legacy = {"consumed_inputs": (0, 0, 0, 1, 1)} if opset == 1 else {}
    for is_test in (0, 1):
        check("BatchNormalization", opset, [X, *STATISTICS], expected, is_test=is_test, **legacy)


def test_without_spatial_each_position_has_statistics():
    statistics = (X[0], X[1], X[0], abs(X[1]) + 0.5)
    check_against_runtime("BatchNormalization", 7, X, *statistics, spatial=0)
    mean, var = X.mean(0), X.var(0)
    expected = (X - mean) / np.sqrt(var + 1e-5) * X[0] + X[1]
    running = [0.9 * old + 0.1 * new for old, new in zip(statistics[2:], (mean, var), strict=True)]
    check("BatchNormalization", 7, [X, *statistics], [expected, *running, mean, var], spatial=0)


def test_training_mode():
    for opset in (14, 15):
        check_against_runtime("BatchNormalization", opset, X, *STATISTICS, outputs=3, training_mode=1, momentum=0.7)
        check_against_runtime("BatchNormalization", opset, X[..., 0], *STATISTICS, outputs=3, training_mode=1)
    y = lookup("BatchNormalization", 15).function(jnp.asarray(X), *map(jnp.asarray, STATISTICS), training_mode=1)
    np.testing.assert_allclose(y.mean((0, 2, 3)), BIAS, atol=1e-5)


@pytest.mark.parametrize("opset", [1, 6, 7, 9])
def test_several_outputs_are_training_mode_before_opset_14(opset):
    operands = [X, *STATISTICS]
    y, mean, var = lookup("BatchNormalization", 14).function(*map(jnp.asarray, operands), training_mode=1, n_outputs=3)
    expected = [np.asarray(value) for value in (y, mean, var)]
    check("BatchNormalization", opset, operands, [*expected, X.mean((0, 2, 3)), X.var((0, 2, 3))])


def test_statistics_may_be_wider_than_the_input():
    x = jnp.asarray(X, jnp.float16)
    function = lookup("BatchNormalization", 15).function
    outputs = function(x, *map(jnp.asarray, STATISTICS), training_mode=1, n_outputs=3)
    assert [value.dtype for value in outputs] == [jnp.float16, jnp.float32, jnp.float32]
    np.testing.assert_allclose(outputs[1], 0.9 * MEAN + 0.1 * X.mean((0, 2, 3)), atol=1e-3)


@pytest.mark.parametrize("opset", [1, 6, 22])
def test_instances(opset):
    expected = standardized(X, (2, 3)) * SCALE[:, None, None] + BIAS[:, None, None]
    legacy = {"consumed_inputs": (0, 0, 0)} if opset == 1 else {}
    check("InstanceNormalization", opset, [X, SCALE, BIAS], expected.astype(np.float32), **legacy)
    if opset > 1:
        check_against_runtime("InstanceNormalization", opset, X, SCALE, BIAS, epsilon=0.1)
        check_against_runtime("InstanceNormalization", opset, X[..., 0], SCALE, BIAS)


def test_groups_have_a_scale_each_before_opset_21():
    groups = standardized(X.reshape(2, 2, -1), (2,)).reshape(X.shape)
    expected = (groups * SCALE[[0, 0, 1, 1], None, None] + BIAS[[0, 0, 1, 1], None, None]).astype(np.float32)
    check("GroupNormalization", 18, [X, SCALE[:2], BIAS[:2]], expected, num_groups=2)
    check_against_runtime("GroupNormalization", 18, X, SCALE[:2], BIAS[:2], num_groups=2, epsilon=0.1)


def test_groups_have_a_scale_for_each_channel_since_opset_21():
    groups = standardized(X.reshape(2, 2, -1), (2,)).reshape(X.shape)
    expected = (groups * SCALE[:, None, None] + BIAS[:, None, None]).astype(np.float32)
    check("GroupNormalization", 21, [X, SCALE, BIAS], expected, num_groups=2)
    check_against_runtime("GroupNormalization", 21, X[..., 0], SCALE, BIAS, num_groups=4, epsilon=0.1)


@pytest.mark.parametrize("axis", [0, 1, -1, -2])
def test_layers(axis):
    scale, bias = (RNG.normal(size=X.shape[axis:]).astype(np.float32) for _ in range(2))
    check_against_runtime("LayerNormalization", 17, X, scale, bias, axis=axis)
    check_against_runtime("LayerNormalization", 17, X, scale, axis=axis, epsilon=0.1)
    check_against_runtime("LayerNormalization", 17, X, scale, bias, outputs=3, axis=axis)
    check_against_runtime("RMSNormalization", 23, X, scale, axis=axis, epsilon=0.1)


@pytest.mark.parametrize(("stash_type", "dtype"), [(1, jnp.float32), (16, jnp.bfloat16)])
def test_statistics_of_layers_have_the_stash_type(stash_type, dtype):
    x = jnp.asarray(X, jnp.bfloat16)
    y, *statistics = normalization.layer_normalization(x, jnp.ones(5, x.dtype), stash_type=stash_type, n_outputs=3)
    assert y.dtype == x.dtype
    assert [value.dtype for value in statistics] == [dtype, dtype]


def test_root_mean_squares_take_the_dtype_of_the_scale():
    x = jnp.asarray(X, jnp.float16)
    assert normalization.rms_normalization(x, jnp.ones(5)).dtype == jnp.float32
    assert normalization.rms_normalization(x, 1.5).dtype == jnp.float16


@pytest.mark.parametrize("opset", [1, 13])
@pytest.mark.parametrize("size", [1, 3, 4, 5])
def test_local_response(opset, size):
    squares = np.pad(X * X, ((0, 0), ((size - 1) // 2, size // 2), (0, 0), (0, 0)))
    sums = sum(squares[:, i : i + 4] for i in range(size))
    expected = X / (2 + 0.5 / size * sums) ** 0.6
    check("LRN", opset, [X], expected, size=size, alpha=0.5, beta=0.6, bias=2.0)
    if size % 2:
        check_against_runtime("LRN", opset, X, size=size, alpha=0.5)


@pytest.mark.parametrize("opset", [1, 22])
@pytest.mark.parametrize("p", [1, 2])
def test_norms(opset, p):
    check_against_runtime("LpNormalization", opset, X, p=p)
    check_against_runtime("LpNormalization", opset, X, p=p, axis=1)
    check("LpNormalization", opset, [X * 0], X * 0, p=p)


@pytest.mark.parametrize("opset", [9, 13])
def test_mean_and_variance(opset):
    check_against_runtime("MeanVarianceNormalization", opset, X)
    check("MeanVarianceNormalization", opset, [X], standardized(X, 1, 0).astype(np.float32), axes=(1,))
    check("MeanVarianceNormalization", opset, [X], standardized(X, (2, 3), 0).astype(np.float32), axes=(-1, -2))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_narrow_floats_stay_narrow_and_their_squares_do_not_overflow(name, dtype):
    large = jnp.asarray(X * 1000, dtype)
    result = FUNCTIONS[name](large)
    wanted = FUNCTIONS[name](large.astype(jnp.float32))
    assert result.dtype == dtype
    np.testing.assert_allclose(result.astype(jnp.float32), wanted, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients(name):
    jax.test_util.check_grads(FUNCTIONS[name], (X,), order=1, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_are_finite_where_nothing_varies(name):
    for x in (np.zeros_like(X), np.ones_like(X)):
        gradient = jax.grad(lambda x: FUNCTIONS[name](x).sum())(x)
        assert bool(jnp.isfinite(gradient).all())


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_empty_batch_stays_empty(name):
    assert FUNCTIONS[name](jnp.zeros((0, *X.shape[1:]))).shape == (0, *X.shape[1:])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_sizes_stay_symbolic_under_export(name):
    specification = jax.ShapeDtypeStruct(jax.export.symbolic_shape("b, 4, h, w"), jnp.float32)
    (result,) = jax.export.export(jax.jit(FUNCTIONS[name]))(specification).out_avals
    assert str(result.shape) == "(b, 4, h, w)"


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if not name.startswith("batch in")])
def test_vmap_is_a_loop(name):
    batched = jax.vmap(FUNCTIONS[name])(np.stack([X, 2 * X]))
    np.testing.assert_allclose(batched[1], FUNCTIONS[name](2 * X), rtol=1e-5, atol=1e-5)
