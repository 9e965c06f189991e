"""Each task through the command line: it learns, and what it leaves gives the same answers in ONNX Runtime."""

import csv
import itertools
import json

import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
import tokenizers

import onnxeqx
from onnxeqx.plugins.manager import host
from onnxeqx.training import TrainConfig, prepare
from onnxeqx.training.registry import registry
from onnxeqx.training.tasks import Task

from .command_line import history, invoke, refused
from .tiny import ENCODER, LANGUAGE, TABLE, write_net, write_tiny

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "red",
    "green",
    "blue",
    "warm",
    "cold",
    "the",
    "sky",
    "sea",
    "sun",
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.add_special_tokens(WORDS[:5])
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    made.save(str(path))
    return path


def write_table(path, columns, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


def sentences(count, seed=0):
    """A colour decides: blue is cold, all others are warm."""
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        colour = random.choice(["red", "green", "blue", "blue"])
        words = ["the", str(random.choice(["sky", "sea", "sun"])), str(colour)]
        rows.append((" ".join(random.permutation(words)), "cold" if colour == "blue" else "warm"))
    return rows


def run(folder, net, data, *options):
    words = ["train", net, "--data", data, "--output", folder / "run", "--warmup-epochs", 0]
    defaults = {"--epochs": 6, "--batch-size": 16, "--lr": 0.03}
    words += [word for name, value in defaults.items() if name not in options for word in (name, value)]
    result = invoke(*words, *options)
    assert result.exit_code == 0, result.output
    return history(folder / "run"), result.stdout


def improves(rows, column, by):
    """Whether a column of the history rises (or, by a negative number, falls) from before training to the end."""
    return (rows[-1][column] - rows[0][column]) / by >= 1


def served(folder, **inputs):
    return onnxruntime.InferenceSession(folder / "run" / "model.onnx").run(None, inputs)[0]


# --- images and tables ------------------------------------------------------------------------------------------------


def test_several_labels_of_an_image(files, tmp_path):
    arrays = dict(np.load(files / "data.npz"))
    for part in ("train", "test"):
        labels = arrays[f"y_{part}"]
        arrays[f"y_{part}"] = np.stack([labels == 0, labels < 2], 1).astype(np.float32)
    np.savez(tmp_path / "data.npz", **arrays)
    net = write_tiny(tmp_path / "net.onnx")
    rows, said = run(tmp_path, net, tmp_path / "data.npz", "--task", "multi-label", "--metrics", "exact_match")
    assert "2 classes" in said
    assert improves(rows, "val_label_accuracy", 0.2)
    assert improves(rows, "val_loss", -0.1)
    preprocess = json.loads((tmp_path / "run" / "preprocessing.json").read_text())
    assert preprocess["task"] == "multi-label"
    result = invoke("evaluate", tmp_path / "run")
    best = max(row["val_label_accuracy"] for row in rows)
    assert f"label_accuracy {best:.4f}" in result.stdout


@pytest.fixture(scope="module")
def measurements(tmp_path_factory):
    """Rows whose class and targets follow from their features, of different sizes."""
    folder, random = tmp_path_factory.mktemp("table"), np.random.default_rng(0)
    features = random.normal(size=(120, 3)) * [1, 10, 100] + [0, 5, -50]
    scaled = (features - [0, 5, -50]) / [1, 10, 100]
    kinds = np.array(["low", "middle", "high"])[np.digitize(scaled.sum(1), [-0.7, 0.7])]
    rows = [
        [*map(str, row), kind, total, row[0]] for row, kind, total in zip(features, kinds, scaled.sum(1), strict=True)
    ]
    return write_table(folder / "rows.csv", ["a", "b", "c", "kind", "total", "copy"], rows)


def test_classes_of_rows(measurements, tmp_path):
    net = write_net(tmp_path / "net.onnx", TABLE)
    options = ["--label-column", "kind", "--feature-columns", "a,b,c", "--standardize", "--epochs", 20]
    rows, said = run(tmp_path, net, measurements, *options)
    assert "rows, 3 classes" in said
    assert max(row["val_accuracy"] for row in rows) >= 0.9 > rows[0]["val_accuracy"] + 0.2
    # The file, with what is written beside it, gives the accuracy that was reported.
    description = json.loads((tmp_path / "run" / "preprocessing.json").read_text())
    with measurements.open(newline="") as file:
        table = list(csv.DictReader(file))
    values = np.array([[float(row[name]) for name in description["features"]] for row in table])
    inputs = ((values - description["mean"]) / description["std"]).astype(np.float32)
    found = np.array(description["class_names"])[served(tmp_path, row=inputs).argmax(1)]
    right = np.array([row["kind"] for row in table]) == found
    assert right.mean() >= 0.9
    page = (tmp_path / "run" / "report.html").read_text()
    assert "middle" in page
    assert "confusion_matrix.png" in {path.name for path in (tmp_path / "run").iterdir()}


def test_numbers_of_rows(measurements, tmp_path):
    net = write_net(tmp_path / "net.onnx", TABLE)
    options = ["--label-column", "total,copy", "--feature-columns", "a,b,c", "--standardize", "--epochs", 20]
    rows, said = run(tmp_path, net, measurements, "--task", "regression", "--loss", "huber", *options)
    assert "2 targets" in said
    assert improves(rows, "val_absolute_error", -0.4)
    best = min(row["val_absolute_error"] for row in rows)  # smaller is better
    assert f"absolute_error {best:.4f}" in invoke("evaluate", tmp_path / "run").stdout
    assert (tmp_path / "run" / "predictions.png").exists()


# --- texts ------------------------------------------------------------------------------------------------------------


def test_classes_of_texts(tokenizer, tmp_path):
    net = write_net(tmp_path / "net.onnx", ENCODER)
    data = tmp_path / "texts"
    data.mkdir()
    write_table(data / "train.csv", ["text", "label"], sentences(80))
    write_table(data / "val.csv", ["text", "label"], held_out := sentences(20, seed=1))
    rows, said = run(tmp_path, net, data, "--tokenizer", tokenizer, "--max-length", 6)
    assert "80 training and 20 validation texts, 2 classes; new head at classifier" in said
    assert improves(rows, "val_accuracy", 0.3)
    description = json.loads((tmp_path / "run" / "preprocessing.json").read_text())
    saved = tokenizers.Tokenizer.from_file(str(tmp_path / "run" / description["tokenizer"]))
    saved.enable_padding(length=description["max_length"])
    encoded = saved.encode_batch([text for text, _ in held_out])
    answers = served(
        tmp_path,
        input_ids=np.array([item.ids for item in encoded]),
        attention_mask=np.array([item.attention_mask for item in encoded]),
    ).argmax(1)
    wanted = [description["class_names"].index(label) for _, label in held_out]
    assert np.mean(answers == wanted) == pytest.approx(max(row["val_accuracy"] for row in rows))
    # What was put behind the encoder is put there again.
    assert json.loads((tmp_path / "run" / "config.json").read_text())["head"] == "append"
    best = max(row["val_accuracy"] for row in rows)
    assert f"accuracy {best:.4f}" in invoke("evaluate", tmp_path / "run").stdout
    assert invoke("train", "--resume", "--output", tmp_path / "run").exit_code == 0
    again = invoke("train", "--config", tmp_path / "run" / "config.json", "--output", tmp_path / "again")
    assert again.exit_code == 0, again.output
    assert history(tmp_path / "again") == rows
    for form in ("onnx", "folder", "stablehlo"):
        result = invoke("export", tmp_path / "run", "--to", form, "--output", tmp_path / form)
        assert result.exit_code == 0, result.output
        assert "agrees with the trained model" in result.stdout


def test_classes_of_tokens(tokenizer, tmp_path):
    net = write_net(tmp_path / "net.onnx", ENCODER)
    lines = []
    for text, _ in sentences(80):
        words = text.split()
        lines.append(
            {"tokens": words, "tags": ["colour" if word in ("red", "green", "blue") else "O" for word in words]}
        )
    (tmp_path / "tags.jsonl").write_text("\n".join(map(json.dumps, lines)))
    options = ["--task", "token-classification", "--tokenizer", tokenizer, "--max-length", 6]
    rows, _ = run(tmp_path, net, tmp_path / "tags.jsonl", *options)
    assert improves(rows, "val_token_accuracy", 0.3)
    assert rows[-1]["val_token_accuracy"] == 1
    ids = np.array([[WORDS.index(word) for word in ("the", "green", "sea")]])
    names = json.loads((tmp_path / "run" / "preprocessing.json").read_text())["class_names"]
    found = served(tmp_path, input_ids=ids, attention_mask=np.ones_like(ids)).argmax(-1)[0]
    assert [names[number] for number in found] == ["O", "colour", "O"]


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (["O", "O", "O"], ["O", None, "O"], r"a label in column 'tags' .* is missing in row 1"),
        ([0, 1, 1], [0, -3, 1], r"a label in column 'tags' .* is -3 in row 1"),
        ("O O O", "O", r"Row 1 .* has 3 words, but 1 labels"),
        (["O", "O", "O"], None, r"column 'tags' .* is missing in row 1 .* must be a list, or a text with spaces"),
    ],
)
def test_wrong_labels_of_tokens(first, second, message, tokenizer, tmp_path):
    lines = [{"tokens": ["the", "red", "sun"], "tags": tags} for tags in (first, second)]
    (tmp_path / "tags.jsonl").write_text("\n".join(map(json.dumps, lines)))
    words = ["train", write_net(tmp_path / "net.onnx", ENCODER), "--data", tmp_path / "tags.jsonl"]
    words += ["--task", "token-classification", "--tokenizer", tokenizer, "--output", tmp_path / "run"]
    refused(invoke(*words), message)


def test_words_and_tags_with_spaces_between_and_some_that_do_not_count(tokenizer, tmp_path):
    rows = [["the red sun", "0 1 -100"], ["the sky", "-100 -100"], ["blue sea", "1 0"]] * 4
    net = write_net(tmp_path / "net.onnx", ENCODER)
    data = write_table(tmp_path / "tags.csv", ["tokens", "tags"], rows)
    config = TrainConfig(
        str(net), str(data), "run", task="token-classification", tokenizer=str(tokenizer), max_length=4
    )
    made = prepare(config)
    assert made.dataset.class_names == ("0", "1")
    assert len(made.data.training) + len(made.data.validation) == 8  # a text of which nothing counts is left out
    seen = {tuple(made.data.training[index][1].tolist()) for index in range(len(made.data.training))}
    assert seen <= {(0, 1, -100, -100), (1, 0, -100, -100)}


@pytest.mark.parametrize("task", ["causal-lm", "masked-lm"])
def test_language_models(task, tokenizer, tmp_path):
    net = write_net(tmp_path / "net.onnx", LANGUAGE, **{"head.weight": (8, 14)})
    data = write_table(tmp_path / "texts.csv", ["text"], [["the red sun"], ["the blue sky"], ["the green sea"]] * 20)
    # Blocks of five tokens begin anywhere in these sentences of three and the token between them.
    options = ["--task", task, "--tokenizer", tokenizer, "--max-length", 5, "--mask-share", 0.3]
    rows, said = run(tmp_path, net, data, *options, "--epochs", 10, "--lr", 0.1)
    assert "new head" not in said
    assert improves(rows, "val_loss", -0.7)
    if task == "causal-lm":  # behind each word but "the", one follows
        ids = np.array([[WORDS.index("blue")]])
        assert WORDS[served(tmp_path, input_ids=ids)[0, -1].argmax()] == "sky"


def test_pairs_of_texts_are_told_from_others(tokenizer, tmp_path):
    net = write_net(tmp_path / "net.onnx", ENCODER)
    # Each word stands for the next one in the other text, so that pairs that were never seen can be told, too.
    other = dict(zip(words := WORDS[5:], [*words[1:], words[0]], strict=True))
    pairs = [[f"{a} {b}", f"{other[a]} {other[b]}"] for a, b in itertools.combinations(words, 2)]
    data = write_table(tmp_path / "pairs.csv", ["first", "second"], pairs)
    options = ["--task", "contrastive", "--text-column", "first,second", "--temperature", 0.1, "--tokenizer", tokenizer]
    rows, said = run(tmp_path, net, data, *options, "--batch-size", 6, "--max-length", 4, "--epochs", 12)
    assert "29 training and 7 validation texts" in said
    assert improves(rows, "val_loss", -0.3)


def test_two_views_of_an_image_are_told_from_others(files, tmp_path):
    options = ["--task", "contrastive", "--crop-scale", 0.5, "--flip", 0.5, "--batch-size", 8]
    rows, said = run(tmp_path, write_tiny(tmp_path / "net.onnx"), files / "data.npz", *options)
    assert "new head" not in said
    assert improves(rows, "val_loss", -0.2)


# --- distillation, plugins --------------------------------------------------------------------------------------------


def test_a_student_learns_a_teachers_outputs(files, tmp_path):
    teacher = write_tiny(tmp_path / "teacher.onnx")
    student = onnx.load(teacher)
    random = np.random.default_rng(5)
    for tensor in student.graph.initializer:
        if tensor.name == "classifier.weight":
            tensor.CopyFrom(
                onnx.numpy_helper.from_array(random.normal(size=(7, 16)).astype(np.float32) / 4, tensor.name)
            )
    onnx.save(student, tmp_path / "student.onnx")
    rows, _ = run(
        tmp_path,
        tmp_path / "student.onnx",
        files / "data.npz",
        "--task",
        "distillation",
        "--teacher",
        teacher,
        "--epochs",
        20,
    )
    assert rows[-1]["val_loss"] < rows[0]["val_loss"] / 5
    images = np.random.default_rng(0).normal(size=(9, 3, 12, 12)).astype(np.float32)
    agree = served(tmp_path, image=images).argmax(1) == np.asarray(onnxeqx.load(teacher)(jnp.asarray(images))).argmax(1)
    assert agree.mean() > 0.8


def test_a_teacher_of_other_classes_is_refused(files, tmp_path):
    teacher = write_tiny(tmp_path / "teacher.onnx")
    words = ["train", teacher, "--data", files / "data.npz", "--output", tmp_path / "run", "--distill", 0.5]
    refused(invoke(*words), r"The teacher .*teacher\.onnx gives \(2, 7\), but the network \(2, 3\)")
    assert not (tmp_path / "run").exists()


def test_losses_metrics_tasks_and_data_of_plugins(files, tmp_path):
    class Plugin:
        @onnxeqx.hookimpl
        def onnxeqx_register_losses(self, registry):
            from onnxeqx.training import accuracy, cross_entropy

            registry.add_loss("doubled", lambda outputs, labels: 2 * cross_entropy(outputs, labels))
            registry.add_metric(
                "mistakes", lambda outputs, labels: 1 - accuracy(outputs, labels), smaller_is_better=True
            )
            registry.add_task(Task("grading", "class", cross_entropy, {"accuracy": accuracy}))

        @onnxeqx.hookimpl
        def onnxeqx_register_datasets(self, registry):
            arrays = np.load(files / "data.npz")
            registry.add_dataset("colours", lambda: (arrays["x_train"], arrays["y_train"], ["r", "g", "b"]))

    plugin = Plugin()
    host().pluggy.register(plugin)
    registry.cache_clear()
    try:
        options = ["--task", "grading", "--loss", "doubled", "--metrics", "mistakes", "--eval-metric", "mistakes"]
        rows, said = run(tmp_path, write_tiny(tmp_path / "net.onnx"), "colours", *options)
    finally:
        host().pluggy.unregister(plugin)
        registry.cache_clear()
    assert "48 training and 12 validation images, 3 classes" in said
    assert rows[0]["val_loss"] > 1.5  # twice log 3
    for row in rows:
        assert row["val_mistakes"] == pytest.approx(1 - row["val_accuracy"], abs=1e-6)
    assert f"mistakes {rows[0]['val_mistakes']:.3f} → {min(row['val_mistakes'] for row in rows):.3f}" in said


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--tokenizer": None}, r"needs the tokenizer\.json that belongs to it: --tokenizer FILE"),
        ({"--task": "translation"}, r"--task is translation, but must be one of classification, multi-label, "),
        ({"--label-column": "kind"}, r"kind.*text, label"),
        ({"--task": "regression"}, r"label"),
        (
            {"--task": "causal-lm", "--max-length": 8, "--class-weights": "balanced"},
            r"--class-weights is of one class",
        ),
        ({"--loss": "hinge"}, r"--loss is hinge, but must be one of cross-entropy, "),
        ({"--loss": "huber"}, r"--loss is huber, which does not suit --task classification"),
        ({"--teacher": "none.onnx"}, r"--teacher goes with --distill SHARE, or with --task distillation"),
        (
            {"--temperature": 2},
            r"--temperature is of a teacher \(--distill, --task distillation\) or of --task contrastive",
        ),
        ({"--dropout-layers": "dense"}, r"--dropout-layers goes with --dropout RATE"),
        ({"--metrics": "bleu"}, r"--metrics has bleu, but must be of accuracy, "),
        ({"--eval-metric": "bleu"}, r"--eval-metric is bleu, but this run has loss, accuracy"),
        ({"--flip": 0.5}, r"are of images, which this network does not take"),
        ({"--image-size": 8}, r"--image-size is of images"),
        ({"--class-weights": "1,2,3"}, r"--class-weights is 1,2,3, but must be 'balanced' or 2 numbers"),
    ],
)
def test_wrong_options_of_texts(changes, message, tokenizer, tmp_path):
    net = write_net(tmp_path / "net.onnx", ENCODER)
    data = write_table(tmp_path / "texts.csv", ["text", "label"], sentences(20))
    options = {"--data": data, "--output": tmp_path / "run", "--tokenizer": tokenizer} | changes
    words = [word for name, value in options.items() if value is not None for word in (name, value)]
    refused(invoke("train", net, *words), message)
    assert not (tmp_path / "run").exists()


def test_wrong_tables(tmp_path):
    net = write_net(tmp_path / "net.onnx", TABLE)
    data = write_table(
        tmp_path / "rows.csv", ["a", "b", "c", "label"], [[1, 2, 3, "x"], [4, "nan", 6, "y"], [7, 8, 9, "x"]]
    )
    words = ["train", net, "--data", data, "--output", tmp_path / "run"]
    refused(invoke(*words), r"rows\.csv.*'?b'?.*row 1")
    refused(invoke(*words, "--feature-columns", "a,c"), r"takes 3 features, but .* has 2 \(a, c\)")
    folder = tmp_path / "parts"
    folder.mkdir()
    write_table(folder / "train.csv", ["a", "b", "c", "label"], [[1, 2, 3, "x"], [4, 5, 6, "y"]])
    write_table(folder / "val.csv", ["a", "b", "c", "label"], [[1, 2, 3, "z"]])
    words[3] = folder
    refused(invoke(*words), r"val\.csv: column 'label' .* is 'z' in row 0 .* but the classes are x, y")
    assert not (tmp_path / "run").exists()


def test_a_head_that_is_kept_must_be_as_wide_as_the_data(files, tmp_path):
    net = write_tiny(tmp_path / "net.onnx")
    words = ["train", net, "--data", files / "data.npz", "--output", tmp_path / "run", "--head", "keep"]
    refused(invoke(*words), r"--head keep: the network gives 7 numbers, but the data has 3 classes")
    made = prepare(TrainConfig(str(net), str(files / "data.npz"), "run", head="keep", classes=7))
    assert made.head is None
    assert made.absent_classes == ["3", "4", "5", "6"]


def test_smoothing_of_numbers_is_refused(measurements, tmp_path):
    net = write_net(tmp_path / "net.onnx", TABLE)
    words = ["train", net, "--data", measurements, "--output", tmp_path / "run", "--task", "regression"]
    words += ["--label-column", "total", "--feature-columns", "a,b,c"]
    refused(invoke(*words, "--smoothing", 0.1), r"--smoothing is of classes; --task regression has none")


def test_texts_without_labels_learn_from_a_teacher(tokenizer, tmp_path):
    net = write_net(tmp_path / "net.onnx", LANGUAGE, **{"head.weight": (8, 14)})
    teacher = onnx.load(net)
    for tensor in teacher.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        tensor.CopyFrom(onnx.numpy_helper.from_array(values[::-1].copy(), tensor.name))
    onnx.save(teacher, tmp_path / "teacher.onnx")
    data = write_table(tmp_path / "texts.csv", ["text"], [[text] for text, _ in sentences(40)])
    options = ["--task", "distillation", "--teacher", tmp_path / "teacher.onnx", "--tokenizer", tokenizer]
    rows, _ = run(tmp_path, net, data, *options, "--max-length", 4)
    assert rows[-1]["val_loss"] < rows[0]["val_loss"] / 2
