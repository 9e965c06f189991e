import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.export
import jax.numpy as jnp

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Window:
    """How the kernel moves: one stride, (low, high) padding and dilation for each spatial axis, and the channel groups."""

    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilations: tuple[int, ...]
    groups: int

    def output_sizes(self, sizes: Sequence[int], kernel: Sequence[int]) -> Shape:
        """The spatial sizes of the output."""
        axes = zip(sizes, kernel, self.strides, self.padding, self.dilations, strict=True)
        return tuple(
            max((size + low + high - (k - 1) * dilation - 1) // stride + 1, 0)
            for size, k, stride, (low, high), dilation in axes
        )


def is_known(*shapes: Sequence[Any]) -> bool:
    """Whether no dimension is symbolic."""
    return not any(jax.export.is_symbolic_dim(size) for shape in shapes for size in shape)


def accumulator(dtype: Any) -> Any:
    """The dtype in which to add up many elements: float32 for narrower floats."""
    return jnp.dtype(jnp.float32) if jnp.finfo(dtype).bits < 32 else dtype
