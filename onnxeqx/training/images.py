"""Images as examples: decoded with Pillow, resized, normalised, channels first; those in arrays are in `image_arrays`."""

import dataclasses
import io
import pathlib
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
from jaxtyping import Float

from .._errors import DataError
from .augment import Augmentation, in_8_bits
from .errors import ConfigError

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """From an image to the network's input. Saved beside the fine-tuned model, which needs the same.

    **Arguments:**

    - `height`, `width`: the image is resized to them (bilinear, its aspect ratio not kept).
    - `channels`: 3 (grey images are repeated) or 1 (colour images are turned grey).
    - `mean`, `std`: one value, or one for each channel; for pixels in [0, 1].

    **Raises:** `ConfigError` if the number of channels, means or deviations does not fit.
    """

    height: int
    width: int
    channels: int = 3
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __post_init__(self):
        if self.channels not in (1, 3):
            raise ConfigError(f"The model takes {self.channels} channels; images have 1 or 3.")
        for name in ("mean", "std"):
            count = len(getattr(self, name))
            if count not in (1, self.channels):
                raise ConfigError(
                    f"--{name} has {count} values, but must have 1 or {self.channels}, one for each channel."
                )

    @staticmethod
    def unit_range(mean: Sequence[float], std: Sequence[float]) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and deviation for pixels in [0, 1]; if any value is above 1, they were meant for [0, 255]."""
        scale = 255.0 if max(map(abs, (*mean, *std))) > 1 else 1.0
        return tuple(value / scale for value in mean), tuple(value / scale for value in std)

    def __call__(self, image: PIL.Image.Image | np.ndarray) -> Float[np.ndarray, "channels height width"]:
        """One image, normalised.

        **Arguments:**

        - `image`: a Pillow image of any mode, or an array of shape `(h, w)` or `(h, w, c)`: uint8, or floating with
          pixels in [0, 1] (or in whatever range mean and deviation are for).

        **Returns:** shape `(channels, height, width)`, float32.
        """
        if isinstance(image, np.ndarray) and image.dtype != np.uint8:
            pixels = self._resized_floats(image)
        else:
            if isinstance(image, np.ndarray):
                image = PIL.Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image)
            pixels = np.asarray(self._resized(image), np.float32) / 255
        pixels = pixels.reshape(self.height, self.width, self.channels)
        normalised = (pixels - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        return np.ascontiguousarray(normalised.transpose(2, 0, 1), np.float32)

    def _resized(self, image: PIL.Image.Image) -> PIL.Image.Image:
        image = in_8_bits(image).convert("RGB" if self.channels == 3 else "L")
        return image.resize((self.width, self.height), PIL.Image.Resampling.BILINEAR)

    def _resized_floats(self, image: np.ndarray) -> np.ndarray:
        planes = image.reshape(*image.shape[:2], -1).astype(np.float32)[..., :3]
        if planes.shape[-1] != self.channels:
            planes = np.repeat(planes, 3, -1) if self.channels == 3 else planes.mean(-1, keepdims=True)
        size = (self.width, self.height)
        resized = [
            PIL.Image.fromarray(np.ascontiguousarray(plane)).resize(size, PIL.Image.Resampling.BILINEAR)
            for plane in np.moveaxis(planes, -1, 0)
        ]
        return np.stack([np.asarray(plane) for plane in resized], -1)


@dataclasses.dataclass(frozen=True)
class EncodedImage:
    """The content of an image file that is no file, such as those in a Hugging Face data set; `origin` is for people."""

    content: bytes
    origin: str

    def __str__(self) -> str:
        return self.origin


@dataclasses.dataclass(frozen=True)
class ImageFiles:
    """Examples from image files, decoded when they are asked for, and augmented when they are drawn for training.

    `examples[index]` raises `DataError`, which names the file, if an image cannot be decoded.
    """

    paths: Sequence[pathlib.Path | EncodedImage]
    labels: Sequence[Any]
    preprocess: Preprocessing
    augment: Augmentation = dataclasses.field(default_factory=Augmentation)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[np.ndarray, Any]:
        return self.preprocess(self.picture(index)), self.labels[index]

    def drawn(self, index: int, random: np.random.Generator) -> tuple[np.ndarray, Any]:
        """The example with its image augmented."""
        picture = self.picture(index)
        return self.preprocess(self.augment(picture, random) if self.augment else picture), self.labels[index]

    def origin(self, index: int) -> str:
        """Where an example comes from, for people."""
        return str(self.paths[index])

    def picture(self, index: int) -> PIL.Image.Image:
        """The decoded image, as it stands in the file.

        **Raises:** `DataError`, which names the file, if it cannot be decoded.
        """
        path = self.paths[index]
        try:
            with PIL.Image.open(io.BytesIO(path.content) if isinstance(path, EncodedImage) else path) as image:
                upright = PIL.ImageOps.exif_transpose(image)
                upright.load()
        # Pillow's decoders raise SyntaxError, ValueError and struct.error, besides OSError, on damaged files.
        except (OSError, SyntaxError, ValueError, struct.error, PIL.Image.DecompressionBombError) as error:
            raise DataError(f"The image {path} cannot be decoded: {error}; repair or remove it.") from error
        if upright.mode == "F":
            raise DataError(
                f"The image {path} has floating-point pixels, whose range nothing says; write it with 8 or 16 bits."
            )
        return upright
