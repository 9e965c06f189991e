"""What ONNX calls `auto_pad` and `pads`, as one (low, high) pair for each spatial axis."""

from collections.abc import Sequence
from typing import Any

from jax import core

Pairs = tuple[tuple[Any, Any], ...]


def resolve_padding(
    padding: Any,
    *,
    sizes: Sequence[Any],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> Pairs:
    """Padding as (low, high) pairs.

    **Arguments:**

    - `padding`: `"SAME_UPPER"`, `"SAME_LOWER"` (as many windows as strides fit into the axis; an odd element goes to the
      end or to the start), `"VALID"` (none), an integer, an integer for each axis, or pairs.
    - `sizes`, `kernel`, `strides`, `dilations`: one for each spatial axis. Sizes may be symbolic.
    """
    if isinstance(padding, int):
        return ((padding, padding),) * len(kernel)
    if not isinstance(padding, str):
        return tuple((item, item) if isinstance(item, int) else tuple(item) for item in padding)
    if padding == "VALID":
        return ((0, 0),) * len(kernel)
    if padding not in ("SAME_UPPER", "SAME_LOWER"):
        raise ValueError(f"padding must be 'SAME_UPPER', 'SAME_LOWER', 'VALID', integers or pairs, not {padding!r}")
    totals = (_same_total(*axis) for axis in zip(sizes, kernel, strides, dilations, strict=True))
    pairs = tuple((total // 2, total - total // 2) for total in totals)
    return pairs if padding == "SAME_UPPER" else tuple((high, low) for low, high in pairs)


def _same_total(size: Any, kernel: int, stride: int, dilation: int) -> Any:
    extent = (kernel - 1) * dilation + 1
    if stride == 1:
        return extent - 1
    return core.max_dim((-(-size // stride) - 1) * stride + extent - size, 0)


def attribute_padding(auto_pad: str, pads: Sequence[int] | None, ndim: int) -> str | Pairs:
    """The attributes `auto_pad` and `pads` (all lows, then all highs) as a padding for `resolve_padding`."""
    if auto_pad not in ("NOTSET", ""):
        return auto_pad
    pads = tuple(pads or (0,) * (2 * ndim))
    return tuple(zip(pads[:ndim], pads[ndim:], strict=True))
