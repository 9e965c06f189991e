"""Regions of interest: the ONNX suite under jit, every version against ONNX Runtime, gradients, symbolic sizes."""

import functools

import jax
import jax.export
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest

from onnxeqx.plugins import sampling

from . import shape_cases
from .family_cases import check
from .window_cases import check as check_roughly, runtime

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 3, 5, 7)).astype(np.float32)
# Inside, across an edge, outside, larger than the map, smaller than an element, upside down.
ROIS = np.array(
    [[0.7, 0.4, 4.6, 3.3], [-3, 2, 3.2, 8.1], [9, 9, 12, 15], [-20, -30, 31, 42], [2, 1, 2.2, 1.3], [4, 3, 1, 1]],
    np.float32,
)
INDICES = np.array([0, 1, 1, 0, 1, 0])


@pytest.fixture(autouse=True)
def _strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.mark.parametrize("name", ["test_roialign_aligned_false", "test_roialign_mode_max"])
def test_suite_under_jit_vmap_and_grad(name):
    shape_cases.check_under_jit(name)


@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("sampling_ratio", [0, 1, 3])
def test_aligned_regions(mode, sampling_ratio):
    for opset, (height, width), scale in ((10, (2, 3), 1.0), (16, (2, 3), 1.0), (16, (1, 1), 0.6)):
        attributes = {"output_height": height, "output_width": width, "spatial_scale": scale}
        check_roughly("RoiAlign", opset, (X, ROIS, INDICES), mode=mode, sampling_ratio=sampling_ratio, **attributes)


@pytest.mark.parametrize("mode", ["avg", "max"])
def test_the_number_of_samples_may_be_traced(mode):
    rois = np.concatenate([RNG.uniform(-9, 16, (60, 4)), RNG.uniform(-900, 900, (20, 4))]).astype(np.float32)
    function = functools.partial(
        sampling.roi_align, jnp.asarray(X), batch_indices=jnp.arange(80) % 2, mode=mode, output_width=4
    )
    np.testing.assert_allclose(jax.jit(function)(rois=rois), function(rois=jnp.asarray(rois)), rtol=1e-4, atol=1e-5)


def test_unknown_modes_are_refused():
    with pytest.raises(ValueError, match="no mode 'median', only avg, max; correct"):
        sampling.roi_align(X, ROIS, INDICES, mode="median")


def test_maxima_of_regions():
    rois = np.concatenate([INDICES[:, None], ROIS], 1).astype(np.float32)
    for opset, shape, scale in ((1, (2, 3), 1.0), (22, (4, 2), 0.5)):
        expected = runtime("MaxRoiPool", 1, (X, rois), pooled_shape=shape, spatial_scale=scale)  # newer ones it lacks
        check("MaxRoiPool", opset, [X, rois], expected, pooled_shape=shape, spatial_scale=scale)


def test_batches_and_regions_of_any_number():
    def function(x, rois, indices):
        aligned = sampling.roi_align(x, rois, indices, output_height=2)
        boxes = jnp.concatenate([indices[:, None].astype(x.dtype), rois], axis=1)
        return aligned, sampling.max_roi_pool(x, boxes, pooled_shape=(2, 2))

    operands = (X, ROIS, INDICES.astype(np.int32))
    shapes = jax.export.symbolic_args_specs(operands, ("b, c, 5, 7", "r, 4", "r"))
    exported = jax.export.export(jax.jit(function))(*shapes)
    for result, wanted in zip(exported.call(*operands), function(*map(jnp.asarray, operands)), strict=True):
        np.testing.assert_allclose(result, wanted, rtol=1e-4, atol=1e-5)


# Each function of maps and of two regions.
FUNCTIONS = {
    "regions": (lambda x, rois: sampling.roi_align(x, rois, INDICES[:2], output_height=3, output_width=2), ROIS[:2]),
    "largest": (
        lambda x, rois: sampling.roi_align(x, rois, INDICES[:2], output_height=3, mode="max", sampling_ratio=2), ROIS[:2]
    ),
    "pooled": (
        lambda x, rois: sampling.max_roi_pool(x, rois, pooled_shape=(2, 3)), np.array([[1, 0, 1, 5, 4], [0, 2, 2, 6, 3]])
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients(name):
    function, rois = FUNCTIONS[name]
    with jax.enable_x64(True):
        x, rois = X.astype(np.float64), jnp.asarray(rois, np.float64)
        if name == "pooled":
            jax.test_util.check_grads(jax.jit(lambda x: function(x, rois)), (x,), order=1)
        else:
            jax.test_util.check_grads(jax.jit(function), (x, rois), order=1, eps=1e-6, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_tpu_gets_programs_that_keep_narrow_floats(name):
    function, rois = FUNCTIONS[name]
    for dtype in (np.float32, jnp.float16, jnp.bfloat16):
        operands = [jax.ShapeDtypeStruct(array.shape, dtype) for array in (X, rois)]
        (result,) = jax.export.export(jax.jit(function), platforms=["tpu"])(*operands).out_avals
        assert result.dtype == dtype


@pytest.mark.parametrize("name", ["regions", "largest", "pooled"])
def test_there_may_be_no_region(name):
    function, other = FUNCTIONS[name]
    indices = INDICES[:0]
    if name == "pooled":
        assert function(jnp.asarray(X), jnp.asarray(other[:0], jnp.float32)).shape == (0, 3, 2, 3)
    else:
        mode = "max" if name == "largest" else "avg"
        assert sampling.roi_align(jnp.asarray(X), jnp.asarray(other[:0]), indices, mode=mode).shape == (0, 3, 1, 1)
