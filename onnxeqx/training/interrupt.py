"""Ctrl-C and SIGTERM: the current step is finished and saved before the run stops."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

from .loop import EpochDone, Event, StepDone, ValidationStep
from .state import TrainState

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class TrainingInterrupted(Exception):  # noqa: N818 (an event, as KeyboardInterrupt, and not an error)
    """A signal ended the run after a complete step; the checkpoint `last` is of that step."""

    def __init__(self, signal_number: int, step: int):
        super().__init__(f"interrupted after step {step}")
        self.signal_number = signal_number
        self.step = step


@contextlib.contextmanager
def stopping_on_signals(
    save: Callable[[TrainState], None], notify: Callable[[str], None]
) -> Iterator[Callable[[Event], None]]:
    """Within the context, a first SIGINT or SIGTERM ends the run after the current step; a second one aborts at once.

    **Arguments:**

    - `save`: called with the state when the run ends in the middle of an epoch.
    - `notify`: called with a sentence for the user when the first signal arrives.

    **Yields:** a callback for `fit`, the last of its callbacks. It raises `TrainingInterrupted`.
    """
    received: list[int] = []
    threads: list[threading.Thread] = []

    def on_signal(number, _frame):
        if received:
            raise KeyboardInterrupt
        received.append(number)
        # In a thread: the signal may have come while this one was writing to the same stream.
        text = "Stopping after this step; press Ctrl-C again to abort at once."
        threads.append(threading.Thread(target=notify, args=(text,)))
        threads[-1].start()

    def callback(event: Event) -> None:
        # An evaluation goes on to its end, which saves; but the one before training may be left.
        resumable = isinstance(event, StepDone) or (isinstance(event, ValidationStep) and event.epoch == 0)
        if received and (resumable or isinstance(event, EpochDone)):
            if resumable:
                save(event.state)
            raise TrainingInterrupted(received[0], int(event.state.step))

    if threading.current_thread() is not threading.main_thread():  # Python hands signals to the main thread only
        yield callback
        return
    previous = {number: signal.signal(number, on_signal) for number in SIGNALS}
    try:
        yield callback
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        for thread in threads:
            thread.join()
