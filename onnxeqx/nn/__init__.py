"""Layers that Equinox lacks in ONNX's form: they take the batch, and keep statistics out of an optimiser's reach."""

from ._batch_norm import BatchNorm as BatchNorm, TrainingBatchNorm as TrainingBatchNorm
from ._buffer import Buffer as Buffer, buffer as buffer, constant as constant, parameter as parameter
from ._conv import Conv as Conv, ConvTranspose as ConvTranspose
from ._lora import LoRAConv as LoRAConv, LoRALinear as LoRALinear
