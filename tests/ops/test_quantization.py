"""Quantised operators against ONNX Runtime, to the last bit."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
from onnx import helper

from onnxeqx.plugins.manager import host
from onnxeqx.plugins.quantization import dequantize_linear, quantize_linear

GENERATOR = np.random.default_rng(0)
X = (GENERATOR.standard_normal((4, 6)) * 3).astype(np.float32)


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
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    expected = onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, given)
    function = host().registry.lookup("", op_type, opset).function
    more = {"n_outputs": outputs} if outputs > 1 else {}
    for call in (function, jax.jit(function, static_argnames=[*attributes, *more])):
        with jax.numpy_dtype_promotion("strict"):
            results = call(*(None if x is None else jnp.asarray(x) for x in inputs), **attributes, **more)
        for result, wanted in zip(results if isinstance(results, tuple) else (results,), expected, strict=True):
            assert result.dtype == wanted.dtype
            np.testing.assert_allclose(result, wanted, rtol=1e-6)


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


def test_four_bits():
    q = quantize_linear(jnp.array([-100.0, -1.0, 3.4, 100.0]), jnp.float32(1), jnp.asarray(0, jnp.int4))
    assert q.dtype == jnp.int4
    assert q.astype(jnp.int8).tolist() == [-8, -1, 3, 7]
    assert dequantize_linear(q, jnp.float32(0.5)).tolist() == [-4.0, -0.5, 1.5, 3.5]


def test_dynamic_quantisation():
    check("DynamicQuantizeLinear", X, opset=11, outputs=3)
    check("DynamicQuantizeLinear", np.abs(X), opset=11, outputs=3)


def test_matrix_products():
    a, b = integers(4, 5), integers(5, 3)
    check("MatMulInteger", a, b, np.array(7, np.uint8), np.array(3, np.uint8), opset=10)
    check("MatMulInteger", a, b, None, integers(3), opset=10)
    scales = [np.float32(0.02), np.float32(0.03), np.float32(0.4)]
    zeros = [np.array(7, np.uint8), np.array(3, np.uint8), np.array(100, np.uint8)]
    check("QLinearMatMul", a, scales[0], zeros[0], b, scales[1], zeros[1], scales[2], zeros[2], opset=10)


@pytest.mark.parametrize(("group", "pads"), [(1, (0, 0, 0, 0)), (1, (1, 2, 0, 1)), (2, (1, 1, 1, 1))])
def test_convolutions(group, pads):
    x, w = integers(2, 4, 6, 5), integers(6, 4 // group, 3, 3)
    zero = np.array(9, np.uint8)
    check("ConvInteger", x, w, zero, np.array(4, np.uint8), opset=10, group=group, pads=pads)
    scales = (np.float32(0.02), np.float32(0.03), np.float32(0.9))
    bias = GENERATOR.integers(-500, 500, 6).astype(np.int32)
    operands = (x, scales[0], zero, w, scales[1], np.array(4, np.uint8), scales[2], np.array(120, np.uint8), bias)
    check("QLinearConv", *operands, opset=10, group=group, pads=pads)


def test_the_gradient_is_that_of_the_scale_alone():
    x = jnp.asarray(X)
    gradient = jax.grad(
        lambda scale: dequantize_linear(quantize_linear(x, scale, jnp.uint8(9)), scale, jnp.uint8(9)).sum()
    )
    assert jnp.isfinite(gradient(jnp.float32(0.05)))


def test_lowers_for_tpu():
    function = jax.jit(lambda x: dequantize_linear(quantize_linear(x, jnp.float32(0.1), jnp.int8(3)), jnp.float32(0.1)))
    jax.export.export(function, platforms=["tpu"])(jax.ShapeDtypeStruct(X.shape, X.dtype))
