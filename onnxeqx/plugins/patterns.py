"""Patterns of the built-in plugins: activations, normalisations and linear layers that exporters spell out."""

import itertools
import math

from .._graph import Value
from .._patterns import Match, Node, Replacement, Term, Variable
from .._reads import has_size
from .._registry import pattern
from .._symbolic import key
from .hookspecs import hookimpl

x, weight, bias, eps = Variable("x"), Variable("weight"), Variable("bias"), Variable("eps", scalar=True)


# Activations.


def _gelu(inner: Term) -> list[Term]:
    """`x * 0.5 * (1 + inner)` in every order."""
    factor = inner + 1.0
    return [x * factor * 0.5, x * 0.5 * factor, x * (factor * 0.5)]


_ERF = [Node("Erf", x / math.sqrt(2)), Node("Erf", x * math.sqrt(0.5))]
_CUBE = [x**3.0, x * x * x, x * (x * x)]
_TANH = [Node("Tanh", (x + cube * 0.044715) * math.sqrt(2 / math.pi)) for cube in _CUBE]


@pattern(*itertools.chain.from_iterable(map(_gelu, _ERF)), rounded=True)
def gelu(match: Match) -> Replacement:
    """https://arxiv.org/abs/1606.08415"""
    return Replacement("Gelu", 20, (match["x"],))


@pattern(*itertools.chain.from_iterable(map(_gelu, _TANH)), rounded=True)
def gelu_by_tanh(match: Match) -> Replacement:
    """GELU's approximation, as GPT-2 has it."""
    return Replacement("Gelu", 20, (match["x"],), {"approximate": "tanh"})


@pattern(x * Node("Sigmoid", x))
def silu(match: Match) -> Replacement:
    """https://arxiv.org/abs/1702.03118"""
    return Replacement("Swish", 24, (match["x"],))


@pattern(x * Node("Sigmoid", x * Variable("alpha", scalar=True)))
def swish(match: Match) -> Replacement:
    """CLIP's quick GELU, with 1.702 for `alpha`."""
    return Replacement("Swish", 24, (match["x"],), {"alpha": match.number("alpha")})


@pattern(x * Node("Tanh", Node("Softplus", x)))
def mish(match: Match) -> Replacement:
    """https://arxiv.org/abs/1908.08681"""
    return Replacement("Mish", 18, (match["x"],))


@pattern(Node("Log", Node("Exp", x) + 1.0))
def softplus(match: Match) -> Replacement:
    """As JAX computes it, it does not overflow where `exp` does."""
    return Replacement("Softplus", 1, (match["x"],))


_CLIPPED = Node("Clip", x + 3.0, 0.0, 6.0)


@pattern(x * _CLIPPED / 6.0, x * (_CLIPPED / 6.0), x * Node("HardSigmoid", x, alpha=1 / 6, beta=0.5), rounded=True)
def hard_swish(match: Match) -> Replacement:
    """https://arxiv.org/abs/1905.02244"""
    return Replacement("HardSwish", 14, (match["x"],))


# Normalisations over the last axis.


def _means(term: Term) -> list[Term]:
    """The mean over the last axis, which is kept: the axis is an attribute before opset 18, and an input from there on."""
    return [Node("ReduceMean", term, axes=(-1,), keepdims=1), Node("ReduceMean", term, -1.0, keepdims=1)]


def _roots(term: Term) -> list[Term]:
    return [Node("Sqrt", mean + eps) for square in (term**2.0, term * term) for mean in _means(square)]


_SCALED = [scaled for root in _roots(x) for scaled in (x / root, x * (1.0 / root), x * Node("Reciprocal", root))]


@pattern(*(scaled * weight for scaled in _SCALED))
def rms_norm(match: Match) -> Replacement | None:
    """https://arxiv.org/abs/1910.07467"""
    if not _is_vector(match["weight"]):
        return None
    return Replacement("RMSNormalization", 23, (match["x"], match["weight"]), {"epsilon": match.number("eps")})


_NORMED = [centred / root for mean in _means(x) for centred in (x - mean,) for root in _roots(centred)]


@pattern(*(normed * weight + bias for normed in _NORMED))
def layer_norm(match: Match) -> Replacement | None:
    """Before opset 17, ONNX has no layer norm: https://arxiv.org/abs/1607.06450."""
    scale, shift = match["weight"], match["bias"]
    if not _is_vector(scale) or not _is_vector(shift):
        return None
    return Replacement("LayerNormalization", 17, (match["x"], scale, shift), {"epsilon": match.number("eps")})


def _is_vector(value: Value) -> bool:
    return value.leaf is not None and len(value.leaf.shape) == 1


# Linear layers over more than one leading axis, as GPT-2's `Conv1D`.


@pattern(Node("Reshape", Node("Gemm", Node("Reshape", x, Variable("flat")), weight, bias), Variable("shape")))
def linear_over_all_leading_axes(match: Match) -> Replacement | None:
    """`Gemm` takes matrices: exporters reshape to one, and back."""
    gemm, value = match.call("Gemm"), match["x"]
    flat, shape = match["flat"].array, match["shape"].array
    if value.shape is None or flat is None or shape is None or match["weight"].leaf is None:
        return None
    is_matrix = len(flat) == 2 and key(flat[0]) == -1 and has_size(value, -1, flat[1])
    same_axes = len(shape) == len(value.shape) and all(
        has_size(value, axis, size) for axis, size in enumerate(shape[:-1])
    )
    if not is_matrix or not same_axes or gemm.attributes.get("transA", 0):
        return None
    return Replacement("Gemm", gemm.opset, (value, match["weight"], match["bias"]), gemm.attributes)


@hookimpl
def onnxeqx_register_layers(registry) -> None:
    registry.add_module(__name__)
