"""Turn ONNX files into Equinox models that train."""

from ._registry import lift as lift, op as op
from .plugins.hookspecs import hookimpl as hookimpl
