import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import core, lax
from jaxtyping import Array

from ._padding import Pairs, resolve_padding


def convolution_transpose(
    x: Array,
    weight: Array,
    *,
    strides: Sequence[int],
    padding: Sequence[tuple[Any, Any]],
    dilations: Sequence[int],
    groups: int,
) -> Array:
    """The transpose of a convolution: every input element adds a scaled kernel to the output.

    **Arguments:**

    - `x`: float, shape `(batch, channels, *spatial)`.
    - `weight`: of the same dtype, shape `(channels, out_channels / groups, *kernel)`.
    - `padding`: how many elements to drop from either end of the output; negative numbers append.
    - `strides`, `dilations`: one for each spatial axis.

    **Returns:** shape `(batch, out_channels, *spatial)`, dtype of `x`.
    """
    channels, out, *kernel = weight.shape
    spatial = tuple(range(2, 2 + len(kernel)))
    grouped = jnp.swapaxes(weight.reshape(groups, channels // groups, out, *kernel), 1, 2)
    flipped = jnp.flip(grouped.reshape(groups * out, channels // groups, *kernel), spatial)
    extents = [(size - 1) * dilation for size, dilation in zip(kernel, dilations, strict=True)]
    return lax.conv_general_dilated(
        x,
        flipped,
        window_strides=(1,) * len(kernel),
        padding=tuple((e - low, e - high) for e, (low, high) in zip(extents, padding, strict=True)),
        lhs_dilation=tuple(strides),
        rhs_dilation=tuple(dilations),
        feature_group_count=groups,
    )


def resolve_transposed_padding(
    padding: Any,
    *,
    sizes: Sequence[Any],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    output_padding: Sequence[int],
    output_shape: Sequence[int] | None = None,
) -> Pairs:
    """What `convolution_transpose` drops from either end of each axis, as pairs.

    **Arguments:**

    - `padding`: as for `resolve_padding`; `"SAME_UPPER"` and `"SAME_LOWER"` make the output `stride` times the input.
    - `output_padding`: elements appended to each axis.
    - `output_shape`: the spatial sizes of the output, which then decide instead of pairs.
    """
    same = padding in ("SAME_UPPER", "SAME_LOWER")
    if output_shape is None and not same:
        pairs = resolve_padding(padding, sizes=sizes, kernel=kernel, strides=strides, dilations=dilations)
        return tuple((low, high - extra) for (low, high), extra in zip(pairs, output_padding, strict=True))
    wanted = output_shape or tuple(map(math.prod, zip(sizes, strides, strict=True)))
    pairs = []
    for size, k, stride, dilation, extra, goal in zip(
        sizes, kernel, strides, dilations, output_padding, wanted, strict=True
    ):
        total = (size - 1) * stride + (k - 1) * dilation + 1 + extra - goal
        dropped = core.max_dim(total, 0)  # a larger output than the kernels reach grows at the end
        low = dropped // 2 if padding == "SAME_UPPER" else dropped - dropped // 2
        pairs.append((low, total - low - extra))
    return tuple(pairs)
