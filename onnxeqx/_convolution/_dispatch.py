from collections.abc import Sequence
from typing import Any

from jax import lax
from jaxtyping import Array


def convolution(
    x: Array,
    weight: Array,
    *,
    strides: Sequence[int],
    padding: Sequence[tuple[Any, Any]],
    dilations: Sequence[int],
    groups: int,
) -> Array:
    """Cross-correlation, channels first.

    **Arguments:**

    - `x`: float, shape `(batch, channels, *spatial)`.
    - `weight`: of the same dtype, shape `(out_channels, channels / groups, *kernel)`.
    - `strides`, `padding` (pairs), `dilations`: one for each spatial axis.

    **Returns:** shape `(batch, out_channels, *spatial)`, dtype of `x`.
    """
    return lax.conv_general_dilated(
        x, weight, tuple(strides), tuple(padding), rhs_dilation=tuple(dilations), feature_group_count=groups
    )
