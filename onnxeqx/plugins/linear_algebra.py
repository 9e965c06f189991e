"""Matrix products and their like."""

from typing import Any

import jax.numpy as jnp

from .._printing import Operand
from .._registry import op
from ._operands import aligned
from .hookspecs import hookimpl
from .reduction import widened


@op("MatMul", since=1, prints="a @ b")
def mat_mul(a, b):
    """The matrix product over the last two axes, as `numpy.matmul`. a: (*n, i, j), b: (*n, j, k) -> (*n, i, k), one dtype.

    https://onnx.ai/onnx/operators/onnx__MatMul.html
    """
    return a @ b


def _print_gemm(
    a: Operand, b: Operand, c: Operand | None = None, *, alpha: float, beta: float, transA: int, transB: int
) -> str | None:
    if alpha != 1 or (beta != 1 and c is not None):
        return None
    product = f"{'a.T' if transA else 'a'} @ {'b.T' if transB else 'b'}"
    return product if c is None else f"{product} + c"


@op("Gemm", since=7, prints=_print_gemm)
def gemm(a, b, c=None, *, alpha=1.0, beta=1.0, transA=0, transB=0):
    """`alpha * a @ b + beta * c`. a: (i, j), b: (j, k), each transposed on request; c broadcasts -> (i, k), one dtype.

    https://onnx.ai/onnx/operators/onnx__Gemm.html
    """
    y = _scaled((a.T if transA else a) @ (b.T if transB else b), alpha)
    return y if c is None else y + _scaled(jnp.asarray(c, y.dtype), beta)


def _scaled(x: Any, factor: float) -> Any:
    if factor == 1:
        return x
    return (factor * widened(x)).astype(x.dtype)


@op("Gemm", since=1, until=6)
def gemm_1(a, b, c, *, alpha=1.0, beta=1.0, broadcast=0, transA=0, transB=0):
    """`alpha * a @ b + beta * c`; `c` is broadcast only on request. a: (i, j), b: (j, k) -> (i, k), one float dtype.

    https://onnx.ai/onnx/operators/onnx__Gemm.html
    """
    return gemm(
        a, b, aligned(a, c, axis=None, broadcast=broadcast), alpha=alpha, beta=beta, transA=transA, transB=transB
    )


@op("Einsum", since=12, prints="jnp.einsum(equation, *inputs)")
def einsum(*inputs, equation):
    """The sum of products that `equation` describes, as `numpy.einsum`. One dtype -> that dtype.

    https://onnx.ai/onnx/operators/onnx__Einsum.html
    """
    return jnp.einsum(equation, *inputs)


@op("Det", since=11)
def det(x):
    """The determinant of square matrices. x: (*n, m, m), float -> (*n).

    https://onnx.ai/onnx/operators/onnx__Det.html
    """
    return jnp.linalg.det(widened(x)).astype(x.dtype)


@hookimpl
def onnxeqx_register_ops(registry) -> None:
    registry.add_module(__name__)
