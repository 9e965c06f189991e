import numpy as np
import pytest

from onnxeqx import DataError
from onnxeqx.training import Data, hold_out
from onnxeqx.training.data import limited

from .conftest import Arrays


def numbered(count):
    return Arrays(np.arange(count, dtype=np.float32)[:, None], np.arange(count) % 3)


def seen(batches):
    return [int(value) for batch in batches for value in batch.inputs[batch.mask, 0]]


@pytest.mark.parametrize(("count", "batch_size"), [(10, 4), (8, 4), (3, 8)])
def test_every_example_comes_once_in_batches_of_one_shape(count, batch_size):
    data = Data(numbered(count), numbered(count), batch_size=batch_size)
    for batches, steps in (
        (list(data.training_batches(1)), data.steps),
        (list(data.validation_batches()), data.validation_steps),
    ):
        assert sorted(seen(batches)) == list(range(count))
        assert len(batches) == steps
        assert {(batch.inputs.shape, batch.labels.shape, batch.mask.shape) for batch in batches} == {
            ((batch_size, 1), (batch_size,), (batch_size,))
        }
    assert seen(data.validation_batches()) == list(range(count))


def test_order_follows_from_seed_and_epoch_alone():
    def order(seed, epoch):
        return seen(Data(numbered(50), numbered(1), batch_size=8, seed=seed, workers=3).training_batches(epoch))

    assert order(0, 1) == order(0, 1)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (1, 2)}) == 4


@pytest.mark.parametrize("start", range(8))
def test_an_epoch_resumes_at_any_batch(start):
    data = Data(numbered(50), numbered(1), batch_size=8)
    whole = [batch.inputs.tolist() for batch in data.training_batches(2)]
    assert [batch.inputs.tolist() for batch in data.training_batches(2, start)] == whole[start:]


def test_an_error_in_an_example_arrives_as_it_is():
    class Broken(Arrays):
        def __getitem__(self, index):
            raise DataError("The image cat.png cannot be decoded.")

    data = Data(Broken(np.zeros((4, 1)), np.zeros(4)), numbered(1), batch_size=2)
    with pytest.raises(DataError, match=r"cat\.png"):
        list(data.training_batches(1))


def test_the_held_out_share_is_that_of_each_class():
    labels = [0] * 50 + [1] * 10 + [2]
    training, validation = hold_out(labels, 0.2, seed=0)
    assert sorted(training + validation) == list(range(61))
    assert [sum(labels[index] == label for index in validation) for label in range(3)] == [10, 2, 0]
    assert hold_out(labels, 0.2, seed=0) == (training, validation)
    assert hold_out(labels, 0.2, seed=1) != (training, validation)


def test_something_is_always_held_out():
    training, validation = hold_out([0, 1, 2], 0.01, seed=0)
    assert len(training) == 2
    assert len(validation) == 1
    with pytest.raises(DataError, match="at least 2 examples, not 1"):
        hold_out([0], 0.2, seed=0)


def test_limit_draws_by_seed_and_keeps_the_order():
    drawn = limited(range(100), 10, seed=0)
    assert len(drawn) == 10
    assert drawn == sorted(drawn) == limited(range(100), 10, seed=0)
    assert drawn != limited(range(100), 10, seed=1)
    assert limited(range(5), 10, seed=0) == limited(range(5), None, seed=0) == [0, 1, 2, 3, 4]


def test_a_share_of_many_small_classes_is_held_out():
    labels = np.repeat(np.arange(50), 2).tolist()
    training, validation = hold_out(labels, 0.2, seed=0)
    assert len(validation) == 20
    assert sorted(training + validation) == list(range(100))
    assert {labels[index] for index in training} == set(range(50))
