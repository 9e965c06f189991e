"""A small network and small data, shared by the tests of training."""

import equinox as eqx
import jax
import numpy as np
import pytest

from onnxeqx import nn
from onnxeqx.runtime import over_batch
from onnxeqx.training import Data

from .tiny import write_tiny


class Net(eqx.Module):
    """A batched classifier as the importer prints them: layers, a buffer, a head."""

    conv: eqx.nn.Conv2d
    scale: nn.Buffer
    hidden: eqx.nn.Linear
    head: eqx.nn.Linear

    def __init__(self, classes: int = 3):
        keys = jax.random.split(jax.random.key(0), 3)
        self.conv = eqx.nn.Conv2d(3, 4, 3, key=keys[0])
        self.scale = nn.Buffer(np.full(4, 2.0, np.float32))
        self.hidden = eqx.nn.Linear(4, 8, key=keys[1])
        self.head = eqx.nn.Linear(8, classes, key=keys[2])

    def __call__(self, x):
        x = jax.nn.relu(over_batch(self.conv, x, core_ndim=3)).mean((2, 3)) * self.scale.value
        return over_batch(self.head, jax.nn.relu(over_batch(self.hidden, x, core_ndim=1)), core_ndim=1)


class Arrays:
    """Examples in memory."""

    def __init__(self, inputs, labels):
        self.inputs, self.labels = inputs, labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.inputs[index], int(self.labels[index])


def colours(count: int, seed: int, classes: int = 3) -> Arrays:
    """Images whose class is their brightest channel: learnt within a few steps."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    images = random.normal(size=(count, 3, 6, 6)).astype(np.float32) * 0.3
    images[np.arange(count), labels] += 1
    return Arrays(images, labels)


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory):
    """Whole runs of the same small network compile the same few programs again and again: once for each worker is enough.

    Other processes do not share it, as a killed one may leave half an entry.
    """
    folder = tmp_path_factory.mktemp("compilation_cache")
    before = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    yield folder
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", before)


@pytest.fixture
def net() -> Net:
    return Net()


@pytest.fixture
def data() -> Data:
    # 20 and 7 do not divide by 8: the last batch of both parts is padded.
    return Data(colours(20, seed=1), colours(7, seed=2), batch_size=8, seed=0)


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """The network, and 60 + 15 images of three classes."""
    folder = tmp_path_factory.mktemp("files")
    write_tiny(folder / "net.onnx")
    arrays = {}
    for part, count in (("train", 60), ("test", 15)):
        images = colours(count, seed=count)
        pixels = np.clip(images.inputs.transpose(0, 2, 3, 1) * 80 + 100, 0, 255).astype(np.uint8)
        arrays |= {f"x_{part}": pixels, f"y_{part}": images.labels}
    np.savez(folder / "data.npz", **arrays)
    return folder
