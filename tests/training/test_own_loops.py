"""What users of Equinox, Optax and Orbax do with a loaded model in loops of their own."""

import json
import os
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import orbax.checkpoint as ocp
import pytest

import onnxeqx

from .tiny import write_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return onnxeqx.load(write_tiny(tmp_path_factory.mktemp("own") / "net.onnx"))


IMAGES = np.random.default_rng(0).normal(size=(12, 3, 12, 12)).astype(np.float32)
LABELS = np.arange(12) % 7


def loss_of(model, images=IMAGES, labels=LABELS):
    return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()


def buffers(model):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(model) if jnp.issubdtype(leaf.dtype, jnp.unsignedinteger)]


OPTIMIZERS = {
    "ema": optax.chain(optax.sgd(0.1), optax.ema(0.5)),
    "apply_if_finite": optax.apply_if_finite(optax.adamw(1e-2), 3),
    "inject_hyperparams": optax.inject_hyperparams(optax.adamw)(learning_rate=optax.cosine_decay_schedule(1e-2, 20)),
    "clip_by_global_norm": optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2)),
    "reduce_on_plateau": optax.chain(optax.adamw(1e-2), optax.contrib.reduce_on_plateau(patience=2)),
    "lbfgs": optax.lbfgs(),
    "multi_steps": optax.MultiSteps(optax.adamw(1e-2), 2).gradient_transformation(),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_transformations_of_optax_train_a_loaded_model(name, model):
    optimizer = optax.with_extra_args_support(OPTIMIZERS[name])
    trainable, frozen = eqx.partition(model, eqx.is_inexact_array)

    def loss(trainable):
        return loss_of(eqx.combine(trainable, frozen))

    @eqx.filter_jit
    def step(trainable, state):
        value, gradients = jax.value_and_grad(loss)(trainable)
        updates, state = optimizer.update(gradients, state, trainable, value=value, grad=gradients, value_fn=loss)
        return optax.apply_updates(trainable, updates), state, value

    state, values = optimizer.init(trainable), []
    for _ in range(10):
        trainable, state, value = step(trainable, state)
        values.append(float(value))
    assert values[-1] < values[0] - 0.05
    for one, other in zip(buffers(eqx.combine(trainable, frozen)), buffers(model), strict=True):
        np.testing.assert_array_equal(one, other)


def test_micro_steps_equal_one_big_batch_and_schedules_advance_once(model):
    schedule = optax.linear_schedule(0.1, 0.0, 4)
    params, static = eqx.partition(model, eqx.is_inexact_array)
    gradient = jax.grad(lambda params, *batch: loss_of(eqx.combine(params, static), *batch))

    def run(optimizer, parts):
        current, state = params, optimizer.init(params)
        for _ in range(2):
            for part in parts:
                updates, state = optimizer.update(gradient(current, IMAGES[part], LABELS[part]), state, current)
                current = optax.apply_updates(current, updates)
        return current

    whole = run(optax.sgd(schedule), [slice(None)])
    micro = run(
        optax.MultiSteps(optax.sgd(schedule), 3).gradient_transformation(), [slice(0, 4), slice(4, 8), slice(8, 12)]
    )
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(micro), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_orbax_keeps_the_arrays_of_a_model_and_the_whole_model(model, tmp_path):
    arrays, static = eqx.partition(model, eqx.is_array)
    changed = jax.tree.map(jnp.zeros_like, arrays)
    with ocp.StandardCheckpointer() as checkpointer:
        for name, tree, like in (("arrays", arrays, changed), ("model", model, eqx.combine(changed, static))):
            checkpointer.save(tmp_path / name, tree)
            checkpointer.wait_until_finished()
            restored = checkpointer.restore(tmp_path / name, like)
            assert eqx.tree_equal(restored, tree), name


def test_a_checkpoint_manager_keeps_the_best(model, tmp_path):
    arrays, _ = eqx.partition(model, eqx.is_array)
    options = ocp.CheckpointManagerOptions(max_to_keep=1, best_fn=lambda metrics: metrics["accuracy"])
    with ocp.CheckpointManager(tmp_path, options=options) as manager:
        for step, accuracy in enumerate((0.2, 0.9, 0.4)):
            scaled = jax.tree.map(lambda leaf, step=step: leaf * (step + 1), arrays)
            manager.save(step, args=ocp.args.StandardSave(scaled), metrics={"accuracy": accuracy})
        manager.wait_until_finished()
        assert manager.all_steps() == [1]
        restored = manager.restore(1, args=ocp.args.StandardRestore(arrays))
    assert eqx.tree_equal(restored, jax.tree.map(lambda leaf: leaf * 2, arrays))


SHARDED = """
import json, sys
import equinox as eqx, jax, numpy as np, optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import onnxeqx

model = onnxeqx.load(sys.argv[1])
images, labels = np.random.default_rng(0).normal(size=(16, 3, 12, 12)).astype(np.float32), np.arange(16) % 7
optimizer = optax.adamw(1e-2)


def losses(devices):
    mesh = Mesh(np.array(devices), ("batch",))
    spread, whole = NamedSharding(mesh, PartitionSpec("batch")), NamedSharding(mesh, PartitionSpec())

    @eqx.filter_jit(donate="all")
    def step(model, state, images, labels):
        model, state = eqx.filter_shard((model, state), whole)
        loss = lambda model: optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()
        value, gradients = eqx.filter_value_and_grad(loss)(model)
        updates, state = optimizer.update(gradients, state, eqx.filter(model, eqx.is_inexact_array))
        return eqx.apply_updates(model, updates), state, value

    copied = jax.tree.map(lambda leaf: jax.numpy.array(leaf, copy=True) if eqx.is_array(leaf) else leaf, model)
    current, state = eqx.filter_shard((copied, optimizer.init(eqx.filter(copied, eqx.is_inexact_array))), whole)
    found = []
    for _ in range(3):
        batch = eqx.filter_shard((jax.numpy.asarray(images), jax.numpy.asarray(labels)), spread)
        current, state, value = step(current, state, *batch)
        found.append(float(value))
    return found


print(json.dumps([losses(jax.devices()[:1]), losses(jax.devices())]))
"""


def test_a_model_is_sharded_and_donated_on_eight_devices(tmp_path):
    write_tiny(tmp_path / "net.onnx")
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    words = [sys.executable, "-W", "ignore", "-c", SHARDED, str(tmp_path / "net.onnx")]
    done = subprocess.run(words, env=os.environ | {"XLA_FLAGS": flags}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    one, eight = json.loads(done.stdout.splitlines()[-1])
    np.testing.assert_allclose(eight, one, rtol=1e-5)
    assert one[2] < one[0]


def test_dropout_draws_with_a_key_and_is_off_without_one(model):
    dropped = onnxeqx.insert_dropout(model, "classifier", 0.5, before=True)
    training = eqx.nn.inference_mode(dropped, value=False)
    first, same, other = (training(IMAGES, key=jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, same)
    assert np.abs(first - other).max() > 1e-3
    np.testing.assert_array_equal(eqx.nn.inference_mode(training)(IMAGES), model(IMAGES))
