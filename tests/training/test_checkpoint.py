import logging
import math
import pathlib

import equinox as eqx
import jax
import numpy as np
import pytest

from onnxeqx.training import CheckpointError, Checkpoints, EpochDone, Monitor, StepDone, TrainState, adamw, fit

from .conftest import Net
from .test_fit import bits


class StoppedError(Exception):
    """Ends a run from a callback."""


def stop_at(step, checkpoints):
    def callback(event):
        if isinstance(event, StepDone) and event.step == step:
            checkpoints.save(event.state)
            raise StoppedError

    return callback


def state_bits(state):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(eqx.filter(state, eqx.is_array))]


@pytest.mark.parametrize("step", [1, 3, 5])  # in an epoch, after its last step, in the second epoch
def test_a_resumed_run_equals_an_uninterrupted_one_bit_by_bit(net, data, tmp_path, step):
    ends = []

    def keep(event):
        if isinstance(event, EpochDone) and event.epoch == 3:
            ends.append(state_bits(event.state))

    whole = fit(net, data, optimizer=adamw(0.05), epochs=3, callbacks=[keep])
    with Checkpoints(tmp_path) as checkpoints:
        rows = []
        with pytest.raises(StoppedError):
            fit(
                net,
                data,
                optimizer=adamw(0.05),
                epochs=3,
                callbacks=[
                    lambda event: rows.append(event.row) if isinstance(event, EpochDone) else None,
                    checkpoints,
                    stop_at(step, checkpoints),
                ],
            )
    with Checkpoints(tmp_path) as checkpoints:
        resumed = fit(
            net, data, optimizer=adamw(0.05), epochs=3, restore=checkpoints.restore, callbacks=[checkpoints, keep]
        )
    assert bits(resumed.model) == bits(whole.model)
    assert ends[0] == ends[1]
    assert rows + resumed.history == whole.history


def test_best_is_kept_apart_from_last(net, data, tmp_path):
    optimizer = adamw(0.05)
    with Checkpoints(tmp_path) as checkpoints:
        events = [EpochDone(make_state(net, optimizer, step), step, {"val_accuracy": value})
                  for step, value in ((0, 0.2), (1, 0.9), (2, 0.4), (3, 0.9))]  # fmt: skip
        for event in events:
            checkpoints(event)
        assert checkpoints.steps("last") == [3, 2]
        assert checkpoints.steps("best") == [1]
    with Checkpoints(tmp_path) as checkpoints:  # what was best is known after a restart
        checkpoints(EpochDone(make_state(net, optimizer, 4), 4, {"val_accuracy": 0.8}))
        assert checkpoints.steps("best") == [1]
        assert int(checkpoints.restore(make_state(net, optimizer, 0), "best").step) == 1


def test_of_equal_ones_the_older_is_best_however_many_are_kept(net, tmp_path):
    optimizer = adamw(0.05)
    with Checkpoints(tmp_path, keep_best=2) as checkpoints:
        for step, value in enumerate((0.5, 0.9, 0.9, 0.8)):
            checkpoints(EpochDone(make_state(net, optimizer, step), step, {"val_accuracy": value}))
        assert checkpoints.steps("best") == [1, 2]
        assert int(checkpoints.restore(make_state(net, optimizer), "best").step) == 1


def test_what_is_no_number_is_never_best(net, tmp_path):
    optimizer = adamw(0.05)
    with Checkpoints(tmp_path, Monitor("val_loss", larger_is_better=False)) as checkpoints:
        for step, value in enumerate((math.nan, 0.7, math.nan, 0.8)):
            checkpoints(EpochDone(make_state(net, optimizer, step), step, {"val_loss": value}))
        assert checkpoints.steps("best") == [1]
    rows = [{"epoch": epoch, "val_loss": value} for epoch, value in enumerate((math.nan, 0.7, math.nan, 0.7))]
    assert Monitor("val_loss", larger_is_better=False).best(rows)["epoch"] == 1


def test_a_state_behind_a_step_that_is_not_finite_is_not_saved(net, tmp_path):
    optimizer = adamw(0.05)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(net, optimizer, 3))
        bad = eqx.tree_at(lambda s: s.totals["skipped"], make_state(net, optimizer, 4), jax.numpy.int32(1))
        checkpoints.save(bad)
        assert checkpoints.steps() == [3]


def make_state(net, optimizer, step=0, mask=None, epoch=0):
    mask = jax.tree.map(eqx.is_inexact_array, net) if mask is None else mask
    state = TrainState.create(net, optimizer, mask, metrics=["accuracy"])
    return eqx.tree_at(lambda s: (s.step, s.epoch), state, (jax.numpy.int32(step), jax.numpy.int32(epoch)))


def test_without_a_checkpoint_the_state_stays(net, tmp_path):
    state = make_state(net, adamw(0.1))
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(state) is state


def test_a_checkpoint_of_another_model_lists_what_differs(net, tmp_path):
    optimizer = adamw(0.1)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(net, optimizer))
        with pytest.raises(CheckpointError, match=r"another model or run: .*float32\[3\] in the checkpoint and fl"):
            checkpoints.restore(make_state(Net(classes=5), optimizer))
        head_only = eqx.tree_at(lambda m: m.head.weight, jax.tree.map(lambda _: False, net), True)
        with pytest.raises(CheckpointError, match=r"only in the checkpoint; .*and \d+ more"):
            checkpoints.restore(make_state(net, optimizer, mask=head_only))


def test_other_frozen_weights_are_noticed(net, tmp_path):
    optimizer = adamw(0.1)
    mask = eqx.tree_at(lambda m: m.head.weight, jax.tree.map(lambda _: False, net), True)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(net, optimizer, mask=mask))
        other = eqx.tree_at(lambda m: m.conv.weight, net, net.conv.weight + 1)
        with pytest.raises(CheckpointError, match="the frozen weights have other values"):
            checkpoints.restore(make_state(other, optimizer, mask=mask))


def damage(folder: pathlib.Path, how: str):
    files = sorted(
        (path for path in (folder / "state").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )
    file = next(path for path in reversed(files) if (path.parent.name == "d") == (how != "metadata"))
    content = bytearray(file.read_bytes())
    if how == "removed":
        file.unlink()
    elif how == "flipped":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    else:
        file.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize("how", ["truncated", "metadata", "removed", "flipped"])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(net, tmp_path, how, caplog):
    optimizer = adamw(0.1)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(net, optimizer, 3))
        checkpoints.save(make_state(net, optimizer, 6))
    damage(tmp_path / "last" / "6", how)
    with Checkpoints(tmp_path) as checkpoints, caplog.at_level(logging.WARNING, "onnxeqx"):
        assert int(checkpoints.restore(make_state(net, optimizer)).step) == 3
    assert "last/6 is damaged" in caplog.text
    damage(tmp_path / "last" / "3", how)
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(CheckpointError, match=r"is damaged\. There is no other"):
        checkpoints.restore(make_state(net, optimizer))


def test_a_step_can_be_saved_again(net, tmp_path):
    optimizer = adamw(0.1)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(net, optimizer, 3))
        checkpoints.save(make_state(net, optimizer, 3, epoch=1))
        assert checkpoints.steps() == [3]
        assert int(checkpoints.restore(make_state(net, optimizer)).epoch) == 1
