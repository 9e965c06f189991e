"""Comparisons, Boolean and bitwise logic, element by element, with NumPy's broadcasting; also on the host."""

from .._printing import Operand
from .._registry import op
from ..runtime import array_namespace
from ._operands import aligned
from ._unchanged import neutral
from .hookspecs import hookimpl


@op("And", since=7, on_host=True, passes_through=neutral(True, 0, 1), prints="a & b")
def and_(a, b):
    """Logical and, broadcast. Any shapes, bool -> bool.

    https://onnx.ai/onnx/operators/onnx__And.html
    """
    return a & b


@op("And", since=1, until=6, on_host=True)
def and_1(a, b, *, axis=None, broadcast=0):
    """Logical and; `b` is broadcast only on request, from `axis` on. Bool.

    https://onnx.ai/onnx/operators/onnx__And.html
    """
    return and_(a, aligned(a, b, axis=axis, broadcast=broadcast))


@op("Or", since=7, on_host=True, passes_through=neutral(False, 0, 1), prints="a | b")
def or_(a, b):
    """Logical or, broadcast. Any shapes, bool -> bool.

    https://onnx.ai/onnx/operators/onnx__Or.html
    """
    return a | b


@op("Or", since=1, until=6, on_host=True)
def or_1(a, b, *, axis=None, broadcast=0):
    """Logical or; `b` is broadcast only on request, from `axis` on. Bool.

    https://onnx.ai/onnx/operators/onnx__Or.html
    """
    return or_(a, aligned(a, b, axis=axis, broadcast=broadcast))


@op("Xor", since=7, on_host=True, passes_through=neutral(False, 0, 1), prints="a ^ b")
def xor(a, b):
    """Logical exclusive or, broadcast. Any shapes, bool -> bool.

    https://onnx.ai/onnx/operators/onnx__Xor.html
    """
    return a ^ b


@op("Xor", since=1, until=6, on_host=True)
def xor_1(a, b, *, axis=None, broadcast=0):
    """Logical exclusive or; `b` is broadcast only on request, from `axis` on. Bool.

    https://onnx.ai/onnx/operators/onnx__Xor.html
    """
    return xor(a, aligned(a, b, axis=axis, broadcast=broadcast))


def _print_not(x: Operand) -> str | None:
    return "~x" if x.on_device else None


@op("Not", since=1, on_host=True, prints=_print_not)
def not_(x):
    """Logical not. Any shape, bool -> bool.

    https://onnx.ai/onnx/operators/onnx__Not.html
    """
    return array_namespace(x).logical_not(x)  # `~` of a Python bool, such as `x.shape[0] == 1`, is an integer


@op("Equal", since=7, on_host=True, prints="a == b")
def equal(a, b):
    """`a == b`, broadcast. Any shapes, one dtype -> bool.

    https://onnx.ai/onnx/operators/onnx__Equal.html
    """
    return a == b


@op("Equal", since=1, until=6, on_host=True)
def equal_1(a, b, *, axis=None, broadcast=0):
    """`a == b`; `b` is broadcast only on request, from `axis` on -> bool.

    https://onnx.ai/onnx/operators/onnx__Equal.html
    """
    return equal(a, aligned(a, b, axis=axis, broadcast=broadcast))


@op("Less", since=7, on_host=True, prints="a < b")
def less(a, b):
    """`a < b`, broadcast. Any shapes, one dtype -> bool.

    https://onnx.ai/onnx/operators/onnx__Less.html
    """
    return a < b


@op("Less", since=1, until=6, on_host=True)
def less_1(a, b, *, axis=None, broadcast=0):
    """`a < b`; `b` is broadcast only on request, from `axis` on -> bool.

    https://onnx.ai/onnx/operators/onnx__Less.html
    """
    return less(a, aligned(a, b, axis=axis, broadcast=broadcast))


@op("Greater", since=7, on_host=True, prints="a > b")
def greater(a, b):
    """`a > b`, broadcast. Any shapes, one dtype -> bool.

    https://onnx.ai/onnx/operators/onnx__Greater.html
    """
    return a > b


@op("Greater", since=1, until=6, on_host=True)
def greater_1(a, b, *, axis=None, broadcast=0):
    """`a > b`; `b` is broadcast only on request, from `axis` on -> bool.

    https://onnx.ai/onnx/operators/onnx__Greater.html
    """
    return greater(a, aligned(a, b, axis=axis, broadcast=broadcast))


@op("LessOrEqual", since=12, on_host=True, prints="a <= b")
def less_or_equal(a, b):
    """`a <= b`, broadcast. Any shapes, one dtype -> bool.

    https://onnx.ai/onnx/operators/onnx__LessOrEqual.html
    """
    return a <= b


@op("GreaterOrEqual", since=12, on_host=True, prints="a >= b")
def greater_or_equal(a, b):
    """`a >= b`, broadcast. Any shapes, one dtype -> bool.

    https://onnx.ai/onnx/operators/onnx__GreaterOrEqual.html
    """
    return a >= b


@op("BitShift", since=11, on_host=True)
def bit_shift(x, y, *, direction):
    """`x` shifted by `y` bits to the LEFT or RIGHT. Any shapes, one unsigned dtype -> that dtype.

    https://onnx.ai/onnx/operators/onnx__BitShift.html
    """
    return x << y if direction == "LEFT" else x >> y


@op("BitwiseAnd", since=18, on_host=True, prints="a & b")
def bitwise_and(a, b):
    """`a & b`, bit by bit, broadcast. Any shapes, one integer dtype -> that dtype.

    https://onnx.ai/onnx/operators/onnx__BitwiseAnd.html
    """
    return a & b


@op("BitwiseOr", since=18, on_host=True, prints="a | b")
def bitwise_or(a, b):
    """`a | b`, bit by bit, broadcast. Any shapes, one integer dtype -> that dtype.

    https://onnx.ai/onnx/operators/onnx__BitwiseOr.html
    """
    return a | b


@op("BitwiseXor", since=18, on_host=True, prints="a ^ b")
def bitwise_xor(a, b):
    """`a ^ b`, bit by bit, broadcast. Any shapes, one integer dtype -> that dtype.

    https://onnx.ai/onnx/operators/onnx__BitwiseXor.html
    """
    return a ^ b


@op("BitwiseNot", since=18, on_host=True, prints="~x")
def bitwise_not(x):
    """All bits flipped. Any shape, integer -> the same.

    https://onnx.ai/onnx/operators/onnx__BitwiseNot.html
    """
    return ~x


@hookimpl
def onnxeqx_register_ops(registry) -> None:
    registry.add_module(__name__)
