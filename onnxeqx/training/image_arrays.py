"""Images in arrays: of any layout and dtype, in memory, mapped into it, or in records."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import PIL.Image

from .._errors import DataError
from .array_files import blocks
from .augment import Augmentation
from .images import Preprocessing

LARGEST = 1.1
"""Pixels in [0, 1] may exceed it by so much, as interpolation overshoots; a larger one is of a range up to 255."""


@dataclasses.dataclass(frozen=True)
class Pixels:
    """How images lie in an array.

    - `channels_first`: `(c, h, w)` instead of `(h, w)` or `(h, w, c)`.
    - `white`: what the brightest pixel is, of floating-point images: 1 or 255.
    - `normalised`: whether pixels are in no such range, and taken as they are.
    """

    channels_first: bool = False
    white: int = 1
    normalised: bool = False

    @classmethod
    def of(cls, origin: str, images: Any, preprocess: Preprocessing, *, as_in: Self | None = None) -> Self:
        """Finds out from all images; those that are not 8-bit are read once, block by block.

        **Arguments:**

        - `origin`: where they are, for people.
        - `images`: the array.
        - `preprocess`: tells, by the mean 0 and the deviation 1, that images are normalised.
        - `as_in`: of the training part, if it is of floating-point images: its range holds for this part, too.

        **Raises:** `DataError`, which names the image, if they are no images, or their pixels are in no known range.
        """
        shape = tuple(images.shape)
        channels_first = len(shape) == 4 and shape[3] not in (1, 3, 4) and shape[1] in (1, 3)
        if not (len(shape) == 3 or channels_first or (len(shape) == 4 and shape[3] in (1, 3, 4))):
            raise DataError(f"{origin}: images of shape {shape} are not (n, h, w), (n, h, w, c) or (n, c, h, w).")
        if not len(images):
            raise DataError(f"{origin} has no images.")
        low, high = _range(origin, images)
        if as_in is not None and images.dtype.kind == "f":
            if not as_in.normalised and not (low >= 0 and high <= LARGEST * as_in.white):
                raise DataError(
                    f"{origin}: pixels lie in [{low:g}, {high:g}], but those of the training part in [0, {as_in.white}]."
                )
            return dataclasses.replace(as_in, channels_first=channels_first)
        if low >= 0 and high <= 255:
            return cls(channels_first, 255 if images.dtype.kind != "f" or high > LARGEST else 1)
        if set(preprocess.mean) == {0.0} and set(preprocess.std) == {1.0} and images.dtype.kind == "f":
            return cls(channels_first, normalised=True)
        raise DataError(
            f"{origin}: pixels lie in [{low:g}, {high:g}], not in [0, 255] or [0, 1]; "
            "if they are normalised already, pass --mean 0 --std 1."
        )

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """One image of shape `(h, w)` or `(h, w, c)`, with pixels of 8 bits, or in [0, 1]."""
        image = np.moveaxis(image, 0, -1) if self.channels_first else image
        if np.issubdtype(image.dtype, np.integer):
            return image.astype(np.uint8)
        return image if self.white == 1 else image / np.asarray(self.white, image.dtype)


def _range(origin: str, images: Any) -> tuple[float, float]:
    """The least and the largest pixel.

    **Raises:** `DataError`, which names the image, if one is not finite, or no number.
    """
    if images.dtype == np.uint8:
        return 0, 255
    if not np.issubdtype(images.dtype, np.integer) and not np.issubdtype(images.dtype, np.floating):
        raise DataError(f"{origin}: images of dtype {images.dtype} are neither integers nor floating-point numbers.")
    low, high = math.inf, -math.inf
    for first, block in blocks(images):
        bad = np.flatnonzero(~np.isfinite(block).reshape(len(block), -1).all(1))
        if bad.size:
            raise DataError(f"{origin}: image {first + bad[0]} has values that are not finite.")
        low, high = min(low, float(block.min())), max(high, float(block.max()))
    return low, high


@dataclasses.dataclass(frozen=True)
class ImageArrays:
    """Examples from arrays in memory, memory maps or records.

    **Arguments:**

    - `images`: shape `(n, h, w)` or `(n, h, w, c)`, uint8, or floating with pixels in [0, 1]; others as `pixels` says.
    - `labels`: shape `(n,)`, or `(n, numbers)`.
    - `indices`: the examples that belong to this part.
    - `preprocess`: applied to each image.
    - `augment`: random changes to images that are drawn for training.
    - `pixels`: how the images lie in the array.
    """

    images: Any
    labels: np.ndarray
    indices: Sequence[int]
    preprocess: Preprocessing
    augment: Augmentation = dataclasses.field(default_factory=Augmentation)
    pixels: Pixels = dataclasses.field(default_factory=Pixels)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[np.ndarray, Any]:
        return self.preprocess(self._image(index)), self._label(index)

    def drawn(self, index: int, random: np.random.Generator) -> tuple[np.ndarray, Any]:
        """The example with its image augmented."""
        if not self.augment:
            return self[index]
        return self.preprocess(self.augment(self.picture(index), random)), self._label(index)

    def origin(self, index: int) -> str:
        """Where an example comes from, for people."""
        return f"image {self.indices[index]}"

    def picture(self, index: int) -> PIL.Image.Image:
        """The image with 8 bits for each channel."""
        image = self._image(index)
        if image.dtype != np.uint8:
            image = (np.clip(image, 0, 1) * 255).round().astype(np.uint8)
        return PIL.Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image)

    def _image(self, index: int) -> np.ndarray:
        return self.pixels(np.asarray(self.images[self.indices[index]]))

    def _label(self, index: int) -> Any:
        label = self.labels[self.indices[index]]
        return int(label) if np.ndim(label) == 0 else np.asarray(label, np.float32)
