"""Reductions and running sums along axes."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._printing import Operand
from .._registry import op
from ..runtime import canonical_dtype, host_ints
from ._operands import as_arrays
from ._printing import axis_keyword, is_floating, is_known_size, is_number, known_axes, known_ints, sums_to_itself
from .elementwise import div
from .hookspecs import hookimpl


def _print_reduction(function: str, dtypes: Callable[..., bool], *, of_none: bool) -> Callable[..., str | None]:
    """The printing rule of a reduction; `of_none` says whether it has a result where there are no elements."""

    def rule(data: Operand, axes: Any = None, *, keepdims: int, noop_with_empty_axes: int = 0) -> str | None:
        along = known_ints(axes)
        if not dtypes(data.dtype) or (axes is not None and along is None) or (not along and noop_with_empty_axes):
            return None
        if not of_none and not _has_elements(data, along):
            return None
        options = f"{axis_keyword(along or None)}{', keepdims=True' if keepdims else ''}"
        return f"{function}(data{options})"

    return rule


def _has_elements(data: Operand, axes: tuple[int, ...] | None) -> bool:
    """Whether each set of elements along the axes certainly has one."""
    along = known_axes(axes or range(data.ndim or 0), data.ndim)
    if along is None or data.shape is None:
        return False
    return all(is_known_size(data.shape[axis]) and data.shape[axis] > 0 for axis in along)


_SUM = _print_reduction("jnp.sum", sums_to_itself, of_none=True)
_MEAN = _print_reduction("jnp.mean", is_floating, of_none=True)
_MAX = _print_reduction("jnp.max", is_number, of_none=False)
_MIN = _print_reduction("jnp.min", is_number, of_none=False)
_PROD = _print_reduction("jnp.prod", sums_to_itself, of_none=True)


@op("ReduceSum", since=13, host=("axes",), on_host=True, prints=_SUM)
def reduce_sum(data, axes=None, *, keepdims=1, noop_with_empty_axes=0):
    """The sum along `axes`, all by default. Any shape, number dtype -> the same dtype.

    https://onnx.ai/onnx/operators/onnx__ReduceSum.html
    """
    return _reduced(_reduce_sum, data, axes, keepdims, noop_with_empty_axes)


@op("ReduceSum", since=1, until=12, on_host=True, prints=_SUM)
def reduce_sum_1(data, *, axes=None, keepdims=1):
    """The sum along `axes`, all by default. Any shape, number dtype -> the same dtype.

    https://onnx.ai/onnx/operators/onnx__ReduceSum.html
    """
    return reduce_sum(data, axes, keepdims=keepdims)


def _reduce_sum(xp: Any, x: Any, axes: tuple[int, ...] | None, keepdims: bool) -> Any:
    return xp.sum(x, axis=axes, keepdims=keepdims, dtype=_whole(x.dtype))


def _whole(dtype: np.dtype) -> np.dtype | None:
    """The dtype to ask for, so that integers keep theirs. Floats do so by themselves, with 16-bit ones added as float32."""
    return None if jnp.issubdtype(dtype, jnp.floating) else dtype


@op("ReduceMean", since=18, host=("axes",), on_host=True, prints=_MEAN)
def reduce_mean(data, axes=None, *, keepdims=1, noop_with_empty_axes=0):
    """The mean along `axes`, all by default. Any shape, number dtype -> the same dtype.

    https://onnx.ai/onnx/operators/onnx__ReduceMean.html
    """
    return _reduced(_reduce_mean, data, axes, keepdims, noop_with_empty_axes)


@op("ReduceMean", since=1, until=17, on_host=True, prints=_MEAN)
def reduce_mean_1(data, *, axes=None, keepdims=1):
    """The mean along `axes`, all by default. Any shape, number dtype -> the same dtype.

    https://onnx.ai/onnx/operators/onnx__ReduceMean.html
    """
    return reduce_mean(data, axes, keepdims=keepdims)


def _reduce_mean(xp: Any, x: Any, axes: tuple[int, ...] | None, keepdims: bool) -> Any:
    if jnp.issubdtype(x.dtype, jnp.floating):
        return xp.mean(widened(x), axis=axes, keepdims=keepdims).astype(x.dtype)
    count = math.prod(x.shape if axes is None else (x.shape[axis] for axis in axes))
    return div(_reduce_sum(xp, x, axes, keepdims), count)


@op("ReduceMax", since=18, host=("axes",), on_host=True, prints=_MAX)
def reduce_max(data, axes=None, *, keepdims=1, noop_with_empty_axes=0):
    """The maximum along `axes`, all by default. Any shape, number dtype -> the same dtype.

    https://onnx.ai/onnx/operators/onnx__ReduceMax.html
    """
    return _reduced(_reduce_max, data, axes, keepdims, noop_with_empty_axes)


@op("ReduceMax", since=1, until=17, on_host=True, prints=_MAX)
def reduce_max_1(data, *, axes=None, keepdims=1):
    """The maximum along `axes`, all by default. Any shape, number dtype -> the same dtype.

    https://onnx.ai/onnx/operators/onnx__ReduceMax.html
    """
    return reduce_max(data, axes, keepdims=keepdims)


def _reduce_max(xp: Any, x: Any, axes: tuple[int, ...] | None, keepdims: bool) -> Any:
    return _extreme(xp.max, x, axes, keepdims, _lowest)


@op("ReduceMin", since=18, host=("axes",), on_host=True, prints=_MIN)
def reduce_min(data, axes=None, *, keepdims=1, noop_with_empty_axes=0):
    """The minimum along `axes`, all by default. Any shape, number dtype -> the same dtype.

    https://onnx.ai/onnx/operators/onnx__ReduceMin.html
    """
    return _reduced(_reduce_min, data, axes, keepdims, noop_with_empty_axes)


@op("ReduceMin", since=1, until=17, on_host=True, prints=_MIN)
def reduce_min_1(data, *, axes=None, keepdims=1):
    """The minimum along `axes`, all by default. Any shape, number dtype -> the same dtype.

    https://onnx.ai/onnx/operators/onnx__ReduceMin.html
    """
    return reduce_min(data, axes, keepdims=keepdims)


def _reduce_min(xp: Any, x: Any, axes: tuple[int, ...] | None, keepdims: bool) -> Any:
    return _extreme(xp.min, x, axes, keepdims, _highest)


@op("ReduceProd", since=18, host=("axes",), on_host=True, prints=_PROD)
def reduce_prod(data, axes=None, *, keepdims=1, noop_with_empty_axes=0):
    """The product along `axes`, all by default. Any shape, number dtype -> the same dtype.

    https://onnx.ai/onnx/operators/onnx__ReduceProd.html
    """
    return _reduced(_reduce_prod, data, axes, keepdims, noop_with_empty_axes)


@op("ReduceProd", since=1, until=17, on_host=True, prints=_PROD)
def reduce_prod_1(data, *, axes=None, keepdims=1):
    """The product along `axes`, all by default. Any shape, number dtype -> the same dtype.

    https://onnx.ai/onnx/operators/onnx__ReduceProd.html
    """
    return reduce_prod(data, axes, keepdims=keepdims)


def _reduce_prod(xp: Any, x: Any, axes: tuple[int, ...] | None, keepdims: bool) -> Any:
    return xp.prod(x, axis=axes, keepdims=keepdims, dtype=_whole(x.dtype))


@op("ReduceL1", since=18, host=("axes",))
def reduce_l1(data, axes=None, *, keepdims=1, noop_with_empty_axes=0):
    """The sum of magnitudes along `axes`, all by default. Any shape, number dtype -> the same dtype.

    https://onnx.ai/onnx/operators/onnx__ReduceL1.html
    """
    return _reduced(_reduce_l1, data, axes, keepdims, noop_with_empty_axes)


@op("ReduceL1", since=1, until=17)
def reduce_l1_1(data, *, axes=None, keepdims=1):
    """The sum of magnitudes along `axes`, all by default. Any shape, number dtype -> the same dtype.

    https://onnx.ai/onnx/operators/onnx__ReduceL1.html
    """
    return reduce_l1(data, axes, keepdims=keepdims)


def _reduce_l1(xp: Any, x: Any, axes: tuple[int, ...] | None, keepdims: bool) -> Any:
    return xp.sum(abs(x), axis=axes, keepdims=keepdims, dtype=x.dtype)


@op("ReduceL2", since=18, host=("axes",))
def reduce_l2(data, axes=None, *, keepdims=1, noop_with_empty_axes=0):
    """The square root of the sum of squares along `axes`, all by default. Any shape, number dtype -> the same dtype.

    https://onnx.ai/onnx/operators/onnx__ReduceL2.html
    """
    return _reduced(_reduce_l2, data, axes, keepdims, noop_with_empty_axes)


@op("ReduceL2", since=1, until=17)
def reduce_l2_1(data, *, axes=None, keepdims=1):
    """The square root of the sum of squares along `axes`, all by default. Any shape, number dtype -> the same dtype.

    https://onnx.ai/onnx/operators/onnx__ReduceL2.html
    """
    return reduce_l2(data, axes, keepdims=keepdims)


def _reduce_l2(xp: Any, x: Any, axes: tuple[int, ...] | None, keepdims: bool) -> Any:
    return square_root(xp.sum(widened(x) ** 2, axis=axes, keepdims=keepdims)).astype(x.dtype)


@op("ReduceLogSum", since=18, host=("axes",))
def reduce_log_sum(data, axes=None, *, keepdims=1, noop_with_empty_axes=0):
    """The logarithm of the sum along `axes`, all by default. Any shape, number dtype -> the same dtype.

    https://onnx.ai/onnx/operators/onnx__ReduceLogSum.html
    """
    return _reduced(_reduce_log_sum, data, axes, keepdims, noop_with_empty_axes)


@op("ReduceLogSum", since=1, until=17)
def reduce_log_sum_1(data, *, axes=None, keepdims=1):
    """The logarithm of the sum along `axes`, all by default. Any shape, number dtype -> the same dtype.

    https://onnx.ai/onnx/operators/onnx__ReduceLogSum.html
    """
    return reduce_log_sum(data, axes, keepdims=keepdims)


def _reduce_log_sum(xp: Any, x: Any, axes: tuple[int, ...] | None, keepdims: bool) -> Any:
    return xp.log(xp.sum(widened(x), axis=axes, keepdims=keepdims)).astype(x.dtype)


@op("ReduceLogSumExp", since=18, host=("axes",))
def reduce_log_sum_exp(data, axes=None, *, keepdims=1, noop_with_empty_axes=0):
    """The logarithm of the sum of exponentials along `axes`, all by default. Any shape, number dtype -> the same dtype.

    https://onnx.ai/onnx/operators/onnx__ReduceLogSumExp.html
    """
    return _reduced(_reduce_log_sum_exp, data, axes, keepdims, noop_with_empty_axes)


@op("ReduceLogSumExp", since=1, until=17)
def reduce_log_sum_exp_1(data, *, axes=None, keepdims=1):
    """The logarithm of the sum of exponentials along `axes`, all by default. Any shape, number dtype -> the same dtype.

    https://onnx.ai/onnx/operators/onnx__ReduceLogSumExp.html
    """
    return reduce_log_sum_exp(data, axes, keepdims=keepdims)


def _reduce_log_sum_exp(xp: Any, x: Any, axes: tuple[int, ...] | None, keepdims: bool) -> Any:
    return jax.nn.logsumexp(widened(x), axis=axes, keepdims=keepdims).astype(x.dtype)


@op("ReduceSumSquare", since=18, host=("axes",))
def reduce_sum_square(data, axes=None, *, keepdims=1, noop_with_empty_axes=0):
    """The sum of squares along `axes`, all by default. Any shape, number dtype -> the same dtype.

    https://onnx.ai/onnx/operators/onnx__ReduceSumSquare.html
    """
    return _reduced(_reduce_sum_square, data, axes, keepdims, noop_with_empty_axes)


@op("ReduceSumSquare", since=1, until=17)
def reduce_sum_square_1(data, *, axes=None, keepdims=1):
    """The sum of squares along `axes`, all by default. Any shape, number dtype -> the same dtype.

    https://onnx.ai/onnx/operators/onnx__ReduceSumSquare.html
    """
    return reduce_sum_square(data, axes, keepdims=keepdims)


def _reduce_sum_square(xp: Any, x: Any, axes: tuple[int, ...] | None, keepdims: bool) -> Any:
    return xp.sum(x * x, axis=axes, keepdims=keepdims, dtype=x.dtype)


def _reduced(function: Callable[..., Any], x: Any, axes: Any, keepdims: int, noop_with_empty_axes: int = 0) -> Any:
    """Applies a reduction. No axes are all axes, or, with `noop_with_empty_axes`, none: each element by itself."""
    axes = None if axes is None else host_ints(axes)
    if not axes:
        axes = () if noop_with_empty_axes else None
    xp, x = as_arrays(x)
    return function(xp, x, axes, bool(keepdims))


def _extreme(function: Callable[..., Any], x: Any, axes: tuple[int, ...] | None, keepdims: bool, initial: Any) -> Any:
    # An empty set has the neutral element as its maximum or minimum, and a set of symbolic size may be empty.
    if any(not isinstance(size, int) or size == 0 for size in x.shape):
        return function(x, axis=axes, keepdims=keepdims, initial=np.asarray(initial(x.dtype), x.dtype))
    return function(x, axis=axes, keepdims=keepdims)


def _lowest(dtype: np.dtype) -> Any:
    return _bounds(dtype)[0]


def _highest(dtype: np.dtype) -> Any:
    return _bounds(dtype)[1]


def _bounds(dtype: np.dtype) -> tuple[Any, Any]:
    if dtype == np.bool_:
        return False, True
    if jnp.issubdtype(dtype, jnp.integer):
        return jnp.iinfo(dtype).min, jnp.iinfo(dtype).max
    return -np.inf, np.inf


def widened(x: Any) -> Any:
    """Integers and 16-bit floats as float32: their squares and long sums overflow."""
    return x if x.dtype in (np.float32, np.float64) else x.astype(np.float32)


def square_root(x: Any) -> Any:
    """The square root, with the gradient 0 at 0 instead of infinity."""
    zero = x == 0
    return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, x)))


def _print_position(function: str) -> Callable[..., str | None]:
    def rule(data: Operand, *, axis: int, keepdims: int, select_last_index: int = 0) -> str | None:
        if select_last_index:
            return None
        return f"{function}(data, axis=axis{', keepdims=True' if keepdims else ''})"

    return rule


@op("ArgMax", since=12, prints=_print_position("jnp.argmax"))
def arg_max(data, *, axis=0, keepdims=1, select_last_index=0):
    """Where the largest element along `axis` is, the first (or last) of equal ones. Any shape, number dtype -> int64.

    https://onnx.ai/onnx/operators/onnx__ArgMax.html
    """
    return _position(jnp.argmax, data, axis, keepdims, select_last_index)


@op("ArgMax", since=1, until=11, prints=_print_position("jnp.argmax"))
def arg_max_1(data, *, axis=0, keepdims=1):
    """Where the largest element along `axis` is, the first of equal ones. Any shape, number dtype -> int64.

    https://onnx.ai/onnx/operators/onnx__ArgMax.html
    """
    return arg_max(data, axis=axis, keepdims=keepdims)


@op("ArgMin", since=12, prints=_print_position("jnp.argmin"))
def arg_min(data, *, axis=0, keepdims=1, select_last_index=0):
    """Where the smallest element along `axis` is, the first (or last) of equal ones. Any shape, number dtype -> int64.

    https://onnx.ai/onnx/operators/onnx__ArgMin.html
    """
    return _position(jnp.argmin, data, axis, keepdims, select_last_index)


@op("ArgMin", since=1, until=11, prints=_print_position("jnp.argmin"))
def arg_min_1(data, *, axis=0, keepdims=1):
    """Where the smallest element along `axis` is, the first of equal ones. Any shape, number dtype -> int64.

    https://onnx.ai/onnx/operators/onnx__ArgMin.html
    """
    return arg_min(data, axis=axis, keepdims=keepdims)


def _position(function: Callable[..., Any], x: Any, axis: int, keepdims: int, last: int) -> Any:
    found = function(jnp.flip(x, axis) if last else x, axis=axis, keepdims=bool(keepdims))
    found = x.shape[axis] - 1 - found if last else found
    return found.astype(canonical_dtype(np.int64))


def _print_cum_sum(x: Operand, axis: Operand, *, exclusive: int, reverse: int) -> str | None:
    along = known_ints(axis)
    if exclusive or reverse or along is None or not sums_to_itself(x.dtype):
        return None
    return f"jnp.cumsum(x{axis_keyword(along)})"


@op("CumSum", since=11, host=("axis",), on_host=True, prints=_print_cum_sum)
def cum_sum(x, axis, *, exclusive=0, reverse=0):
    """The running sum along `axis`. Any shape, number dtype -> the same.

    With `exclusive` an element leaves itself out, with `reverse` it starts at the end.

    https://onnx.ai/onnx/operators/onnx__CumSum.html
    """
    xp, x = as_arrays(x)
    return _running(xp, xp.cumsum, x, axis, exclusive, reverse, neutral=0)


@op("CumProd", since=26, host=("axis",), on_host=True)
def cum_prod(x, axis, *, exclusive=0, reverse=0):
    """The running product along `axis`. Any shape, number dtype -> the same.

    With `exclusive` an element leaves itself out, with `reverse` it starts at the end.

    https://onnx.ai/onnx/operators/onnx__CumProd.html
    """
    xp, x = as_arrays(x)
    return _running(xp, xp.cumprod, x, axis, exclusive, reverse, neutral=1)


def _running(
    xp: Any, function: Callable[..., Any], x: Any, axis: Any, exclusive: int, reverse: int, neutral: int
) -> Any:
    (axis,) = host_ints(axis)
    x = xp.flip(x, axis) if reverse else x
    if exclusive:
        front = (slice(None),) * (axis % x.ndim)
        x = xp.concatenate([xp.full_like(x[(*front, slice(1))], neutral), x[(*front, slice(-1))]], axis=axis)
    y = function(x, axis=axis, dtype=x.dtype)
    return xp.flip(y, axis) if reverse else y


@hookimpl
def onnxeqx_register_ops(registry) -> None:
    registry.add_module(__name__)
