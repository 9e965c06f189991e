"""Resizing: the ONNX suite under jit, every version against ONNX Runtime, integers, gradients, symbolic sizes."""

import itertools

import jax
import jax.export
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest

import onnxeqx
from onnxeqx.plugins import resize as family

from . import shape_cases
from .family_cases import check, check_against_runtime

X = np.random.default_rng(0).normal(size=(2, 3, 5, 8)).astype(np.float32)
CASES = shape_cases.case_names("resize")
TRANSFORMATIONS = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric")
NEAREST_MODES = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
# Of (5, 8): larger, smaller, mixed, one element, one axis.
SIZES = [(10, 16), (3, 5), (7, 3), (1, 1), (5, 11)]


@pytest.fixture(autouse=True)
def _strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        yield


def of_sizes(*sizes):
    return np.array([2, 3, *sizes])


def of_scales(*scales):
    return np.array([1, 1, *scales], np.float32)


def test_the_suite_has_cases():
    assert len(CASES) >= 40


@pytest.mark.parametrize("name", CASES[::2])
def test_suite_under_jit_vmap_and_grad(name):
    shape_cases.check_under_jit(name)


@pytest.mark.parametrize("transformation", [*TRANSFORMATIONS, "tf_half_pixel_for_nn"])
def test_nearest_to_sizes(transformation):
    # ONNX Runtime computes the symmetric mode in two precisions: from 5 to 3, it maps 1 to 1.9999999 instead of 2.
    modes = NEAREST_MODES[:2] if transformation == "half_pixel_symmetric" else NEAREST_MODES
    for sizes, nearest_mode in itertools.product(SIZES, modes):
        attributes = {"coordinate_transformation_mode": transformation, "nearest_mode": nearest_mode}
        check_against_runtime("Resize", 19, X, None, None, of_sizes(*sizes), mode="nearest", **attributes)


@pytest.mark.parametrize("transformation", TRANSFORMATIONS)
@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_interpolation_to_sizes(mode, transformation):
    for sizes in SIZES:
        attributes = {"coordinate_transformation_mode": transformation, "mode": mode}
        check_against_runtime("Resize", 19, X, None, None, of_sizes(*sizes), **attributes)


@pytest.mark.parametrize("transformation", ["half_pixel", "pytorch_half_pixel", "asymmetric", "half_pixel_symmetric"])
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_scales(mode, transformation):
    for scales in (
        (2, 2),
        (0.5, 0.25),
        (1.25, 0.75),
        (0.375, 2.5),
        *([(1.3, 0.7), (0.3, 2.6)] if mode != "cubic" else []),
    ):
        attributes = {"coordinate_transformation_mode": transformation, "mode": mode}
        check_against_runtime("Resize", 13, X, None, of_scales(*scales), **attributes)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("exclude_outside", [0, 1])
def test_antialias(mode, sizes, exclude_outside):
    attributes = {"mode": mode, "antialias": 1, "exclude_outside": exclude_outside}
    check_against_runtime("Resize", 18, X, None, None, of_sizes(*sizes), **attributes)
    check_against_runtime("Resize", 19, X, None, None, of_sizes(*sizes), cubic_coeff_a=-0.5, **attributes)


@pytest.mark.parametrize("exclude_outside", [0, 1])
def test_cubic_coefficients(exclude_outside):
    for sizes in SIZES:
        attributes = {"mode": "cubic", "cubic_coeff_a": -0.5, "exclude_outside": exclude_outside}
        check_against_runtime(
            "Resize", 11, X, np.zeros(0, np.float32), np.zeros(0, np.float32), of_sizes(*sizes), **attributes
        )


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("roi", [(0.2, 0.3, 0.7, 0.9), (-0.3, 0.5, 1.2, 1.4), (0.9, 1, 0.1, 0)])
def test_crops(mode, roi):
    roi = np.array([0, 0, *roi[:2], 1, 1, *roi[2:]], np.float32)
    for opset, sizes in itertools.product((11, 19), ((4, 6), (7, 11), (1, 1))):
        attributes = {"coordinate_transformation_mode": "tf_crop_and_resize", "extrapolation_value": 9.0}
        scales = np.zeros(0, np.float32) if opset == 11 else None
        check_against_runtime("Resize", opset, X, roi, scales, of_sizes(*sizes), mode=mode, **attributes)


def test_a_crop_of_the_same_size():
    attributes = {"coordinate_transformation_mode": "tf_crop_and_resize", "mode": "linear", "axes": (1,)}
    x = np.arange(5, dtype=np.float32)[None]
    for sizes, scales in (([5], None), (None, [1.0])):
        check("Resize", 19, [x, np.array([0.25, 0.75], np.float32), scales, sizes], 1 + x / 2, **attributes)


def test_axes_may_be_few_negative_and_in_any_order():
    for axes, sizes in (((2, 3), (7, 4)), ((3, 2), (4, 7)), ((-1,), (4,)), ((1, -2), (6, 7))):
        mode = "nearest" if 1 in axes else "linear"
        full = np.array(X.shape)
        full[list(axes)] = sizes
        (expected,) = jax.tree.leaves(family.resize(jnp.asarray(X), sizes=full, mode=mode))
        check("Resize", 18, [X, None, None, np.array(sizes)], np.asarray(expected), mode=mode, axes=axes)
    check_against_runtime("Resize", 18, X, None, np.array([0.5, 2], np.float32), axes=(3, 2))


@pytest.mark.parametrize("policy", ["not_larger", "not_smaller"])
def test_the_aspect_ratio_may_be_kept(policy):
    for mode, sizes in itertools.product(("nearest", "linear"), ((7, 4), (10, 16), (3, 20), (2, 2))):
        attributes = {"keep_aspect_ratio_policy": policy, "axes": (2, 3), "mode": mode}
        check_against_runtime("Resize", 18, X, None, None, np.array(sizes), **attributes)
    # 5 / 8 * 4 is 2.5, which is rounded up.
    result = family.resize(jnp.asarray(X), sizes=(9, 4), axes=(2, 3), keep_aspect_ratio_policy="not_larger")
    assert result.shape == (2, 3, 3, 4)


@pytest.mark.parametrize(("size", "scale", "expected"), [(10, 0.7, 7), (10, 1.1, 11), (3, 1 / 3, 1), (7, 1.4999, 10)])
def test_new_sizes_are_computed_in_float32(size, scale, expected):
    x = np.arange(size, dtype=np.float32).reshape(1, 1, 1, size)
    check_against_runtime("Resize", 13, x, None, of_scales(1, scale))
    assert family.resize(jnp.asarray(x), scales=of_scales(1, scale)).shape[-1] == expected


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("scales", [(2, 2), (0.6, 0.6), (0.4, 1.7), (2.5, 0.3)])
def test_opset_10(mode, scales):
    check_against_runtime("Resize", 10, X, of_scales(*scales), mode=mode)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("scales", [(2.0, 2.0), (1.0, 2.6), (1.5, 3.0)])
def test_upsample(mode, scales):
    check_against_runtime("Upsample", 7, X, mode=mode, scales=(1.0, 1.0, *scales))
    check_against_runtime("Upsample", 9, X, of_scales(*scales), mode=mode)
    expected = np.asarray(family.upsample(jnp.asarray(X), of_scales(*scales), mode=mode))
    oldest = {"nearest": "nearest", "linear": "bilinear"}[mode]
    check("Upsample", 1, [X], expected, mode=oldest, height_scale=scales[0], width_scale=scales[1])


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int32])
def test_integers(dtype):
    x = np.random.default_rng(0).integers(np.iinfo(dtype).min, np.iinfo(dtype).max, (1, 1, 6, 8)) >> 24 * (
        dtype == np.int32
    )
    x = x.astype(dtype)
    for sizes in ((3, 4), (12, 16), (6, 5)):
        sizes = np.array([1, 1, *sizes])
        check_against_runtime("Resize", 19, x, None, None, sizes, mode="nearest")
        if sizes[3] != 5:  # elsewhere, ONNX Runtime's sums may be an ulp away from whole numbers, before it truncates
            check_against_runtime("Resize", 19, x, None, None, sizes, mode="linear")
    for mode in ("linear", "cubic"):  # here ONNX Runtime clips int8 as if it had no sign
        check_against_runtime("Resize", 19, abs(x >> 1), None, None, np.array([1, 1, 3, 4]), mode=mode, antialias=1)


def test_integers_saturate():
    x = jnp.array([[0, 0, 255, 255]], jnp.uint8)
    result = family.resize(x, sizes=(1, 16), mode="cubic")
    assert (result.dtype, int(result.min()), int(result.max())) == (jnp.uint8, 0, 255)
    wide = family.resize(x.astype(jnp.float32), sizes=(1, 16), mode="cubic")
    np.testing.assert_array_equal(result, np.clip(np.round(wide), 0, 255))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.bool_])
def test_narrow_dtypes_stay_what_they_are(dtype):
    x = jnp.asarray(X > 0 if dtype == jnp.bool_ else X, dtype)
    assert family.resize(x, sizes=of_sizes(4, 9)).dtype == dtype
    if dtype != jnp.bool_:
        for options in ({"mode": "linear"}, {"mode": "cubic"}, {"mode": "linear", "antialias": 1}):
            result = family.resize(x, sizes=of_sizes(4, 9), **options)
            wide = family.resize(x.astype(jnp.float32), sizes=of_sizes(4, 9), **options)
            np.testing.assert_array_equal(result, wide.astype(dtype))


FUNCTIONS = {
    "repeated": lambda x: family.resize(x, scales=of_scales(2, 3), mode="nearest"),
    "nearest": lambda x: family.resize(x, sizes=(7, 5), axes=(2, 3), mode="nearest"),
    "linear": lambda x: family.resize(x, sizes=(7, 5), axes=(2, 3), mode="linear"),
    "cubic": lambda x: family.resize(x, sizes=(7, 5), axes=(2, 3), mode="cubic"),
    "antialias": lambda x: family.resize(x, sizes=(3, 5), axes=(2, 3), mode="linear", antialias=1),
    "crop": lambda x: family.resize(
        x, (-0.2, 0.5, 0.9, 1.5), sizes=(4, 6), axes=(2, 3), coordinate_transformation_mode="tf_crop_and_resize", mode="linear"
    ),
    "upsample": lambda x: family.upsample(x, of_scales(1.5, 2), mode="linear"),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients(name):
    jax.test_util.check_grads(FUNCTIONS[name], (X,), order=2, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_other_axes_may_be_symbolic(name):
    specification = jax.ShapeDtypeStruct(jax.export.symbolic_shape("b, c, 5, 8"), jnp.float32)
    exported = jax.export.export(jax.jit(FUNCTIONS[name]), platforms=["cpu", "tpu"])(specification)
    np.testing.assert_allclose(exported.call(X), FUNCTIONS[name](jnp.asarray(X)), rtol=1e-5, atol=1e-6)


def test_sizes_that_stay_may_be_symbolic():
    specification = jax.ShapeDtypeStruct(jax.export.symbolic_shape("b, 3, h, 8"), jnp.float32)
    exported = jax.export.export(jax.jit(lambda x: family.resize(x, sizes=(*x.shape[:3], 16))))(specification)
    assert str(exported.out_avals[0].shape) == "(b, 3, h, 16)"


@pytest.mark.parametrize("operands", [{"scales": (1, 1, 2, 2)}, {"sizes": (2, 3, 16, 16)}])
def test_symbolic_sizes_are_refused(operands):
    specification = jax.ShapeDtypeStruct(jax.export.symbolic_shape("2, 3, h, w"), jnp.float32)
    with pytest.raises(onnxeqx.HostValueError, match=r"size of axis 2.*symbolic dimension h; export"):
        jax.export.export(jax.jit(lambda x: family.resize(x, **operands)))(specification)


def test_a_call_that_says_too_little_is_refused():
    x = jnp.asarray(X)
    with pytest.raises(ValueError, match="neither scales nor sizes"):
        family.resize(x, scales=np.zeros(0, np.float32))
    with pytest.raises(ValueError, match="0 values in roi"):
        family.resize(x, scales=of_scales(2, 2), coordinate_transformation_mode="tf_crop_and_resize")
    for attribute in ("mode", "nearest_mode", "coordinate_transformation_mode", "keep_aspect_ratio_policy"):
        with pytest.raises(ValueError, match=f"Resize has no {attribute} 'area'.*correct the node's attribute"):
            family.resize(x, sizes=of_sizes(2, 2), **{attribute: "area"})


def test_an_empty_batch_stays_empty():
    for mode in ("nearest", "linear"):
        assert family.resize(jnp.zeros((0, 3, 5, 8)), scales=of_scales(2, 2), mode=mode).shape == (0, 3, 10, 16)
