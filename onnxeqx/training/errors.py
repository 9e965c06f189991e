"""The errors of the training harness: one clear sentence each, which names the cause and the next action."""

from typing import Any

from .._errors import HeadError as HeadError, OnnxeqxError


class ConfigError(OnnxeqxError):
    """An option of a training run is unknown, out of its range, or differs from the run that is resumed."""


class CheckpointError(OnnxeqxError):
    """A checkpoint is of another model, is damaged, or is missing."""


class DivergedError(OnnxeqxError):
    """The training loss or a gradient is no longer finite.

    **Fields:** `state`: the last good one, of the step before.
    """

    def __init__(self, message: str, state: Any = None):
        super().__init__(message)
        self.state = state
