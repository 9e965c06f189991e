"""Neural style transfer: the content of one photograph, painted in the style of another (https://arxiv.org/abs/1508.06576).

Nothing of the network is trained: the *image* is. Features come from inside EfficientNet-Lite0, which `onnxeqx.load` cuts at the
blocks named in `outputs=`; a style is the correlations of features over positions. Both photographs are scikit-learn's.

usage: python examples/style_transfer.py [--content A.jpg --style B.jpg] [--model NET.onnx] [--steps N] [--output FOLDER]
"""

import argparse
import pathlib
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import PIL.Image
from sklearn.datasets import load_sample_image

import onnxeqx

NETWORK = pathlib.Path(__file__).parent / "efficientnet_lite0.onnx"
LAYERS = ("_conv_stem", "_blocks.0", "_blocks.2", "_blocks.4")  # key paths, as `onnxeqx inspect` shows them
CONTENT_LAYER = -1
STYLE_WEIGHT, SMOOTHNESS = 100.0, 20.0


def photograph(path: pathlib.Path | None, sample: str, size: int) -> jax.Array:
    """A photograph of this height in [0, 1], shape `(1, 3, height, width)`."""
    image = PIL.Image.open(path).convert("RGB") if path else PIL.Image.fromarray(load_sample_image(sample))
    width = round(image.width * size / image.height)
    pixels = np.asarray(image.resize((width, size), PIL.Image.Resampling.LANCZOS), np.float32) / 255
    return jnp.asarray(pixels.transpose(2, 0, 1)[None])


def features(network: Any, image: jax.Array) -> Sequence[jax.Array]:
    return network((image * 255 - 127) / 128)  # how EfficientNet-Lite0 was trained


def gram(feature: jax.Array) -> jax.Array:
    """How strongly any two channels appear together, wherever that is; shape `(channels, channels)`."""
    flat = feature.reshape(feature.shape[1], -1)
    return flat @ flat.T / flat.shape[1]


def variation(image: jax.Array) -> jax.Array:
    """How much neighbouring pixels differ."""
    return jnp.mean(jnp.diff(image, axis=2) ** 2) + jnp.mean(jnp.diff(image, axis=3) ** 2)


def relative_error(value: jax.Array, target: jax.Array) -> jax.Array:
    """Squared, so that layers with large features count no more than others."""
    return jnp.sum((value - target) ** 2) / jnp.sum(target**2)


def paint(network: Any, content: jax.Array, style: jax.Array, *, steps: int) -> tuple[jax.Array, list[float]]:
    """The painted image, and the loss at each step."""
    wanted = features(network, content)[CONTENT_LAYER]
    grams = [gram(feature) for feature in features(network, style)]
    optimizer = optax.adam(optax.cosine_decay_schedule(0.03, steps))

    def loss(image: jax.Array) -> jax.Array:
        seen = features(network, image)
        style_error = sum(relative_error(gram(a), b) for a, b in zip(seen, grams, strict=True)) / len(grams)
        content_error = relative_error(seen[CONTENT_LAYER], wanted)
        return content_error + STYLE_WEIGHT * style_error + SMOOTHNESS * variation(image)

    @eqx.filter_jit
    def step(image, state):
        value, gradient = jax.value_and_grad(loss)(image)
        updates, state = optimizer.update(gradient, state)
        return jnp.clip(image + updates, 0, 1), state, value

    image, state, losses = content, optimizer.init(content), []
    for _ in range(steps):
        image, state, value = step(image, state)
        losses.append(float(value))
    return image, losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--content", type=pathlib.Path, help="an image; by default a Chinese temple")
    parser.add_argument("--style", type=pathlib.Path, help="an image; by default a flower")
    parser.add_argument("--model", type=pathlib.Path, default=NETWORK, help="a network of this structure")
    parser.add_argument("--size", type=int, default=256, help="height of the image in pixels")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/style"))
    parser.add_argument("--short", action="store_true", help="a small image and few steps, for a quick look")
    options = parser.parse_args()
    size, steps = (64, 20) if options.short else (options.size, options.steps)

    # The file says 224 × 224; None frees height and width.
    network = onnxeqx.load(options.model, input_shapes={"input": ("batch", 3, None, None)}, outputs=LAYERS)
    content = photograph(options.content, "china.jpg", size)
    style = photograph(options.style, "flower.jpg", size)
    image, losses = paint(network, content, style, steps=steps)
    print(f"Loss: {losses[0]:.3f} before, {losses[-1]:.3f} after {steps} steps.")

    options.output.mkdir(parents=True, exist_ok=True)
    pixels = (np.asarray(image[0]).transpose(1, 2, 0) * 255).round().astype(np.uint8)
    PIL.Image.fromarray(pixels).save(options.output / "painted.png")


if __name__ == "__main__":
    main()
