"""The errors of the training harness: one clear sentence each, which names the cause and the next action."""

from .._errors import OnnxeqxError


class ConfigError(OnnxeqxError):
    """An option of a training run is unknown, out of its range, or differs from the run that is resumed."""


class HeadError(OnnxeqxError):
    """The classification head is not found, or cannot be replaced; lists the candidates."""


class CheckpointError(OnnxeqxError):
    """A checkpoint is of another model, is damaged, or is missing."""


class DivergedError(OnnxeqxError):
    """The training loss is no longer finite; the last good checkpoint is kept."""
