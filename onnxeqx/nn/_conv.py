"""(placeholder, being written)"""
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax


class Conv(eqx.Module):
    batched: ClassVar[bool] = True
    weight: jax.Array
    bias: Any
    stride: Any = eqx.field(static=True)
    padding: Any = eqx.field(static=True)
    dilation: Any = eqx.field(static=True)
    groups: int = eqx.field(static=True)

    def __init__(self, num_spatial_dims, in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1, groups=1, use_bias=True, dtype=jnp.float32, *, key=None):
        n = num_spatial_dims
        t = lambda v: (v,) * n if isinstance(v, int) else tuple(v)
        self.weight = jnp.zeros((out_channels, in_channels // groups, *t(kernel_size)), dtype)
        self.bias = jnp.zeros(out_channels, dtype) if use_bias else None
        self.stride, self.dilation, self.groups = t(stride), t(dilation), groups
        self.padding = tuple((p, p) if isinstance(p, int) else p for p in t(padding)) if not isinstance(padding, str) else padding

    def __call__(self, x):
        p = self.padding.replace("SAME_UPPER", "SAME") if isinstance(self.padding, str) else self.padding
        y = lax.conv_general_dilated(x, self.weight, self.stride, p, rhs_dilation=self.dilation, feature_group_count=self.groups)
        return y if self.bias is None else y + self.bias.reshape(-1, *(1,) * (x.ndim - 2))

class ConvTranspose(eqx.Module):
    pass
