"""Transfer learning: a network loses its head, gets a new one, and learns handwritten digits with `onnxeqx.training.fit`.

usage: python examples/transfer_learning.py --network resnet50|squeezenet|densenet121|inception_v1
       python examples/transfer_learning.py --model resnet50-v1-7.onnx --features NAME --lr 1e-4

`--network` takes a file of the onnx package, which has the structure of the published network but *no trained weights*: each is
one constant. Here they are drawn freshly, so that this shows that the network trains, not what pre-training brings. For that,
give a trained file by `--model`, and by `--features` the key path or ONNX name of what its last pooling reads.
"""

import argparse
import pathlib
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import onnx
from jaxtyping import Array, Float, PRNGKeyArray
from sklearn.datasets import load_digits

import onnxeqx
from onnxeqx.training import Data, EpochDone, Event, ImageArrays, Preprocessing, fit, hold_out, optimizer, warmup_cosine

LIGHT = pathlib.Path(onnx.__file__).parent / "backend/test/data/light"
# What the last pooling of each network reads: everything behind it is the old head.
FEATURES = {"resnet50": "stage4", "squeezenet": "stage3", "densenet121": "r907", "inception_v1": "stage3"}


class Classifier(eqx.Module):
    """Logits from the mean of a network's last feature maps, whatever their size."""

    features: Any
    head: eqx.nn.Linear

    def __init__(self, features: Any, classes: int, *, size: int, key: PRNGKeyArray):
        image = jax.ShapeDtypeStruct((1, 3, size, size), jnp.float32)
        channels = eqx.filter_eval_shape(features, image).shape[1]
        self.features = features
        self.head = eqx.nn.Linear(channels, classes, key=key)

    def __call__(self, images: Float[Array, "batch 3 height width"]) -> Float[Array, "batch classes"]:
        return jax.vmap(self.head)(self.features(images).mean((2, 3)))


def load_features(path: pathlib.Path, features: str) -> Any:
    """The network without its head, for images of any number and size."""
    graph = onnx.load(path, load_external_data=False).graph
    stored = {tensor.name for tensor in graph.initializer}
    image = next(value.name for value in graph.input if value.name not in stored)
    return onnxeqx.load(path, input_shapes={image: ("batch", 3, None, None)}, outputs=[features])


def drawn(model: Any, key: PRNGKeyArray) -> Any:
    """The model with fresh weights (https://arxiv.org/abs/1502.01852); its normalisations are the identity.

    The last normalisation of a residual block starts at zero, so that the block does (https://arxiv.org/abs/1706.02677): the
    statistics are not trained, and would not hold the growth of sixteen blocks.
    """
    keys = iter(jax.random.split(key, len(jax.tree.leaves(model))))
    initial = jax.nn.initializers.he_normal(in_axis=1, out_axis=0)

    def fresh(path: Any, leaf: Any) -> Any:
        *_, layer, name = ["", *jtu.keystr(path, simple=True, separator=".").split(".")]
        if isinstance(leaf, onnxeqx.nn.Buffer):
            return onnxeqx.nn.Buffer(jnp.full(leaf.shape, float(name == "running_var")))
        if leaf.ndim in (2, 4):
            return initial(next(keys), leaf.shape, leaf.dtype)
        scale = name.startswith(("weight", "mul")) and layer != "norm3"
        return jnp.full(leaf.shape, float(scale), leaf.dtype)

    return jtu.tree_map_with_path(fresh, model, is_leaf=lambda node: isinstance(node, onnxeqx.nn.Buffer))


def digits(size: int, batch_size: int, limit: int | None) -> Data:
    """Scikit-learn's 8×8 digits as colour images of this size, normalised as for ImageNet; a fifth of them held out."""
    images, labels = (np.asarray(array)[:limit] for array in load_digits(return_X_y=True))
    images = images.reshape(-1, 8, 8) / 16
    preprocess = Preprocessing(size, size, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    training, held_out = (
        ImageArrays(images, labels, part, preprocess) for part in hold_out(labels.tolist(), 0.2, seed=0)
    )
    return Data(training, held_out, batch_size)


def show(event: Event) -> None:
    if isinstance(event, EpochDone):
        print(f"Epoch {event.epoch}: accuracy {event.row['val_accuracy']:.3f} on the held-out images", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=FEATURES, default="squeezenet")
    parser.add_argument("--model", type=pathlib.Path, help="an ONNX file with trained weights, instead of --network")
    parser.add_argument("--features", help="what the last pooling of --model reads")
    parser.add_argument(
        "--size", type=int, default=64, help="height and width of the images; GoogLeNet takes 64 and more"
    )
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1e-3, help="for trained weights rather 1e-4")
    parser.add_argument("--short", action="store_true", help="fewer images and epochs, for a quick look")
    options = parser.parse_args()
    if options.model and not options.features:
        parser.error("--model needs --features, the name of what its last pooling reads; onnxeqx inspect lists names")
    limit, batch_size, epochs = (360, 16, 5) if options.short else (None, 32, options.epochs)

    if options.model:
        features = load_features(options.model, options.features)
    else:
        print(f"The weights of this {options.network} are freshly drawn, not trained: give a trained file by --model.")
        file = LIGHT / f"light_{options.network}.onnx"
        features = drawn(load_features(file, FEATURES[options.network]), jax.random.key(0))
    model = Classifier(features, 10, size=options.size, key=jax.random.key(1))
    data = digits(options.size, batch_size, limit)
    rate = warmup_cosine(options.lr, steps=data.steps * epochs, warmup_steps=data.steps)
    _, history = fit(model, data, optimizer=optimizer("adamw", rate, clip_grad=1.0), epochs=epochs, callbacks=[show])
    before, after = (row["val_accuracy"] for row in (history[0], history[-1]))
    print(f"Accuracy on the held-out images: {before:.3f} before, {after:.3f} after.")


if __name__ == "__main__":
    main()
