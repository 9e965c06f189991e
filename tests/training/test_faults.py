"""What goes wrong during a run: numbers that are not finite, damaged data, a full disk, SIGTERM."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import orbax.checkpoint as ocp
import PIL.Image
import pytest

from .command_line import command, history, invoke, refused

RUN = "from onnxeqx.cli import main; main()"
# A file may have this many bytes: enough for the small ones, not for a checkpoint's arrays.
LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)),) * 2)
"""


def process(*words, code=RUN):
    command = [sys.executable, "-W", "ignore", "-c", code, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"})


def test_images_that_are_not_finite_are_named(files, tmp_path):
    arrays = dict(np.load(files / "data.npz"))
    pixels = arrays["x_train"].astype(np.float32) / 255
    pixels[17, 2, 3, 1] = np.nan
    shutil.copy(files / "net.onnx", tmp_path)
    np.savez(tmp_path / "data.npz", **arrays | {"x_train": pixels})
    refused(invoke(*command(tmp_path, tmp_path / "run")), r"data\.npz: image 17 has values that are not finite")


def test_a_loss_that_is_not_finite_names_the_step_and_keeps_the_last_good_state(files, tmp_path):
    result = invoke(*command(files, tmp_path / "run", "--lr", 1e18, "--opt", "sgd", "--weight-decay", 0))
    refused(
        result, r"The loss or a gradient of step \d+ \(epoch \d\) is not finite: .* Try a lower learning rate \(--lr\)"
    )
    (step,) = re.findall(r"the weights are still those of step (\d+)\.", result.stderr)
    newest = max((tmp_path / "run" / "checkpoints" / "last").iterdir(), key=lambda path: int(path.name))
    assert newest.name == step
    arrays = ocp.StandardCheckpointer().restore(newest.absolute() / "state")
    assert int(arrays["step"]) == int(step)
    assert all(np.isfinite(array).all() for array in arrays.values())


def test_a_full_disk_is_one_sentence_and_the_run_resumes_exactly(files, tmp_path, monkeypatch):
    output = tmp_path / "run"
    words = command(files, output, "--epochs", 2)
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        free = iter([2**30, 2**30, 2**30, 1000])  # the third is the last checkpoint after the first epoch
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=next(free)))
        result = invoke(*words)
    refused(
        result,
        f"{output} cannot be written any more: No space left on device. What was saved before is whole; make room",
    )
    assert result.stderr.count("\n") == 1
    assert invoke("train", "--resume", "--output", output).exit_code == 0
    assert invoke(*command(files, tmp_path / "whole", "--epochs", 2)).exit_code == 0
    assert history(output) == history(tmp_path / "whole")
    assert (output / "model.onnx").read_bytes() == (tmp_path / "whole" / "model.onnx").read_bytes()


def test_a_write_that_fails_in_the_middle_of_a_save_costs_that_checkpoint_alone(files, tmp_path):
    output = tmp_path / "run"
    stopped = process(3000, *command(files, output, "--epochs", 2), code=LIMITED + RUN)
    assert stopped.returncode == 2, stopped.stderr
    sentence = f"Error: {output} cannot be written any more: File too large. What was saved before is whole;"
    # TensorStore's threads print as well what they meet, before it or after.
    assert any(line.startswith(sentence) for line in stopped.stderr.splitlines()), stopped.stderr
    assert invoke("train", "--resume", "--output", output).exit_code == 0
    assert invoke(*command(files, tmp_path / "whole", "--epochs", 2)).exit_code == 0
    assert history(output) == history(tmp_path / "whole")
    assert (output / "model.onnx").read_bytes() == (tmp_path / "whole" / "model.onnx").read_bytes()


@pytest.mark.slow
def test_sigterm_saves_and_the_run_resumes_exactly(files, tmp_path):
    options = ["--epochs", 12, "--batch-size", 4]
    words = [sys.executable, "-W", "ignore", "-c", RUN, *command(files, tmp_path / "run", *options)]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"}
    ) as running:
        for line in running.stdout:
            if line.startswith("epoch 2/12"):
                running.send_signal(signal.SIGTERM)
                break
        said = running.stdout.read()
    assert running.returncode == 128 + signal.SIGTERM, said
    assert "Stopped after step " in said
    assert invoke("train", "--resume", "--output", tmp_path / "run").exit_code == 0
    assert invoke(*command(files, tmp_path / "whole", *options)).exit_code == 0
    assert history(tmp_path / "run") == history(tmp_path / "whole")


@pytest.mark.slow
def test_kill_in_the_middle_of_a_save_costs_nothing(files, tmp_path):
    # benchmarks/kills.py does this a hundred times.
    output, options = tmp_path / "run", ["--epochs", 4, "--batch-size", 4, "--checkpoint-steps", 2]
    words = [sys.executable, "-W", "ignore", "-c", RUN, *command(files, output, *options)]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL) as running:
        saves: set[pathlib.Path] = set()
        while len(saves) < 9:
            assert running.poll() is None
            saves |= set(output.glob("checkpoints/last/*.orbax-checkpoint-tmp*"))
            time.sleep(0.0005)
        running.kill()
    assert invoke("train", "--resume", "--output", output).exit_code == 0
    assert invoke(*command(files, tmp_path / "whole", *options)).exit_code == 0
    assert history(output) == history(tmp_path / "whole")
    assert (output / "weights.safetensors").read_bytes() == (tmp_path / "whole" / "weights.safetensors").read_bytes()
    assert not list(output.glob("checkpoints/*/*.orbax-checkpoint-tmp*"))


def test_a_damaged_image_is_named(files, tmp_path):
    for name in ("cat", "dog"):
        folder = tmp_path / "images" / name
        folder.mkdir(parents=True)
        for number in range(6):
            PIL.Image.new("RGB", (12, 12), (40 * number, 0, 0)).save(folder / f"{number}.png")
    broken = tmp_path / "images" / "dog" / "3.png"
    broken.write_bytes(broken.read_bytes()[:40])
    words = command(files, tmp_path / "run", "--batch-size", 4)
    words[words.index("--data") + 1] = str(tmp_path / "images")
    refused(invoke(*words), r"dog/3\.png")
    (tmp_path / "images" / "empty").mkdir()
    refused(invoke(*words, "--force"), r"empty")


def test_checkpoints_after_steps_and_of_the_best_epochs(files, tmp_path):
    words = command(
        files, tmp_path / "run", "--epochs", 4, "--keep-best", 2, "--checkpoint-steps", 3, "--eval-metric", "loss"
    )
    assert invoke(*words).exit_code == 0
    rows = history(tmp_path / "run")
    wanted = sorted(rows, key=lambda row: row["val_loss"])[:2]
    kept = {int(path.name) for path in (tmp_path / "run" / "checkpoints" / "best").iterdir()}
    assert kept == {row["step"] for row in wanted}
    result = invoke("evaluate", tmp_path / "run")
    assert f"loss {wanted[0]['val_loss']:.4f}" in result.stdout


@pytest.mark.slow
def test_worker_processes_give_the_same_run(files, tmp_path):
    # In a process of its own, as its workers are forked from it.
    augmented = ["--epochs", 1, "--flip", 0.5]
    done = process(*command(files, tmp_path / "processes", *augmented, "--worker-processes", 1))
    assert done.returncode == 0, done.stderr
    assert "leaked" not in done.stderr
    assert invoke(*command(files, tmp_path / "threads", *augmented)).exit_code == 0
    assert history(tmp_path / "processes") == history(tmp_path / "threads")


def test_tensorboard_has_the_history(files, tmp_path):
    proto = pytest.importorskip("tensorboardX.proto.event_pb2")
    assert invoke(*command(files, tmp_path / "run", "--tensorboard", "--epochs", 2)).exit_code == 0
    (file,) = (tmp_path / "run" / "events").iterdir()
    content, found = file.read_bytes(), {}
    while content:  # length, its checksum, an event, its checksum: https://github.com/tensorflow/tensorboard
        size = int.from_bytes(content[:8], "little")
        event = proto.Event.FromString(content[12 : 12 + size])
        for value in event.summary.value:
            found[value.tag, event.step] = value.simple_value
        content = content[16 + size :]
    for row in json.loads(f"[{','.join((tmp_path / 'run' / 'history.jsonl').read_text().splitlines())}]"):
        for metric in ("loss", "accuracy"):
            assert found[f"{metric}/val", row["step"]] == pytest.approx(row[f"val_{metric}"], rel=1e-6)
