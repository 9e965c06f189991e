"""From a model to what the loss is given: pairs for contrastive learning, and a teacher's outputs."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onnxeqx.training import (
    WithTeacher,
    contrastive,
    cross_entropy,
    distillation,
    embedded_pairs,
    retrieval,
)
from onnxeqx.training.forward import first_output


def test_of_several_outputs_the_first_of_floating_point_numbers_counts():
    outputs = (jnp.arange(3), jnp.ones((3, 2)), jnp.zeros((3, 2)))
    assert first_output(lambda x: outputs, 0) is outputs[1]
    assert first_output(lambda x: outputs[0], 0) is outputs[0]


def test_pairs_go_through_the_model_in_one_batch_without_their_padding():
    def model(ids, attention_mask):
        assert ids.shape == (4, 3)
        return jnp.stack([ids, 2.0 * ids], -1)

    pairs = {
        name: {"ids": np.array(ids), "attention_mask": np.array([[1, 1, 0], [1, 0, 0]])}
        for name, ids in (("first", [[1, 3, 99], [5, 99, 99]]), ("second", [[2, 4, 99], [6, 99, 99]]))
    }
    first, second = embedded_pairs(model, pairs)
    np.testing.assert_allclose(first, [[2, 4], [5, 10]])
    np.testing.assert_allclose(second, [[3, 6], [6, 12]])


def test_contrastive_loss_is_the_cross_entropy_of_similarities():
    random = np.random.default_rng(0)
    first, second = random.normal(size=(2, 5, 4))
    temperature = 0.1
    one, other = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (first, second))
    similar = one @ other.T / temperature

    wanted = np.log(np.exp(similar).sum(1)) - np.diag(similar)
    found = contrastive(temperature)((jnp.asarray(first), jnp.asarray(second)), jnp.arange(5))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    # A padded batch repeats its last example, which is no negative of itself.
    repeated = [jnp.asarray(part)[jnp.array([0, 1, 2, 3, 4, 4])] for part in (first, second)]
    padded = contrastive(temperature)(tuple(repeated), jnp.array([0, 1, 2, 3, 4, 4]))
    np.testing.assert_allclose(padded[4:], wanted[[4, 4]], rtol=1e-5, atol=1e-5)
    assert np.asarray(retrieval((jnp.asarray(first), jnp.asarray(first)), jnp.arange(5))).all()


def test_distillation_is_the_cross_entropy_with_the_teachers_soft_labels():
    random = np.random.default_rng(0)
    student, teacher = random.normal(size=(2, 6, 3))
    labels = np.arange(6) % 3
    temperature, share = 2.0, 0.3

    def softmax(logits):
        return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)

    # Hinton et al.: T² keeps the size of the gradients (https://arxiv.org/abs/1503.02531); the teacher's entropy is a constant.
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    soft = temperature**2 * (p * (np.log(p) - np.log(q))).sum(1)
    hard = -np.log(softmax(student))[np.arange(6), labels]
    loss = distillation(cross_entropy, share=share, temperature=temperature)
    found = loss((jnp.asarray(student), jnp.asarray(teacher)), jnp.asarray(labels))
    np.testing.assert_allclose(found, share * soft + (1 - share) * hard, rtol=1e-4)
    same = loss((jnp.asarray(teacher), jnp.asarray(teacher)), jnp.asarray(labels)) - (1 - share) * cross_entropy(
        jnp.asarray(teacher), jnp.asarray(labels)
    )
    np.testing.assert_allclose(same, 0, atol=1e-5)


def test_the_teacher_gets_no_gradient():
    student, teacher = (eqx.nn.Linear(3, 2, key=jax.random.key(seed)) for seed in (0, 1))
    inputs, labels = jnp.ones((4, 3)), jnp.array([0, 1, 0, 1])
    loss = distillation(cross_entropy, share=0.5)

    @eqx.filter_grad
    def gradients(both):
        outputs = WithTeacher(eqx.filter_vmap(both[1]))(eqx.filter_vmap(both[0]), inputs)
        return loss(outputs, labels).mean()

    of_student, of_teacher = gradients((student, teacher))
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(of_student))
    assert all(np.abs(leaf).max() == 0 for leaf in jax.tree.leaves(of_teacher))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_share_decides_what_is_learnt_from(share):
    outputs, labels = (jnp.array([[2.0, 0.0]]), jnp.array([[0.0, 2.0]])), jnp.array([0])
    loss = distillation(cross_entropy, share=share)(outputs, labels)
    assert (float(loss[0]) > 1) == bool(share)
