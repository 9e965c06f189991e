"""Sampling at positions, and overlap-add: the ONNX suite under jit, every version against ONNX Runtime, gradients, symbolic sizes."""

import functools

import jax
import jax.export
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest

from onnxeqx.plugins import convolution, sampling

from . import shape_cases
from .family_cases import check, check_against_runtime
from .window_cases import check as check_roughly

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 3, 5, 7)).astype(np.float32)
GRID = RNG.uniform(-1.6, 1.6, (2, 4, 6, 2)).astype(np.float32)
CASES = [name for name in shape_cases.case_names("sampling") if "expanded" not in name and "roi" not in name]


@pytest.fixture(autouse=True)
def _strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        yield


def test_the_suite_has_cases():
    assert len(CASES) >= 28


@pytest.mark.parametrize("name", CASES[::15])
def test_suite_under_jit_vmap_and_grad(name):
    shape_cases.check_under_jit(name)


@pytest.mark.parametrize("align_corners", [0, 1])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
def test_grids(padding, align_corners):
    attributes = {"padding_mode": padding, "align_corners": align_corners}
    for old, new in (("bilinear", "linear"), ("nearest", "nearest"), ("bicubic", "cubic")):
        check_roughly("GridSample", 20, (X, GRID), mode=new, **attributes)
        if padding == "zeros":
            check_roughly("GridSample", 16, (X, GRID), mode=old, **attributes)
    volume = X.reshape(2, 3, 5, 7, 1).repeat(2, -1).reshape(2, 3, 5, 2, 7)
    grid = RNG.uniform(-1.6, 1.6, (2, 2, 3, 2, 3)).astype(np.float32)
    check_roughly("GridSample", 20, (volume, grid), **attributes)


@pytest.mark.parametrize("align_corners", [0, 1])
@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_one_axis_and_one_element(mode, align_corners):
    grid = GRID[:, :1, :, :1].reshape(2, 6, 1)
    line = sampling.grid_sample(jnp.asarray(X[:, :, 0]), grid, mode=mode, align_corners=align_corners)
    flat = np.concatenate([grid, 0 * grid], -1)[:, None]
    image = sampling.grid_sample(jnp.asarray(X[:, :, :1]), flat, mode=mode, align_corners=align_corners)
    np.testing.assert_allclose(line, image[:, :, 0], rtol=1e-6)
    single = sampling.grid_sample(
        jnp.ones((2, 1, 1)), grid, mode=mode, padding_mode="reflection", align_corners=align_corners
    )
    np.testing.assert_allclose(single, np.ones((2, 1, 6)), rtol=1e-6)


def test_the_nearest_element_may_be_an_integer_of_32_bits():
    x = np.array([[[[2**24 + 1, 2**30 + 1], [-3, 5]]]], np.int32)
    grid = np.array([[[[-0.9, -0.9], [0.9, -0.9], [5, 5]]]], np.float32)
    check("GridSample", 20, [x, grid], np.array([[[[2**24 + 1, 2**30 + 1, 0]]]], np.int32), mode="nearest")


@pytest.mark.parametrize("align_corners", [0, 1])
def test_affine_grids(align_corners):
    theta = RNG.normal(size=(2, 3, 4)).astype(np.float32)
    check_against_runtime("AffineGrid", 20, theta[:, :2, :3], np.array([2, 3, 4, 5]), align_corners=align_corners)
    check_against_runtime("AffineGrid", 20, theta, np.array([2, 3, 4, 5, 2]), align_corners=align_corners)
    identity = jnp.eye(2, 3)[None]
    y = sampling.grid_sample(
        jnp.asarray(X[:1]),
        sampling.affine_grid(identity, X[:1].shape, align_corners=align_corners),
        align_corners=align_corners,
    )
    np.testing.assert_allclose(y, X[:1], atol=1e-5)
    np.testing.assert_array_equal(
        sampling.affine_grid(identity, (1, 1, 1, 1), align_corners=align_corners), np.zeros((1, 1, 1, 2))
    )


def test_unknown_modes_are_refused():
    with pytest.raises(ValueError, match="no mode 'area', only nearest, linear, cubic; correct"):
        sampling.grid_sample(X, GRID, mode="area")
    with pytest.raises(ValueError, match="no padding_mode 'wrap', only zeros, border, reflection; correct"):
        sampling.grid_sample(X, GRID, padding_mode="wrap")


@pytest.mark.parametrize(
    ("image", "block", "attributes"),
    [
        ((5, 6), (2, 3), {}),
        ((5, 6), (2, 2), {"strides": (2, 3), "pads": (1, 0, 2, 1)}),
        ((6, 6), (3, 2), {"dilations": (2, 3), "pads": (1, 1, 0, 2)}),
        ((7,), (3,), {"strides": (2,)}),
        ((4, 3, 5), (2, 2, 3), {"strides": (1, 1, 2), "pads": (0, 1, 0, 1, 0, 1)}),
    ],
)
def test_blocks_are_added_up(image, block, attributes):
    ndim = len(image)
    steps = {"strides": (1,) * ndim, "dilations": (1,) * ndim, "pads": (0,) * 2 * ndim} | attributes
    extents = [(size - 1) * step + 1 for size, step in zip(block, steps["dilations"], strict=True)]
    padded = np.array(image) + np.array(steps["pads"]).reshape(2, ndim).sum(0)
    count = np.prod((padded - extents) // steps["strides"] + 1)
    blocks = RNG.normal(size=(2, 3 * np.prod(block), count)).astype(np.float32)
    check_against_runtime("Col2Im", 18, blocks, np.array(image), np.array(block), **attributes)


def deformable(x, w, offset, mask=None, **attributes):
    x, w, offset = jnp.asarray(x), jnp.asarray(w, x.dtype), jnp.asarray(offset)
    return sampling.deform_conv(x, w, offset, mask=None if mask is None else jnp.asarray(mask, x.dtype), **attributes)


DEFORMED = {"group": 3, "offset_group": 3, "strides": (2, 1), "pads": (1, 0, 1, 2), "dilations": (1, 2)}
W = RNG.normal(size=(6, 1, 3, 2)).astype(np.float32)
OFFSET = RNG.normal(0, 1.5, (2, 3 * 3 * 2 * 2, 3, 7)).astype(np.float32)
MASK = RNG.normal(size=(2, 3 * 3 * 2, 3, 7)).astype(np.float32)


def test_deformable_convolution():
    bias = RNG.normal(size=6).astype(np.float32)
    check_roughly("DeformConv", 19, (X, W, OFFSET, bias, MASK), **DEFORMED)
    check_roughly("DeformConv", 22, (X, W, OFFSET), **DEFORMED)
    check_against_runtime("DeformConv", 22, X, W, OFFSET, None, MASK, **DEFORMED)


def test_without_offsets_it_is_a_convolution():
    options = {"group": 3, "strides": (2, 1), "pads": (1, 0, 1, 2), "dilations": (1, 2)}
    expected = convolution.conv(jnp.asarray(X), jnp.asarray(W), **options)
    offset = np.zeros((2, 3 * 2 * 2, *expected.shape[2:]), np.float32)
    np.testing.assert_allclose(deformable(X, W, offset, **options), expected, rtol=1e-4, atol=1e-5)
    line = convolution.conv(jnp.asarray(X[:, :, 0]), jnp.asarray(W[:, :, 0]), group=3)
    offset = np.zeros((2, 2, *line.shape[2:]), np.float32)
    np.testing.assert_allclose(deformable(X[:, :, 0], W[:, :, 0], offset, group=3), line, rtol=1e-4, atol=1e-5)


# Each function of one map, or a batch of maps, and of one more operand.
FUNCTIONS = {
    "grid": (sampling.grid_sample, GRID),
    "cubic grid": (functools.partial(sampling.grid_sample, mode="cubic", padding_mode="reflection"), GRID),
    "nearest": (functools.partial(sampling.grid_sample_16, mode="nearest", padding_mode="border"), GRID),
    "affine": (lambda x, theta: sampling.grid_sample(x, sampling.affine_grid(theta, (2, 3, 4, 6))), RNG.normal(size=(2, 2, 3))),
    "columns": (lambda x, _: sampling.col2im(x.reshape(2, 15, 7), (4, 5), (1, 5), pads=(1, 0, 2, 0)), MASK),
    "deformed": (lambda x, offset: deformable(x, W, offset, mask=MASK, **DEFORMED), OFFSET),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients(name):
    function, other = FUNCTIONS[name]
    with jax.enable_x64(True):
        x, other = X.astype(np.float64), jnp.asarray(other, np.float64)
        if name in ("nearest", "columns"):
            jax.test_util.check_grads(jax.jit(lambda x: function(x, other)), (x,), order=1)
        else:
            jax.test_util.check_grads(jax.jit(function), (x, other), order=1, eps=1e-6, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_tpu_gets_programs_that_keep_narrow_floats(name):
    function, other = FUNCTIONS[name]
    for dtype in (np.float32, jnp.float16, jnp.bfloat16):
        operands = [jax.ShapeDtypeStruct(array.shape, dtype) for array in (X, other)]
        (result,) = jax.export.export(jax.jit(function), platforms=["tpu"])(*operands).out_avals
        assert result.dtype == dtype


def test_grids_of_any_size():
    function, other = FUNCTIONS["grid"]
    shapes = jax.export.symbolic_args_specs((X, GRID), ("b, c, 5, 7", "b, p, q, 2"))
    exported = jax.export.export(jax.jit(function))(*shapes)
    np.testing.assert_allclose(
        exported.call(X, other), function(jnp.asarray(X), jnp.asarray(other)), rtol=1e-4, atol=1e-5
    )


def test_blocks_and_deformed_kernels_of_any_batch():
    def function(x, offset):
        return sampling.col2im(x.reshape(-1, 15, 7), (4, 5), (1, 5), pads=(1, 0, 2, 0)), deformable(
            x, W, offset, **DEFORMED
        )

    shapes = jax.export.symbolic_args_specs((X, OFFSET), ("b, 3, 5, 7", "b, 36, 3, 7"))
    columns, deformed = jax.export.export(jax.jit(function))(*shapes).out_avals
    assert (str(columns.shape), str(deformed.shape)) == ("(b, 3, 4, 5)", "(b, 6, 3, 7)")


@pytest.mark.parametrize("name", ["cubic grid", "deformed"])
def test_half_precision_is_computed_in_float32(name):
    function, other = FUNCTIONS[name]
    x, other = jnp.asarray(X, jnp.float16), jnp.asarray(other, jnp.float16)
    wide = jax.jit(function)(x.astype(jnp.float32), other.astype(jnp.float32))
    np.testing.assert_allclose(jax.jit(function)(x, other), wide, rtol=0.01, atol=0.01)
