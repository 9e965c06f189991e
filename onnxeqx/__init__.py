"""Turn ONNX files into Equinox models that train: readable source, named parameters, op plugins, and back to ONNX."""

from . import nn as nn
from ._errors import (
    ConversionError as ConversionError,
)
from ._errors import (
    DataError as DataError,
)
from ._errors import (
    HostValueError as HostValueError,
)
from ._errors import (
    InputError as InputError,
)
from ._errors import (
    OnnxeqxError as OnnxeqxError,
)
from ._errors import (
    OutputExistsError as OutputExistsError,
)
from ._errors import (
    PluginError as PluginError,
)
from ._errors import (
    ReadError as ReadError,
)
from ._errors import (
    UnsupportedOpsError as UnsupportedOpsError,
)
from ._errors import (
    WeightsError as WeightsError,
)
from ._layers import Layer as Layer
from ._layers import layers as layers
from ._load import convert as convert
from ._load import load as load
from ._load import load_model as load_model
from ._load import save as save
from ._registry import Op as Op
from ._registry import lift as lift
from ._registry import op as op
from ._save_onnx import save_onnx as save_onnx
from ._verify import Difference as Difference
from ._verify import Verification as Verification
from ._verify import verify as verify
from ._weights import (
    key_paths as key_paths,
)
from ._weights import (
    labels as labels,
)
from ._weights import (
    load_weights as load_weights,
)
from ._weights import (
    parameters as parameters,
)
from ._weights import (
    save_weights as save_weights,
)
from .plugins.hookspecs import hookimpl as hookimpl
