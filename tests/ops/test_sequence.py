"""Sequences and optionals: lists and `None`, in functions and in whole models."""

import numpy as np
import onnx
import pytest

import onnxeqx
from onnxeqx.plugins import sequence

A, B = np.ones((2, 3), np.float32), np.zeros((1, 3), np.float32)


def test_building_and_taking_apart():
    both = sequence.sequence_construct(A, B)
    assert [x.shape for x in sequence.sequence_insert(both, B, 0)] == [(1, 3), (2, 3), (1, 3)]
    assert sequence.sequence_at(both, -1) is B
    assert [x.shape for x in sequence.sequence_insert(both, B, np.array(-1))] == [(2, 3), (1, 3), (1, 3)]
    assert [x.shape for x in sequence.sequence_erase(both)] == [(2, 3)]
    assert [x.shape for x in sequence.sequence_erase(both, 0)] == [(1, 3)]
    assert sequence.sequence_length(both) == 2
    assert len(both) == 2  # nothing was changed
    assert sequence.concat_from_sequence(both, axis=0).shape == (3, 3)
    assert sequence.concat_from_sequence([A, A], axis=1, new_axis=1).shape == (2, 2, 3)


@pytest.mark.parametrize("position", [2, -3])
def test_positions_outside_are_refused(position):
    with pytest.raises(IndexError, match=f"position {position} is outside a sequence of 2"):
        sequence.sequence_at([A, B], position)


def test_splitting():
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    assert [piece.shape for piece in sequence.split_to_sequence(x, np.array(3))] == [(3, 3), (1, 3)]
    assert [piece.shape for piece in sequence.split_to_sequence(x, np.array([1, 3]))] == [(1, 3), (3, 3)]
    assert [piece.shape for piece in sequence.split_to_sequence(x, axis=1, keepdims=0)] == [(4,)] * 3


def test_optionals():
    assert not sequence.optional_has_element(None)
    assert sequence.optional_has_element(A)
    assert sequence.optional_get_element(sequence.optional(A)) is A
    with pytest.raises(ValueError, match="empty optional"):
        sequence.optional_get_element(None)


def test_a_model_that_takes_and_gives_a_sequence():
    text = """<ir_version: 8, opset_import: ["" : 17]> g (seq(float[n]) s, float[n] x) => (seq(float[n]) r, int64 count) {
        r = SequenceInsert (s, x) count = SequenceLength (r) }"""
    model = onnxeqx.load_model(onnx.parser.parse_model(text))
    result, count = model([np.ones(2, np.float32)], np.zeros(2, np.float32))
    assert [item.tolist() for item in result] == [[1.0, 1.0], [0.0, 0.0]]
    assert int(count) == 2


def test_a_variable_does_not_take_the_name_of_a_module():
    text = """<ir_version: 8, opset_import: ["" : 17]> g (seq(float[n]) sequence, float[n] x) => (seq(float[n]) r) {
        r = SequenceInsert (sequence, x) }"""
    assert len(onnxeqx.load_model(onnx.parser.parse_model(text))([A[0]], A[0])) == 2
