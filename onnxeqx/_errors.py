"""The errors that onnxeqx raises: one clear sentence each, which names the cause and the next action."""


class OnnxeqxError(Exception):
    """Base class of every error that onnxeqx raises on purpose. Its text is one sentence fit for a user."""


class ReadError(OnnxeqxError):
    """The ONNX file cannot be read: truncated, not ONNX, external data missing or outside its folder."""


class UnsupportedOpsError(OnnxeqxError):
    """The model needs operators that no loaded plugin provides; all of them are listed at once."""


class ConversionError(OnnxeqxError):
    """A node cannot be converted; names the node, its operator and what was expected."""


class NothingToStackError(ConversionError):
    """The model has no equal layers in a row that could be stacked."""


class HostValueError(OnnxeqxError):
    """An operand must be known while tracing (a shape, an axis), but depends on the data of a traced array."""


class InputError(OnnxeqxError, TypeError):
    """An input of a model call has a wrong name, rank, dimension or dtype."""


class WeightsError(OnnxeqxError):
    """Weights do not fit the model: key paths missing, unexpected, or with another shape or dtype."""


class HeadError(OnnxeqxError):
    """The head of a network is not found, or cannot be replaced; lists the candidates."""


class PluginError(OnnxeqxError):
    """A plugin is wrong: overlapping opset ranges, a duplicate operator, an unknown hook."""


class OutputExistsError(OnnxeqxError):
    """The output is already there; nothing is overwritten unless asked (`force=True`, `--force`)."""


class DataError(OnnxeqxError):
    """Training data cannot be used: empty folder, corrupt image, label outside the range."""
