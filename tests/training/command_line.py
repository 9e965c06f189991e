"""Runs through the command line, for tests."""

import json
import re

import typer.testing

from onnxeqx.cli import app


def command(files, output, *options):
    defaults = {"--epochs": 3, "--batch-size": 16, "--lr": 0.02}
    words = ["train", files / "net.onnx", "--data", files / "data.npz", "--output", output]
    words += [word for name, value in defaults.items() if name not in options for word in (name, value)]
    return [str(word) for word in (*words, *options)]


def invoke(*words):
    return typer.testing.CliRunner().invoke(app, [str(word) for word in words])


def refused(result, message):
    """An expected error: one sentence, exit code 2, no traceback."""
    assert result.exit_code == 2, result.output
    assert re.search(message, result.stderr), result.stderr
    assert "Traceback" not in result.output
    assert result.stderr.startswith("Error: ")


def history(folder):
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
