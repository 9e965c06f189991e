"""The layers `Conv` and `ConvTranspose`: against the operators, Equinox, and each other."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onnxeqx import nn
from onnxeqx.plugins import convolution as plugin

KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def _strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        yield


def pads(layer):
    """The layer's padding as ONNX's attribute."""
    lows, highs = zip(*layer.padding, strict=True)
    return lows + highs


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "padding": 1},
        {"stride": (2, 1), "padding": (1, 2), "dilation": 2},
        {"padding": ((1, 0), (0, 2)), "groups": 2, "use_bias": False},
        {"padding": "SAME_LOWER", "stride": 2, "groups": 4},
        {"padding": "VALID"},
    ],
    ids=str,
)
def test_conv_is_the_operator(options):
    layer = nn.Conv(2, 4, 8, (3, 2), key=KEY, **options)
    x = jax.random.normal(jax.random.key(1), (2, 4, 7, 8))
    padding = {"auto_pad": layer.padding} if isinstance(layer.padding, str) else {"pads": pads(layer)}
    expected = plugin.conv(
        x, layer.weight, layer.bias, strides=layer.stride, dilations=layer.dilation, group=layer.groups, **padding
    )
    np.testing.assert_array_equal(layer(x), expected)
    assert layer.weight.shape == (8, 4 // layer.groups, 3, 2)
    assert (layer.bias is None) == (not layer.use_bias)


@pytest.mark.parametrize("options", [{"stride": 2, "padding": 1, "output_padding": 1}, {"groups": 2}], ids=str)
def test_conv_transpose_is_the_operator(options):
    layer = nn.ConvTranspose(2, 4, 6, 3, key=KEY, **options)
    x = jax.random.normal(jax.random.key(1), (2, 4, 5, 6))
    expected = plugin.conv_transpose(
        x,
        layer.weight,
        layer.bias,
        strides=layer.stride,
        group=layer.groups,
        pads=pads(layer),
        output_padding=layer.output_padding,
    )
    np.testing.assert_array_equal(layer(x), expected)
    assert layer.weight.shape == (4, 6 // layer.groups, 3, 3)


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_conv_agrees_with_equinox_and_starts_alike(ndim):
    theirs = eqx.nn.Conv(ndim, 4, 6, 3, stride=2, padding=1, groups=2, key=KEY)
    layer = nn.Conv(ndim, 4, 6, 3, stride=2, padding=1, groups=2, key=KEY)
    np.testing.assert_allclose(layer.weight, theirs.weight, 1e-6)
    np.testing.assert_allclose(layer.bias, theirs.bias.reshape(-1), 1e-6)
    x = jax.random.normal(jax.random.key(1), (4, *(7,) * ndim))
    np.testing.assert_allclose(layer(x), theirs(x), 1e-5, 1e-5)


@pytest.mark.parametrize("ndim", [1, 2])
def test_conv_transpose_is_the_transpose_of_conv(ndim):
    options = {"stride": 2, "padding": 1, "groups": 2, "use_bias": False}
    down = nn.Conv(ndim, 4, 6, 3, key=KEY, **options)
    up = eqx.tree_at(lambda layer: layer.weight, nn.ConvTranspose(ndim, 6, 4, 3, **options), down.weight)
    x = jax.random.normal(jax.random.key(1), (2, 4, *(7,) * ndim))
    y = jax.random.normal(jax.random.key(2), down(x).shape)
    (expected,) = jax.vjp(down, x)[1](y)
    np.testing.assert_allclose(up(y), expected, 1e-5, 1e-5)


@pytest.mark.parametrize("layer", [nn.Conv(2, 3, 4, 3, key=KEY), nn.ConvTranspose(2, 3, 4, 3, key=KEY)])
def test_any_number_of_leading_axes(layer):
    x = jax.random.normal(KEY, (2, 5, 3, 6, 6))
    y = layer(x)
    assert y.shape[:3] == (2, 5, 4)
    np.testing.assert_allclose(layer(x[0]), y[0], 1e-5, 1e-5)
    np.testing.assert_allclose(layer(x[0, 0]), y[0, 0], 1e-5, 1e-5)
    np.testing.assert_allclose(jax.vmap(layer)(x), y, 1e-5, 1e-5)
    assert layer(x[:0]).shape == (0, *y.shape[1:])


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("kind", [nn.Conv, nn.ConvTranspose])
def test_dtypes(kind, dtype):
    layer = kind(2, 4, 4, 3, groups=4, dtype=dtype, key=KEY)
    assert layer.weight.dtype == layer.bias.dtype == dtype
    assert layer(jnp.ones((1, 4, 5, 5), dtype)).dtype == dtype


def test_float64():
    with jax.enable_x64(True):
        layer = nn.Conv(2, 4, 4, 1, key=KEY)
        assert layer.weight.dtype == layer(jnp.ones((1, 4, 5, 5))).dtype == jnp.float64


def test_without_a_key_all_is_zero():
    for layer in (nn.Conv(2, 3, 4, 3), nn.ConvTranspose(2, 3, 4, 3)):
        assert layer.weight.dtype == jnp.float32
        assert not any(leaf.any() for leaf in jax.tree.leaves(layer))


def test_configuration_is_static_and_hashable():
    layer = nn.Conv(2, 3, 4, (3, 5), stride=[2, 1], padding=[1, 2], key=KEY)
    assert len(jax.tree.leaves(layer)) == 2
    assert layer.batched
    assert (layer.kernel_size, layer.stride, layer.padding) == ((3, 5), (2, 1), ((1, 1), (2, 2)))
    hash(jax.tree.structure(layer))
    y = eqx.filter_jit(layer)(jnp.ones((1, 3, 8, 8)))
    assert y.shape == (1, 4, 4, 8)


def test_gradients_train_a_depthwise_layer():
    layer = nn.Conv(2, 4, 4, 3, padding=1, groups=4, key=KEY)
    x = jax.random.normal(jax.random.key(1), (2, 4, 6, 6))

    @eqx.filter_value_and_grad
    def loss(layer):
        return ((layer(x) - x) ** 2).mean()

    before, gradients = loss(layer)
    after, _ = loss(jax.tree.map(lambda value, gradient: value - 0.1 * gradient, layer, gradients))
    assert after < before


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="multiples of groups 2"):
        nn.Conv(2, 3, 4, 3, groups=2)
    with pytest.raises(ValueError, match="3 entries, but there are 2 spatial axes"):
        nn.Conv(2, 3, 4, (3, 3, 3))
    with pytest.raises(ValueError, match="3 entries, but there are 2 spatial axes"):
        nn.ConvTranspose(2, 3, 4, 3, padding=(1, 1, 1))
    with pytest.raises(ValueError, match=r"expected \(\*batch, 3, 2 spatial axes\), not shape \(1, 4, 5, 5\)"):
        nn.Conv(2, 3, 4, 3)(jnp.ones((1, 4, 5, 5)))
