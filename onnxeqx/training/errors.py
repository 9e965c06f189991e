"""The errors of the training harness: one clear sentence each, which names the cause and the next action."""

from .._errors import HeadError as HeadError, OnnxeqxError


class ConfigError(OnnxeqxError):
    """An option of a training run is unknown, out of its range, or differs from the run that is resumed."""


class CheckpointError(OnnxeqxError):
    """A checkpoint is of another model, is damaged, or is missing."""


class DivergedError(OnnxeqxError):
    """The training loss is no longer finite; the last good checkpoint is kept."""
