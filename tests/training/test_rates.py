"""Learning rates of parts of a model: by depth, by pattern, and zero until an epoch."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import onnxeqx
from onnxeqx.training import by_depth, by_pattern, hold_until, optimizer, scale_rates


class Block(eqx.Module):
    norm: eqx.nn.LayerNorm
    linear: eqx.nn.Linear


class Deep(eqx.Module):
    stem: eqx.nn.Linear
    blocks: tuple
    head: eqx.nn.Linear


@pytest.fixture
def deep():
    keys = iter(jax.random.split(jax.random.key(0), 5))

    def linear():
        return eqx.nn.Linear(2, 2, key=next(keys))

    return Deep(linear(), tuple(Block(eqx.nn.LayerNorm(2), linear()) for _ in range(3)), linear())


def updates_of(transformation, params, gradients=None):
    gradients = jax.tree.map(jnp.ones_like, params) if gradients is None else gradients
    updates, _ = transformation.update(gradients, transformation.init(params), params)
    return {path: np.asarray(leaf) for path, leaf in onnxeqx.key_paths(updates).items()}


def test_rates_fall_from_each_block_to_the_one_before(deep):
    found = updates_of(scale_rates(by_depth(0.5)), deep)
    wanted = {"stem": 0.5**4, "blocks.0": 0.5**3, "blocks.1": 0.5**2, "blocks.2": 0.5, "head": 1.0}
    assert len(found) == 16
    for path, update in found.items():
        (factor,) = [value for block, value in wanted.items() if path.startswith(block + ".")]
        np.testing.assert_array_equal(update, factor, err_msg=path)


def test_the_last_pattern_that_fits_counts(deep):
    found = updates_of(scale_rates(by_pattern({"*": 0.1, "head.*": 10.0, "blocks.1.*": 0.0})), deep)
    assert set(found["head.bias"]) == {10.0}
    assert set(found["blocks.1.linear.weight"].ravel()) == {0.0}
    assert set(found["stem.weight"].ravel()) == {np.float32(0.1)}
    with pytest.raises(onnxeqx.WeightsError, match=r"'tail\.\*' matches no parameter"):
        updates_of(scale_rates(by_pattern({"tail.*": 1.0})), deep)


def test_a_learning_rate_of_its_own_is_that_of_the_whole_optimiser(deep):
    # AdamW's step, decay included, is proportional to the learning rate.
    scaled = optimizer("adamw", 0.01, after=[scale_rates(by_pattern({"head.*": 10.0}))])
    alone = {rate: updates_of(optimizer("adamw", rate), deep) for rate in (0.01, 0.1)}
    for path, update in updates_of(scaled, deep).items():
        wanted = alone[0.1 if path.startswith("head") else 0.01][path]
        np.testing.assert_allclose(update, wanted, rtol=1e-6, err_msg=path)


def test_what_is_held_does_not_move_until_its_update(deep):
    until = {"*": 2, "head.*": 0}
    held = optimizer("adamw", 0.1, weight_decay=0.5, after=[hold_until(until)])
    params, state = deep, held.init(deep)
    moved = []
    for _ in range(4):
        updates, state = held.update(jax.tree.map(jnp.ones_like, params), state, params)
        new = optax.apply_updates(params, updates)
        before, after = onnxeqx.key_paths(params), onnxeqx.key_paths(new)
        moved.append({path for path in before if not np.array_equal(before[path], after[path])})
        params = new
    head = {path for path in onnxeqx.key_paths(deep) if path.startswith("head.")}
    assert moved[0] == moved[1] == head
    assert moved[2] == moved[3] == set(onnxeqx.key_paths(deep))


def test_what_was_held_begins_with_steps_of_the_learning_rate(deep):
    held = optimizer("adamw", 0.1, weight_decay=0, after=[hold_until({"*": 50, "head.*": 0})])
    state, key = held.init(deep), jax.random.key(0)
    for step in range(60):
        noise = jax.random.normal(jax.random.fold_in(key, step), ())
        updates, state = held.update(jax.tree.map(lambda leaf: jnp.full_like(leaf, 1 + 0.1 * noise), deep), state, deep)  # noqa: B023
        largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(updates))
        assert largest == pytest.approx(0.1, rel=0.2)


def test_norms_and_biases_do_not_decay_whatever_their_rate(deep):
    decaying = optimizer("adamw", 0.1, weight_decay=0.5, after=[scale_rates(by_depth(0.5))])
    found = updates_of(decaying, deep, jax.tree.map(jnp.zeros_like, deep))
    assert {path for path, update in found.items() if update.any()} == {
        path for path in found if path.endswith("weight") and "norm" not in path
    }
