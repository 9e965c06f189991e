import collections
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import PIL.Image
import PIL.ImageEnhance
import pytest

from onnxeqx.training import accuracy, augment, cross_entropy
from onnxeqx.training.augment import OPERATIONS, Augmentation, MixedLabels, Mixing, Operation, of_main, of_mixed
from onnxeqx.training.errors import ConfigError

UNSIGNED = {"identity", "auto-contrast", "equalize", "solarize", "posterize"}
SIGNED = {"rotate", "color", "contrast", "brightness", "sharpness", "shear-x", "shear-y", "translate-x", "translate-y"}
EVERYTHING = Augmentation(crop_scale=0.3, flip=0.5, color_jitter=0.4, rand_augment=(2, 9))


def pixels(mode="RGB", height=24, width=36):
    values = np.random.default_rng(0).integers(20, 230, (height, width, 3), np.uint8)
    return values if mode == "RGB" else values[..., 0]


def changed(array, augmentation, seed=0):
    return np.asarray(augmentation(PIL.Image.fromarray(array), np.random.default_rng(seed)))


# --- single images ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_without_options_every_pixel_stays(mode):
    assert not Augmentation()
    np.testing.assert_array_equal(changed(pixels(mode), Augmentation()), pixels(mode))


@pytest.mark.parametrize(
    "augmentation",
    [
        Augmentation(crop_scale=0.5),
        Augmentation(flip=0.1),
        Augmentation(color_jitter=0.1),
        Augmentation(rand_augment=(1, 0)),
    ],
)
def test_any_option_turns_it_on(augmentation):
    assert augmentation


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_the_seed_decides_and_the_image_given_stays(mode):
    image = PIL.Image.fromarray(pixels(mode))
    results = [EVERYTHING(image, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert {result.mode for result in results} == {mode}
    first, again, other = (result.tobytes() for result in results)
    assert first == again != other
    np.testing.assert_array_equal(np.asarray(image), pixels(mode))


def test_other_modes_become_rgb_and_16_bits_are_scaled():
    deep = PIL.Image.fromarray(np.array([[0, 100 * 256, 65535]], np.uint16))
    assert deep.mode == "I;16"
    scaled = Augmentation()(deep, np.random.default_rng(0))
    assert (scaled.mode, np.asarray(scaled).tolist()) == ("L", [[0, 100, 255]])
    for mode in ("RGBA", "CMYK", "P", "1", "LA"):
        image = PIL.Image.fromarray(pixels()).convert(mode)
        converted = Augmentation()(image, np.random.default_rng(0))
        assert converted.mode == "RGB"
        assert converted.tobytes() == image.convert("RGB").tobytes()


def test_crops_are_parts_of_the_image_of_the_shares_and_aspects_asked_for():
    side = 200
    rows, columns = np.indices((side, side))
    coordinates = np.stack([rows, columns, 0 * rows], -1).astype(np.uint8)
    shares, corners = [], []
    for seed in range(600):
        crop = changed(coordinates, Augmentation(crop_scale=0.2), seed)
        (height, width, _), (top, left, _) = crop.shape, crop[0, 0]
        np.testing.assert_array_equal(crop, coordinates[top : top + height, left : left + width])
        shares.append(height * width / side**2)
        corners.append((top / max(side - height, 1), left / max(side - width, 1)))
        assert 0.73 < width / height < 1.37
    assert 0.195 < min(shares) < 0.22
    assert 0.95 < max(shares) <= 1
    # Below 3/4, no crop is too wide or too high, so that all shares are equally likely.
    counts, _ = np.histogram(shares, [0.2, 0.475, 0.75])
    assert counts.min() / counts.max() > 0.85
    np.testing.assert_allclose(np.mean(corners, 0), 0.5, atol=0.05)


def test_an_image_into_which_no_crop_fits_stays_whole():
    long = pixels("L", height=8, width=300)
    np.testing.assert_array_equal(changed(long, Augmentation(crop_scale=0.9)), long)
    assert changed(pixels("L", 1, 1), Augmentation(crop_scale=0.1)).shape == (1, 1)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_flip_reverses_the_columns(mode):
    np.testing.assert_array_equal(changed(pixels(mode), Augmentation(flip=1.0)), pixels(mode)[:, ::-1])


def test_flips_are_as_frequent_as_asked_for():
    image = np.array([[0, 255]], np.uint8)
    flips = sum(changed(image, Augmentation(flip=0.25), seed)[0, 0] == 255 for seed in range(1000))
    assert 200 < flips < 300


def test_brightness_and_contrast_are_scaled_by_factors_within_the_strength():
    image = np.array([[50, 150]], np.uint8)
    low, high = np.array([changed(image, Augmentation(color_jitter=0.4), seed)[0] for seed in range(500)]).T.astype(int)
    for factors in ((low + high) / 200, (high - low) / (high + low) * 2):  # of brightness, of contrast
        assert 0.57 < factors.min() < 0.65
        assert 1.35 < factors.max() < 1.43
        assert np.mean(factors) == pytest.approx(1, abs=0.04)


def test_saturation_and_the_order_of_the_three():
    orders, factors = collections.Counter(), collections.defaultdict(list)
    names = ("Brightness", "Contrast", "Color")

    class Recorded:
        def __init__(self, name, image):
            self.name, self.image = name, image

        def enhance(self, factor):
            order.append(self.name)
            factors[self.name].append(factor)
            return self.image

    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setattr(PIL.ImageEnhance, name, lambda image, name=name: Recorded(name, image))
        for seed in range(300):
            order: list[str] = []
            changed(pixels(), Augmentation(color_jitter=1.5), seed)
            orders[tuple(order)] += 1
    assert set(orders) == set(itertools.permutations(names))
    assert min(orders.values()) > 25
    for drawn in factors.values():
        assert 0 <= min(drawn) < 0.05
        assert 2.45 < max(drawn) <= 2.5


def test_jitter_scales_the_saturation_of_colours_and_leaves_grey_grey():
    grey = np.full((4, 4), 100, np.uint8)
    colour = np.broadcast_to(np.array([150, 100, 50], np.uint8), (4, 4, 3))
    factors = []
    for seed in range(200):
        assert len(np.unique(changed(grey, Augmentation(color_jitter=0.3), seed))) == 1
        red, green, blue = changed(colour, Augmentation(color_jitter=0.3), seed)[0, 0].astype(float)
        luma = 0.299 * red + 0.587 * green + 0.114 * blue
        factors.append((red - blue) / luma / (100 / 109.25))
    # Contrast alone would stay within [0.7, 1.3]: where all pixels are equal, it moves them as saturation does.
    assert 0.48 < min(factors) < 0.6
    assert 1.45 < max(factors) < 1.72


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop_scale": 0.0}, "--crop-scale is 0.0, but must be above 0 and at most 1."),
        ({"crop_scale": 1.1}, "--crop-scale is 1.1, "),
        ({"crop_scale": math.nan}, "--crop-scale is nan, "),
        ({"flip": -0.1}, "--flip is -0.1, but must be between 0 and 1."),
        ({"flip": 2.0}, "--flip is 2.0, "),
        ({"color_jitter": -1.0}, "--color-jitter is -1.0, but must be 0 or above, and finite."),
        ({"color_jitter": math.inf}, "--color-jitter is inf, "),
        (
            {"rand_augment": (0, 5)},
            "--rand-augment is 0,5, but must be at least one operation, and a magnitude from 0 to 10.",
        ),
        ({"rand_augment": (2, 11)}, "--rand-augment is 2,11, "),
        ({"rand_augment": (2, -1)}, "--rand-augment is 2,-1, "),
        ({"rand_augment": (2,)}, "--rand-augment is 2, "),
    ],
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigError) as error:
        Augmentation(**options)
    assert str(error.value).startswith(message)


# --- RandAugment ------------------------------------------------------------------------------------------------------


def test_the_operations_are_those_of_the_paper():
    assert {name for name, operation in OPERATIONS.items() if operation.signed} == SIGNED
    assert {name for name, operation in OPERATIONS.items() if not operation.signed} == UNSIGNED


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_change_images_by_their_strength(name, mode):
    image, operation = PIL.Image.fromarray(pixels(mode)), OPERATIONS[name]
    results = {
        strength: operation.apply(image, strength)
        for strength in ((0, 0.5, 1, -1) if operation.signed else (0, 0.5, 1))
    }
    assert {(result.mode, result.size) for result in results.values()} == {(mode, image.size)}
    same = {strength: result.tobytes() == image.tobytes() for strength, result in results.items()}
    if name == "identity" or (name, mode) == ("color", "L"):
        assert all(same.values())
    elif name in ("auto-contrast", "equalize"):
        assert not any(same.values())
        assert len({result.tobytes() for result in results.values()}) == 1
    else:
        assert [strength for strength in same if same[strength]] == [0]
        assert len({result.tobytes() for result in results.values()}) == len(results)


def applied(name, array, strength):
    return np.asarray(OPERATIONS[name].apply(PIL.Image.fromarray(array), strength)).astype(int)


def test_operations_on_values_against_numpy():
    x = np.arange(256, dtype=np.uint8).reshape(16, 16)
    values = x.astype(int)
    np.testing.assert_array_equal(applied("solarize", x, 0.5), np.where(values < 128, values, 255 - values))
    np.testing.assert_array_equal(applied("solarize", x, 1), 255 - values)
    np.testing.assert_array_equal(applied("posterize", x, 1), values & 0b11110000)
    np.testing.assert_array_equal(applied("posterize", x, 0.5), values & 0b11111100)
    for strength, factor in ((1, 1.9), (-1, 0.1)):
        np.testing.assert_allclose(applied("brightness", x, strength), (factor * values).clip(0, 255), atol=1)
        np.testing.assert_allclose(
            applied("contrast", x, strength), (128 + factor * (values - 128)).clip(0, 255), atol=1
        )
    narrow = (50 + x // 2).astype(np.uint8)
    np.testing.assert_allclose(applied("auto-contrast", narrow, 0), (narrow - 50.0) * 255 / 127, atol=1)
    # Levels that occur equally often lie equally far apart afterwards.
    levels = np.repeat(np.array([[10, 20, 30, 200]], np.uint8), 255, 0)
    assert np.unique(applied("equalize", levels, 0)).tolist() == [0, 85, 170, 255]


def test_colour_and_sharpness_move_away_from_grey_and_smooth_ones():
    image = pixels()
    luma = image @ np.array([0.299, 0.587, 0.114])
    for strength, factor in ((1, 1.9), (-1, 0.1)):
        expected = luma[..., None] + factor * (image - luma[..., None])
        np.testing.assert_allclose(applied("color", image, strength), expected.clip(0, 255), atol=2)
    sharp, smooth = (applied("sharpness", image, strength).std() for strength in (1, -1))
    assert smooth < image.std() < sharp


@pytest.mark.parametrize("strength", [1, -1])
def test_moves_are_a_share_of_the_size_and_leave_grey_behind(strength):
    image = pixels("L", height=20, width=331)
    expected = np.full_like(image, 128)
    kept = slice(None, -150) if strength > 0 else slice(150, None)
    expected[:, kept] = image[:, 150:] if strength > 0 else image[:, :-150]
    np.testing.assert_array_equal(applied("translate-x", image, strength), expected)
    upright = np.ascontiguousarray(image.T)
    np.testing.assert_array_equal(applied("translate-y", upright, strength), expected.T)


@pytest.mark.parametrize("strength", [1, -1])
def test_shears_and_rotations_of_a_ramp(strength):
    y, x = np.indices((41, 41))
    ramp = (50 + 3 * x).astype(np.uint8)
    inner = (slice(15, 26), slice(15, 26))
    sheared = 50 + 3 * (x + strength * 0.3 * (y + 0.5))
    np.testing.assert_allclose(applied("shear-x", ramp, strength)[inner], sheared[inner], atol=1)
    np.testing.assert_allclose(
        applied("shear-y", np.ascontiguousarray(ramp.T), strength).T[inner], sheared[inner], atol=1
    )
    angle = math.radians(30 * strength)
    rotated = 50 + 3 * (20 + (x - 20) * math.cos(angle) - (y - 20) * math.sin(angle))
    np.testing.assert_allclose(applied("rotate", ramp, strength)[inner], rotated[inner], atol=1)


def test_operations_are_drawn_as_often_as_asked_for_with_random_signs(monkeypatch):
    drawn = []

    def recorded(name, signed):
        return Operation(lambda image, strength: drawn.append((name, strength)) or image, signed)

    monkeypatch.setattr(augment, "OPERATIONS", {"a": recorded("a", True), "b": recorded("b", False)})
    for seed in range(200):
        changed(pixels(), Augmentation(rand_augment=(3, 9)), seed)
    counts = collections.Counter(drawn)
    assert counts.total() == 600
    assert set(counts) == {("a", 0.9), ("a", -0.9), ("b", 0.9)}
    assert 250 < counts["b", 0.9] < 350
    assert 110 < counts["a", 0.9] < 190


def test_every_operation_of_the_table_is_drawn(monkeypatch):
    drawn = set()
    table = {
        name: Operation(lambda image, _, name=name: drawn.add(name) or image, operation.signed)
        for name, operation in OPERATIONS.items()
    }
    monkeypatch.setattr(augment, "OPERATIONS", table)
    changed(pixels(), Augmentation(rand_augment=(200, 5)))
    assert drawn == SIGNED | UNSIGNED


# --- mixtures ---------------------------------------------------------------------------------------------------------


def batch(size=16, padding=4, dtype=np.float32, height=12, width=18):
    """Random images, of which the last ones are padding; each one's label is its row."""
    inputs = np.random.default_rng(5).normal(size=(size, 3, height, width)).astype(dtype)
    return inputs, np.arange(size), np.arange(size) < size - padding


@pytest.mark.parametrize("mixing", [Mixing(mixup=0.4), Mixing(cutmix=1.0), Mixing(0.4, 1.0)])
def test_only_valid_rows_are_mixed_and_the_batch_given_stays(mixing):
    inputs, labels, valid = batch()
    original, pairings = inputs.copy(), set()
    for seed in range(10):
        mixed, (first, second, share) = mixing(inputs, labels, valid, np.random.default_rng(seed))
        again, shares_again = mixing(inputs, labels, valid, np.random.default_rng(seed))
        np.testing.assert_array_equal(mixed, again)
        np.testing.assert_array_equal(share, shares_again.share)
        np.testing.assert_array_equal(inputs, original)
        np.testing.assert_array_equal(first, labels)
        assert (mixed.dtype, share.dtype, share.shape) == (np.float32, np.float32, (16,))
        assert sorted(second[valid]) == labels[valid].tolist()
        np.testing.assert_array_equal(second[~valid], labels[~valid])
        np.testing.assert_array_equal(mixed[~valid], inputs[~valid])
        assert (second != first).any()
        assert not np.array_equal(mixed[valid], inputs[valid])
        pairings.add(tuple(second))
    assert len(pairings) == 10


def test_mixup_blends_by_the_share():
    inputs, labels, valid = batch()
    mixed, (_, second, share) = Mixing(mixup=0.8)(inputs, labels, valid, np.random.default_rng(0))
    for row, (other, weight) in enumerate(zip(second, share.astype(np.float64), strict=True)):
        np.testing.assert_allclose(mixed[row], weight * inputs[row] + (1 - weight) * inputs[other], atol=1e-6)


def test_shares_follow_the_beta_distribution():
    inputs, labels, valid = batch(size=4000, padding=0, height=1, width=1)
    for alpha in (0.2, 1.0, 8.0):
        _, mixed = Mixing(mixup=alpha)(inputs, labels, valid, np.random.default_rng(0))
        assert mixed.share.mean() == pytest.approx(0.5, abs=0.02)
        assert mixed.share.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.06)


def test_cutmix_pastes_one_box_and_its_share_is_the_area_kept():
    size, height, width = 64, 12, 18
    labels, valid = np.arange(size), np.ones(size, bool)
    inputs = np.broadcast_to(labels[:, None, None, None], (size, 3, height, width)).astype(np.float32)
    mixed, (_, second, share) = Mixing(cutmix=1.0)(inputs, labels, valid, np.random.default_rng(0))
    for row in np.flatnonzero(second != labels):
        kept = mixed[row] == row
        np.testing.assert_array_equal(mixed[row][~kept], second[row])
        assert share[row] == np.float32(kept.mean())
        np.testing.assert_array_equal(~kept, np.broadcast_to(~kept[0], kept.shape))
        lines, columns = (~kept[0]).any(1), (~kept[0]).any(0)
        np.testing.assert_array_equal(~kept[0], np.outer(lines, columns))
        for inside in (lines, columns):
            assert np.abs(np.diff(inside.astype(int), prepend=0, append=0)).sum() in (0, 2)
    assert share.min() < 0.3
    assert share.max() > 0.9


def test_cutmix_boxes_reach_every_pixel():
    inputs = np.zeros((2000, 1, 6, 8), np.float32)
    inputs[::2] = 1
    mixed, _ = Mixing(cutmix=1.0)(inputs, np.arange(2000), np.ones(2000, bool), np.random.default_rng(0))
    frequency = (mixed != inputs).mean((0, 1))
    assert frequency.min() > 0.05
    np.testing.assert_allclose(frequency, frequency[::-1, ::-1], atol=0.12)


def test_with_both_each_batch_takes_one_by_an_even_chance():
    inputs = np.repeat(np.arange(8, dtype=np.float32), 75).reshape(8, 3, 5, 5)
    kinds = collections.Counter()
    for seed in range(300):
        mixed, _ = Mixing(1.0, 1.0)(inputs, np.arange(8), np.ones(8, bool), np.random.default_rng(seed))
        kinds["cutmix" if (mixed == np.rint(mixed)).all() else "mixup"] += 1
    assert 120 < kinds["mixup"] < 180


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, jnp.bfloat16, np.float64])
def test_the_dtype_stays(dtype):
    inputs, labels, valid = batch()
    inputs = (100 + 30 * inputs).clip(0, 255).astype(dtype)
    mixed, (_, second, share) = Mixing(mixup=1.0)(inputs, labels, valid, np.random.default_rng(0))
    assert mixed.dtype == dtype
    assert Mixing(cutmix=1.0)(inputs, labels, valid, np.random.default_rng(0))[0].dtype == dtype
    wide, weights = inputs.astype(np.float64), share[:, None, None, None].astype(np.float64)
    expected = weights * wide + (1 - weights) * wide[second]
    atol = 0.501 if dtype == np.uint8 else 256 * float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(mixed.astype(np.float64), expected, atol=max(atol, 1e-4))


def test_labels_of_any_shape_or_several_are_mixed():
    inputs, rows, valid = batch()
    labels = {"vector": np.stack([rows, -rows], 1).astype(np.float32), "class": rows}
    _, mixed = Mixing(mixup=1.0)(inputs, labels, valid, np.random.default_rng(0))
    np.testing.assert_array_equal(mixed.second["vector"], np.stack([mixed.second["class"], -mixed.second["class"]], 1))


def test_mixing_that_is_off_changes_nothing():
    inputs, labels, valid = batch()
    assert not Mixing()
    assert Mixing(mixup=0.1)
    assert Mixing(cutmix=0.1)
    same, mixed = Mixing()(inputs, labels, valid, np.random.default_rng(0))
    np.testing.assert_array_equal(same, inputs)
    np.testing.assert_array_equal(mixed.second, labels)
    np.testing.assert_array_equal(mixed.share, np.ones(16))


def test_what_cannot_be_mixed_is_refused():
    with pytest.raises(ConfigError, match=r"^--mixup is -1.0, but must be 0 or above, and finite\.$"):
        Mixing(mixup=-1.0)
    with pytest.raises(ConfigError, match=r"^--cutmix is inf, "):
        Mixing(cutmix=math.inf)
    inputs, labels, valid = batch()
    unsuitable: tuple[Any, ...] = {"first": inputs, "second": inputs}, inputs[:, 0]
    for others in unsuitable:
        with pytest.raises(ConfigError, match="--mixup and --cutmix are of images"):
            Mixing(mixup=1.0)(others, labels, valid, np.random.default_rng(0))


# --- losses and metrics -----------------------------------------------------------------------------------------------


def mixed_labels():
    first, second = np.array([0, 2, 1, 1]), np.array([1, 0, 2, 2])
    return MixedLabels(first, second, np.array([0.7, 0.2, 0.5, 1.0], np.float32))


def logits():
    return np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)


def test_the_loss_and_gradients_of_mixed_labels_are_those_of_mixed_targets():
    labels = mixed_labels()
    share = labels.share[:, None]
    targets = share * np.eye(3)[labels.first] + (1 - share) * np.eye(3)[labels.second]
    loss = jax.jit(of_mixed(cross_entropy))
    with jax.numpy_dtype_promotion("strict"):
        assert loss(logits(), labels).dtype == jnp.float32
    np.testing.assert_allclose(loss(logits(), labels), optax.softmax_cross_entropy(logits(), targets), rtol=1e-5)
    gradient = jax.grad(lambda outputs: loss(outputs, labels).sum())(jnp.asarray(logits()))
    np.testing.assert_allclose(gradient, jax.nn.softmax(logits()) - targets, atol=1e-6)


@pytest.mark.parametrize("wrap", [of_mixed, of_main])
def test_plain_labels_reach_the_function_as_they_are(wrap):
    seen = []
    wrap(lambda *arguments: seen.append(arguments))("outputs", "labels")
    assert seen == [("outputs", "labels")]


def test_metrics_are_of_the_label_with_the_larger_share_or_the_first():
    outputs = np.eye(3, dtype=np.float32)[[0, 0, 1, 2]]
    assert jax.jit(of_main(accuracy))(outputs, mixed_labels()).tolist() == [1, 1, 1, 0]


def test_main_labels_of_any_shape():
    first, second, share = mixed_labels()
    vectors = MixedLabels(np.eye(3)[first], np.eye(3)[second], share)
    main = of_main(lambda _, labels: labels)(None, vectors)
    np.testing.assert_array_equal(main, np.eye(3)[[0, 0, 1, 1]])
