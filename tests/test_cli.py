"""The command line: what it prints, and its exit codes."""

import numpy as np
import onnx
import onnx.parser
import pytest
from typer.testing import CliRunner

from onnxeqx.cli import app
from tests.sample_models import CNN, ENCODER, sample_model

run = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"}).invoke


@pytest.fixture
def model_file(tmp_path):
    onnx.save(sample_model(ENCODER), tmp_path / "encoder.onnx")
    return str(tmp_path / "encoder.onnx")


@pytest.fixture
def unsupported_file(tmp_path):
    text = '<ir_version: 8, opset_import: ["" : 17, "org.acme" : 1]> g (float[2] x) => (float[2] y) { y = org.acme.Warp(x) }'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "warp.onnx")
    return str(tmp_path / "warp.onnx")


@pytest.mark.parametrize("command", ["inspect", "convert", "verify", "ops", "plugins", "train"])
def test_help_is_a_page_with_an_example_or_an_explanation(command):
    result = run(app, [command, "--help"])
    assert result.exit_code == 0
    assert len(result.output.splitlines()) >= 8
    assert "--debug" in result.output


def test_inspect_lists_layers_and_parameters(model_file):
    result = run(app, ["inspect", model_file])
    assert result.exit_code == 0
    assert all(name in result.output for name in ("encoder", "layer[0…1]", "attention", "query"))
    assert "Linear" in result.output
    assert "parameters" in result.output


def test_inspect_says_what_is_not_supported(unsupported_file):
    result = run(app, ["inspect", unsupported_file])
    assert result.exit_code == 1
    assert "org.acme::Warp" in result.output
    assert "not supported" in result.output


def test_convert_writes_a_folder_once(model_file, tmp_path):
    target = str(tmp_path / "folder")
    assert run(app, ["convert", model_file, target]).exit_code == 0
    again = run(app, ["convert", model_file, target])
    assert again.exit_code == 2
    assert "--force" in again.stderr
    assert run(app, ["convert", model_file, target, "--force"]).exit_code == 0


def test_convert_without_patterns(tmp_path):
    nodes = "g = Sigmoid(x) y = Mul(x, g)"
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g (float[n] x) => (float[m] y) {{ {nodes} }}'
    )
    onnx.save(model, tmp_path / "silu.onnx")
    for option, expected in (("--patterns", "jax.nn.silu(x)"), ("--no-patterns", "x * jax.nn.sigmoid(x)")):
        folder = tmp_path / option
        assert run(app, ["convert", str(tmp_path / "silu.onnx"), str(folder), option]).exit_code == 0
        assert expected in (folder / "model.py").read_text()


def test_verify_agrees(model_file):
    result = run(app, ["verify", model_file, "--per-node"])
    assert result.exit_code == 0, result.output
    assert "agrees" in result.output


def test_verify_fails_with_a_tolerance_that_nothing_meets(model_file):
    result = run(app, ["verify", model_file, "--rtol", "0", "--atol", "0"])
    assert result.exit_code == 1
    assert "differs" in result.output


def test_ops_shows_versions_plugin_and_place():
    result = run(app, ["ops", "Softmax"])
    assert result.exit_code == 0
    assert "13-" in result.output
    assert "1-12" in result.output
    assert "activation" in result.output
    assert "activation.py:" in result.output.replace("\n", "")


def test_ops_of_an_unknown_operator():
    result = run(app, ["ops", "Nonsense"])
    assert result.exit_code == 2
    assert "Nonsense" in result.stderr


def test_plugins_lists_where_each_comes_from():
    result = run(app, ["plugins"])
    assert result.exit_code == 0
    assert "onnxeqx.plugins.tensor" in result.output


@pytest.mark.parametrize("command", [["inspect"], ["convert"], ["verify"]])
def test_bad_files_are_one_sentence_without_a_traceback(command, tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"no onnx file")
    arguments = [*command, str(tmp_path / "bad.onnx"), *([str(tmp_path / "out")] if command == ["convert"] else [])]
    result = run(app, arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.output + result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    debug = run(app, [*arguments, "--debug"])
    assert type(debug.exception).__name__ == "ReadError"


def test_input_shapes_free_dimensions(tmp_path):
    onnx.save(sample_model(CNN), tmp_path / "cnn.onnx")
    result = run(app, ["verify", str(tmp_path / "cnn.onnx"), "--input-shape", "input:batch,3,64,64"])
    assert result.exit_code == 0, result.output
    bad = run(app, ["inspect", str(tmp_path / "cnn.onnx"), "--input-shape", "nonsense"])
    assert bad.exit_code == 2
    assert "name:dim" in bad.stderr
    assert np.all([part in bad.stderr for part in ("nonsense", "input:batch")])
