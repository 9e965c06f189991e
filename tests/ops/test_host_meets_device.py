"""Where operands of the host, symbolic dimensions among them, meet arrays of the device; and what only the host can do."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from onnx import TensorProto

from onnxeqx.plugins import casting, elementwise, logical, tensor

from .family_cases import N, objects


@pytest.fixture(autouse=True)
def _strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.mark.parametrize("function", [elementwise.div, elementwise.mod, elementwise.min_, elementwise.max_])
@pytest.mark.parametrize("swap", [False, True])
def test_shapes_meet_arrays_of_the_device(function, swap):
    def apply(x):
        operands = jnp.array([7, 2]), tensor.shape(x)
        return function(*(reversed(operands) if swap else operands))

    specification = jax.ShapeDtypeStruct(jax.export.symbolic_shape("a, 3"), jnp.float32)
    exported = jax.export.export(jax.jit(apply))(specification)
    x = jnp.ones((5, 3))
    np.testing.assert_array_equal(exported.call(x), apply(x))
    np.testing.assert_array_equal(apply(x), function(*(reversed(([7, 2], [5, 3])) if swap else ([7, 2], [5, 3]))))


def test_known_sizes_among_symbolic_ones_become_floats_on_the_host():
    result = casting.cast(objects(64), to=TensorProto.FLOAT)
    assert isinstance(result, np.ndarray)
    assert (result.dtype, result.tolist()) == (np.float32, [64])
    with pytest.raises(TypeError, match="symbolic dimensions cannot be float32"):
        casting.cast(objects(N, 64), to=TensorProto.FLOAT)


def test_values_that_do_not_fit_give_no_warning():
    assert casting.cast(np.array([1e300]), to=TensorProto.FLOAT).tolist() == [np.inf]
    assert casting.cast(np.array([np.nan, 1.5], np.float32), to=TensorProto.INT64)[1] == 1


@pytest.mark.parametrize("to", ["INT32", jnp.int32, np.dtype("int32")])
def test_before_opset_6_the_dtype_is_a_name(to):
    assert casting.cast_1(jnp.array([1.5]), to=to).dtype == jnp.int32


def test_bit_cast_on_the_host_has_64_bits():
    assert casting.bit_cast(np.array([1.0]), to=TensorProto.INT64).tolist() == [0x3FF0000000000000]
    assert casting.bit_cast(np.array([True, False]), to=TensorProto.UINT8).tolist() == [1, 0]


@pytest.mark.parametrize("convert", [np.array, jnp.array])
def test_signed_shifts_and_shifts_beyond_the_width(convert):
    """Opset 28: a negative shift, or one beyond the width, leaves what the sign alone produces."""
    x, y = convert([1, -5, 8, -4, -5], np.int32), convert([-1, 40, -3, 1, -1], np.int32)
    assert logical.bit_shift(x, y, direction="LEFT").tolist() == [0, 0, 0, -8, 0]
    assert logical.bit_shift(x, y, direction="RIGHT").tolist() == [0, -1, 0, -2, -1]
