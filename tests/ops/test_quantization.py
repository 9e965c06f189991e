"""Quantised operators against ONNX Runtime, to the last bit."""

import functools
import itertools

import jax
import jax.export
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxeqx
from onnxeqx.plugins import quantization
from onnxeqx.plugins.manager import host
from onnxeqx.plugins.quantization import dequantize_linear, quantize_linear

GENERATOR = np.random.default_rng(0)
X = (GENERATOR.standard_normal((4, 6)) * 3).astype(np.float32)


@pytest.fixture(autouse=True)
def same_numbers_whatever_ran_before():
    """A sum on the edge between two steps may be rounded either way: such numbers must not turn up by chance."""
    GENERATOR.bit_generator.state = np.random.default_rng(0).bit_generator.state


def integers(*shape: int, dtype=np.uint8) -> np.ndarray:
    bounds = np.iinfo(dtype)
    return GENERATOR.integers(bounds.min, bounds.max + 1, shape).astype(dtype)


def check(op_type: str, *inputs, opset: int = 13, outputs: int = 1, **attributes) -> None:
    given = {f"x{i}": np.asarray(x) for i, x in enumerate(inputs) if x is not None}
    names = [f"x{i}" if x is not None else "" for i, x in enumerate(inputs)]
    node = helper.make_node(op_type, names, [f"y{i}" for i in range(outputs)], **attributes)
    declared = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
        for name, x in given.items()
    ]
    graph = helper.make_graph(
        [node], "g", declared, [helper.make_empty_tensor_value_info(f"y{i}") for i in range(outputs)]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    expected = by_runtime(model, given)
    function = host().registry.lookup("", op_type, opset).function
    more = {"n_outputs": outputs} if outputs > 1 else {}
    for call in (function, jax.jit(function, static_argnames=[*attributes, *more])):
        with jax.numpy_dtype_promotion("strict"):
            results = call(*(None if x is None else jnp.asarray(x) for x in inputs), **attributes, **more)
        for result, wanted in zip(results if isinstance(results, tuple) else (results,), expected, strict=True):
            assert result.dtype == wanted.dtype
            np.testing.assert_array_equal(result, wanted)


def by_runtime(model, given: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, given)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
@pytest.mark.parametrize("opset", [10, 13, 19])
def test_one_scale(dtype, opset):
    zero = np.array(3, dtype)
    check("QuantizeLinear", X, np.float32(0.05), zero, opset=opset)
    check("DequantizeLinear", integers(4, 6, dtype=dtype), np.float32(0.05), zero, opset=opset)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_a_scale_for_each_index(axis):
    scale = (GENERATOR.random(X.shape[axis]) + 0.02).astype(np.float32)
    zero = integers(X.shape[axis])
    check("QuantizeLinear", X, scale, zero, axis=axis)
    check("DequantizeLinear", integers(4, 6), scale, zero, axis=axis)


def test_a_scale_for_each_block():
    scale = (GENERATOR.random((4, 3)) + 0.02).astype(np.float32)
    check("QuantizeLinear", X, scale, integers(4, 3), opset=21, axis=1, block_size=2)
    check("DequantizeLinear", integers(4, 6), scale, integers(4, 3), opset=21, axis=1, block_size=2)


def test_sixteen_bits_and_no_zero_point():
    check("QuantizeLinear", X, np.float32(0.001), np.array(7, np.int16), opset=21)
    check("QuantizeLinear", X, np.float32(0.05), None)
    check("DequantizeLinear", integers(4, 6, dtype=np.int16), np.float32(0.05), None, opset=21)


def test_halves_round_to_even():
    x = jnp.array([0.5, 1.5, 2.5, -0.5, -1.5])
    assert quantize_linear(x, jnp.float32(1), jnp.int8(0)).tolist() == [0, 2, 2, 0, -2]


NARROW = [jnp.int4, jnp.uint4, jnp.int2, jnp.uint2]


@pytest.mark.parametrize("dtype", NARROW)
def test_integers_of_four_and_two_bits(dtype):
    x, bounds = np.arange(-40, 40, dtype=np.float32) / 2, jnp.iinfo(dtype)
    for convert in (quantize_linear, jax.jit(quantize_linear)):
        q = convert(jnp.asarray(x), jnp.float32(1), jnp.asarray(1, dtype))
        assert q.dtype == dtype
        np.testing.assert_array_equal(q.astype(np.int32), np.clip(np.rint(x) + 1, int(bounds.min), int(bounds.max)))
    np.testing.assert_array_equal(
        dequantize_linear(q, jnp.float32(0.5), jnp.asarray(1, dtype)), (q.astype(np.float32) - 1) / 2
    )


def test_a_last_block_may_be_short():
    x = (GENERATOR.standard_normal((4, 7)) * 3).astype(np.float32)
    scale, zero = (GENERATOR.random((4, 3)) + 0.05).astype(np.float32), integers(4, 3)
    check("QuantizeLinear", x, scale, zero, opset=21, axis=-1, block_size=3)
    check("DequantizeLinear", integers(4, 7), scale, zero, opset=21, axis=-1, block_size=3)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16])
def test_halves_and_infinities(dtype):
    x = np.array([*np.arange(-600, 600) / 2, np.inf, -np.inf, 1e30, -1e30, 3e9, 70000.5, -70000.5], np.float32)
    check("QuantizeLinear", x, np.float32(1), np.array(3, dtype), opset=21)


def test_int32_without_a_zero_point():
    check("DequantizeLinear", np.array([2**31 - 1, -(2**31), 5], np.int32), np.float32(0.3), None, opset=21)


@pytest.mark.parametrize("output", [TensorProto.FLOAT, TensorProto.FLOAT16])
@pytest.mark.parametrize("scale", [np.float32(0.3), np.float16(0.3)])
def test_the_dtype_of_a_dequantised_output(scale, output):
    check("DequantizeLinear", np.arange(256, dtype=np.uint8), scale, np.uint8(3), opset=23, output_dtype=output)


def test_integers_that_float16_does_not_hold():
    check("DequantizeLinear", np.arange(0, 2**16, 7, np.uint16), np.float16(0.3), np.uint16(30000), opset=21)


@pytest.mark.parametrize(
    ("dtype", "precision"), [(jnp.bfloat16, 0), (jnp.float16, 0), (jnp.float32, TensorProto.BFLOAT16)]
)
def test_the_quotient_is_rounded_to_the_precision_of_the_division(dtype, precision):
    x = jnp.asarray(GENERATOR.standard_normal(1000) * 30, dtype)
    convert = functools.partial(quantize_linear, precision=precision)
    narrow = ml_dtypes.bfloat16 if precision else dtype
    quotient = np.asarray(x).astype(narrow) / np.asarray(0.3, narrow)
    expected = np.clip(np.rint(quotient.astype(np.float32)) + 100, 0, 255)
    for call in (convert, jax.jit(convert)):
        np.testing.assert_array_equal(call(x, jnp.asarray(0.3, dtype), jnp.uint8(100)), expected)


@pytest.mark.parametrize(
    ("dtype", "saturated", "beyond"),
    [
        (jnp.float8_e4m3fn, 448, np.nan),
        (jnp.float8_e4m3fnuz, 240, np.nan),
        (jnp.float8_e5m2, 57344, np.inf),
        (jnp.float8_e5m2fnuz, 57344, np.nan),
    ],
)
def test_saturation_of_8_bit_floats(dtype, saturated, beyond):
    x = jnp.array([1.0, 1e6, -1e6, jnp.nan])
    for saturate, largest in ((1, saturated), (0, beyond)):
        q = quantize_linear(x, jnp.float32(1), jnp.zeros((), dtype), saturate=saturate)
        assert q.dtype == dtype
        np.testing.assert_array_equal(q.astype(np.float32), [1, largest, -largest, np.nan])


def test_4_bit_floats():
    q = quantize_linear(jnp.array([0.3, 1.0, 100.0]), jnp.float32(1), jnp.ones((), jnp.float4_e2m1fn))
    assert q.dtype == jnp.float4_e2m1fn
    assert q.astype(jnp.float32).tolist() == [1.5, 2.0, 6.0]
    assert dequantize_linear(q, jnp.float32(2), jnp.ones((), q.dtype)).tolist() == [1.0, 2.0, 10.0]


def test_scales_that_are_powers_of_two():
    scale = jnp.asarray(0.5, jnp.float8_e8m0fnu)
    q = quantize_linear(jnp.array([1.0, -2.5]), scale, jnp.int8(0))
    assert q.tolist() == [2, -5]
    assert dequantize_linear(q, scale, output_dtype=TensorProto.FLOAT).tolist() == [1.0, -2.5]


@pytest.mark.parametrize("seed", range(4))
def test_dynamic_quantisation(seed):
    x = (np.random.default_rng(seed).standard_normal(500) * (seed + 1)).astype(np.float32)
    check("DynamicQuantizeLinear", x, opset=11, outputs=3)
    check("DynamicQuantizeLinear", np.abs(x), opset=11, outputs=3)


def test_dynamic_quantisation_of_zeros_and_of_nothing():
    for shape in ((2, 3), (0, 3)):
        check("DynamicQuantizeLinear", np.zeros(shape, np.float32), opset=11, outputs=3)


def test_matrix_products():
    a, b = integers(4, 5), integers(5, 3)
    check("MatMulInteger", a, b, np.array(7, np.uint8), np.array(3, np.uint8), opset=10)
    check("MatMulInteger", a, b, None, integers(3), opset=10)
    scales = [np.float32(0.02), np.float32(0.03), np.float32(0.4)]
    zeros = [np.array(7, np.uint8), np.array(3, np.uint8), np.array(100, np.uint8)]
    check("QLinearMatMul", a, scales[0], zeros[0], b, scales[1], zeros[1], scales[2], zeros[2], opset=10)


@pytest.mark.parametrize("shapes", [((2, 4, 5), (2, 5, 3)), ((5,), (5, 3)), ((2, 1, 4, 5), (3, 5, 6))])
def test_stacked_matrix_products(shapes):
    a, b = (integers(*shape) for shape in shapes)
    check("MatMulInteger", a, b, np.uint8(7), np.uint8(3), opset=10)


@pytest.mark.parametrize("dtypes", [*itertools.product((np.uint8, np.int8), repeat=2)])
def test_matrix_products_of_mixed_integers(dtypes):
    a, b = integers(4, 5, dtype=dtypes[0]), integers(5, 3, dtype=dtypes[1])
    check("MatMulInteger", a, b, dtypes[0](7), dtypes[1](3), opset=10)


def test_zero_points_by_row_and_column():
    a, b = integers(2, 4, 5), integers(2, 5, 3, dtype=np.int8)
    rows, columns = integers(2, 4, 1), integers(2, 1, 3, dtype=np.int8)
    expected = (a.astype(np.int32) - rows) @ (b.astype(np.int32) - columns)
    found = quantization.mat_mul_integer(*map(jnp.asarray, (a, b, rows, columns)))
    np.testing.assert_array_equal(found, expected)
    found = quantization.mat_mul_integer(*map(jnp.asarray, (a[0], b[0], rows[0, :, 0], columns[0, 0])))
    np.testing.assert_array_equal(found, expected[0])


def test_products_of_8_bit_floats():
    a, b = (jnp.asarray(GENERATOR.standard_normal(shape), jnp.float8_e4m3fn) for shape in ((4, 5), (5, 3)))
    zero = jnp.zeros((), a.dtype)
    scales = [jnp.float16(scale) for scale in (0.5, 2.0, 0.25)]
    with jax.numpy_dtype_promotion("strict"):
        y = quantization.q_linear_mat_mul(a, scales[0], zero, b, scales[1], zero, scales[2], zero)
    expected = (a.astype(np.float32) @ b.astype(np.float32) * 4).astype(a.dtype)
    assert y.dtype == a.dtype
    np.testing.assert_allclose(y.astype(np.float32), expected.astype(np.float32), rtol=0.13)


CONVOLUTIONS = {
    "dense": ((2, 4, 6, 5), (6, 4, 3, 3), {}),
    "padded": ((2, 4, 6, 5), (6, 4, 3, 3), {"pads": (1, 2, 0, 1)}),
    "grouped": ((2, 4, 6, 5), (6, 2, 3, 3), {"group": 2, "strides": (2, 1), "pads": (1, 1, 1, 1)}),
    "depthwise": ((1, 4, 5, 5), (4, 1, 3, 3), {"group": 4, "pads": (1, 1, 1, 1)}),
    "pointwise": ((1, 4, 5, 5), (3, 4, 1, 1), {}),
    "dilated": ((1, 4, 7, 7), (3, 4, 3, 3), {"dilations": (2, 2)}),
    "same": ((1, 4, 6, 5), (3, 4, 3, 3), {"auto_pad": "SAME_UPPER", "strides": (2, 2)}),
    "one axis": ((2, 4, 7), (6, 4, 3), {}),
    "three axes": ((1, 2, 4, 4, 4), (3, 2, 2, 2, 2), {}),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name):
    x_shape, w_shape, window = CONVOLUTIONS[name]
    x, w = integers(*x_shape), integers(*w_shape, dtype=np.int8)
    check("ConvInteger", x, w, np.uint8(9), np.int8(4), opset=10, **window)
    by_channel = (GENERATOR.random(w_shape[0]) * 0.05 + 0.01).astype(np.float32)
    operands = (x, np.float32(0.02), np.uint8(9), w, by_channel, np.zeros(w_shape[0], np.int8))
    check("QLinearConv", *operands, np.float32(0.9), np.uint8(12), opset=10, **window)


@pytest.mark.parametrize("dtypes", [(np.uint8, np.uint8), (np.int8, np.int8)])
def test_convolutions_of_other_integers_with_a_bias(dtypes):
    x, w = integers(2, 4, 6, 5, dtype=dtypes[0]), integers(6, 4, 3, 3, dtype=dtypes[1])
    check("ConvInteger", x, w, opset=10)
    bias = GENERATOR.integers(-500, 500, 6).astype(np.int32)
    operands = (x, np.float32(0.02), dtypes[0](9), w, np.float32(0.03), dtypes[1](4), np.float32(0.9), dtypes[0](12))
    check("QLinearConv", *operands, bias, opset=10)


def test_zero_points_of_a_kernel_by_output_channel():
    x, w, zeros = integers(1, 2, 4, 4), integers(3, 2, 2, 2), integers(3)
    found = quantization.conv_integer(jnp.asarray(x), jnp.asarray(w), jnp.uint8(5), jnp.asarray(zeros))
    centred = w.astype(np.int32) - zeros[:, None, None, None]
    patches = np.lib.stride_tricks.sliding_window_view(x.astype(np.int32) - 5, (2, 2), axis=(2, 3))
    np.testing.assert_array_equal(found, np.einsum("ncyxij,ocij->noyx", patches, centred))


# Scales and zero points are named after what they belong to: xs, xz.
QUANTISE, DEQUANTISE = "q = QuantizeLinear (x, xs, xz)", "y = DequantizeLinear (qy, ys, yz)"
MODELS = {
    "convolution of floats": """dx = DequantizeLinear (q, xs, xz) dw = DequantizeLinear <axis = 0> (w, ws, wz)
        c = Conv <group = 4> (dx, dw) qy = QuantizeLinear (c, ys, yz)""",
    "convolution by channel": "qy = QLinearConv <group = 4> (q, xs, xz, w, ws, wz, ys, yz, b)",
    "convolution": "qy = QLinearConv <group = 4> (q, xs, xz, w, ms, mz, ys, yz)",
    "matrices": "qy = QLinearMatMul (q, xs, xz, m, ms, mz, ys, yz)",
    "dynamic": """d, ds, dz = DynamicQuantizeLinear (x) i = MatMulInteger (d, m, dz, mz) f = Cast <to = 1> (i)
        scale = Mul (ds, ms) c = Mul (f, scale) qy = QuantizeLinear (c, ys, yz)""",
}


@pytest.mark.parametrize("name", MODELS)
def test_models_whose_scales_are_constants(name):
    """Constants without axes are Python numbers in printed models."""
    text = f"{{ {QUANTISE} {MODELS[name]} {DEQUANTISE} }}"
    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 21]> g (float[n, 4, 6, 6] x) => (float[n, c, h, v] y) {text}'
    )
    constants = {
        "xs": np.float32(0.02),
        "xz": np.uint8(128),
        "ys": np.float32(0.05),
        "yz": np.uint8(120),
        "w": integers(4, 1, 3, 3, dtype=np.int8),
        "wz": np.zeros(4, np.int8),
        "b": np.arange(4, dtype=np.int32),
        "m": integers(6, 5, dtype=np.int8),
        "ms": np.float32(0.01),
        "mz": np.int8(2),
        "ws": np.array([0.01, 0.02, 0.005, 0.015], np.float32),
    }
    used = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(array), key) for key, array in constants.items() if key in used
    )
    x = (GENERATOR.standard_normal((2, 4, 6, 6)) * 2).astype(np.float32)
    (expected,) = by_runtime(model, {"x": x})
    live = onnxeqx.load_model(model)
    with jax.numpy_dtype_promotion("strict"):
        for call in (live, jax.jit(lambda x: live(x))):
            np.testing.assert_allclose(call(x), expected, rtol=1e-6, atol=1e-6)


def test_the_gradient_is_that_of_the_scale_alone():
    x = jnp.asarray(X)

    def there_and_back(x, scale):
        return dequantize_linear(quantize_linear(x, scale, jnp.uint8(9)), scale, jnp.uint8(9)).sum()

    of_x, of_scale = jax.grad(there_and_back, argnums=(0, 1))(x, jnp.float32(0.05))
    q = quantize_linear(x, jnp.float32(0.05), jnp.uint8(9)).astype(np.float32) - 9
    np.testing.assert_array_equal(of_x, 0)
    np.testing.assert_allclose(of_scale, q.sum(), rtol=1e-5)


def test_vmap_is_a_loop():
    x, scale = jnp.asarray(X), jnp.full(4, 0.05) + jnp.arange(4) / 100
    rows = jax.vmap(lambda x, scale: quantize_linear(x, scale, jnp.uint8(9)))(x, scale)
    np.testing.assert_array_equal(rows, quantize_linear(x, scale, jnp.full(4, 9, jnp.uint8), axis=0))


BYTES, FLOATS, KERNEL = jnp.zeros((2, 4, 6), jnp.uint8), jnp.ones((2, 4, 6)), jnp.ones((4, 1, 3), jnp.int8)
MATRIX, ZERO, SCALE = jnp.ones((6, 3), jnp.int8), jnp.uint8(3), jnp.float32(0.1)
# Each function of one array, whose first axis is the batch.
FUNCTIONS = {
    "QuantizeLinear": (lambda x: quantize_linear(x, SCALE, ZERO), FLOATS),
    "blocks": (lambda x: quantize_linear(x, x[..., :2] ** 2, output_dtype=jnp.int4, axis=2, block_size=3), FLOATS),
    "DequantizeLinear": (lambda x: dequantize_linear(x, SCALE, ZERO), BYTES),
    "DynamicQuantizeLinear": (lambda x: quantization.dynamic_quantize_linear(x, n_outputs=3)[0], FLOATS),
    "QLinearMatMul": (
        lambda x: quantization.q_linear_mat_mul(x, SCALE, ZERO, MATRIX, SCALE, jnp.int8(1), SCALE, ZERO),
        BYTES,
    ),
    "MatMulInteger": (lambda x: quantization.mat_mul_integer(x, MATRIX, ZERO), BYTES),
    "QLinearConv": (
        lambda x: quantization.q_linear_conv(x, SCALE, ZERO, KERNEL, SCALE, jnp.int8(0), SCALE, ZERO, group=4),
        BYTES,
    ),
    "ConvInteger": (lambda x: quantization.conv_integer(x, KERNEL, ZERO, group=4, auto_pad="SAME_UPPER"), BYTES),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_lowers_for_tpu_with_a_symbolic_batch(name):
    function, x = FUNCTIONS[name]
    specification = jax.ShapeDtypeStruct(jax.export.symbolic_shape("b, 4, 6"), x.dtype)
    with jax.numpy_dtype_promotion("strict"):
        (y,) = jax.export.export(jax.jit(function), platforms=["tpu"])(specification).out_avals
    assert str(y.shape[0]) == "b"
    assert y.dtype == function(x).dtype
