"""Convolution in the formulation that the platform runs fastest."""

from ._dispatch import convolution as convolution
from ._padding import attribute_padding as attribute_padding, resolve_padding as resolve_padding
from ._transposed import (
    convolution_transpose as convolution_transpose,
    resolve_transposed_padding as resolve_transposed_padding,
)
from ._window import accumulator as accumulator
