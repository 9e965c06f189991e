import math
from collections.abc import Sequence
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .. import _convolution


class Conv(eqx.Module):
    """Convolution over a batch, channels first: ONNX's `Conv` as a layer.

    Like `eqx.nn.Conv`, but it takes any number of leading batch axes, holds its bias as a plain vector, knows ONNX's
    `"SAME_UPPER"` and `"SAME_LOWER"`, and runs in the formulation that the platform likes best.
    """

    batched: ClassVar[bool] = True

    weight: Float[Array, "out_channels in_channels/groups *kernel"]
    bias: Float[Array, " out_channels"] | None
    num_spatial_dims: int = eqx.field(static=True)
    in_channels: int = eqx.field(static=True)
    out_channels: int = eqx.field(static=True)
    kernel_size: tuple[int, ...] = eqx.field(static=True)
    stride: tuple[int, ...] = eqx.field(static=True)
    padding: str | tuple[tuple[int, int], ...] = eqx.field(static=True)
    dilation: tuple[int, ...] = eqx.field(static=True)
    groups: int = eqx.field(static=True)
    use_bias: bool = eqx.field(static=True)

    def __init__(
        self,
        num_spatial_dims: int,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | str | Sequence[int] | Sequence[tuple[int, int]] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        use_bias: bool = True,
        dtype: Any = None,
        *,
        key: PRNGKeyArray | None = None,
    ):
        """**Arguments:**

        - `num_spatial_dims`: 1 for sequences, 2 for images, 3 for volumes.
        - `in_channels`, `out_channels`: both multiples of `groups`.
        - `kernel_size`, `stride`, `dilation`: an integer, or one for each spatial axis.
        - `padding`: an integer, one for each spatial axis, (low, high) pairs, `"SAME_UPPER"`, `"SAME_LOWER"` or `"VALID"`.
        - `groups`: into how many independent groups the channels fall.
        - `use_bias`: whether to add a bias to each channel.
        - `dtype`: of weight and bias; JAX's default float if `None`.
        - `key`: initialises weight and bias as `eqx.nn.Conv` does. Without one they are zeros.
        """
        _check_groups(in_channels, out_channels, groups)
        self.num_spatial_dims, self.in_channels, self.out_channels = num_spatial_dims, in_channels, out_channels
        self.kernel_size = _each(kernel_size, num_spatial_dims)
        self.stride, self.dilation = _each(stride, num_spatial_dims), _each(dilation, num_spatial_dims)
        self.padding = _padding(padding, num_spatial_dims)
        self.groups, self.use_bias = groups, use_bias
        shape = (out_channels, in_channels // groups, *self.kernel_size)
        self.weight, self.bias = _initial(shape, math.prod(shape[1:]), out_channels if use_bias else None, dtype, key)

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """x: shape `(*batch, in_channels, *spatial)` with any number of batch axes, dtype of the weight."""
        batch, x = _flat_batch(x, self.num_spatial_dims, self.in_channels)
        windows: dict[str, Any] = {"strides": self.stride, "dilations": self.dilation}
        padding = _convolution.resolve_padding(self.padding, sizes=x.shape[2:], kernel=self.kernel_size, **windows)
        y = _convolution.convolution(x, self.weight, padding=padding, groups=self.groups, **windows)
        return _plus_bias(y, self.bias).reshape(*batch, *y.shape[1:])


class ConvTranspose(eqx.Module):
    """Transposed convolution over a batch, channels first: ONNX's `ConvTranspose` as a layer.

    Unlike in `eqx.nn.ConvTranspose`, the weight has ONNX's and PyTorch's layout, `(in_channels, out_channels / groups,
    *kernel)`, and is not flipped.
    """

    batched: ClassVar[bool] = True

    weight: Float[Array, "in_channels out_channels/groups *kernel"]
    bias: Float[Array, " out_channels"] | None
    num_spatial_dims: int = eqx.field(static=True)
    in_channels: int = eqx.field(static=True)
    out_channels: int = eqx.field(static=True)
    kernel_size: tuple[int, ...] = eqx.field(static=True)
    stride: tuple[int, ...] = eqx.field(static=True)
    padding: str | tuple[tuple[int, int], ...] = eqx.field(static=True)
    output_padding: tuple[int, ...] = eqx.field(static=True)
    dilation: tuple[int, ...] = eqx.field(static=True)
    groups: int = eqx.field(static=True)
    use_bias: bool = eqx.field(static=True)

    def __init__(
        self,
        num_spatial_dims: int,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | str | Sequence[int] | Sequence[tuple[int, int]] = 0,
        output_padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        use_bias: bool = True,
        dtype: Any = None,
        *,
        key: PRNGKeyArray | None = None,
    ):
        """**Arguments:**

        As for [`onnxeqx.nn.Conv`][], of the convolution that this is the transpose of: `padding` is dropped from the
        output, and `"SAME_UPPER"` and `"SAME_LOWER"` make the output `stride` times as large as the input.

        - `output_padding`: elements appended to each spatial axis of the output, where sizes would be ambiguous.
        """
        _check_groups(in_channels, out_channels, groups)
        self.num_spatial_dims, self.in_channels, self.out_channels = num_spatial_dims, in_channels, out_channels
        self.kernel_size = _each(kernel_size, num_spatial_dims)
        self.stride, self.dilation = _each(stride, num_spatial_dims), _each(dilation, num_spatial_dims)
        self.padding, self.output_padding = _padding(padding, num_spatial_dims), _each(output_padding, num_spatial_dims)
        self.groups, self.use_bias = groups, use_bias
        shape = (in_channels, out_channels // groups, *self.kernel_size)
        fan_in = in_channels // groups * math.prod(self.kernel_size)
        self.weight, self.bias = _initial(shape, fan_in, out_channels if use_bias else None, dtype, key)

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """x: shape `(*batch, in_channels, *spatial)` with any number of batch axes, dtype of the weight."""
        batch, x = _flat_batch(x, self.num_spatial_dims, self.in_channels)
        windows: dict[str, Any] = {"strides": self.stride, "dilations": self.dilation}
        padding = _convolution.resolve_transposed_padding(
            self.padding, sizes=x.shape[2:], kernel=self.kernel_size, output_padding=self.output_padding, **windows
        )
        y = _convolution.convolution_transpose(x, self.weight, padding=padding, groups=self.groups, **windows)
        return _plus_bias(y, self.bias).reshape(*batch, *y.shape[1:])


def _each(value: int | Sequence[int], count: int) -> tuple[int, ...]:
    values = (value,) * count if isinstance(value, int) else tuple(value)
    if len(values) != count:
        raise ValueError(f"{values} has {len(values)} entries, but there are {count} spatial axes")
    return values


def _padding(padding: Any, count: int) -> str | tuple[tuple[int, int], ...]:
    if isinstance(padding, str):
        return padding
    entries = (padding,) * count if isinstance(padding, int) else tuple(padding)
    pairs = tuple((entry, entry) if isinstance(entry, int) else tuple(entry) for entry in entries)
    if len(pairs) != count:
        raise ValueError(f"padding {padding} has {len(pairs)} entries, but there are {count} spatial axes")
    return pairs


def _check_groups(in_channels: int, out_channels: int, groups: int) -> None:
    if in_channels % groups or out_channels % groups:
        raise ValueError(
            f"in_channels {in_channels} and out_channels {out_channels} must be multiples of groups {groups}"
        )


def _initial(
    shape: tuple[int, ...], fan_in: int, bias: int | None, dtype: Any, key: PRNGKeyArray | None
) -> tuple[Array, Array | None]:
    dtype = jnp.result_type(float) if dtype is None else dtype
    if key is None:
        return jnp.zeros(shape, dtype), None if bias is None else jnp.zeros(bias, dtype)
    limit = 1 / math.sqrt(max(fan_in, 1))
    weight_key, bias_key = jax.random.split(key)
    weight = jax.random.uniform(weight_key, shape, dtype, -limit, limit)
    return weight, None if bias is None else jax.random.uniform(bias_key, (bias,), dtype, -limit, limit)


def _flat_batch(x: Array, num_spatial_dims: int, channels: int) -> tuple[tuple[Any, ...], Array]:
    core_ndim = num_spatial_dims + 1
    if x.ndim < core_ndim or x.shape[-core_ndim] != channels:
        raise ValueError(f"expected (*batch, {channels}, {num_spatial_dims} spatial axes), not shape {x.shape}")
    batch = x.shape[: x.ndim - core_ndim]
    return batch, x.reshape(math.prod(batch), *x.shape[len(batch) :])


def _plus_bias(y: Array, bias: Array | None) -> Array:
    return y if bias is None else y + bias.reshape(-1, *(1,) * (y.ndim - 2))
