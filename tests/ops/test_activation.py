"""Activation functions and Dropout: every version against ONNX Runtime, dtypes, gradients."""

import jax
import jax.export
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest

from onnxeqx.plugins import activation

from . import shape_cases
from .family_cases import N, check, check_against_runtime, check_host_case, host_case_names, lookup, objects, texts

X = np.array([[-2.5, -1, 0, 0.5], [1, 2, 3, 70]], np.float32)
CUBE = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
LEGACY = ("Relu", "Sigmoid", "Elu", "Selu", "LeakyRelu", "HardSigmoid")
LATER = {
    "ThresholdedRelu": (10, 22),
    "Celu": (12,),
    "HardSwish": (14, 22),
    "Swish": (24,),
    "Mish": (18, 22),
    "Gelu": (20,),
    "Softplus": (1, 22),
    "Softsign": (1, 22),
    "Shrink": (9,),
}
FUNCTIONS = ["relu", "leaky_relu", "elu", "selu", "celu", "thresholded_relu", "sigmoid", "hard_sigmoid", "hard_swish"]
FUNCTIONS += ["swish", "mish", "gelu", "softplus", "softsign", "shrink", "softmax", "log_softmax", "hardmax"]


@pytest.mark.parametrize("name", host_case_names("activation"))
def test_suite_on_host(name):
    check_host_case(name)


@pytest.mark.parametrize("name", shape_cases.case_names("activation"))
def test_suite_under_jit_vmap_and_grad(name):
    with jax.numpy_dtype_promotion("strict"):
        shape_cases.check_under_jit(name)


@pytest.mark.parametrize("name", LEGACY)
def test_legacy_versions(name):
    expected = np.asarray(lookup(name, 6).function(jnp.asarray(X)))
    first = {} if name != "Selu" else {"alpha": 1.67326319217681884765625, "gamma": 1.05070102214813232421875}
    check(name, 1, [X], expected, consumed_inputs=(0,), **first)
    for opset in (6, 16, 22):
        check_against_runtime(name, opset, X)


def test_first_selu_has_shorter_defaults():
    check("Selu", 1, [X], np.where(X > 0, 1.0507 * X, 1.0507 * 1.6732 * np.expm1(np.minimum(X, 0))).astype(np.float32))


@pytest.mark.parametrize("name", LATER)
def test_later_functions(name):
    for opset in LATER[name]:
        check_against_runtime(name, opset, X)


def test_attributes():
    check_against_runtime("LeakyRelu", 16, X, alpha=0.3)
    check_against_runtime("Elu", 6, X, alpha=2.0)
    check_against_runtime("Celu", 12, X, alpha=2.0)
    check_against_runtime("HardSigmoid", 6, X, alpha=0.5, beta=0.25)
    check_against_runtime("ThresholdedRelu", 10, X, alpha=0.0)
    check_against_runtime("Gelu", 20, X, approximate="tanh")
    check_against_runtime("Shrink", 9, X, bias=0.5, lambd=1.0)


@pytest.mark.parametrize("dtype", [np.int32, np.int8, np.uint8])
def test_integers_shrink(dtype):
    check_against_runtime("Shrink", 9, np.array([0, 1, 3, 100], dtype), bias=1.5, lambd=1.5)


def test_slopes_are_for_channels_before_opset_7():
    slopes = np.array([0.5, 2, 3], np.float32)
    check("PRelu", 1, [CUBE, slopes], np.where(CUBE < 0, slopes[:, None] * CUBE, CUBE), consumed_inputs=(0, 0))
    check("PRelu", 6, [CUBE, slopes[:1]], np.where(CUBE < 0, slopes[0] * CUBE, CUBE))
    np.testing.assert_array_equal(activation.p_relu_1(jnp.array([-2.0, 2.0]), 0.5), [-1, 2])


def test_slopes_are_broadcast_since_opset_7():
    for opset in (7, 9, 16):
        check_against_runtime("PRelu", opset, X, np.array([0.1, 0.2, 0.3, 0.4], np.float32))
    check_against_runtime("PRelu", 16, X, np.float32(0.1))


@pytest.mark.parametrize("name", ["Softmax", "LogSoftmax", "Hardmax"])
def test_trailing_axes_count_as_one_before_opset_13(name):
    for axis in (0, 1, 2):
        for opset in (1, 11, 13):
            check_against_runtime(name, opset, CUBE, axis=axis)
    for opset in (11, 13):
        check_against_runtime(name, opset, CUBE, axis=-2)
    for opset in (1, 11, 13):
        check_against_runtime(name, opset, CUBE)


@pytest.mark.parametrize("function", [activation.softmax_1, activation.log_softmax_1, activation.hardmax_1])
def test_an_axis_out_of_range_is_an_error_before_opset_13(function):
    # ONNX Runtime refuses it too: axis 1 is the default, and a vector has none.
    with pytest.raises(ValueError, match="axis 1 is out of range"):
        function(jnp.ones(3))


@pytest.mark.parametrize("axis", [1, -1])
def test_an_empty_batch_stays_empty(axis):
    for function in (activation.softmax_1, activation.log_softmax_1, activation.hardmax_1, activation.hardmax):
        assert function(jnp.zeros((0, 3, 4)), axis=axis).shape == (0, 3, 4)


def test_hardmax_takes_the_first_of_equal_ones():
    check_against_runtime("Hardmax", 13, np.array([[1, 3, 3], [2, 2, 2]], np.float32))
    check_against_runtime("Hardmax", 11, np.ones((2, 2, 2), np.float32))


@pytest.mark.parametrize("opset", [1, 6, 7, 10, 12, 13, 22])
def test_dropout_is_the_identity_and_its_mask_keeps_everything(opset):
    mask = np.ones(X.shape, np.float32 if opset < 10 else bool)
    first = {"is_test": 1} if opset < 7 else {}
    check("Dropout", opset, [X], X, **first)
    check("Dropout", opset, [X], [X, mask], **first)
    if opset >= 12:
        check("Dropout", opset, [X, np.float32(0.9), np.array(False)], [X, mask])
        check("Dropout", opset, [X, None, np.array(True)], [X, mask])


def test_dropout_without_a_mask_is_that_of_the_runtime():
    for opset in (7, 10, 12, 13):
        check_against_runtime("Dropout", opset, X)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_narrow_floats_stay_narrow(name, dtype):
    with jax.numpy_dtype_promotion("strict"):
        result = getattr(activation, name)(jnp.asarray(X, dtype))
    assert result.dtype == dtype
    wanted = getattr(activation, name)(jnp.asarray(X))
    np.testing.assert_allclose(result.astype(jnp.float32), wanted, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_are_finite(name):
    x = jnp.array([-1e30, -90.0, -1.0, 0.0, 1.0, 90.0])
    gradient = jax.grad(lambda x: getattr(activation, name)(x).sum())(x)
    assert bool(jnp.isfinite(gradient).all())


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name != "hardmax"])
def test_gradients(name):
    # No kink of any of the functions is near.
    x = np.array([[-3.7, -2.6, -0.8], [0.3, 1.4, 3.8]], np.float32)
    jax.test_util.check_grads(getattr(activation, name), (x,), order=1, modes=["rev"], atol=1e-2, rtol=1e-2)


def test_gradients_of_slopes():
    x, slope = np.array([[-3.7, 2.6], [0.3, -1.4]], np.float32), np.array([0.5, 2], np.float32)
    jax.test_util.check_grads(activation.p_relu, (x, slope), order=1, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("name", [*FUNCTIONS, "softmax_1", "log_softmax_1", "hardmax_1"])
def test_sizes_stay_symbolic_under_export(name):
    specification = jax.ShapeDtypeStruct(jax.export.symbolic_shape("b, 3, n"), jnp.float32)
    (result,) = jax.export.export(jax.jit(getattr(activation, name)))(specification).out_avals
    assert str(result.shape) == "(b, 3, n)"


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if "max" not in name])
def test_a_number_stands_for_a_constant_without_axes(name):
    wanted = getattr(activation, name)(jnp.float32(0.7))
    np.testing.assert_allclose(getattr(activation, name)(0.7), wanted, rtol=1e-6)


def test_relu_has_no_gradient_at_zero():
    assert jax.grad(activation.relu)(0.0) == 0


def test_relu_of_shapes():
    assert texts(activation.relu(objects(N, -2))) == ["x.shape[0]", "0"]
    result = activation.relu(np.array([-1, 2], np.int32))
    assert isinstance(result, np.ndarray)
    assert result.dtype == np.int32
