"""Image decoding: formats and pixel formats, broken bytes, and Pillow missing."""

import builtins
import io

import jax
import jax.export
import numpy as np
import PIL.Image
import pytest

from onnxeqx.plugins.image_decoding import image_decoder

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8)


def encoded(image, name, **options):
    file = io.BytesIO()
    image.save(file, format=name, **options)
    return np.frombuffer(file.getvalue(), np.uint8)


@pytest.mark.parametrize(
    ("name", "options"),
    [("BMP", {}), ("JPEG2000", {}), ("TIFF", {}), ("PNG", {}), ("WEBP", {"lossless": True}), ("PPM", {})],
)
def test_lossless_formats(name, options):
    stream = encoded(PIL.Image.fromarray(PIXELS), name, **options)
    result = image_decoder(stream)
    assert (type(result), result.dtype) == (type(jax.numpy.ones(1)), np.uint8)
    np.testing.assert_array_equal(result, PIXELS)
    np.testing.assert_array_equal(image_decoder(stream, pixel_format="BGR"), PIXELS[..., ::-1])
    luma = PIXELS @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(image_decoder(stream, pixel_format="Grayscale")[..., 0], luma, atol=1)


def test_jpeg_is_close():
    smooth = np.broadcast_to(np.arange(0, 240, 8, np.uint8)[:, None, None], (30, 20, 3))
    result = image_decoder(encoded(PIL.Image.fromarray(smooth), "JPEG", quality=95))
    np.testing.assert_allclose(result.astype(np.int32), smooth, atol=4)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA"])
def test_the_pixel_format_decides_on_the_channels(mode):
    image = PIL.Image.fromarray(PIXELS).convert(mode)
    stream = encoded(image, "PNG")
    np.testing.assert_array_equal(image_decoder(stream), np.asarray(image.convert("RGB")))
    assert image_decoder(stream, pixel_format="Grayscale").shape == (6, 5, 1)


@pytest.mark.parametrize(
    "stream",
    [b"", b"no image", encoded(PIL.Image.fromarray(PIXELS), "PNG")[:60], encoded(PIL.Image.fromarray(PIXELS), "GIF")],
)
def test_other_bytes_give_no_pixels(stream):
    stream = np.frombuffer(stream, np.uint8)
    assert image_decoder(stream).shape == (0, 0, 3)
    assert image_decoder(stream, pixel_format="Grayscale").shape == (0, 0, 1)


def test_a_stream_that_is_known_while_tracing_is_a_constant():
    stream = encoded(PIL.Image.fromarray(PIXELS), "PNG")
    np.testing.assert_array_equal(jax.jit(lambda: image_decoder(tuple(stream.tolist())))(), PIXELS)
    program = jax.export.export(jax.jit(lambda: image_decoder(stream)), platforms=["tpu"])()
    assert program.out_avals[0].shape == (6, 5, 3)


def test_unknown_pixel_formats_are_refused():
    with pytest.raises(
        ValueError, match="no pixel_format 'HSV', only RGB, BGR, Grayscale; correct the node's attribute"
    ):
        image_decoder(PIXELS.reshape(-1), pixel_format="HSV")


def test_without_pillow_it_says_what_to_install(monkeypatch):
    imported = builtins.__import__

    def without_pillow(name, *args):
        if name == "PIL":
            raise ImportError(name)
        return imported(name, *args)

    monkeypatch.setattr(builtins, "__import__", without_pillow)
    with pytest.raises(ImportError, match="pip install pillow"):
        image_decoder(PIXELS.reshape(-1))
