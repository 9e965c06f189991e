"""Spectra. Complex numbers are pairs along the last axis, as JAX's FFT has them in complex64 and complex128."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import onnx
from jax import lax

from .._registry import op
from ..runtime import canonical_dtype, check_host_size, host_ints, normalize_axes
from .hookspecs import hookimpl


@op("DFT", since=20, host=("dft_length", "axis"))
def dft(input, dft_length=None, axis=None, *, inverse=0, onesided=0):
    """The discrete Fourier transform along `axis`, by default the last but one; the last is (real,) or (real, imaginary). Float.

    The axis is cut or filled with zeros to `dft_length`. With `onesided`, the half of a real signal's spectrum, and back.

    https://onnx.ai/onnx/operators/onnx__DFT.html
    """
    (axis,) = normalize_axes((-2,) if axis is None else host_ints(axis), input.ndim)
    length = None if dft_length is None else host_ints(dft_length)[0]
    if onesided and inverse:
        return jnp.fft.irfft(_complex(input), length, axis)[..., None].astype(input.dtype)
    if not inverse and input.shape[-1] == 1:
        half = jnp.fft.rfft(_wide(input[..., 0]), length, axis)
        return _pairs(half if onesided else _mirrored(half, length or input.shape[axis], axis), input.dtype)
    transform = jnp.fft.ifft if inverse else jnp.fft.fft
    return _pairs(transform(_complex(input), length, axis), input.dtype)


@op("DFT", since=17, until=19, host=("dft_length",))
def dft_17(input, dft_length=None, *, axis=1, inverse=0, onesided=0):
    """As the later `dft`, with the axis as an attribute.

    https://onnx.ai/onnx/operators/onnx__DFT.html
    """
    return dft(input, dft_length, axis, inverse=inverse, onesided=onesided)


def _mirrored(half: Any, length: int, axis: int) -> Any:
    """The whole spectrum of a real signal: the other half is the conjugate, backwards."""
    rest = lax.slice_in_dim(half, 1, (length + 1) // 2, axis=axis)
    return jnp.concatenate((half, jnp.flip(rest.conj(), axis)), axis)


def _wide(x: Any) -> Any:
    return x if x.dtype.itemsize >= 4 else x.astype(jnp.float32)


def _complex(x: Any) -> Any:
    x = _wide(x)
    return lax.complex(x[..., 0], x[..., 1] if x.shape[-1] == 2 else jnp.zeros_like(x[..., 0]))


def _pairs(x: Any, dtype: Any) -> Any:
    return jnp.stack((x.real, x.imag), axis=-1).astype(dtype)


@op("STFT", since=17, host=("frame_step", "frame_length"))
def stft(signal, frame_step, window=None, frame_length=None, *, onesided=1):
    """The Fourier transform of each frame of a signal: (batch, time, 1 or 2) -> (batch, frames, frequencies, 2). Float.

    https://onnx.ai/onnx/operators/onnx__STFT.html
    """
    (step,) = host_ints(frame_step)
    size = signal.shape[1] if window is None else window.shape[0]
    length = size if frame_length is None else host_ints(frame_length)[0]
    starts = np.arange((signal.shape[1] - length) // step + 1) * step
    frames = signal[:, starts[:, None] + np.arange(length)]
    if window is not None:
        frames = frames * window[:, None]
    # Half of the spectrum of a complex signal does not tell the rest, but that is what ONNX Runtime gives, too.
    spectrum = dft(frames, onesided=0)
    return spectrum[:, :, : length // 2 + 1] if onesided else spectrum


@op(
    "MelWeightMatrix",
    since=17,
    host=("num_mel_bins", "dft_length", "sample_rate", "lower_edge_hertz", "upper_edge_hertz"),
    dtypes=("output_datatype",),
)
def mel_weight_matrix(
    num_mel_bins, dft_length, sample_rate, lower_edge_hertz, upper_edge_hertz, *, output_datatype=onnx.TensorProto.FLOAT
):
    """Triangular filters from a spectrum's frequencies to the mel scale -> (dft_length // 2 + 1, num_mel_bins), NumPy.

    https://onnx.ai/onnx/operators/onnx__MelWeightMatrix.html
    """
    (bins,), (length,), (rate,) = host_ints(num_mel_bins), host_ints(dft_length), host_ints(sample_rate)
    check_host_size(length // 2 + 1, bins)
    low, high = (2595 * np.log10(1 + host_ints(edge)[0] / 700) for edge in (lower_edge_hertz, upper_edge_hertz))
    # ONNX's own reference divides by the number of edges, not by that of the steps between them.
    mels = low + np.arange(bins + 2) * (high - low) / (bins + 2)
    edges = ((length + 1) * 700 * (10 ** (mels / 2595) - 1) // rate).astype(int)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    frequency = np.arange(length // 2 + 1)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        rising = (frequency - left) / (centre - left)
        falling = (right - frequency) / (right - centre)
    weights = np.where((left <= frequency) & (frequency <= centre), rising, 0)
    weights = np.where((centre < frequency) & (frequency < right), falling, weights)
    weights = np.where(frequency == centre, 1, weights)
    dtype = (
        onnx.helper.tensor_dtype_to_np_dtype(output_datatype) if isinstance(output_datatype, int) else output_datatype
    )
    return weights.astype(canonical_dtype(dtype))


@hookimpl
def onnxeqx_register_ops(registry):
    registry.add_module(__name__)
