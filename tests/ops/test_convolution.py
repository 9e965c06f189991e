"""Convolutions: the ONNX suite, ONNX Runtime, and every formulation against `lax` with derivatives of every kind."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.test_util import check_grads

from onnxeqx._convolution import convolution, resolve_padding
from onnxeqx.plugins import convolution as plugin

from . import shape_cases
from .window_cases import check, normal, ours, runtime

CASES = shape_cases.case_names("convolution")
PADS = [{}, {"pads": (1, 0, 2, 1)}, {"auto_pad": "SAME_UPPER"}, {"auto_pad": "SAME_LOWER"}, {"auto_pad": "VALID"}]


@pytest.fixture(autouse=True)
def _strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.mark.parametrize("name", CASES)
def test_suite_under_jit_vmap_and_grad(name):
    shape_cases.check_under_jit(name)


def test_the_suite_has_cases():
    assert len(CASES) >= 17


@pytest.mark.parametrize("padding", PADS, ids=str)
@pytest.mark.parametrize(("opset", "group"), [(1, 1), (11, 2), (22, 4)])
def test_conv_against_onnx_runtime(opset, group, padding):
    x, bias = normal(2, 4, 9, 8), normal(8, seed=1)
    for kernel, strides, dilations in itertools.product([(1, 1), (3, 4)], [None, (2, 3)], [None, (2, 1)]):
        if dilations and padding.get("auto_pad", "").startswith("SAME"):
            continue  # ONNX Runtime refuses
        given = {"strides": strides, "dilations": dilations, "group": group, "kernel_shape": kernel}
        options = padding | {name: value for name, value in given.items() if value}
        check("Conv", opset, (x, normal(8, 4 // group, *kernel, seed=2), bias), **options)


def test_dilated_same_padding_keeps_sizes_as_the_specification_says():
    x, w = normal(1, 2, 9, 8), normal(2, 2, 3, 3)
    (y,) = ours("Conv", 11, (x, w), auto_pad="SAME_UPPER", dilations=(2, 3))
    assert y.shape == (1, 2, 9, 8)


@pytest.mark.parametrize("spatial", [(11,), (5, 6, 7)])
def test_one_and_three_axes(spatial):
    x, w = normal(2, 4, *spatial), normal(6, 2, *(3,) * len(spatial))
    check("Conv", 11, (x, w), group=2, strides=(2,) * len(spatial), pads=(1, 0, 1, 1, 2, 0)[: 2 * len(spatial)])
    weight = normal(4, 3, *(2,) * len(spatial))
    check("ConvTranspose", 11, (x, weight), group=2, strides=(2,) * len(spatial))


@pytest.mark.parametrize(
    "padding", [{}, {"pads": (1, 0, 1, 2)}, {"auto_pad": "SAME_UPPER"}, {"auto_pad": "SAME_LOWER"}], ids=str
)
@pytest.mark.parametrize(("opset", "group"), [(1, 1), (11, 2), (22, 4)])
def test_conv_transpose_against_onnx_runtime(opset, group, padding):
    x, bias = normal(2, 4, 5, 6), normal(8, seed=1)
    for kernel, strides, dilations, extra in (
        ((3, 3), (1, 1), (1, 1), (0, 0)),
        ((3, 3), (2, 2), (1, 1), (1, 0)),
        ((2, 4), (2, 3), (1, 1), (0, 0)),
        ((4, 3), (3, 1), (2, 1), (1, 0)),
    ):
        options = {"strides": strides, "dilations": dilations, "group": group, "output_padding": extra} | padding
        check("ConvTranspose", opset, (x, normal(4, 8 // group, *kernel, seed=2), bias), **options)


@pytest.mark.parametrize("auto_pad", ["NOTSET", "SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("shape", [(10, 12), (11, 13), (9, 10), (8, 11)])
def test_conv_transpose_to_an_output_shape(shape, auto_pad):
    x, w = normal(2, 4, 5, 6), normal(4, 3, 3, 2)
    check("ConvTranspose", 11, (x, w), strides=(2, 2), output_shape=shape, auto_pad=auto_pad)


def test_same_padding_of_a_short_transposed_kernel_appends_zeros_as_the_specification_says():
    x, w = normal(1, 1, 3, 3), normal(1, 1, 1, 1)
    assert runtime("ConvTranspose", 11, (x, w), strides=(2, 2), auto_pad="SAME_UPPER")[0].shape == (1, 1, 5, 5)
    (y,) = ours("ConvTranspose", 11, (x, w), strides=(2, 2), auto_pad="SAME_UPPER")
    assert y.shape == (1, 1, 6, 6)
    np.testing.assert_allclose(y[:, :, ::2, ::2], x * w, 1e-6)
    assert not np.any(y[:, :, 1::2])
    assert not np.any(y[:, :, :, 1::2])


@pytest.mark.parametrize(
    ("padding", "pairs"),
    [
        (1, ((1, 1), (1, 1))),
        ((1, 2), ((1, 1), (2, 2))),
        (((0, 1), (2, 3)), ((0, 1), (2, 3))),
        ("VALID", ((0, 0), (0, 0))),
        ("SAME_UPPER", ((0, 1), (1, 2))),
        ("SAME_LOWER", ((1, 0), (2, 1))),
    ],
)
def test_resolve_padding(padding, pairs):
    assert resolve_padding(padding, sizes=(8, 9), kernel=(3, 4), strides=(2, 1), dilations=(1, 1)) == pairs


def test_an_unknown_padding_is_named():
    with pytest.raises(ValueError, match="'SAME'"):
        resolve_padding("SAME", sizes=(8,), kernel=(3,), strides=(1,), dilations=(1,))


# channels, out, spatial, kernel, strides, padding, dilations, groups
FORMULATIONS = {
    "depthwise": (6, 6, (9, 8), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 6),
    "depthwise, multiplier, dilation": (6, 12, (9, 8), (3, 2), (2, 1), ((0, 1), (2, 0)), (2, 1), 6),
    "depthwise, large strides": (6, 6, (12, 12), (3, 3), (4, 5), ((0, 0), (0, 0)), (1, 1), 6),
    "depthwise, one axis": (4, 4, (9,), (3,), (1,), ((2, 0),), (1,), 4),
    "depthwise, three axes": (4, 4, (5, 4, 6), (2, 3, 2), (2, 1, 1), ((1, 0), (-1, 1), (3, 0)), (1, 1, 2), 4),
    "one group": (8, 8, (9, 8), (3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1), 2),
    "merged groups": (36, 72, (5,), (3,), (2,), ((1, 1),), (1,), 12),
    "wide groups": (128, 4, (4, 4), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 2),
    "grouped 1x1": (8, 4, (6, 6), (1, 1), (1, 2), ((0, 0), (0, 0)), (1, 1), 4),
    "1x1": (5, 7, (6, 6), (1, 1), (2, 2), ((0, 0), (1, 0)), (1, 1), 1),
    "dense": (5, 7, (6, 6), (3, 3), (2, 2), ((0, 0), (1, 0)), (1, 1), 1),
    "no axes": (3, 3, (), (), (), (), (), 3),
}


def both(name, dtype=np.float32):
    """Our convolution, that of lax, and operands for both."""
    channels, out, spatial, kernel, strides, padding, dilations, groups = FORMULATIONS[name]
    options = {"strides": strides, "padding": padding, "dilations": dilations, "groups": groups}
    x = jnp.asarray(normal(2, channels, *spatial, dtype=dtype))
    w = jnp.asarray(normal(out, channels // groups, *kernel, seed=1, dtype=dtype))
    baseline = {"window_strides": strides, "padding": padding, "rhs_dilation": dilations}
    return (
        lambda x, w: convolution(x, w, **options),
        lambda x, w: lax.conv_general_dilated(x, w, feature_group_count=groups, **baseline),
        (x, w),
    )


def assert_equal(results, expected):
    for result, wanted in zip(jax.tree.leaves(results), jax.tree.leaves(expected), strict=True):
        assert (result.shape, result.dtype) == (wanted.shape, wanted.dtype)
        scale = np.abs(np.asarray(wanted)).max(initial=1.0)
        np.testing.assert_allclose(result, wanted, 2e-5, 2e-5 * scale)


def gradients(function):
    return jax.grad(lambda x, w: jnp.sin(function(x, w)).sum(), (0, 1))


def gradients_of_gradients(function):
    return jax.grad(lambda x, w: sum((g**2).sum() for g in gradients(function)(x, w)), (0, 1))


def derivatives(function):
    """The function, its derivatives of first and second order, forward and reverse, in one program."""

    def all_of_them(x, w):
        tangents = (x * x, w + w)
        return (
            function(x, w),
            jax.jvp(function, (x, w), tangents),
            gradients(jax.checkpoint(function))(x, w),
            jax.jvp(gradients(function), (x, w), tangents),
            gradients_of_gradients(function)(x, w),
        )

    return jax.jit(all_of_them)


@pytest.mark.parametrize("name", FORMULATIONS)
def test_derivatives_agree_with_lax(name):
    function, baseline, operands = both(name)
    assert_equal(derivatives(function)(*operands), derivatives(baseline)(*operands))


@pytest.mark.parametrize("name", FORMULATIONS)
def test_vmap_agrees_with_lax(name):
    function, baseline, (x, w) = both(name)
    xs, ws = jnp.stack([x, 2 * x + 1], 1), jnp.stack([w, 1 - w], 1)

    def vectorised(function):
        def all_of_them(xs, ws):
            results = []
            for axes, operands in (((1, None), (xs, w)), ((None, 1), (x, ws)), ((1, 1), (xs, ws))):
                results += [jax.vmap(function, axes)(*operands), jax.vmap(gradients(function), axes)(*operands)]
            return results

        return jax.jit(all_of_them)

    assert_equal(vectorised(function)(xs, ws), vectorised(baseline)(xs, ws))


@pytest.mark.parametrize("name", ["depthwise", "merged groups", "1x1"])
def test_jacobians_agree_with_lax(name):
    function, baseline, (x, w) = both(name)

    def jacobians(function):
        return jax.jit(lambda x, w: (jax.jacfwd(function, 1)(x[:1], w), jax.jacrev(function, 1)(x[:1], w)))

    assert_equal(jacobians(function)(x, w), jacobians(baseline)(x, w))


@pytest.mark.parametrize("name", ["depthwise, multiplier, dilation", "one group"])
def test_numerical_gradients(name):
    with jax.enable_x64(True):
        function, _, operands = both(name, np.float64)
        check_grads(jax.jit(function), operands, order=1)


def test_eager_calls_need_no_jit():
    function, baseline, operands = both("depthwise")
    assert_equal(function(*operands), baseline(*operands))
    assert_equal(gradients(function)(*operands), gradients(baseline)(*operands))


def test_many_blocks_are_left_to_lax():
    xs, ws = jnp.asarray(normal(1, 70, 32, 4, 4)), jnp.asarray(normal(70, 2, 32, 1, 1))
    windows = {"strides": (1, 1), "padding": ((0, 0), (0, 0)), "dilations": (1, 1), "groups": 1}
    ys = jax.vmap(lambda x, w: convolution(x, w, **windows), (1, 0))(xs, ws)
    np.testing.assert_allclose(ys[7], convolution(xs[:, 7], ws[7], **windows), 1e-4, 1e-4)


@pytest.mark.parametrize(
    ("name", "dtype"), [("depthwise", jnp.bfloat16), ("merged groups", jnp.float16), ("1x1", jnp.bfloat16)]
)
def test_half_precision(name, dtype):
    function, baseline, operands = both(name)
    halves = tuple(operand.astype(dtype) for operand in operands)
    for transform in (lambda f: f, gradients):
        results = jax.tree.leaves(jax.jit(transform(function))(*halves))
        for result, wanted in zip(results, jax.tree.leaves(jax.jit(transform(baseline))(*operands)), strict=True):
            assert result.dtype == dtype
            assert jnp.abs(result.astype(jnp.float32) - wanted).max() < 0.05 * jnp.abs(wanted).max()


@pytest.mark.parametrize("name", ["depthwise", "one group", "merged groups", "grouped 1x1"])
def test_a_tpu_gets_plain_convolutions(name):
    function, _, operands = both(name)
    shapes = [jax.ShapeDtypeStruct(operand.shape, operand.dtype) for operand in operands]
    groups = FORMULATIONS[name][-1]
    program = jax.export.export(jax.jit(function), platforms=["tpu"])(*shapes).mlir_module()
    assert program.count("stablehlo.convolution") == 1
    assert f"feature_group_count = {groups} : i64" in program
    program = jax.export.export(jax.jit(gradients(function)), platforms=["tpu"])(*shapes).mlir_module()
    assert program.count("stablehlo.convolution") == 3
    assert "stablehlo.case" not in program


def test_a_cpu_gets_no_grouped_convolution():
    for name in ("depthwise", "merged groups"):
        function, _, operands = both(name)
        program = jax.jit(gradients(function)).lower(*operands).as_text()
        counts = (program.count(f"{kind}_group_count") for kind in ("feature", "batch"))
        ones = (program.count(f"{kind}_group_count = 1 :") for kind in ("feature", "batch"))
        assert list(counts) == list(ones)


@pytest.mark.parametrize("platforms", [["cpu"], ["tpu"], ["cpu", "tpu"]])
@pytest.mark.parametrize("shape", ["batch, 6, 9, 8", "batch, 6, h, w"])
def test_symbolic_dimensions(shape, platforms):
    def function(x, w):
        y = plugin.conv(x, w, group=6, auto_pad="SAME_LOWER", strides=(2, 2))
        return plugin.conv_transpose(y, w, group=6, auto_pad="SAME_UPPER", strides=(2, 2))

    x, w = jnp.asarray(normal(3, 6, 9, 8)), jnp.asarray(normal(6, 1, 3, 3))
    dims = jax.export.symbolic_shape(shape)
    exported = jax.export.export(jax.jit(function), platforms=platforms)(
        jax.ShapeDtypeStruct(dims, x.dtype), jax.ShapeDtypeStruct(w.shape, w.dtype)
    )
    if "cpu" in platforms:
        assert_equal(exported.call(x, w), function(x, w))


@pytest.mark.parametrize("check_vma", [True, False])
def test_shard_map(check_vma):
    function, _, (x, w) = both("depthwise")
    mesh, spec = jax.sharding.Mesh(jax.devices()[:1], "data"), jax.sharding.PartitionSpec

    def mapped(x, w):
        (gradient,) = jax.grad(lambda w: (function(x, w) ** 2).sum(), (0,))(w)
        return gradient

    sharded = jax.shard_map(mapped, mesh=mesh, in_specs=(spec("data"), spec()), out_specs=spec(), check_vma=check_vma)
    assert_equal(jax.jit(sharded)(x, w), mapped(x, w))


def test_mismatches_are_refused():
    x, w = jnp.ones((1, 4, 5, 5)), jnp.ones((4, 1, 3, 3))
    options = {"strides": (1, 1), "padding": ((0, 0), (0, 0)), "dilations": (1, 1)}
    with pytest.raises(ValueError, match="does not fit the input"):
        convolution(x, w, groups=2, **options)
    with pytest.raises(TypeError, match="equal dtypes"):
        convolution(x, w.astype(jnp.bfloat16), groups=4, **options)
