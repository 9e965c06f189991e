"""A generative adversarial network whose two halves are ONNX graphs (https://arxiv.org/abs/1406.2661).

Generator and discriminator are written as ONNX, loaded, and trained against each other by two Optax optimisers on
scikit-learn's 8×8 digits; then the generator is saved as ONNX, and a grid of its digits as a PNG. The Fréchet distance between
pixels of real and generated digits (https://arxiv.org/abs/1706.08500, on pixels instead of Inception's features) compares means
and covariances: it is 0 for equal ones, and a generator that always draws the mean digit does not get it small.

usage: python examples/gan.py [--model GENERATOR.onnx] [--steps N] [--output FOLDER]
"""

import argparse
import itertools
import pathlib
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import onnx
import optax
import PIL.Image
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits

import onnxeqx

NOISE, PIXELS, BATCH = 32, 64, 128


def mlp(widths: Sequence[int], last: str, *, seed: int) -> onnx.ModelProto:
    """Linear layers with LeakyRelu between them and the operator `last` behind, He-initialised, as ONNX."""
    random, nodes, weights, value = np.random.default_rng(seed), [], [], "input"
    for i, (before, after) in enumerate(itertools.pairwise(widths)):
        weight = random.normal(0, np.sqrt(2 / before), (after, before)).astype(np.float32)
        weights += [numpy_helper.from_array(weight, f"layer{i}.weight")]
        weights += [numpy_helper.from_array(np.zeros(after, np.float32), f"layer{i}.bias")]
        nodes += [helper.make_node("Gemm", [value, f"layer{i}.weight", f"layer{i}.bias"], [f"linear{i}"], transB=1)]
        value = f"value{i}"
        nodes += [helper.make_node("LeakyRelu", [f"linear{i}"], [value], alpha=0.2)]
    nodes[-1] = helper.make_node(last, [f"linear{i}"], [value])
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width])
        for name, width in (("input", widths[0]), (value, widths[-1]))
    ]
    graph = helper.make_graph(nodes, "mlp", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def discriminator_loss(discriminator: Any, real: jax.Array, generated: jax.Array) -> jax.Array:
    logits = jnp.concatenate([discriminator(real), discriminator(generated)])
    # 0.9 instead of 1 for real images, so that the discriminator does not become too sure (arXiv:1606.03498).
    targets = jnp.concatenate([jnp.full((len(real), 1), 0.9), jnp.zeros((len(generated), 1))])
    return optax.sigmoid_binary_cross_entropy(logits, targets).mean()


def generator_loss(generator: Any, discriminator: Any, noise: jax.Array) -> jax.Array:
    return jax.nn.softplus(-discriminator(generator(noise))).mean()


OPTIMIZER = optax.adam(5e-4, b1=0.5)


@eqx.filter_jit
def step(models: tuple[Any, Any], states: tuple[Any, Any], real: jax.Array, key: jax.Array):
    """One step of the discriminator, then one of the generator."""
    (generator, discriminator), (generator_state, discriminator_state) = models, states
    first, second = jax.random.normal(key, (2, len(real), NOISE))
    grads = eqx.filter_grad(discriminator_loss)(discriminator, real, generator(first))
    updates, discriminator_state = OPTIMIZER.update(grads, discriminator_state)
    discriminator = eqx.apply_updates(discriminator, updates)
    grads = eqx.filter_grad(generator_loss)(generator, discriminator, second)
    updates, generator_state = OPTIMIZER.update(grads, generator_state)
    return (eqx.apply_updates(generator, updates), discriminator), (generator_state, discriminator_state)


def frechet_distance(real: np.ndarray, generated: np.ndarray) -> float:
    a, b = np.cov(real, rowvar=False), np.cov(generated, rowvar=False)
    means = np.sum((real.mean(0) - generated.mean(0)) ** 2)
    # The eigenvalues of the product of two covariances are not negative but for rounding.
    roots = np.sqrt(np.maximum(np.linalg.eigvals(a @ b).real, 0))
    return float(means + np.trace(a) + np.trace(b) - 2 * roots.sum())


def grid(images: np.ndarray, columns: int, scale: int = 4) -> PIL.Image.Image:
    rows = images.reshape(-1, columns, 8, 8).swapaxes(1, 2).reshape(-1, columns * 8)
    pixels = ((rows + 1) * 127.5).round().astype(np.uint8)
    return PIL.Image.fromarray(pixels).resize((columns * 8 * scale, len(rows) * scale), PIL.Image.Resampling.NEAREST)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, help="a generator to go on with: (batch, 32) to (batch, 64)")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/gan"))
    parser.add_argument("--short", action="store_true", help="fewer steps, for a quick look")
    options = parser.parse_args()

    digits = (np.asarray(load_digits(return_X_y=True)[0]) / 8 - 1).astype(np.float32)  # in [-1, 1]
    fresh = mlp([NOISE, 256, 256, PIXELS], "Tanh", seed=0)
    generator = onnxeqx.load(options.model) if options.model else onnxeqx.load_model(fresh)
    discriminator = onnxeqx.load_model(mlp([PIXELS, 256, 128, 1], "Identity", seed=1))

    noise_key, steps_key = jax.random.split(jax.random.key(1))
    noise = jax.random.normal(noise_key, (len(digits), NOISE))
    before = frechet_distance(digits, np.asarray(generator(noise)))
    models = (generator, discriminator)
    states: Any = tuple(OPTIMIZER.init(eqx.filter(model, eqx.is_inexact_array)) for model in models)
    random = np.random.default_rng(0)
    for number in range(1000 if options.short else options.steps):
        real = jnp.asarray(digits[random.integers(len(digits), size=BATCH)])
        models, states = step(models, states, real, jax.random.fold_in(steps_key, number))
    generator, discriminator = models
    generated = np.asarray(generator(noise))
    told = float(jnp.mean(discriminator(digits) > 0) + jnp.mean(discriminator(generated) < 0)) / 2
    print(f"Fréchet distance to the real digits: {before:.2f} before, {frechet_distance(digits, generated):.2f} after.")
    print(f"The discriminator tells real from generated in {told:.3f} of cases; 0.5 is chance.")

    options.output.mkdir(parents=True, exist_ok=True)
    grid(generated[:64], columns=16).save(options.output / "digits.png")
    onnxeqx.save_onnx(generator, options.output / "generator.onnx")


if __name__ == "__main__":
    main()
