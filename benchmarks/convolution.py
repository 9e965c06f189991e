"""Convolution and pooling on this machine against `lax`: how many times faster, in one process, runs interleaved.

    python benchmarks/convolution.py [words of the cases to run]

Prints a table: medians in milliseconds of the forward pass and of forward and gradient (by input and weight), and the ratios.
"""

import dataclasses
import functools
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from onnxeqx._convolution import convolution
from onnxeqx.plugins.pooling import average_pool, max_pool

Function = Callable[..., jax.Array]


@dataclasses.dataclass(frozen=True)
class Case:
    """Two functions that compute the same, and the shapes of their operands."""

    name: str
    shapes: tuple[tuple[int, ...], ...]
    ours: Function
    baseline: Function


def conv(
    name: str, batch: int, channels: int, out: int, size: int, kernel: int, stride: int = 1, groups: int = 1
) -> Case:
    """A two-dimensional convolution, padded so that only the stride shrinks its output."""
    low = kernel // 2
    padding, strides = ((low, low), (low, low)), (stride, stride)
    ours = functools.partial(convolution, strides=strides, padding=padding, dilations=(1, 1), groups=groups)
    baseline = functools.partial(
        lax.conv_general_dilated, window_strides=strides, padding=padding, feature_group_count=groups
    )
    shapes = ((batch, channels, size, size), (out, channels // groups, kernel, kernel))
    return Case(name, shapes, ours, baseline)


def pool(
    name: str, ours: Function, channels: int, size: int, kernel: int, stride: int, pad: int, op: Any, start: float
):
    """Pooling over square windows of a batch of 4."""
    windows = {"window_dimensions": (1, 1, kernel, kernel), "window_strides": (1, 1, stride, stride)}
    padding = ((0, 0), (0, 0), (pad, pad), (pad, pad))
    scale = 1 if op is lax.max else 1 / kernel**2
    options = {"kernel_shape": (kernel, kernel), "strides": (stride, stride), "pads": (pad,) * 4}
    return Case(
        name,
        ((4, channels, size, size),),
        functools.partial(ours, **options),
        lambda x: lax.reduce_window(x, np.float32(start), op, padding=padding, **windows) * scale,
    )


CASES = (
    conv("depthwise 3x3, 144 channels, 56x56", 4, 144, 144, 56, 3, groups=144),
    conv("depthwise 3x3 stride 2, 96, 112x112", 4, 96, 96, 112, 3, 2, groups=96),
    conv("depthwise 3x3, 384, 14x14, batch 16", 16, 384, 384, 14, 3, groups=384),
    conv("depthwise 5x5 stride 2, 240, 28x28", 4, 240, 240, 28, 5, 2, groups=240),
    conv("depthwise 7x7, 192, 28x28", 4, 192, 192, 28, 7, groups=192),
    conv("32 groups 3x3, 128, 56x56", 1, 128, 128, 56, 3, groups=32),
    conv("32 groups 3x3, 512, 14x14", 1, 512, 512, 14, 3, groups=32),
    conv("2 groups 5x5, 96 to 256, 27x27", 4, 96, 256, 27, 5, groups=2),
    conv("1x1, 256 to 64, 56x56", 4, 256, 64, 56, 1),
    conv("1x1 stride 2, 256 to 512, 56x56", 4, 256, 512, 56, 1, 2),
    conv("dense 3x3, 64, 56x56", 4, 64, 64, 56, 3),
    conv("stem 3x3 stride 2, 3 to 32, 224x224", 4, 3, 32, 224, 3, 2),
    conv("stem 7x7 stride 2, 3 to 64, 224x224", 4, 3, 64, 224, 7, 2),
    pool("max pool 3x3 stride 2, 64, 112x112", max_pool, 64, 112, 3, 2, 1, lax.max, -np.inf),
    pool("average pool 2x2 stride 2, 128, 56x56", average_pool, 128, 56, 2, 2, 0, lax.add, 0),
)


def interleaved(functions: Sequence[Function], operands: Sequence[jax.Array], seconds: float) -> list[float]:
    """The median milliseconds of each function, called in turns for about `seconds` in all."""
    compiled = [jax.jit(function) for function in functions]
    times: list[list[float]] = [[] for _ in compiled]
    for function in compiled:
        jax.block_until_ready(function(*operands))
    end = time.perf_counter() + seconds
    while len(times[0]) < 3 or (time.perf_counter() < end and len(times[0]) < 50):
        for function, taken in zip(compiled, times, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(function(*operands))
            taken.append(time.perf_counter() - start)
    return [1e3 * statistics.median(taken) for taken in times]


def with_gradient(function: Function) -> Function:
    """The function's output, and the gradients of half the sum of its squares by all operands."""

    def both(*operands: jax.Array) -> Any:
        y, transpose = jax.vjp(function, *operands)
        return y, transpose(y)

    return both


def main(words: Sequence[str]) -> None:
    print(
        f"{'case':38} {'forward ms: lax':>15} {'ours':>8} {'ratio':>7} {'+ gradient: lax':>16} {'ours':>8} {'ratio':>7}"
    )
    keys = jax.random.split(jax.random.key(0), 2)
    for case in CASES:
        if words and not any(word in case.name for word in words):
            continue
        operands = [jax.random.normal(key, shape, jnp.float32) for key, shape in zip(keys, case.shapes, strict=False)]
        figures = []
        for wrap in (lambda function: function, with_gradient):
            slow, fast = interleaved([wrap(case.baseline), wrap(case.ours)], operands, 2.0)
            figures += [slow, fast, slow / fast]
        print("{:38} {:15.2f} {:8.2f} {:6.1f}x {:16.2f} {:8.2f} {:6.1f}x".format(case.name, *figures), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
