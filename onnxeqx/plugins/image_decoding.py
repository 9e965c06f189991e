"""Images from the bytes of their files."""

import io
from typing import Any

import jax.numpy as jnp
import numpy as np

from .._registry import op
from .hookspecs import hookimpl

# The formats that ONNX names; Pillow would try many more on bytes that come from anywhere.
_FORMATS = ("BMP", "JPEG", "JPEG2000", "TIFF", "PNG", "WEBP", "PPM")
_MODES = {"RGB": "RGB", "BGR": "RGB", "Grayscale": "L"}


@op("ImageDecoder", since=20, host=("encoded_stream",))
def image_decoder(encoded_stream, *, pixel_format="RGB"):
    """The pixels of a BMP, JPEG, JPEG 2000, TIFF, PNG, WebP or PNM file. (bytes,), uint8 -> (h, w, channels), uint8.

    Bytes that are no such image give an image without pixels, as ONNX has it. Needs Pillow.

    https://onnx.ai/onnx/operators/onnx__ImageDecoder.html
    """
    if pixel_format not in _MODES:
        raise ValueError(
            f"ImageDecoder has no pixel_format {pixel_format!r}, only {', '.join(_MODES)}; correct the node's attribute."
        )
    pixels = _decoded(np.asarray(encoded_stream, np.uint8).tobytes(), _MODES[pixel_format])
    return jnp.asarray(pixels[..., ::-1] if pixel_format == "BGR" else pixels)


def _decoded(data: bytes, mode: str) -> np.ndarray:
    image_module = _pillow()
    try:
        with image_module.open(io.BytesIO(data), formats=_FORMATS) as image:
            pixels = np.asarray(image.convert(mode))
    except (OSError, SyntaxError, ValueError):  # Pillow's, for broken files
        pixels = np.zeros((0, 0, len(mode)), np.uint8)
    return pixels.reshape(*pixels.shape[:2], len(mode))


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            "ImageDecoder decodes with Pillow, which is not installed; run: pip install pillow"
        ) from error
    return Image


@hookimpl
def onnxeqx_register_ops(registry) -> None:
    registry.add_module(__name__)
