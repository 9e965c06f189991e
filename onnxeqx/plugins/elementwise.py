"""Arithmetic, element by element, with NumPy's broadcasting. Most of it also runs on the host, for shape arithmetic."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import core

from .._graph import Call, Value
from .._printing import Operand
from .._registry import op
from ..runtime import array_namespace, canonical_dtype
from ._operands import aligned, as_array, as_arrays, dtype_of
from ._printing import fits_every_float, is_floating, scalar
from ._unchanged import neutral, only_input
from .hookspecs import hookimpl


def _adds_nothing(call: Call) -> Value | None:
    # -0.0 + 0.0 is 0.0.
    return None if is_floating(call.outputs[0].dtype) else neutral(0, 0, 1)(call)


@op("Add", since=7, on_host=True, passes_through=_adds_nothing, prints="a + b")
def add(a, b):
    """`a + b`, broadcast. a, b: any shapes, one number dtype -> that dtype.

    https://onnx.ai/onnx/operators/onnx__Add.html
    """
    return a + b


@op("Add", since=1, until=6, on_host=True)
def add_1(a, b, *, axis=None, broadcast=0, consumed_inputs=None):
    """`a + b`; `b` is broadcast only on request, from `axis` on. One number dtype.

    https://onnx.ai/onnx/operators/onnx__Add.html
    """
    return add(a, aligned(a, b, axis=axis, broadcast=broadcast))


@op("Sub", since=7, on_host=True, passes_through=neutral(0, 1), prints="a - b")
def sub(a, b):
    """`a - b`, broadcast. a, b: any shapes, one number dtype -> that dtype.

    https://onnx.ai/onnx/operators/onnx__Sub.html
    """
    return a - b


@op("Sub", since=1, until=6, on_host=True)
def sub_1(a, b, *, axis=None, broadcast=0, consumed_inputs=None):
    """`a - b`; `b` is broadcast only on request, from `axis` on. One number dtype.

    https://onnx.ai/onnx/operators/onnx__Sub.html
    """
    return sub(a, aligned(a, b, axis=axis, broadcast=broadcast))


@op("Mul", since=7, on_host=True, passes_through=neutral(1, 0, 1), prints="a * b")
def mul(a, b):
    """`a * b`, broadcast. a, b: any shapes, one number dtype -> that dtype.

    https://onnx.ai/onnx/operators/onnx__Mul.html
    """
    return a * b


@op("Mul", since=1, until=6, on_host=True)
def mul_1(a, b, *, axis=None, broadcast=0, consumed_inputs=None):
    """`a * b`; `b` is broadcast only on request, from `axis` on. One number dtype.

    https://onnx.ai/onnx/operators/onnx__Mul.html
    """
    return mul(a, aligned(a, b, axis=axis, broadcast=broadcast))


def _are_symbols(*xs):
    """Whether the operands are on the host, with symbolic dimensions among them: elements that NumPy leaves to Python."""
    return array_namespace(*xs) is np and any(np.asarray(x).dtype == np.object_ for x in xs)


def _on_one_side(*xs):
    """The operands as they are, but symbolic dimensions as device integers where they meet a JAX array."""
    if array_namespace(*xs) is np:
        return xs
    return tuple(x if isinstance(x, jax.Array) or np.asarray(x).dtype != np.object_ else as_array(x, jnp) for x in xs)


def _print_division(a: Operand, b: Operand) -> str | None:
    return "a / b" if is_floating(a.dtype) else None


@op("Div", since=7, on_host=True, passes_through=neutral(1, 1), prints=_print_division)
def div(a, b):
    """`a / b`, broadcast; integers are divided towards zero. a, b: any shapes, one number dtype -> that dtype.

    https://onnx.ai/onnx/operators/onnx__Div.html
    """
    a, b = _on_one_side(a, b)
    dtype = dtype_of(a, b)
    if isinstance(a, float) or isinstance(b, float) or (dtype is not None and jnp.issubdtype(dtype, jnp.inexact)):
        return a / b
    if array_namespace(a, b) is jnp:
        return jax.lax.div(*jnp.broadcast_arrays(*(jnp.asarray(x, canonical_dtype(dtype)) for x in (a, b))))
    if _are_symbols(a, b):
        return _divided_symbols(a, b)
    quotient = np.floor_divide(a, b)
    return quotient + ((quotient < 0) & (quotient * b != a)).astype(quotient.dtype)


def _divided(a, b):
    if isinstance(a, int) and isinstance(b, int):
        return -(-a // b) if (a < 0) != (b < 0) else a // b
    if jax.export.is_symbolic_dim(a):
        return core.max_dim(a, 0) // b - core.max_dim(-a, 0) // b
    return a // b  # symbols at load refuse a division whose sign is unknown


_divided_symbols = np.frompyfunc(_divided, 2, 1)


@op("Div", since=1, until=6, on_host=True)
def div_1(a, b, *, axis=None, broadcast=0, consumed_inputs=None):
    """`a / b`; `b` is broadcast only on request, from `axis` on. One number dtype.

    https://onnx.ai/onnx/operators/onnx__Div.html
    """
    return div(a, aligned(a, b, axis=axis, broadcast=broadcast))


def _print_remainder(a: Operand, b: Operand, *, fmod: int) -> str | None:
    if not (a.on_device or b.on_device):
        return None
    return "jnp.fmod(a, b)" if fmod else "a % b"


@op("Mod", since=10, on_host=True, prints=_print_remainder)
def mod(a, b, *, fmod=0):
    """The remainder, with the sign of `b` (of `a` for `fmod=1`). a, b: any shapes, one number dtype -> that dtype.

    https://onnx.ai/onnx/operators/onnx__Mod.html
    """
    if _are_symbols(a, b):
        return a - div(a, b) * b if fmod else a % b
    xp, (a, b) = array_namespace(a, b), _on_one_side(a, b)
    return xp.fmod(a, b) if fmod else xp.mod(a, b)


def _print_power(x: Operand, y: Operand) -> str | tuple[str, dict[str, Any]] | None:
    exponent = scalar(y)
    if not is_floating(x.dtype) or y.dtype not in (x.dtype, np.int64):
        return None
    if exponent is not None:
        exponent = int(exponent) if float(exponent).is_integer() else exponent
        return "x**exponent", {"exponent": exponent}
    return "x**y" if y.dtype == x.dtype and y.on_device and (x.on_device or scalar(x) is not None) else None


@op("Pow", since=7, on_host=True, passes_through=neutral(1, 1), prints=_print_power)
def pow_(x, y):
    """`x ** y`, broadcast. x, y: any shapes, number dtypes that may differ -> the dtype of `x`.

    https://onnx.ai/onnx/operators/onnx__Pow.html
    """
    if isinstance(y, float) and y.is_integer():
        y = int(y)  # an integer power has the right gradient at zero
    if isinstance(y, int) and y >= 0:
        return x**y
    if (isinstance(x, float) and _is_floating(y)) or (_is_floating(x) and not hasattr(y, "dtype")):
        return x**y  # a Python number stands for a constant of the dtype it meets
    xp, x, y = as_arrays(x, y)
    if not jnp.issubdtype(x.dtype, jnp.integer):
        return xp.power(x, y.astype(x.dtype))
    if jnp.issubdtype(y.dtype, jnp.floating):
        return xp.power(x.astype(y.dtype), y).astype(x.dtype)
    # Neither namespace has negative powers of integers: they are 1, -1 or between the two.
    whole = xp.power(x, xp.maximum(y, 0).astype(x.dtype))
    return xp.where((y < 0) & (x != 1), xp.where(x == -1, 1 - y % 2 * 2, 0).astype(x.dtype), whole)


def _is_floating(x):
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating)


@op("Pow", since=1, until=6, on_host=True)
def pow_1(x, y, *, axis=None, broadcast=0):
    """`x ** y`; `y` is broadcast only on request, from `axis` on. Float.

    https://onnx.ai/onnx/operators/onnx__Pow.html
    """
    return pow_(x, aligned(x, y, axis=axis, broadcast=broadcast))


@op("Neg", since=6, on_host=True, prints="-x")
def neg(x):
    """`-x`. Any shape, signed number dtype -> the same.

    https://onnx.ai/onnx/operators/onnx__Neg.html
    """
    return -x


@op("Neg", since=1, until=5, on_host=True)
def neg_1(x, *, consumed_inputs=None):
    """`-x`. Float.

    https://onnx.ai/onnx/operators/onnx__Neg.html
    """
    return neg(x)


@op("Abs", since=6, on_host=True, prints="jnp.abs(x)")
def abs_(x):
    """`|x|`. Any shape, number dtype -> the same.

    https://onnx.ai/onnx/operators/onnx__Abs.html
    """
    return abs(x)


@op("Abs", since=1, until=5, on_host=True)
def abs__1(x, *, consumed_inputs=None):
    """`|x|`. Float.

    https://onnx.ai/onnx/operators/onnx__Abs.html
    """
    return abs_(x)


@op("Sqrt", since=6, on_host=True, prints="jnp.sqrt(x)")
def sqrt(x):
    """The square root. Any shape, float -> the same.

    https://onnx.ai/onnx/operators/onnx__Sqrt.html
    """
    return array_namespace(x).sqrt(x)


@op("Sqrt", since=1, until=5, on_host=True)
def sqrt_1(x, *, consumed_inputs=None):
    """The square root. Float.

    https://onnx.ai/onnx/operators/onnx__Sqrt.html
    """
    return sqrt(x)


@op("Reciprocal", since=6, on_host=True, prints="1 / x")
def reciprocal(x):
    """`1 / x`. Any shape, float -> the same.

    https://onnx.ai/onnx/operators/onnx__Reciprocal.html
    """
    return 1 / x


@op("Reciprocal", since=1, until=5, on_host=True)
def reciprocal_1(x, *, consumed_inputs=None):
    """`1 / x`. Float.

    https://onnx.ai/onnx/operators/onnx__Reciprocal.html
    """
    return reciprocal(x)


@op("Exp", since=6, on_host=True, prints="jnp.exp(x)")
def exp(x):
    """`e ** x`. Any shape, float -> the same.

    https://onnx.ai/onnx/operators/onnx__Exp.html
    """
    return array_namespace(x).exp(x)


@op("Exp", since=1, until=5, on_host=True)
def exp_1(x, *, consumed_inputs=None):
    """`e ** x`. Float.

    https://onnx.ai/onnx/operators/onnx__Exp.html
    """
    return exp(x)


@op("Log", since=6, on_host=True, prints="jnp.log(x)")
def log(x):
    """The natural logarithm. Any shape, float -> the same.

    https://onnx.ai/onnx/operators/onnx__Log.html
    """
    with np.errstate(divide="ignore", invalid="ignore"):  # on the host, where NumPy warns and JAX does not
        return array_namespace(x).log(x)


@op("Log", since=1, until=5, on_host=True)
def log_1(x, *, consumed_inputs=None):
    """The natural logarithm. Float.

    https://onnx.ai/onnx/operators/onnx__Log.html
    """
    return log(x)


@op("Floor", since=6, on_host=True, prints="jnp.floor(x)")
def floor(x):
    """The next integer below. Any shape, float -> the same.

    https://onnx.ai/onnx/operators/onnx__Floor.html
    """
    return array_namespace(x).floor(x)


@op("Floor", since=1, until=5, on_host=True)
def floor_1(x, *, consumed_inputs=None):
    """The next integer below. Float.

    https://onnx.ai/onnx/operators/onnx__Floor.html
    """
    return floor(x)


@op("Ceil", since=6, on_host=True, prints="jnp.ceil(x)")
def ceil(x):
    """The next integer above. Any shape, float -> the same.

    https://onnx.ai/onnx/operators/onnx__Ceil.html
    """
    return array_namespace(x).ceil(x)


@op("Ceil", since=1, until=5, on_host=True)
def ceil_1(x, *, consumed_inputs=None):
    """The next integer above. Float.

    https://onnx.ai/onnx/operators/onnx__Ceil.html
    """
    return ceil(x)


@op("Round", since=11, on_host=True, prints="jnp.round(x)")
def round_(x):
    """The nearest integer, halves to even. Any shape, float -> the same.

    https://onnx.ai/onnx/operators/onnx__Round.html
    """
    return array_namespace(x).round(x)


@op("Sign", since=9, on_host=True, prints="jnp.sign(x)")
def sign(x):
    """-1, 0 or 1. Any shape, number dtype -> the same.

    https://onnx.ai/onnx/operators/onnx__Sign.html
    """
    return array_namespace(x).sign(x)


@op("Erf", since=9, prints="jax.lax.erf(x)")
def erf(x):
    """The error function. Any shape, float -> the same.

    https://onnx.ai/onnx/operators/onnx__Erf.html
    """
    return jax.lax.erf(x)


@op("IsNaN", since=9, on_host=True, prints="jnp.isnan(x)")
def is_nan(x):
    """Where `x` is not a number. Any shape, float -> bool.

    https://onnx.ai/onnx/operators/onnx__IsNaN.html
    """
    return array_namespace(x).isnan(x)


def _print_is_inf(x: Operand, *, detect_negative: int, detect_positive: int) -> str | None:
    return "jnp.isinf(x)" if detect_negative and detect_positive else None


@op("IsInf", since=10, on_host=True, prints=_print_is_inf)
def is_inf(x, *, detect_negative=1, detect_positive=1):
    """Where `x` is infinite, of the signs asked for. Any shape, float -> bool.

    https://onnx.ai/onnx/operators/onnx__IsInf.html
    """
    infinite = array_namespace(x).isinf(x)
    return infinite & ((x < 0) & bool(detect_negative) | (x > 0) & bool(detect_positive))


def _print_folded(function: str) -> Callable[..., str]:
    """The printing rule of a variadic operator that applies a function of two arguments again and again."""

    def rule(*xs: Operand) -> str:
        return functools.reduce(lambda text, i: f"{function}({text}, xs[{i}])", range(1, len(xs)), "xs[0]")

    return rule


@op("Min", since=8, on_host=True, passes_through=only_input, prints=_print_folded("jnp.minimum"))
def min_(*xs):
    """The smallest of all inputs, broadcast; NaN if one is. Any shapes, one number dtype -> that dtype.

    https://onnx.ai/onnx/operators/onnx__Min.html
    """
    return functools.reduce(_least_symbols if _are_symbols(*xs) else array_namespace(*xs).minimum, _on_one_side(*xs))


@op("Min", since=1, until=7, on_host=True)
def min_1(*xs, consumed_inputs=None):
    """The smallest of all inputs of one shape. Float.

    https://onnx.ai/onnx/operators/onnx__Min.html
    """
    return min_(*xs)


@op("Max", since=8, on_host=True, passes_through=only_input, prints=_print_folded("jnp.maximum"))
def max_(*xs):
    """The largest of all inputs, broadcast; NaN if one is. Any shapes, one number dtype -> that dtype.

    https://onnx.ai/onnx/operators/onnx__Max.html
    """
    return functools.reduce(_greatest_symbols if _are_symbols(*xs) else array_namespace(*xs).maximum, _on_one_side(*xs))


@op("Max", since=1, until=7, on_host=True)
def max_1(*xs, consumed_inputs=None):
    """The largest of all inputs of one shape. Float.

    https://onnx.ai/onnx/operators/onnx__Max.html
    """
    return max_(*xs)


def _least(a, b):
    return core.min_dim(a, b) if jax.export.is_symbolic_dim(a) or jax.export.is_symbolic_dim(b) else min(a, b)


def _greatest(a, b):
    return core.max_dim(a, b) if jax.export.is_symbolic_dim(a) or jax.export.is_symbolic_dim(b) else max(a, b)


_least_symbols, _greatest_symbols = np.frompyfunc(_least, 2, 1), np.frompyfunc(_greatest, 2, 1)


def _print_sum(*xs: Operand) -> str:
    return " + ".join(f"xs[{i}]" for i in range(len(xs)))


@op("Sum", since=8, on_host=True, passes_through=only_input, prints=_print_sum)
def sum_(*xs):
    """The sum of all inputs, broadcast. Any shapes, one float dtype -> that dtype.

    https://onnx.ai/onnx/operators/onnx__Sum.html
    """
    return functools.reduce(lambda a, b: a + b, xs)


@op("Sum", since=1, until=7, on_host=True)
def sum_1(*xs, consumed_inputs=None):
    """The sum of all inputs of one shape. Float.

    https://onnx.ai/onnx/operators/onnx__Sum.html
    """
    return sum_(*xs)


@op("Mean", since=8, passes_through=only_input, prints=lambda *xs: f"({_print_sum(*xs)}) / {len(xs)}")
def mean(*xs):
    """The mean of all inputs, broadcast. Any shapes, one float dtype -> that dtype.

    https://onnx.ai/onnx/operators/onnx__Mean.html
    """
    return sum_(*xs) / len(xs)


@op("Mean", since=1, until=7)
def mean_1(*xs, consumed_inputs=None):
    """The mean of all inputs of one shape. Float.

    https://onnx.ai/onnx/operators/onnx__Mean.html
    """
    return mean(*xs)


def _print_clip(x: Operand, min: Operand | None = None, max: Operand | None = None) -> str:
    if min is None or max is None:
        return "x" if min is max else "jnp.maximum(x, min)" if max is None else "jnp.minimum(x, max)"
    return "jax.nn.relu6(x)" if (scalar(min), scalar(max)) == (0, 6) else "jnp.clip(x, min, max)"


@op("Clip", since=11, on_host=True, prints=_print_clip)
def clip(x, min=None, max=None):
    """`x` between `min` and `max` (no axes, each may be absent). Any shape, number dtype -> the same.

    https://onnx.ai/onnx/operators/onnx__Clip.html
    """
    if min is not None:
        x = max_(x, min)
    return x if max is None else min_(x, max)


def _print_clip_6(x: Operand, *, min: float, max: float) -> str | None:
    if (min, max) == (0, 6):
        return "jax.nn.relu6(x)"
    return "jnp.clip(x, min, max)" if fits_every_float(min) and fits_every_float(max) else None


@op("Clip", since=6, until=10, prints=_print_clip_6)
def clip_6(x, *, min=-3.4028234663852886e38, max=3.4028234663852886e38):
    """`x` between the attributes. Any shape, float -> the same.

    https://onnx.ai/onnx/operators/onnx__Clip.html
    """
    largest = float(jnp.finfo(x.dtype).max)  # the defaults are float32's, and no bounds for narrower floats
    return clip(x, None if min < -largest else min, None if max > largest else max)


@op("Clip", since=1, until=5)
def clip_1(x, *, min=None, max=None, consumed_inputs=None):
    """`x` between the attributes, each of which may be absent. Any shape, float -> the same.

    https://onnx.ai/onnx/operators/onnx__Clip.html
    """
    return clip(x, min, max)


@op("Where", since=9, on_host=True, prints="jnp.where(condition, x, y)")
def where(condition, x, y):
    """`x` where `condition`, else `y`, broadcast. Any shapes; bool and one dtype -> that dtype.

    https://onnx.ai/onnx/operators/onnx__Where.html
    """
    return array_namespace(condition, x, y).where(condition, x, y)


@hookimpl
def onnxeqx_register_ops(registry) -> None:
    registry.add_module(__name__)
