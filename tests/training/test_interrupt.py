import os
import signal

import pytest

from onnxeqx.training import (
    Checkpoints,
    EpochDone,
    StepDone,
    TrainingInterrupted,
    ValidationStep,
    adamw,
    fit,
    stopping_on_signals,
)

from .test_checkpoint import make_state
from .test_fit import bits


def raise_signal_at(wanted, number=signal.SIGINT):
    """Sends this process a signal at the event that `wanted` picks."""
    sent = []

    def callback(event):
        if wanted(event) and not sent:
            sent.append(event)
            os.kill(os.getpid(), number)

    return callback


@pytest.mark.parametrize(
    ("number", "wanted", "step", "epoch"),
    [
        (signal.SIGINT, lambda event: isinstance(event, ValidationStep), 0, 0),
        (signal.SIGINT, lambda event: isinstance(event, StepDone) and event.step == 2, 2, 0),
        (signal.SIGTERM, lambda event: isinstance(event, StepDone) and event.step == 3, 3, 0),
        (signal.SIGINT, lambda event: isinstance(event, ValidationStep) and event.epoch == 1, 3, 1),
        (signal.SIGINT, lambda event: isinstance(event, EpochDone) and event.epoch == 1, 3, 1),
    ],
)
def test_a_signal_stops_after_the_step_and_the_run_resumes_exactly(net, data, tmp_path, number, wanted, step, epoch):
    whole = fit(net, data, optimizer=adamw(0.05), epochs=2)
    rows, said = [], []

    def keep(event):
        if isinstance(event, EpochDone):
            rows.append(event.row)

    def run(*first):
        with Checkpoints(tmp_path) as checkpoints, stopping_on_signals(checkpoints.save, said.append) as stop:
            callbacks = [*first, keep, checkpoints, stop]
            return fit(net, data, optimizer=adamw(0.05), epochs=2, restore=checkpoints.restore, callbacks=callbacks)

    handlers = [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)]
    with pytest.raises(TrainingInterrupted) as stopped:
        run(raise_signal_at(wanted, number))
    assert stopped.value.step == step
    assert stopped.value.signal_number == number
    assert said == ["Stopping after this step; press Ctrl-C again to abort at once."]
    assert [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)] == handlers
    with Checkpoints(tmp_path) as checkpoints:
        state = checkpoints.restore(make_state(net, adamw(0.05)))
        assert (int(state.step), int(state.epoch)) == (step, epoch)
    assert bits(run().model) == bits(whole.model)
    assert rows == whole.history


def test_a_second_signal_aborts_at_once(net, data):
    def twice(event):
        if isinstance(event, StepDone):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with stopping_on_signals(lambda state: None, lambda text: None) as stop, pytest.raises(KeyboardInterrupt):
        fit(net, data, optimizer=adamw(0.05), epochs=1, callbacks=[twice, stop])
