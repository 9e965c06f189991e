"""Trigonometric and hyperbolic functions, element by element."""

import jax.numpy as jnp

from .._registry import op
from .hookspecs import hookimpl


@op("Sin", since=7, prints="jnp.sin(x)", result="sin")
def sin(x):
    """The sine. Any shape, float -> the same.

    https://onnx.ai/onnx/operators/onnx__Sin.html
    """
    return jnp.sin(x)


@op("Cos", since=7, prints="jnp.cos(x)", result="cos")
def cos(x):
    """The cosine. Any shape, float -> the same.

    https://onnx.ai/onnx/operators/onnx__Cos.html
    """
    return jnp.cos(x)


@op("Tan", since=7, prints="jnp.tan(x)")
def tan(x):
    """The tangent. Any shape, float -> the same.

    https://onnx.ai/onnx/operators/onnx__Tan.html
    """
    return jnp.tan(x)


@op("Asin", since=7, prints="jnp.arcsin(x)")
def asin(x):
    """The inverse sine. Any shape, float -> the same.

    https://onnx.ai/onnx/operators/onnx__Asin.html
    """
    return jnp.arcsin(x)


@op("Acos", since=7, prints="jnp.arccos(x)")
def acos(x):
    """The inverse cosine. Any shape, float -> the same.

    https://onnx.ai/onnx/operators/onnx__Acos.html
    """
    return jnp.arccos(x)


@op("Atan", since=7, prints="jnp.arctan(x)")
def atan(x):
    """The inverse tangent. Any shape, float -> the same.

    https://onnx.ai/onnx/operators/onnx__Atan.html
    """
    return jnp.arctan(x)


@op("Sinh", since=9, prints="jnp.sinh(x)")
def sinh(x):
    """The hyperbolic sine. Any shape, float -> the same.

    https://onnx.ai/onnx/operators/onnx__Sinh.html
    """
    return jnp.sinh(x)


@op("Cosh", since=9, prints="jnp.cosh(x)")
def cosh(x):
    """The hyperbolic cosine. Any shape, float -> the same.

    https://onnx.ai/onnx/operators/onnx__Cosh.html
    """
    return jnp.cosh(x)


@op("Asinh", since=9, prints="jnp.arcsinh(x)")
def asinh(x):
    """The inverse hyperbolic sine. Any shape, float -> the same.

    https://onnx.ai/onnx/operators/onnx__Asinh.html
    """
    return jnp.arcsinh(x)


@op("Acosh", since=9, prints="jnp.arccosh(x)")
def acosh(x):
    """The inverse hyperbolic cosine. Any shape, float -> the same.

    https://onnx.ai/onnx/operators/onnx__Acosh.html
    """
    return jnp.arccosh(x)


@op("Atanh", since=9, prints="jnp.arctanh(x)")
def atanh(x):
    """The inverse hyperbolic tangent. Any shape, float -> the same.

    https://onnx.ai/onnx/operators/onnx__Atanh.html
    """
    return jnp.arctanh(x)


@op("Tanh", since=6, prints="jnp.tanh(x)")
def tanh(x):
    """The hyperbolic tangent. Any shape, float -> the same.

    https://onnx.ai/onnx/operators/onnx__Tanh.html
    """
    return jnp.tanh(x)


@op("Tanh", since=1, until=5)
def tanh_1(x, *, consumed_inputs=None):
    """The hyperbolic tangent. Any shape, float -> the same.

    https://onnx.ai/onnx/operators/onnx__Tanh.html
    """
    return tanh(x)


@hookimpl
def onnxeqx_register_ops(registry) -> None:
    registry.add_module(__name__)
