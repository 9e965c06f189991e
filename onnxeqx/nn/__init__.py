"""Layers that Equinox lacks in ONNX's form: they take the batch, and keep statistics out of an optimiser's reach."""

from ._batch_norm import BatchNorm as BatchNorm
from ._buffer import Buffer as Buffer
from ._buffer import buffer as buffer
from ._buffer import constant as constant
from ._buffer import parameter as parameter
from ._conv import Conv as Conv
from ._conv import ConvTranspose as ConvTranspose
