import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onnxeqx import nn
from onnxeqx._head import output_width
from onnxeqx.runtime import over_batch
from onnxeqx.training import HeadError, find_head, replace_head

from .conftest import Net

INPUTS = jax.ShapeDtypeStruct((2, 3, 6, 6), jnp.float32)


class ConvolutionalHead(eqx.Module):
    """As SqueezeNet: the head is a convolution, the output `(batch, classes, 1, 1)`."""

    blocks: tuple
    classifier: eqx.Module

    def __init__(self, classifier):
        self.blocks = (nn.Conv(2, 3, 4, 3, key=jax.random.key(0)), nn.Conv(2, 4, 5, 1, key=jax.random.key(1)))
        self.classifier = classifier

    def __call__(self, x):
        for block in self.blocks:
            x = jax.nn.relu(block(x))
        return self.classifier(x).mean((2, 3), keepdims=True)


def test_the_last_layer_as_wide_as_the_output_is_the_head():
    assert find_head(Net(classes=3), INPUTS) == "head"
    # The hidden layer is as wide as the output, but comes before the head.
    assert find_head(Net(classes=8), INPUTS) == "head"


def test_a_convolutional_head_is_found_and_replaced():
    model = ConvolutionalHead(nn.Conv(2, 5, 7, 1, key=jax.random.key(2)))
    assert output_width(model, INPUTS) == 7
    assert find_head(model, INPUTS) == "classifier"
    replaced = replace_head(model, 4, head="classifier", inputs=INPUTS, key=jax.random.key(3))
    assert output_width(replaced, INPUTS) == 4
    assert replaced.classifier.weight.shape == (4, 5, 1, 1)
    assert replaced.classifier.bias.shape == (4,)
    assert float(jnp.abs(replaced.classifier.weight).max()) > 0


def test_a_replaced_head_is_drawn_by_key_and_the_rest_stays(net):
    first, second, other = (
        replace_head(net, 5, head="head", inputs=INPUTS, key=jax.random.key(seed)) for seed in (0, 0, 1)
    )
    assert first.head.weight.shape == (5, 8)
    assert eqx.tree_equal(first, second)
    assert not eqx.tree_equal(first.head, other.head)
    assert first.conv.weight is net.conv.weight
    assert net.head.weight.shape == (3, 8)


def test_the_new_head_has_the_old_dtype(net):
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16) if eqx.is_inexact_array(leaf) else leaf, net)
    inputs = jax.ShapeDtypeStruct(INPUTS.shape, jnp.bfloat16)
    assert replace_head(half, 5, inputs=inputs, key=jax.random.key(0)).head.weight.dtype == jnp.bfloat16


def test_a_head_by_name(net):
    assert find_head(net, INPUTS, head="hidden") == "hidden"
    model = ConvolutionalHead(nn.Conv(2, 5, 7, 1, key=jax.random.key(2)))
    assert find_head(model, INPUTS, head="blocks") == "blocks.1"
    assert find_head(model, INPUTS, head="blocks.0") == "blocks.0"
    with pytest.raises(
        HeadError, match=r"at 'fc' \(head, --head\); the last layers are conv \(Conv2d, 4 wide\), hidden \(Lin"
    ):
        find_head(net, INPUTS, head="fc")


def test_without_a_head_the_candidates_are_listed():
    class Widened(Net):
        def __call__(self, x):
            return jnp.concatenate([super().__call__(x)] * 2, axis=1)

    with pytest.raises(
        HeadError, match=r"No layer has the output's 6 classes; name one with head \(--head\): .*head \(Lin"
    ):
        find_head(Widened(), INPUTS)

    class NoLayer(eqx.Module):
        def __call__(self, x):
            return x.mean((2, 3))

    with pytest.raises(HeadError, match="the model has no Linear or Conv layer"):
        find_head(NoLayer(), INPUTS)


def test_a_model_that_is_no_classifier_is_refused():
    class Two(Net):
        def __call__(self, x):
            return super().__call__(x), x

    with pytest.raises(HeadError, match="has 2 outputs; a classifier has one"):
        find_head(Two(), INPUTS)

    class Segmentation(Net):
        def __call__(self, x):
            return over_batch(self.conv, x, core_ndim=3)

    with pytest.raises(HeadError, match=r"output has shape \(2, 4, 4, 4\)"):
        find_head(Segmentation(), INPUTS)


def test_a_grouped_convolution_is_no_head():
    model = ConvolutionalHead(nn.Conv(2, 5, 5, 1, groups=5, key=jax.random.key(2)))
    with pytest.raises(HeadError, match="grouped convolution"):
        replace_head(model, 4, head="classifier", inputs=INPUTS, key=jax.random.key(0))


def test_equinox_convolutions_serve_too():
    class Equinox(ConvolutionalHead):
        def __call__(self, x):
            for block in self.blocks:
                x = jax.nn.relu(block(x))
            return over_batch(self.classifier, x, core_ndim=3).mean((2, 3), keepdims=True)

    model = Equinox(eqx.nn.Conv2d(5, 7, 1, key=jax.random.key(2)))
    replaced = replace_head(model, 6, inputs=INPUTS, key=jax.random.key(0))
    assert np.shape(replaced.classifier.weight) == (6, 5, 1, 1)


def test_a_layer_that_gives_no_output_its_width_is_no_head(net):
    with pytest.raises(HeadError, match=r"does not run with 6 classes at conv; choose another head \(--head\)"):
        replace_head(net, 6, head="conv", inputs=INPUTS, key=jax.random.key(0))

    class Summed(Net):
        def __call__(self, x):
            return super().__call__(x).sum(1, keepdims=True)

    with pytest.raises(HeadError, match=r"With 6 classes at head, the output still has shape \(2, 1\)"):
        replace_head(Summed(), 6, head="head", inputs=INPUTS, key=jax.random.key(0))
