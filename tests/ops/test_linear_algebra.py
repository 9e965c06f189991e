"""Matrix products: the ONNX suite under jit, every version against ONNX Runtime, dtypes, gradients, symbolic sizes."""

import jax
import jax.export
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest

from onnxeqx.plugins import linear_algebra

from . import shape_cases
from .family_cases import check, check_against_runtime

RNG = np.random.default_rng(0)
A, B, C = (RNG.normal(size=shape).astype(np.float32) for shape in ((2, 3), (3, 4), (2, 4)))
CASES = shape_cases.case_names("linear_algebra")


@pytest.fixture(autouse=True)
def _strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        yield


def test_the_suite_has_cases():
    assert len(CASES) >= 25


@pytest.mark.parametrize("name", CASES)
def test_suite_under_jit_vmap_and_grad(name):
    shape_cases.check_under_jit(name)


@pytest.mark.parametrize("opset", [1, 9, 13])
def test_products_broadcast_leading_axes(opset):
    check_against_runtime("MatMul", opset, A, B)
    check_against_runtime("MatMul", opset, RNG.normal(size=(5, 1, 2, 3)).astype(np.float32), np.stack([B, -B]))
    check_against_runtime("MatMul", opset, A[0], B)
    check_against_runtime("MatMul", opset, A, B[:, 0])
    check_against_runtime("MatMul", opset, A[0], B[:, 0])


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_integer_products(dtype):
    check_against_runtime("MatMul", 13, (A * 9).astype(dtype), (B * 9).astype(dtype))


@pytest.mark.parametrize("opset", [7, 9, 11, 13])
def test_gemm(opset):
    check_against_runtime("Gemm", opset, A, B, C)
    check_against_runtime("Gemm", opset, A.T, B.T, C[0], transA=1, transB=1, alpha=0.5, beta=2.0)
    check_against_runtime("Gemm", opset, A, B, C[:, :1], alpha=0.0, beta=0.25)
    check_against_runtime("Gemm", opset, A, B, np.float32(3), beta=0.5)


@pytest.mark.parametrize("opset", [11, 13])
def test_gemm_without_c(opset):
    check_against_runtime("Gemm", opset, A, B, alpha=0.5)


@pytest.mark.parametrize("opset", [1, 6])
def test_gemm_before_opset_7_has_a_broadcast_attribute(opset):
    check("Gemm", opset, [A, B, C], 0.5 * A @ B + 2 * C, alpha=0.5, beta=2.0)
    check("Gemm", opset, [A.T, B.T, C[0]], A @ B + C[0], transA=1, transB=1, broadcast=1)
    check("Gemm", opset, [A, B, C[:, :1]], A @ B + C[:, :1], broadcast=1)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.int32])
def test_gemm_keeps_its_dtype_with_numbers_for_constants(dtype):
    a, b = jnp.full((2, 3), 2, dtype), jnp.full((3, 4), 4, dtype)
    result = linear_algebra.gemm(a, b, 8, alpha=0.5, beta=0.25)
    assert result.dtype == dtype
    np.testing.assert_array_equal(result.astype(jnp.float32), np.full((2, 4), 14))


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("ij,jk->ik", [(2, 3), (3, 4)]),
        ("ij, jk", [(2, 3), (3, 4)]),
        ("...ij->...ji", [(5, 2, 3)]),
        ("bij,bjk,bk->bi", [(2, 3, 4), (2, 4, 5), (2, 5)]),
        ("ii->i", [(3, 3)]),
        ("ij->", [(2, 3)]),
        ("aB,Bc->ca", [(2, 3), (3, 4)]),
        ("...hd,...kd->...hk", [(2, 5, 3, 4), (2, 5, 6, 4)]),
        ("i,j->ij", [(2,), (3,)]),
    ],
)
def test_einsum(equation, shapes):
    check_against_runtime(
        "Einsum", 12, *(RNG.normal(size=shape).astype(np.float32) for shape in shapes), equation=equation
    )


def test_einsum_of_integers_and_numbers():
    check_against_runtime("Einsum", 12, np.arange(6).reshape(2, 3), np.arange(3), equation="ij,j->i")
    result = linear_algebra.einsum(2.0, jnp.ones(3, jnp.float16), equation=",i->i")
    assert result.dtype == jnp.float16


@pytest.mark.parametrize("opset", [11, 22])
def test_det(opset):
    check_against_runtime("Det", opset, RNG.normal(size=(2, 5, 4, 4)).astype(np.float32))
    check_against_runtime("Det", opset, RNG.normal(size=(3, 3)).astype(np.float32))
    check("Det", opset, [np.array([[[1, 2], [2, 4]]], np.float32)], np.zeros(1, np.float32))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_det_of_narrow_floats(dtype):
    result = linear_algebra.det(jnp.diag(jnp.array([2, 3, 4], dtype)))
    assert (result, result.dtype) == (24, dtype)


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (linear_algebra.mat_mul, [(2, 2, 3), (3, 4)]),
        (lambda a, b, c: linear_algebra.gemm(a, b, c, alpha=0.5, beta=2.0, transA=1), [(3, 2), (3, 4), (4,)]),
        (lambda a, b: linear_algebra.einsum(a, b, equation="bij,jk->bik"), [(2, 2, 3), (3, 4)]),
        (linear_algebra.det, [(2, 3, 3)]),
    ],
)
def test_gradients(function, shapes):
    operands = [np.random.default_rng(1).normal(size=shape).astype(np.float32) for shape in shapes]
    jax.test_util.check_grads(function, operands, order=1, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: linear_algebra.mat_mul(x, B), "(b, 4)"),
        (lambda x: linear_algebra.gemm(x, B, C[0], alpha=0.5, beta=0.5), "(b, 4)"),
        (lambda x: linear_algebra.einsum(x, x, equation="ij,kj->ik"), "(b, b)"),
        (lambda x: linear_algebra.det(x[:, :, None] + np.eye(3, dtype=np.float32)), "(b,)"),
    ],
)
def test_sizes_stay_symbolic_under_export(function, expected):
    assert exported_shape(function, "b, 3") == expected


def exported_shape(function, shape):
    specification = jax.ShapeDtypeStruct(jax.export.symbolic_shape(shape), jnp.float32)
    (result,) = jax.export.export(jax.jit(function))(specification).out_avals
    return str(result.shape)
