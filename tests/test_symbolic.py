"""Symbolic dimensions: arithmetic, what is decided at load, what is not."""

import numpy as np
import pytest

from onnxeqx._graph import Value
from onnxeqx._symbolic import Dim, UndecidedError, dims, evaluate, is_non_negative, key

X, Y = Value("x"), Value("y")
BATCH, WIDTH = Dim(X, 0), Dim(Y, 1)
SIZES = {key(BATCH): 6, key(WIDTH): 4}


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        (BATCH + 1, 7),
        (1 + BATCH, 7),
        (BATCH - WIDTH, 2),
        (10 - BATCH, 4),
        (BATCH * WIDTH, 24),
        (3 * BATCH, 18),
        (BATCH // 4, 1),
        (BATCH % 4, 2),
        (-BATCH, -6),
        ((BATCH + WIDTH) * 2 // 3, 6),
        (abs(BATCH), 6),
    ],
)
def test_arithmetic(expression, expected):
    assert evaluate(expression, SIZES) == expected


def test_neutral_elements_leave_the_symbol_alone():
    assert BATCH * 1 is BATCH
    assert 1 * BATCH is BATCH
    assert BATCH + 0 is BATCH
    assert BATCH - 0 is BATCH
    assert BATCH // 1 is BATCH
    assert BATCH * 0 == 0


def test_decided_comparisons():
    assert (BATCH == -1) is False
    assert (Dim(X, 0) == BATCH) is True
    assert (BATCH != -1) is True
    assert (BATCH < 0) is False
    assert (BATCH > -1) is True


@pytest.mark.parametrize(
    "compare",
    [
        lambda: BATCH == 1,
        lambda: BATCH == WIDTH,
        lambda: BATCH < 5,
        lambda: BATCH > 0,
        lambda: bool(BATCH),
        lambda: int(BATCH),
        lambda: (BATCH - WIDTH) // 2,
        lambda: abs(BATCH - WIDTH),
    ],
)
def test_undecided_comparisons_raise(compare):
    with pytest.raises(UndecidedError):
        compare()


def test_numpy_object_arrays_compute_with_symbols():
    vector = np.array([BATCH, 2, WIDTH], dtype=object)
    assert [evaluate(item, SIZES) for item in np.concatenate([vector * 2, np.array([5])])] == [12, 4, 8, 5]
    assert evaluate(np.prod(vector), SIZES) == 48
    assert np.take(vector, [0])[0] is BATCH


def test_dimensions_read_and_sign():
    assert [repr(dim) for dim in dims(BATCH * 2 + WIDTH)] == ["x.shape[0]", "y.shape[1]"]
    assert is_non_negative(BATCH * WIDTH + 1)
    assert not is_non_negative(BATCH - 1)
