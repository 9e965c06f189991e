"""Short trials before a run, and what can be done with one afterwards, through the command line."""

import re

import numpy as np
import onnx
import pytest

import onnxeqx

from .command_line import command, history, invoke, refused


def test_a_dry_run_reads_everything_and_keeps_nothing(files, tmp_path):
    result = invoke(*command(files, tmp_path / "run", "--dry-run"))
    assert result.exit_code == 0, result.output
    assert "read 60 training and 15 validation images" in result.stdout
    assert re.search(r"one step: loss \d\.\d{4}; evaluation and checkpoint work; nothing was kept", result.stdout)
    assert list(tmp_path.iterdir()) == []


def test_one_batch_is_learnt_by_heart(files, tmp_path):
    result = invoke(*command(files, tmp_path / "run", "--overfit-one-batch"))
    (before, after) = map(float, re.findall(r"loss (\d\.\d+) → (\d\.\d+)", result.stdout)[0])
    assert before > 1
    assert after < 0.05
    assert list(tmp_path.iterdir()) == []


def test_a_learning_rate_is_found_at_which_the_run_learns(files, tmp_path):
    options = [
        "--lr-scale",
        "head=2",
        "--unfreeze",
        "head=0",
        "--grad-accum-steps",
        4,
    ]  # of which the head has its pattern
    result = invoke(*command(files, tmp_path / "run", "--find-lr", *options))
    (rate,) = re.findall(r"the loss falls fastest at --lr (\S+)", result.stdout)
    assert len(re.findall(r"^lr \S+  loss \d", result.stdout, re.MULTILINE)) >= 8
    assert list(tmp_path.iterdir()) == []
    found = invoke(*command(files, tmp_path / "run", "--lr", rate))
    assert found.exit_code == 0, found.output
    rows = history(tmp_path / "run")
    assert rows[-1]["val_loss"] < rows[0]["val_loss"] - 0.2


@pytest.fixture(scope="module")
def finished(files, tmp_path_factory):
    output = tmp_path_factory.mktemp("finished") / "run"
    assert invoke(*command(files, output, "--epochs", 2)).exit_code == 0
    return output


def test_a_run_is_evaluated_again_on_its_data_and_on_other(finished, files, tmp_path):
    best = max(history(finished), key=lambda row: row["val_accuracy"])
    result = invoke("evaluate", finished)
    assert result.stdout == f"15 examples  loss {best['val_loss']:.4f}  accuracy {best['val_accuracy']:.4f}\n"
    arrays = dict(np.load(files / "data.npz"))
    np.savez(tmp_path / "other.npz", **arrays | {"x_test": arrays["x_train"], "y_test": arrays["y_train"]})
    assert invoke("evaluate", finished, "--data", tmp_path / "other.npz", "--batch-size", 7).stdout.startswith(
        "60 examples"
    )
    refused(invoke("evaluate", tmp_path), r"config\.json")


def test_an_unfinished_run_is_exported_from_its_checkpoint(files, tmp_path):
    result = invoke(*command(files, tmp_path / "run", "--lr", 1e18, "--opt", "sgd", "--weight-decay", 0))
    refused(result, "is not finite")
    assert not (tmp_path / "run" / "model").exists()
    assert invoke("export", tmp_path / "run").exit_code == 0
    assert onnx.load(tmp_path / "run" / "exported.onnx").graph.output[0].type.tensor_type.shape.dim[1].dim_value == 3


def test_exports_are_not_overwritten_and_unknown_forms_are_refused(finished, tmp_path):
    assert invoke("export", finished, "--output", tmp_path / "a.onnx").exit_code == 0
    refused(invoke("export", finished, "--output", tmp_path / "a.onnx"), r"exists; .*--force")
    assert invoke("export", finished, "--output", tmp_path / "a.onnx", "--force").exit_code == 0
    refused(invoke("export", finished, "--to", "tflite"), r"--to is tflite, but must be one of onnx, folder, stablehlo")
    metadata = {entry.key: entry.value for entry in onnx.load(tmp_path / "a.onnx").metadata_props}
    assert '"class_names"' in metadata["onnxeqx.preprocessing"]


def test_a_model_that_was_edited_is_not_exported_as_another_one(files, tmp_path):
    assert invoke(*command(files, tmp_path / "run", "--epochs", 1)).exit_code == 0
    source = tmp_path / "run" / "model" / "model.py"
    text = source.read_text()
    (call,) = re.findall(r"return (over_batch\(self\.classifier.*\))\n", text)
    source.write_text(text.replace(f"return {call}", f"return jnp.tanh({call})"))
    result = invoke("export", tmp_path / "run")
    if result.exit_code:  # without the extra
        refused(
            result,
            r"Nothing was written\. The exported model differs .* to trace it anew, pip install 'onnxeqx\[export\]'",
        )
        assert not (tmp_path / "run" / "exported.onnx").exists()
    else:
        import onnxruntime

        images = np.random.default_rng(0).normal(size=(3, 3, 12, 12)).astype(np.float32)
        session = onnxruntime.InferenceSession(tmp_path / "run" / "exported.onnx")
        expected = onnxeqx.load(tmp_path / "run" / "model")(images)
        np.testing.assert_allclose(session.run(None, {"image": images})[0], expected, rtol=1e-4, atol=1e-5)
        assert np.abs(expected).max() < 1
    folder = invoke("export", tmp_path / "run", "--to", "folder")
    assert folder.exit_code == 0, folder.output
