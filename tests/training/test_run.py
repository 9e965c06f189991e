"""Whole runs through the command line, on a small ONNX file."""

import dataclasses
import inspect
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest

import onnxeqx
from onnxeqx.cli.train import train
from onnxeqx.training import Preprocessing, TrainConfig
from onnxeqx.training.signature import Signature

from .command_line import command, history, invoke, refused
from .tiny import write_tiny

FILES = {
    "checkpoints",
    "config.json",
    "history.jsonl",
    "timings.jsonl",
    "model",
    "model.onnx",
    "preprocessing.json",
    "confusion_matrix.png",
    "report.html",
    "results.png",
    "weights.safetensors",
}


@pytest.fixture(scope="module")
def finished(files, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "run"
    result = invoke(*command(files, output))
    assert result.exit_code == 0, result.output
    return output, result.stdout


# --- what a run leaves ------------------------------------------------------------------------------------------------


def test_a_run_learns_and_says_so(finished):
    output, said = finished
    rows = history(output)
    assert rows[-1]["val_accuracy"] > rows[0]["val_accuracy"] + 0.3
    assert [row["epoch"] for row in rows] == [0, 1, 2, 3]
    assert rows[1]["lr"] > rows[2]["lr"] > rows[3]["lr"] > 0
    assert "60 training and 15 validation images, 3 classes; new head at classifier; " in said
    best = max(row["val_accuracy"] for row in rows)
    assert f"accuracy {rows[0]['val_accuracy']:.3f} → {best:.3f}; the fine-tuned model is in" in said


def test_a_run_leaves_these_files_and_no_others(finished):
    output, _ = finished
    assert {path.name for path in output.iterdir()} == FILES
    assert {path.name for path in (output / "checkpoints").iterdir()} == {"best", "last"}


def test_the_resolved_configuration_is_saved(finished, files):
    config = TrainConfig.read(finished[0] / "config.json")
    assert config.model == str(files / "net.onnx")
    assert (config.classes, config.head, config.epochs, config.lr) == (3, "classifier", 3, 0.02)


def test_every_file_holds_the_same_model(finished, files):
    output, _ = finished
    images = np.random.default_rng(0).normal(size=(5, 3, 12, 12)).astype(np.float32)
    folder = onnxeqx.load(output / "model")
    expected = np.asarray(folder(jnp.asarray(images)))
    assert expected.shape == (5, 3)
    session = onnxruntime.InferenceSession(output / "model.onnx", providers=["CPUExecutionProvider"])
    (served,) = session.run(None, {"image": images})
    np.testing.assert_allclose(served, expected, rtol=1e-4, atol=1e-5)
    reloaded = onnxeqx.load(output / "model.onnx")
    np.testing.assert_allclose(reloaded(jnp.asarray(images)), expected, rtol=1e-5, atol=1e-6)
    weights = onnxeqx.load_weights(folder, output / "weights.safetensors")
    np.testing.assert_array_equal(weights(jnp.asarray(images)), expected)


def test_preprocessing_and_class_names_go_with_the_model(finished, files):
    output, _ = finished
    saved = json.loads((output / "preprocessing.json").read_text())
    assert saved.pop("class_names") == ["0", "1", "2"]
    assert saved.pop("task") == "classification"
    preprocess = Preprocessing(**saved)
    assert (preprocess.height, preprocess.width, preprocess.channels) == (12, 12, 3)
    (metadata,) = [entry.value for entry in onnx.load(output / "model.onnx").metadata_props]
    assert json.loads(metadata) == json.loads((output / "preprocessing.json").read_text())

    # The saved model with the saved preprocessing gives the accuracy that the run reported.
    arrays = np.load(files / "data.npz")
    session = onnxruntime.InferenceSession(output / "model.onnx", providers=["CPUExecutionProvider"])
    (outputs,) = session.run(None, {"image": np.stack([preprocess(image) for image in arrays["x_test"]])})
    accuracy = float((outputs.argmax(1) == arrays["y_test"]).mean())
    assert accuracy == pytest.approx(max(row["val_accuracy"] for row in history(output)))


# --- options ----------------------------------------------------------------------------------------------------------


def test_defaults_in_the_help_are_those_of_the_configuration():
    shown = {
        name: parameter.annotation.__metadata__[0].show_default
        for name, parameter in inspect.signature(train).parameters.items()
        if name
        not in ("context", "debug", "config", "amp", "resume", "force", "dry_run", "overfit_one_batch", "find_lr")
    }
    for field in dataclasses.fields(TrainConfig):
        assert field.name in shown
        if isinstance(field.default, bool):
            assert not field.default  # a flag turns it on
        elif isinstance(field.default, int | float):
            assert float(shown[field.name]) == field.default
        elif isinstance(field.default, tuple) and field.default:
            assert tuple(map(float, shown[field.name].split(","))) == field.default


@pytest.mark.parametrize(
    ("options", "frozen"),
    [
        (["--trainable", "head"], {"features.0.weight", "features.3.weight"}),
        (["--freeze", "features.0.*", "--freeze", "features.1.*"], {"features.0.weight"}),
    ],
)
def test_frozen_weights_come_back_bit_by_bit(files, tmp_path, options, frozen):
    assert invoke(*command(files, tmp_path / "run", "--epochs", 1, *options)).exit_code == 0
    before = onnxeqx.key_paths(onnxeqx.load(files / "net.onnx"))
    after = onnxeqx.key_paths(onnxeqx.load(tmp_path / "run" / "model"))
    names = {
        name for name in before if name.endswith("weight") and name.startswith("features.") and before[name].ndim > 1
    }
    assert {name for name in names if np.array_equal(before[name], after[name])} == frozen


def test_image_size_limit_mean_std_and_seed_arrive(files, tmp_path):
    options = ["--image-size", 16, "--limit", 12, "--mean", "127", "--std", "128,128,128", "--seed", 4, "--epochs", 1]
    options += ["--weight-decay", 0, "--warmup-epochs", 0, "--workers", 1, "--head", "classifier", "--classes", 4]
    result = invoke(*command(files, tmp_path / "run", *options, "--validation-share", 0.5))
    assert result.exit_code == 0, result.output
    assert "12 training and 12 validation images, 4 classes" in result.stdout
    saved = json.loads((tmp_path / "run" / "preprocessing.json").read_text())
    assert (saved["height"], saved["width"]) == (16, 16)
    assert saved["mean"] == [127 / 255]
    assert saved["class_names"] == ["0", "1", "2", "3"]
    assert onnxeqx.load(tmp_path / "run" / "model")(jnp.zeros((2, 3, 16, 16))).shape == (2, 4)


@pytest.mark.parametrize(("options", "precision"), [(["--amp"], "bfloat16"), (["--precision", "float16"], "float16")])
def test_a_run_in_16_bits_learns(files, tmp_path, options, precision):
    assert invoke(*command(files, tmp_path / "run", *options)).exit_code == 0
    assert TrainConfig.read(tmp_path / "run" / "config.json").precision == precision
    rows = history(tmp_path / "run")
    assert rows[-1]["val_accuracy"] > rows[0]["val_accuracy"] + 0.3
    weights = onnxeqx.key_paths(onnxeqx.load(tmp_path / "run" / "model")).values()
    assert {str(weight.dtype) for weight in weights} == {"float32"}


def test_the_same_seed_gives_the_same_files(files, tmp_path):
    for name in ("a", "b"):
        assert invoke(*command(files, tmp_path / name, "--epochs", 1)).exit_code == 0
    assert history(tmp_path / "a") == history(tmp_path / "b")
    for name in ("weights.safetensors", "model.onnx", "model/model.py"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_network_that_ends_in_softmax_learns(files, tmp_path):
    write_tiny(tmp_path / "net.onnx", softmax=True)
    assert Signature.of(tmp_path / "net.onnx").ends_in == "Softmax"
    assert Signature.of(files / "net.onnx").ends_in is None
    shutil.copy(files / "data.npz", tmp_path)
    assert invoke(*command(tmp_path, tmp_path / "run", "--epochs", 1)).exit_code == 0
    assert invoke(*command(files, tmp_path / "logits", "--epochs", 1)).exit_code == 0
    for row, expected in zip(history(tmp_path / "run"), history(tmp_path / "logits"), strict=True):
        assert row == pytest.approx(expected, rel=1e-3)


def test_a_converted_folder_can_be_fine_tuned(files, tmp_path):
    onnxeqx.convert(files / "net.onnx", tmp_path / "net.onnx")
    shutil.copy(files / "data.npz", tmp_path)
    assert invoke(*command(tmp_path, tmp_path / "run", "--epochs", 1)).exit_code == 0
    result = invoke(*command(tmp_path, tmp_path / "other", "--image-size", 32))
    refused(result, r"is a converted folder for images of 12x12, not 32")


def test_the_default_output_is_named_after_the_model(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = invoke("train", files / "net.onnx", "--data", files / "data.npz", "--epochs", 1)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "runs" / "net" / "model.onnx").exists()


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "nowhere"], r"no data at nowhere"),
        (["--classes", "2"], r"label 2 of example 2 is outside 0 to 1"),
        (
            ["--head", "fc"],
            r"no Linear or Conv layer at 'fc' \(head, --head\); the last layers are .*classifier \(Linear, 7 wide\)",
        ),
        (
            ["--head", "features"],
            r"The network does not run with 3 classes at features\.3; choose another head \(--head\)",
        ),
        (["--freeze", "*"], r"Nothing is left to train"),
        (["--freeze", "tail.*"], r"'tail\.\*' matches no parameter"),
        (["--trainable", "tail"], r"'tail' matches no parameter"),
        (["--mean", "a,b"], r"--mean must be numbers with commas"),
        (["--std", "0"], r"--std is \(0\.0,\)"),
        (["--epochs", "0"], r"--epochs is 0, but must be at least 1"),
        (["--lr", "0"], r"--lr is 0\.0, but must be above 0"),
        (["--resume", "--force"], r"choose one"),
        (["--resume"], r"There is no run to resume"),
    ],
)
def test_a_wrong_option_is_one_sentence_and_writes_nothing(files, tmp_path, options, message):
    refused(invoke(*command(files, tmp_path / "run", *options)), message)
    assert not (tmp_path / "run").exists()


def test_missing_arguments_are_named(files):
    refused(invoke("train"), r"Missing: MODEL.onnx and --data")
    refused(invoke("train", files / "net.onnx"), r"Missing: --data")
    refused(invoke("train", "--resume"), r"--resume needs the folder of the run: --output FOLDER")


def test_a_damaged_model_is_one_sentence(files, tmp_path):
    (tmp_path / "net.onnx").write_bytes((files / "net.onnx").read_bytes()[:500])
    shutil.copy(files / "data.npz", tmp_path)
    refused(invoke(*command(tmp_path, tmp_path / "run")), r"net\.onnx")
    (tmp_path / "net.onnx").unlink()
    refused(invoke(*command(tmp_path, tmp_path / "run")), r"net\.onnx")
    assert not (tmp_path / "run").exists()


def test_images_for_a_network_of_tables_are_refused(files, tmp_path):
    graph = '<ir_version: 8, opset_import: ["" : 17]> g (float[n, 8] x) => (float[n, 8] y) { y = Relu(x) }'
    onnx.save(onnx.parser.parse_model(graph), tmp_path / "net.onnx")
    shutil.copy(files / "data.npz", tmp_path)
    refused(
        invoke(*command(tmp_path, tmp_path / "run")),
        r"data\.npz: x has the shape \(60, 6, 6, 3\), but .*net\.onnx takes \(batch, 8\)",
    )


def test_an_open_image_size_must_be_chosen(files, tmp_path):
    model = onnx.load(files / "net.onnx")
    for dim in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.dim_param = "size"
    onnx.save(model, tmp_path / "net.onnx")
    shutil.copy(files / "data.npz", tmp_path)
    refused(
        invoke(*command(tmp_path, tmp_path / "run")),
        r"leaves the size of its images open; choose one with --image-size",
    )
    assert invoke(*command(tmp_path, tmp_path / "run", "--image-size", 12, "--epochs", 1)).exit_code == 0


def test_debug_shows_the_error_itself(files, tmp_path):
    result = invoke(*command(files, tmp_path / "run", "--head", "fc", "--debug"))
    assert isinstance(result.exception, onnxeqx.OnnxeqxError)


def test_a_filled_output_folder_is_refused_and_force_replaces_the_run_alone(files, tmp_path):
    output = tmp_path / "run"
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    refused(invoke(*command(files, output)), r"is not empty: go on with its run by --resume, replace it by --force")
    assert {path.name for path in output.iterdir()} == {"notes.txt"}
    assert invoke(*command(files, output, "--epochs", 1, "--force")).exit_code == 0
    assert invoke(*command(files, output, "--epochs", 1, "--seed", 1, "--force")).exit_code == 0
    assert {path.name for path in output.iterdir()} == FILES | {"notes.txt"}
    assert len(history(output)) == 2
    # An error leaves the old run as it is.
    refused(invoke(*command(files, output, "--force", "--head", "fc")), "no Linear or Conv layer")
    assert {path.name for path in output.iterdir()} == FILES | {"notes.txt"}


def test_an_output_that_cannot_be_written_is_one_sentence(files, tmp_path):
    (tmp_path / "file").touch()
    refused(invoke(*command(files, tmp_path / "file" / "run")), r"--output .* cannot be written: Not a directory")


# --- resuming ---------------------------------------------------------------------------------------------------------


def interrupt(words, cwd, when):
    """Runs the command and sends it Ctrl-C when a line has `when`; its output and exit code."""
    code = "from onnxeqx.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=cwd,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    said, sent = [], False
    with process:
        for line in process.stdout:
            said.append(line)
            if when in line and not sent:
                time.sleep(0.05)
                process.send_signal(signal.SIGINT)
                sent = True
    return "".join(said), process.returncode


def test_control_c_leaves_a_run_that_resumes_exactly(files, tmp_path):
    options = ["--epochs", 12, "--batch-size", 4]
    said, code = interrupt(command(files, tmp_path / "run", *options), tmp_path, when="epoch 2/12")
    assert code == 130, said
    assert "Stopping after this step; press Ctrl-C again" in said
    step, hint = re.search(
        r"Stopped after step (\d+)\. To go on: onnxeqx (train --resume --output \S+)\n", said
    ).groups()
    assert 15 < int(step) < 12 * 15
    assert "Traceback" not in said
    assert (tmp_path / "run" / "checkpoints" / "last" / step).is_dir()

    resumed = invoke(*hint.split())
    assert resumed.exit_code == 0, resumed.output
    assert invoke(*command(files, tmp_path / "whole", *options)).exit_code == 0
    assert history(tmp_path / "run") == history(tmp_path / "whole")
    for name in ("weights.safetensors", "model.onnx"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_the_same_command_with_resume_goes_on_and_other_options_are_refused(files, finished, tmp_path):
    output = tmp_path / "run"
    shutil.copytree(finished[0], output)
    config = json.loads((output / "config.json").read_text())
    (output / "config.json").write_text(json.dumps(config | {"output": str(output)}))
    assert invoke(*command(files, output, "--resume")).exit_code == 0
    assert (output / "model.onnx").read_bytes() == (finished[0] / "model.onnx").read_bytes()
    refused(invoke(*command(files, output, "--resume", "--lr", 1)), r"--lr is 0\.02 in the run and 1\.0 now")


def test_a_changed_model_file_is_noticed_on_resuming(files, tmp_path):
    model = tmp_path / "files"
    shutil.copytree(files, model)
    assert invoke(*command(model, tmp_path / "run", "--epochs", 1, "--trainable", "head")).exit_code == 0
    changed = onnx.load(model / "net.onnx")
    changed.graph.initializer[0].raw_data = bytes(len(changed.graph.initializer[0].raw_data))
    onnx.save(changed, model / "net.onnx")
    refused(invoke("train", "--resume", "--output", tmp_path / "run"), r"another model or run: the frozen weights")


def test_a_run_without_a_checkpoint_starts_from_the_beginning(files, finished, tmp_path):
    output = tmp_path / "run"
    output.mkdir()
    config = json.loads((finished[0] / "config.json").read_text())
    (output / "config.json").write_text(json.dumps(config | {"output": str(output)}))
    assert invoke("train", "--resume", "--output", output).exit_code == 0
    assert history(output) == history(finished[0])


# --- options ----------------------------------------------------------------------------------------------------------


def test_options_come_from_a_file_and_from_the_command_line(files, tmp_path):
    (tmp_path / "options.toml").write_text(
        f"""
        model = "{files / "net.onnx"}"
        data = "{files / "data.npz"}"
        epochs = 2
        lr = 0.5
        opt = "sgd"
        opt_args = ["momentum=0.9", "nesterov=true"]
        sched = "linear"
        clip_grad = 1
        grad_accum_steps = 2
        smoothing = 0.1
        model_ema = true
        mean = [127.0]
        std = [128.0]
        """
    )
    result = invoke("train", "--config", tmp_path / "options.toml", "--output", tmp_path / "run", "--lr", "0.2")
    assert result.exit_code == 0, result.output
    config = TrainConfig.read(tmp_path / "run" / "config.json")
    assert (config.lr, config.opt, config.clip_grad, config.model_ema) == (0.2, "sgd", 1.0, True)
    rows = history(tmp_path / "run")
    assert rows[-1]["lr"] < rows[1]["lr"]
    # The resolved configuration gives the same run again.
    again = invoke("train", "--config", tmp_path / "run" / "config.json", "--output", tmp_path / "again")
    assert again.exit_code == 0, again.output
    assert history(tmp_path / "again") == rows
    resumed = invoke("train", "--resume", "--output", tmp_path / "run")
    assert resumed.exit_code == 0, resumed.output
    assert history(tmp_path / "run") == rows


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr = ", r"--config .*options.toml is no TOML"),
        ("learning_rate = 1.0", r"Unknown training option learning_rate"),
        ('opt = "adamx"', r"--opt is 'adamx'; Optax has"),
        ('sched = "step"', r"--sched is step, but must be one of cosine, linear, constant"),
        ('opt = "sgd"\nopt_args = ["momentum"]', r"--opt-args 'momentum' is not of the form name=value"),
        ('opt = "sgd"\nopt_args = ["decay=1"]', r"--opt-args has 'decay', but optax.sgd takes momentum"),
        ("clip_grad = 0", r"--clip-grad is 0.0, but must be above 0"),
        ("smoothing = 1", r"--smoothing is 1.0"),
        ("model_ema = 1", r"--model-ema is 1, but must be true or false"),
        ("patience = 0", r"--patience is 0"),
    ],
)
def test_a_wrong_file_of_options_is_one_sentence(files, tmp_path, text, message):
    (tmp_path / "options.toml").write_text(text)
    words = command(files, tmp_path / "run", "--config", tmp_path / "options.toml")
    words = [word for word in words if word not in ("--lr", "0.02")]
    refused(invoke(*words), message)
    assert not (tmp_path / "run").exists()


def test_a_run_without_progress_ends_early(files, tmp_path):
    words = command(files, tmp_path / "run", "--epochs", 9, "--lr", 1e-9, "--patience", 2)
    assert invoke(*words).exit_code == 0
    assert [row["epoch"] for row in history(tmp_path / "run")] == [0, 1, 2]
    assert invoke("train", "--resume", "--output", tmp_path / "run").exit_code == 0
    assert [row["epoch"] for row in history(tmp_path / "run")] == [0, 1, 2]


def test_a_second_process_is_refused(files, tmp_path):
    folder = tmp_path / "run"
    assert invoke(*command(files, folder, "--epochs", 1)).exit_code == 0
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    holding = "import sys, filelock\nwith filelock.FileLock(sys.argv[1]): print(); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", holding, str(folder / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        holder.stdout.readline()
        for options in (["--resume"], ["--force"]):
            words = ["train", "--output", folder, *options]
            words += [] if "--resume" in options else [files / "net.onnx", "--data", files / "data.npz"]
            refused(invoke(*words), r"Another process is training in .*run: wait until it is done, or choose another")
        after = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != ".lock"}
        holder.kill()  # a killed process leaves no lock
    assert after == before
    assert invoke("train", "--output", folder, "--resume").exit_code == 0
    assert not (folder / ".lock").exists()
