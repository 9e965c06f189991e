"""The same run on one device and on eight."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from onnxeqx.training import ConfigError, Data, adamw, fit

from .conftest import colours

# In a process of its own: the number of devices is settled when JAX starts.
RUN = """
import json, pathlib, sys
import jax, numpy as np
import onnxeqx
from onnxeqx.training import Checkpoints, Data, adamw, fit
from tests.training.conftest import Net, colours

folder, epochs, *counts = sys.argv[1:]
assert jax.local_device_count() == 8
data = Data(colours(40, seed=1), colours(13, seed=2), batch_size=8, seed=3)
found = {}
for count in map(int, counts):
    states = []
    with Checkpoints(pathlib.Path(folder)) as checkpoints:
        fitted = fit(Net(), data, optimizer=adamw(0.05), epochs=int(epochs), devices=count, restore=checkpoints.restore,
                     callbacks=[checkpoints, lambda event: states.append(event.state)])
    leaves = [leaf for leaf in jax.tree.leaves(states[-1]) if isinstance(leaf, jax.Array)]
    found[count] = {
        "devices": sorted({len(leaf.sharding.device_set) for leaf in leaves}),
        "replicated": all(leaf.sharding.is_fully_replicated for leaf in leaves),
        "history": fitted.history,
        "weights": {path: np.asarray(leaf).tolist() for path, leaf in onnxeqx.key_paths(fitted.model).items() if hasattr(leaf, "dtype") and not hasattr(leaf, "bits")},
    }
print(json.dumps(found))
"""


def run(folder, epochs: int, *counts: int):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    cache = {"JAX_COMPILATION_CACHE_DIR": folder.parent / "cache", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    words = [sys.executable, "-c", RUN, folder, epochs, *counts]
    done = subprocess.run(
        [str(word) for word in words], env=os.environ | {"XLA_FLAGS": flags} | cache, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def close(one, other):
    assert one.keys() == other.keys()
    for path, values in one.items():
        np.testing.assert_allclose(values, other[path], atol=2e-5, err_msg=path)


def test_eight_devices_train_as_one(tmp_path):
    one, eight = run(tmp_path / "one", 3, 1)["1"], run(tmp_path / "eight", 3, 8)["8"]
    assert (one["devices"], eight["devices"]) == ([1], [8])
    assert eight["replicated"]
    close(eight["weights"], one["weights"])
    for row, other in zip(eight["history"], one["history"], strict=True):
        assert row == pytest.approx(other, abs=1e-5)
    # Two epochs on eight devices, then one more on two.
    run(tmp_path / "both", 2, 8)
    resumed = run(tmp_path / "both", 3, 2)["2"]
    assert resumed["devices"] == [2]
    assert [row["epoch"] for row in resumed["history"]] == [3]
    close(resumed["weights"], one["weights"])


STATISTICS = """
import json, numpy as np, equinox as eqx, jax
from onnxeqx.training import Data, adamw, fit, following_statistics, statistics_paths, train_batch_norm
from onnxeqx.training.statistics import with_statistics
from tests.training.conftest import colours
from tests.training.test_statistics import NormNet

model = train_batch_norm(NormNet())
mask = with_statistics(jax.tree.map(eqx.is_inexact_array, model), model)
optimizer = following_statistics(adamw(0.05), statistics_paths(model))
data = Data(colours(24, seed=1), colours(8, seed=2), batch_size=8)
fitted = [fit(model, data, optimizer=optimizer, trainable=mask, epochs=1, devices=count).model for count in (1, 8)]
print(json.dumps([[np.asarray(part).tolist() for part in (end.norm.running_mean, end.norm.running_var)] for end in fitted]))
"""


def test_batch_norm_on_eight_devices_has_the_statistics_of_the_whole_batch():
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    environment = os.environ | {"XLA_FLAGS": flags}
    done = subprocess.run([sys.executable, "-c", STATISTICS], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    one, eight = json.loads(done.stdout.splitlines()[-1])
    np.testing.assert_allclose(eight, one, rtol=1e-5, atol=1e-6)
    assert np.abs(np.array(one[1]) - 1).min() > 0.1


def test_devices_that_cannot_be(net):
    data = Data(colours(20, seed=1), colours(7, seed=2), batch_size=7, seed=3)
    with pytest.raises(ConfigError, match=r"--devices is 99, but there are \d+ cpu devices here"):
        fit(net, data, optimizer=adamw(0.05), devices=99)
    with pytest.raises(ConfigError, match=r"Batches of 7 cannot be spread evenly over 2 devices; .* or --devices 1\."):
        fit(net, data, optimizer=adamw(0.05), devices=jax.devices() * 2)
