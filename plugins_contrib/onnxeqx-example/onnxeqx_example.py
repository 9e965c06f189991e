"""An onnxeqx plugin: the operator `org.onnxeqx.example::ScaledTanh`."""

import jax.numpy as jnp

import onnxeqx


@onnxeqx.op("ScaledTanh", domain="org.onnxeqx.example", since=1)
def scaled_tanh(x, *, alpha=1.0, beta=1.0):
    """`alpha * tanh(beta * x)`. x: any shape, float -> same shape and dtype."""
    return alpha * jnp.tanh(beta * x)


@onnxeqx.hookimpl
def onnxeqx_register_ops(registry):
    """Registers the operators of this module."""
    registry.add_module(__name__)
