"""Arrays of rows and of tokens as training data: what is taken, and what is refused in a sentence."""

import numpy as np
import pytest

from onnxeqx import DataError
from onnxeqx.training import ConfigError, TrainConfig, prepare

from .tiny import ENCODER, LANGUAGE, TABLE, write_net

ROWS = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
CLASSES = np.arange(12) % 3
TOKENS = np.random.default_rng(0).integers(0, 14, (12, 5))


def with_value(array, place, value):
    changed = np.array(array)
    changed[place] = value
    return changed


def prepared(tmp_path, text, arrays, **options):
    net, data = write_net(tmp_path / "net.onnx", text), tmp_path / "data.npz"
    np.savez(data, **arrays)
    return prepare(TrainConfig(str(net), str(data), str(tmp_path / "run"), **options))


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (CLASSES, "012"),
        (CLASSES.astype(np.float64), "012"),
        (CLASSES[:, None].astype(np.uint8), "012"),
        (np.array(list("cab"))[CLASSES], "abc"),
        (CLASSES > 0, "01"),
    ],
)
def test_labels_of_any_dtype_are_classes(labels, names, tmp_path):
    made = prepared(tmp_path, TABLE, {"x": ROWS, "y": labels})
    assert made.dataset.class_names == tuple(names)
    row, label = made.data.training[0]
    assert row.dtype == np.float32
    assert label.dtype == np.int64
    assert label.shape == ()


@pytest.mark.parametrize("labels", [ROWS.sum(1), ROWS.sum(1, keepdims=True).astype(np.float64), ROWS])
def test_numbers_are_predicted_one_or_several(labels, tmp_path):
    made = prepared(tmp_path, TABLE, {"row": ROWS, "labels": labels}, task="regression")
    assert made.config.classes == labels.size // len(labels)
    _, label = made.data.training[0]
    assert label.dtype == np.float32
    assert label.shape == (made.config.classes,)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": ROWS, "y": CLASSES[:9]}, r"12 examples, but labels of shape \(9,\); each example needs one"),
        ({"x": ROWS[:0], "y": CLASSES[:0]}, r"data\.npz has no examples"),
        ({"x": ROWS, "y": CLASSES + 0.5}, r"labels must be whole numbers .* or texts, not float64, such as 0\.5"),
        ({"x": ROWS, "y": CLASSES - 1}, r"label -1 of example 0 is outside 0 to 1"),
        ({"x": ROWS, "y": CLASSES * 2}, r"the labels go up to 4, but no example has the label 1"),
        ({"x": ROWS, "y": np.eye(12)}, r"one class for each example is needed"),
        ({"x": with_value(ROWS, (7, 1), np.nan), "y": CLASSES}, r"row has values that are not finite in example 7"),
        ({"x": ROWS[:, :2], "y": CLASSES}, r"row has the shape \(12, 2\), but .*net\.onnx takes \(batch, 3\)"),
        ({"x": CLASSES[:, None].repeat(3, 1), "y": CLASSES}, r"row is int64, but .* takes float32"),
        ({"x": ROWS}, r"has x; name its arrays as the network's inputs \(row\) and labels, or x_train and y_train"),
        (
            {"x": ROWS, "y": CLASSES, "x_test": with_value(ROWS, (2, 0), np.inf), "y_test": CLASSES},
            r"\(validation part\): row has values that are not finite in example 2",
        ),
        (
            {"x": ROWS, "y": CLASSES, "x_test": ROWS, "y_test": CLASSES + 1},
            r"\(validation part\): label 3 of example 2 is outside 0 to 2",
        ),
    ],
)
def test_rows_that_do_not_fit_are_one_sentence(arrays, message, tmp_path):
    with pytest.raises(DataError, match=message):
        prepared(tmp_path, TABLE, arrays)


@pytest.mark.parametrize(
    ("task", "labels", "message"),
    [
        ("regression", with_value(ROWS, (4, 0), np.nan), r"the label of example 4 is not finite"),
        ("regression", np.array(["a"] * 12), r"labels must be numbers, shape \(n, numbers\), not <U1"),
        ("multi-label", with_value(np.zeros((12, 4)), (5, 1), 2), r"the labels of example 5 are not all 0 or 1"),
        ("multi-label", CLASSES, r"labels must be 0 or 1 for each class, shape \(n, classes\), not int64 of shape \(12,\)"),
    ],
)  # fmt: skip
def test_labels_that_do_not_fit_are_one_sentence(task, labels, message, tmp_path):
    with pytest.raises(DataError, match=message):
        prepared(tmp_path, TABLE, {"x": ROWS, "y": labels}, task=task)


def test_tokens_without_labels_are_continued(tmp_path):
    made = prepared(tmp_path, LANGUAGE, {"input_ids": TOKENS}, task="causal-lm")
    inputs, labels = made.data.training[0]
    np.testing.assert_array_equal(labels[:-1], inputs["input_ids"][1:])
    assert labels[-1] == -100
    assert made.speed_unit == ("tokens", 5)


@pytest.mark.parametrize(
    ("text", "arrays", "options", "message"),
    [
        (LANGUAGE, {"input_ids": TOKENS + 5}, {"task": "causal-lm"}, r"which the network looks up in a table of 14 rows: use"),
        (LANGUAGE, {"input_ids": TOKENS * 1.0}, {"task": "causal-lm"}, r"input_ids is float64, but .* takes int64"),
        (LANGUAGE, {"input_ids": TOKENS}, {"task": "masked-lm"}, r"name its arrays as the network's inputs \(input_ids\) and lab"),
        (
            ENCODER,
            {"input_ids": TOKENS, "attention_mask": np.ones((9, 5), np.int64), "y": CLASSES},
            {},
            r"has 12 of input_ids, 9 of attention_mask; each example needs one of each",
        ),
        (
            ENCODER,
            {"input_ids": TOKENS, "attention_mask": np.ones_like(TOKENS), "y": with_value(TOKENS, (3, 1), -7)},
            {"task": "token-classification"},
            r"label -7 of example 3 is outside 0 to 13",
        ),
        (
            ENCODER,
            {"input_ids": TOKENS, "attention_mask": np.ones_like(TOKENS), "y": TOKENS * 0.5},
            {"task": "token-classification"},
            r"labels of tokens must be whole numbers of shape \(n, positions\), not float64",
        ),
    ],
)  # fmt: skip
def test_tokens_that_do_not_fit_are_one_sentence(text, arrays, options, message, tmp_path):
    with pytest.raises(DataError, match=message):
        prepared(tmp_path, text, arrays, **options)


def test_a_network_whose_input_is_called_x_has_a_validation_part_too(tmp_path):
    arrays = {"x": ROWS, "y": CLASSES, "x_test": ROWS[:4], "y_test": CLASSES[:4]}
    made = prepared(tmp_path, TABLE.replace("row", "x"), arrays)
    assert (len(made.data.training), len(made.data.validation)) == (12, 4)
    assert not made.dataset.held_out


def test_options_of_tables_are_not_of_arrays(tmp_path):
    with pytest.raises(
        ConfigError, match=r"--standardize and --feature-columns are of tables; .*data\.npz holds arrays"
    ):
        prepared(tmp_path, TABLE, {"x": ROWS, "y": CLASSES}, standardize=True)


def test_more_accumulation_than_batches_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"--grad-accum-steps is 99, but the whole run has 5 batches"):
        prepared(tmp_path, TABLE, {"x": ROWS, "y": CLASSES}, grad_accum_steps=99)


def test_arrays_have_no_pairs(tmp_path):
    arrays = {"input_ids": TOKENS, "attention_mask": np.ones_like(TOKENS)}
    with pytest.raises(ConfigError, match=r"--task contrastive takes images, or pairs of texts in a table"):
        prepared(tmp_path, ENCODER, arrays, task="contrastive")


def test_the_summary_says_which_classes_training_does_not_show(tmp_path):
    made = prepared(tmp_path, TABLE, {"x": ROWS, "y": CLASSES}, classes=5, class_weights="balanced")
    assert made.summary.endswith("; no training example is of 3, 4")
    assert made.absent_classes == ["3", "4"]
