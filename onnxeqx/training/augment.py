"""Random changes on the host: to single training images, with Pillow, and mixtures of the images of a batch."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import PIL.ImageEnhance
import PIL.ImageOps
from jaxtyping import Array, Bool, Float

from .errors import ConfigError
from .losses import Values
from .options import require

CROP_ATTEMPTS = 10
CROP_ASPECTS = (3 / 4, 4 / 3)
MAX_MAGNITUDE = 10


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Random changes to a training image, in the order of the arguments; by default there are none.

    **Arguments:**

    - `crop_scale`: crops to a share of the area that is uniform in [`crop_scale`, 1], of an aspect ratio (width by height)
      that is log-uniform in [3/4, 4/3] (https://arxiv.org/abs/1409.4842). The crop is not resized. After ten that do not
      fit into the image, it stays whole.
    - `flip`: the probability of a horizontal flip.
    - `color_jitter`: brightness, contrast and saturation are scaled, in random order, each by a factor that is uniform in
      [max(0, 1 - `color_jitter`), 1 + `color_jitter`].
    - `rand_augment`: how many operations of RandAugment (https://arxiv.org/abs/1909.13719), each drawn from all 14, and
      their magnitude, 0 to 10.

    **Raises:** `ConfigError` if a value is outside its range.
    """

    crop_scale: float | None = None
    flip: float = 0.0
    color_jitter: float = 0.0
    rand_augment: tuple[int, int] | None = None

    def __post_init__(self):
        scale, flip, jitter, chosen = dataclasses.astuple(self)
        require(scale is None or 0 < scale <= 1, "crop_scale", scale, "above 0 and at most 1")
        require(0 <= flip <= 1, "flip", flip, "between 0 and 1")
        require(0 <= jitter < math.inf, "color_jitter", jitter, "0 or above, and finite")
        require(
            chosen is None or (len(chosen) == 2 and chosen[0] >= 1 and 0 <= chosen[1] <= MAX_MAGNITUDE),
            "rand_augment",
            chosen and ",".join(map(str, chosen)),
            f"at least one operation, and a magnitude from 0 to {MAX_MAGNITUDE}",
        )

    def __bool__(self) -> bool:
        """Whether anything is changed."""
        return self != Augmentation()

    def __call__(self, image: PIL.Image.Image, random: np.random.Generator) -> PIL.Image.Image:
        """The image, changed; the same state of `random` gives the same result.

        **Arguments:**

        - `image`: of any mode; it is left as it is.
        - `random`: where the changes are drawn from.

        **Returns:** an image of mode L if it was grey with 8 or 16 bits, else RGB.
        """
        image = in_8_bits(image)
        if self.crop_scale is not None:
            image = _cropped(image, self.crop_scale, random)
        if random.random() < self.flip:
            image = PIL.ImageOps.mirror(image)
        if self.color_jitter:
            image = _jittered(image, self.color_jitter, random)
        if self.rand_augment is not None:
            image = _rand_augmented(image, *self.rand_augment, random)
        return image


def in_8_bits(image: PIL.Image.Image) -> PIL.Image.Image:
    """The image in mode L if it is grey with 8 or 16 bits, else in RGB."""
    if image.mode.startswith("I"):  # 16-bit grey: Pillow's conversion would clip instead of scale
        pixels = np.asarray(image).astype(np.uint32)
        shift = 8 if image.mode.startswith("I;16") or pixels.max(initial=0) > 255 else 0
        return PIL.Image.fromarray((pixels >> shift).clip(0, 255).astype(np.uint8))
    return image if image.mode in ("L", "RGB") else image.convert("RGB")


def _cropped(image: PIL.Image.Image, least: float, random: np.random.Generator) -> PIL.Image.Image:
    low, high = map(math.log, CROP_ASPECTS)
    for _ in range(CROP_ATTEMPTS):
        area = random.uniform(least, 1) * image.width * image.height
        aspect = math.exp(random.uniform(low, high))
        width, height = (max(round(math.sqrt(size)), 1) for size in (area * aspect, area / aspect))
        if width <= image.width and height <= image.height:
            left = int(random.integers(image.width - width + 1))
            top = int(random.integers(image.height - height + 1))
            return image.crop((left, top, left + width, top + height))
    return image


def _jittered(image: PIL.Image.Image, strength: float, random: np.random.Generator) -> PIL.Image.Image:
    enhancers = (PIL.ImageEnhance.Brightness, PIL.ImageEnhance.Contrast, PIL.ImageEnhance.Color)
    for index in random.permutation(len(enhancers)):
        image = enhancers[index](image).enhance(random.uniform(max(0, 1 - strength), 1 + strength))
    return image


# --- RandAugment ------------------------------------------------------------------------------------------------------


class Operation(NamedTuple):
    """One of RandAugment's operations.

    - `apply`: from an image and a strength to an image; at strength 0, those that use it change nothing.
    - `signed`: whether the strength lies in [-1, 1], with a random sign; otherwise it lies in [0, 1].
    """

    apply: Callable[[PIL.Image.Image, float], PIL.Image.Image]
    signed: bool = False


def _enhancement(enhancer: Callable[[PIL.Image.Image], Any]) -> Operation:
    return Operation(lambda image, strength: enhancer(image).enhance(1 + 0.9 * strength), signed=True)


def _affine(matrix: Callable[[PIL.Image.Image, float], tuple[float, ...]]) -> Operation:
    def apply(image: PIL.Image.Image, strength: float) -> PIL.Image.Image:
        return image.transform(
            image.size,
            PIL.Image.Transform.AFFINE,
            matrix(image, strength),
            PIL.Image.Resampling.BILINEAR,
            fillcolor="gray",
        )

    return Operation(apply, signed=True)


def _rotated(image: PIL.Image.Image, strength: float) -> PIL.Image.Image:
    return image.rotate(30 * strength, PIL.Image.Resampling.BILINEAR, fillcolor="gray")


# Ranges as in AutoAugment (https://arxiv.org/abs/1805.09501), which moves images of 331 pixels by up to 150.
LONGEST_MOVE = 150 / 331
OPERATIONS: Mapping[str, Operation] = {
    "identity": Operation(lambda image, _: image),
    "auto-contrast": Operation(lambda image, _: PIL.ImageOps.autocontrast(image)),
    "equalize": Operation(lambda image, _: PIL.ImageOps.equalize(image)),
    "rotate": Operation(_rotated, signed=True),
    "solarize": Operation(lambda image, strength: PIL.ImageOps.solarize(image, round(256 * (1 - strength)))),
    "color": _enhancement(PIL.ImageEnhance.Color),
    "posterize": Operation(lambda image, strength: PIL.ImageOps.posterize(image, 8 - round(4 * strength))),
    "contrast": _enhancement(PIL.ImageEnhance.Contrast),
    "brightness": _enhancement(PIL.ImageEnhance.Brightness),
    "sharpness": _enhancement(PIL.ImageEnhance.Sharpness),
    "shear-x": _affine(lambda _, strength: (1, 0.3 * strength, 0, 0, 1, 0)),
    "shear-y": _affine(lambda _, strength: (1, 0, 0, 0.3 * strength, 1, 0)),
    "translate-x": _affine(lambda image, strength: (1, 0, LONGEST_MOVE * strength * image.width, 0, 1, 0)),
    "translate-y": _affine(lambda image, strength: (1, 0, 0, 0, 1, LONGEST_MOVE * strength * image.height)),
}


def _rand_augmented(image: PIL.Image.Image, count: int, magnitude: int, random: np.random.Generator) -> PIL.Image.Image:
    operations = tuple(OPERATIONS.values())
    for index in random.integers(len(operations), size=count):
        apply, signed = operations[index]
        sign = random.choice((-1, 1)) if signed else 1
        image = apply(image, float(sign * magnitude / MAX_MAGNITUDE))
    return image


# --- mixtures ---------------------------------------------------------------------------------------------------------


class MixedLabels(NamedTuple):
    """Labels of a batch in which each example is mixed with another one.

    - `first`: the labels of the examples.
    - `second`: those of the examples mixed in.
    - `share`: how much `first` counts, shape `(batch,)`, float32 in [0, 1]; `second` counts the rest.
    """

    first: Any
    second: Any
    share: Any


@dataclasses.dataclass(frozen=True)
class Mixing:
    """Mixes the images of a batch with one another; if both are on, each batch takes one of the two, by an even chance.

    Each example has a share of its own, from the distribution Beta(alpha, alpha).

    **Arguments:**

    - `mixup`: the alpha of mixup (https://arxiv.org/abs/1710.09412), which blends images; 0 is off.
    - `cutmix`: the alpha of CutMix (https://arxiv.org/abs/1905.04899), which pastes a box of another image; 0 is off.

    **Raises:** `ConfigError` if an alpha is negative or infinite.
    """

    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self):
        for name, alpha in dataclasses.asdict(self).items():
            require(0 <= alpha < math.inf, name, alpha, "0 or above, and finite")

    def __bool__(self) -> bool:
        """Whether anything is mixed."""
        return self != Mixing()

    def __call__(
        self,
        inputs: Float[np.ndarray, "batch channels height width"],
        labels: Any,
        valid: Bool[np.ndarray, " batch"],
        random: np.random.Generator,
    ) -> tuple[Float[np.ndarray, "batch channels height width"], MixedLabels]:
        """A mixed batch; the same state of `random` gives the same one.

        **Arguments:**

        - `inputs`: images, shape `(batch, channels, height, width)`; they are left as they are.
        - `labels`: an array whose first axis is the batch, or a tuple or a mapping of several.
        - `valid`: shape `(batch,)`, False for padding, which is mixed with nothing.
        - `random`: where pairs and shares are drawn from.

        **Returns:** the images, of shape and dtype as before, and their labels.

        **Raises:** `ConfigError` if the inputs are no batch of images.
        """
        if not isinstance(inputs, np.ndarray) or inputs.ndim != 4:
            raise ConfigError(
                "--mixup and --cutmix are of images, in one array of shape (batch, channels, height, width), which this "
                "training does not take; leave them out."
            )
        methods = [(alpha, mix) for alpha, mix in ((self.mixup, _blended), (self.cutmix, _pasted)) if alpha]
        if not methods:
            return inputs, MixedLabels(labels, labels, np.ones(len(inputs), np.float32))
        alpha, mix = methods[random.integers(len(methods))]
        rows = np.flatnonzero(valid)
        partners, shares = np.arange(len(inputs)), np.ones(len(inputs), np.float32)
        partners[rows], shares[rows] = random.permutation(rows), random.beta(alpha, alpha, len(rows))
        mixed, shares = mix(inputs, inputs[partners], shares, random)
        return mixed, MixedLabels(labels, jax.tree.map(lambda values: values[partners], labels), shares)


def _blended(
    first: np.ndarray, second: np.ndarray, shares: np.ndarray, _: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    weights = shares[:, None, None, None]
    blended = weights * first + (1 - weights) * second
    whole = np.issubdtype(first.dtype, np.integer)
    return (np.rint(blended) if whole else blended).astype(first.dtype), shares


def _pasted(
    first: np.ndarray, second: np.ndarray, shares: np.ndarray, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    sides = np.sqrt(1 - shares)
    rows, columns = (_spans(sides, length, random) for length in first.shape[2:])
    inside = rows[:, None, :, None] & columns[:, None, None, :]
    # A box that reaches over the edge is cut off there, so its area is known only now.
    kept = (1 - inside.mean((1, 2, 3))).astype(np.float32)
    return np.where(inside, second, first), kept


def _spans(sides: np.ndarray, length: int, random: np.random.Generator) -> Bool[np.ndarray, "batch length"]:
    """Which positions lie in a span of so much of the length, about a random position; one span for each of `sides`."""
    spans = (sides * length).astype(int)
    starts = random.integers(length, size=len(sides)) - spans // 2
    offsets = np.arange(length) - starts[:, None]
    return (offsets >= 0) & (offsets < spans[:, None])


def of_mixed(function: Values) -> Values:
    """A loss that takes `MixedLabels` too: the losses for both labels, each times its share.

    **Arguments:**

    - `function`: takes outputs and labels of a batch, and gives one value for each example.

    **Returns:** a loss with the same arguments and result; labels that are not mixed reach `function` as they are.
    """

    def mixed(outputs: Any, labels: Any) -> Float[Array, " batch"]:
        if not isinstance(labels, MixedLabels):
            return function(outputs, labels)
        first, second, share = labels
        return share * function(outputs, first) + (1 - share) * function(outputs, second)

    return mixed


def of_main(function: Values) -> Values:
    """A metric that takes `MixedLabels` too: it is of the label with the larger share, of the first if both are equal.

    Arguments and result as of `of_mixed`.
    """

    def main(outputs: Any, labels: Any) -> Float[Array, " batch"]:
        if not isinstance(labels, MixedLabels):
            return function(outputs, labels)
        first, second, share = labels
        chosen = functools.partial(jax.vmap(jnp.where), share >= 0.5)
        return function(outputs, jax.tree.map(chosen, first, second))

    return main
