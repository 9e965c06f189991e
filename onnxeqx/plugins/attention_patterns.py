"""Patterns of attention: scores, softmax and weighted sum; rotary positions; key heads that serve several heads."""

import math

import numpy as np

from .._graph import Kind, Value
from .._patterns import Match, Node, Replacement, Variable
from .._reads import has_size
from .._registry import pattern
from .._symbolic import Dim, key
from .hookspecs import hookimpl

x = Variable("x")
query, keys, value = Variable("query"), Variable("keys"), Variable("value")
bias, more_bias = Variable("bias"), Variable("more_bias")
scale, divisor = Variable("scale", scalar=True), Variable("divisor", scalar=True)
key_scale = Variable("key_scale", scalar=True)

# (batch, heads, length, width) from (batch, length, heads, width), and back.
_HEADS_FIRST = (0, 2, 1, 3)


# PyTorch scales queries and keys by the root of the scale each.
_PRODUCTS = [(query * scale) @ (keys * key_scale), query @ keys * scale, query @ keys / divisor, query @ keys]
_SCORES = [
    *(product + bias + more_bias for product in _PRODUCTS),
    *(product + bias for product in _PRODUCTS),
    *_PRODUCTS,
]
_SUMS = [Node("Softmax", scores) @ value for scores in _SCORES]


@pattern(*(Node("Transpose", weighted, perm=_HEADS_FIRST) for weighted in _SUMS))
def dot_product_attention(match: Match) -> Replacement | None:
    """https://arxiv.org/abs/1706.03762"""
    return _attention(match)


@pattern(*_SUMS)
def attention_with_heads_first(match: Match) -> Replacement | None:
    """The attention, where what follows is another transpose, or none."""
    found = _attention(match)
    return None if found is None else Replacement("Transpose", 13, (found,), {"perm": _HEADS_FIRST})


def _attention(match: Match) -> Replacement | None:
    softmax = match.call("Softmax")
    axis = softmax.attributes.get("axis", softmax.op.attributes["axis"])
    key_heads = _transposed_keys(match["keys"])
    if key_heads is None or axis not in (-1, 3) or _rank(match["query"]) != 4:
        return None
    found = match.values
    factor = math.prod((match.number(name) for name in ("scale", "key_scale") if name in found), start=1.0)
    factor = factor / match.number("divisor") if "divisor" in found else factor
    biases = [found[name] for name in ("bias", "more_bias") if name in found]
    if not _fit(found["query"], found["keys"], found["value"]) or not all(_adds_to(found["query"], b) for b in biases):
        return None
    added: list[Value | Replacement] = [*biases]
    if len(added) > 1:
        added = [Replacement("Add", 14, tuple(added))]
    value_heads = _heads_last(_of_fewer_heads(match["value"]))
    operands = (_heads_last(match["query"]), key_heads, value_heads, *added)
    return Replacement("onnxeqx::DotProductAttention", 1, operands, {"scale": factor})


def _fit(query: Value, keys: Value, value: Value) -> bool:
    """Whether batches, heads and widths are known to be equal: a product of matrices would broadcast what is 1."""
    assert query.shape is not None
    batch, heads, _, width = query.shape
    operands = (keys, value)
    if any(_rank(operand) != 4 for operand in operands) or not has_size(value, 3, width):
        return False
    return all(has_size(operand, 0, batch) and has_size(operand, 1, heads) for operand in operands)


def _adds_to(query: Value, bias: Value) -> bool:
    """Whether a bias is known not to broadcast the scores: its batch, heads and queries are those of `query`, or 1."""
    if _rank(bias) != 4 or query.shape is None:
        return False
    return all(has_size(bias, axis, 1) or has_size(bias, axis, query.shape[axis]) for axis in range(3))


def _rank(operand: Value) -> int | None:
    return None if operand.shape is None else len(operand.shape)


def _transposed_keys(keys: Value) -> "Value | Replacement | None":
    """The keys as (batch, length, heads, width), where they were transposed for the product."""
    if (source := _of_transposed_matrices(keys)) is not None:
        return _heads_last(_of_fewer_heads(source))
    perm = _perm(keys)
    if keys.producer is None or perm is None:
        return None
    source = keys.producer.operand(0)
    if perm == (0, 2, 3, 1):
        return source
    return _heads_last(_of_fewer_heads(source)) if perm == (0, 1, 3, 2) else None


def _of_transposed_matrices(operand: Value) -> Value | None:
    """What was transposed in its last two axes, where a reshape makes the others one for that, and another takes them apart."""
    transposed = _producer(operand, "Reshape")
    matrices = _producer(transposed, "Transpose")
    source = _producer(matrices, "Reshape")
    if transposed is None or source is None or matrices is None or _perm(transposed) != (0, 2, 1):
        return None
    batch, heads, length, width = source.shape if source.shape is not None and len(source.shape) == 4 else (None,) * 4
    if _rank(operand) != 4 or _rank(matrices) != 3 or width is None:
        return None
    sizes = (batch, heads, width, length)
    kept = all(has_size(operand, axis, size) for axis, size in enumerate(sizes))
    return source if kept and has_size(matrices, 1, length) and has_size(matrices, 2, width) else None


def _heads_last(operand: Value) -> "Value | Replacement":
    if operand.producer is not None and _perm(operand) == _HEADS_FIRST:
        return operand.producer.operand(0)
    return Replacement("Transpose", 13, (operand,), {"perm": _HEADS_FIRST})


def _perm(operand: Value) -> tuple[int, ...] | None:
    call = operand.producer
    return None if call is None or call.op_type != "Transpose" else tuple(call.attributes.get("perm") or ())


# Grouped-query attention.


def _of_fewer_heads(operand: Value) -> Value:
    """The heads before each was repeated for its group, as the attention takes them."""
    found = _repeated_heads(operand)
    return operand if found is None else found[0]


def _repeated_heads(operand: Value) -> tuple[Value, int] | None:
    """The heads, and how often each is repeated, where `operand` is `Reshape(Expand(Unsqueeze(heads, 2)))`."""
    reshape = operand.producer
    expand = _producer(operand, "Reshape")
    unsqueezed = _producer(expand, "Expand")
    heads = _producer(unsqueezed, "Unsqueeze")
    if reshape is None or expand is None or unsqueezed is None or heads is None or expand.producer is None:
        return None
    shape, target = reshape.operand(1).array, expand.producer.operand(1).array
    inserted = [axis for axis in range(5) if _rank(unsqueezed) == 5 and has_size(unsqueezed, axis, 1)]
    if shape is None or target is None or len(shape) != 4 or len(target) != 5 or 2 not in inserted:
        return None
    kept = all(has_size(unsqueezed, axis, target[axis]) for axis in (0, 1, 3, 4))
    merged = all(key(shape[i]) == key(target[axis]) for i, axis in ((0, 0), (2, 3), (3, 4)))
    if not kept or not merged or not isinstance(target[2], int) or key(shape[1]) != key(target[1] * target[2]):
        return None
    return heads, target[2]


def _producer(operand: Value | None, op_type: str) -> Value | None:
    """The first input of the call that made a value, if it is of this operator."""
    call = operand.producer if operand is not None else None
    return call.inputs[0] if call is not None and call.op_type == op_type else None


@pattern(Node("Reshape", Node("Expand", Node("Unsqueeze", x, Variable("axes")), Variable("target")), Variable("shape")))
def repeat_heads(match: Match) -> Replacement | None:
    """Each key head serves a group of heads: https://arxiv.org/abs/2305.13245."""
    found = _repeated_heads(match.calls[0].outputs[0])
    return None if found is None else Replacement("onnxeqx::RepeatHeads", 1, found[:1], {"repeats": found[1]})


@pattern(Node("Reshape", Node("Transpose", Node("Reshape", x, Variable("merged")), perm=(1, 0, 2)), Variable("split")))
def heads_beside_the_batch(match: Match) -> Replacement | None:
    """PyTorch's multi-head attention has one axis of batch and heads, behind that of positions: they are told apart at once."""
    merged, split = match["merged"].array, match["split"].array
    if merged is None or split is None or len(merged) != 3 or len(split) != 4:
        return None
    batch, heads, length, width = split.tolist()
    sizes = all(isinstance(size, int) and size > 0 for size in (heads, length, width))
    if not sizes or [key(size) for size in merged.tolist()[::2]] != [key(length), key(width)]:
        return None
    target = np.empty(4, object)
    target[:] = (length, batch, heads, width)
    if all(isinstance(size, int) for size in target):
        target = target.astype(np.int64)
    kind = Kind.HOST if target.dtype == object else Kind.CONST
    shape = Value(f"{match['split'].name}_at_once", np.dtype(np.int64), (4,), kind, target)
    return Replacement("Transpose", 13, (Replacement("Reshape", 14, (match["x"], shape)),), {"perm": (1, 2, 0, 3)})


# Rotary positions.

_SECOND_HALF = Node("Slice", x, Variable("middle"), Variable("end"), Variable("axes"), Variable("steps"))
_FIRST_HALF = Node(
    "Slice", x, Variable("start"), Variable("same_middle"), Variable("same_axes"), Variable("same_steps")
)


@pattern(Node("Concat", Node("Neg", _SECOND_HALF), _FIRST_HALF))
def rotate_half(match: Match) -> Replacement | None:
    """https://arxiv.org/abs/2104.09864"""
    names = ("middle", "end", "axes", "steps", "start", "same_middle", "same_axes", "same_steps")
    arrays = {name: match[name].array for name in names}
    rank = _rank(match["x"])
    if rank is None or any(array is None or array.size != 1 for array in arrays.values()):
        return None
    middle, end, axis, step, start, same_middle, same_axis, same_step = (
        array.reshape(-1).tolist()[0] for array in arrays.values() if array is not None
    )
    whole = match["x"].shape
    assert whole is not None
    last = (-1, rank - 1)
    concatenated = match.call("Concat").attributes["axis"]
    if {axis, same_axis, concatenated} - set(last) or (step, same_step, start) != (1, 1, 0):
        return None
    sizes = (whole[-1], Dim(match["x"], rank - 1))
    to_the_end = key(end) >= 2**31 - 1 if isinstance(end, int) else any(key(end) == key(size) for size in sizes)
    halves = {key(size // 2) for size in sizes}
    if not to_the_end or key(middle) not in halves or key(same_middle) != key(middle):
        return None
    return Replacement("onnxeqx::RotateHalf", 1, (match["x"],))


@hookimpl
def onnxeqx_register_layers(registry) -> None:
    registry.add_module(__name__)
