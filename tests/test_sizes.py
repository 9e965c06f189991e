"""Sizes behind computed targets, in terms of the model's inputs."""

import onnx.parser
import pytest

from onnxeqx._convert import unlifted
from onnxeqx._read import read_proto
from onnxeqx._sizes import settle_sizes

HEADER = '<ir_version: 8, opset_import: ["" : 17]>'


def shapes(signature: str, nodes: str) -> dict[str, str]:
    """The settled shapes of all results, as text."""
    model = onnx.parser.parse_model(f"{HEADER} g {signature} {{ {nodes} }}")
    graph = unlifted(read_proto(model))
    settle_sizes(graph)
    return {output.name: str(output.shape) for call in graph.calls for output in call.outputs}


HEADS = """
n = Shape<start = 0, end = 2>(x)
heads = Constant<value_ints = [-1, 32]>()
target = Concat<axis = 0>(n, heads)
y = Reshape(x, target)
"""


def test_a_computed_target_of_a_reshape():
    found = shapes("(float[batch, length, 128] x) => (float[a, b, c, d] y)", HEADS)
    assert found["y"] == "(x.shape[0], x.shape[1], 4, 32)"


def test_a_range_is_as_long_as_it_says():
    nodes = """
    n = Shape<start = 1, end = 2>(x)
    zero = Constant<value_int = 0>()
    one = Constant<value_int = 1>()
    limit = Squeeze(n)
    y = Range(zero, limit, one)
    """
    assert shapes("(float[batch, length] x) => (int64[n] y)", nodes)["y"] == "(x.shape[1],)"


FIRST_POSITIONS = """
zero = Constant<value_ints = [0]>()
one = Constant<value_ints = [1]>()
n = Shape<start = 1, end = 2>(x)
p = Slice(table, zero, n, one)
"""


def test_a_size_that_is_cut_off_at_a_limit_stays_open():
    """Positions of 512 at most: nothing says that there are as many as there are tokens."""
    found = shapes("(float[batch, length] x, float[1, 512] table) => (float[a, b] p)", FIRST_POSITIONS)
    assert found["p"] == "(1, p.shape[1])"


def test_a_size_is_known_where_another_one_makes_the_model_fail():
    signature = "(float[batch, length] x, float[1, 512] table) => (float[a, b] y)"
    found = shapes(signature, FIRST_POSITIONS + "y = Add(x, p)")
    assert (found["p"], found["y"]) == ("(1, x.shape[1])", "(x.shape[0], x.shape[1])")


def test_what_fails_in_a_branch_says_nothing_of_the_sizes_outside():
    branches = "y = If(c) <then_branch = t () => (float[a, b] u) { u = Add(x, p) }, else_branch = e () => (float[a, b] v) { v = Identity(x) }>"
    signature = "(float[batch, length] x, float[1, 512] table, bool c) => (float[a, b] y, float[e, f] p)"
    assert shapes(signature, FIRST_POSITIONS + branches)["p"] == "(1, p.shape[1])"


@pytest.mark.parametrize(("end", "size"), [(1, "1"), (2, "y.shape[0]"), (3, "y.shape[0]")])
def test_a_slice_to_a_small_end_is_not_taken_for_that_number(end, size):
    nodes = f"zero = Constant<value_ints = [0]>() end = Constant<value_ints = [{end}]>() y = Slice(x, zero, end, zero)"
    assert shapes("(float[n] x) => (float[m] y)", nodes)["y"] == f"({size},)"


def test_roundings_are_told_apart():
    """Halves, rounded down and up: a pooling without padding, and one with."""
    nodes = """
    y = MaxPool<kernel_shape = [2], strides = [2]>(x)
    z = MaxPool<kernel_shape = [2], strides = [2], ceil_mode = 1>(x)
    """
    found = shapes("(float[1, 1, n] x) => (float[a, b, c] y, float[d, e, f] z)", nodes)
    assert found["y"] != found["z"]


def test_roundings_are_told_apart_where_another_size_must_be_a_multiple():
    nodes = """
    pairs = Constant<value_ints = [-1, 4]>()
    p = Reshape(w, pairs)
    y = MaxPool<kernel_shape = [2], strides = [2]>(x)
    z = MaxPool<kernel_shape = [2], strides = [2], ceil_mode = 1>(x)
    """
    found = shapes("(float[m] w, float[1, 1, n] x) => (float[a, b] p, float[c, d, e] y, float[f, g, h] z)", nodes)
    assert found["y"] != found["z"]


def test_broadcast_sizes_of_which_one_is_unknown():
    """Along the first axis the sizes are known; along the second, that of `x` may be 1, or that of `y`."""
    found = shapes("(float[batch, n] x, float[1, m] y) => (float[a, b] z)", "z = Add(x, y)")
    assert found["z"] == "(x.shape[0], z.shape[1])"
