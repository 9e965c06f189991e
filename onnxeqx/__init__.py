"""Turn ONNX files into Equinox models that train: readable source, named parameters, op plugins, and back to ONNX."""

from . import nn as nn, patterns as patterns
from ._append import append_head as append_head
from ._dropout import insert_dropout as insert_dropout
from ._errors import (
    ConversionError as ConversionError,
    DataError as DataError,
    HeadError as HeadError,
    HostValueError as HostValueError,
    InputError as InputError,
    OnnxeqxError as OnnxeqxError,
    OutputExistsError as OutputExistsError,
    PluginError as PluginError,
    ReadError as ReadError,
    UnsupportedOpsError as UnsupportedOpsError,
    WeightsError as WeightsError,
)
from ._graph import Call as Call, Lifted as Lifted
from ._head import replace_head as replace_head
from ._layers import Layer as Layer, layers as layers
from ._lift import LiftContext as LiftContext
from ._load import convert as convert, load as load, load_model as load_model, save as save
from ._lora import load_lora as load_lora, lora as lora, merge_lora as merge_lora, save_lora as save_lora
from ._printing import Operand as Operand
from ._registry import Op as Op, lift as lift, op as op, pattern as pattern, rewrite as rewrite
from ._reprint import stack as stack, truncate as truncate, unstack as unstack
from ._save_onnx import save_onnx as save_onnx
from ._select import freeze_layers as freeze_layers, parameters as parameters, partition as partition
from ._verify import Difference as Difference, Verification as Verification, verify as verify
from ._weights import (
    key_paths as key_paths,
    load_weights as load_weights,
    save_weights as save_weights,
)
from .plugins.hookspecs import hookimpl as hookimpl
