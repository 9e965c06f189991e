"""Runs that are there already meet other data: evaluated by their own classes and features, or not resumed at all."""

import csv
import json
import shutil

import numpy as np
import pytest

from .command_line import command, history, invoke, refused
from .tiny import TABLE, write_net


def write_rows(path, rows, names=("a", "b", "c", "kind")):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([names, *rows])
    return path


def rows_of(kinds, seed=0, shift=0.0):
    """The class is the sign of the first number; the others are noise."""
    random = np.random.default_rng(seed)
    return [
        [(1 if kind == "plus" else -1) * random.uniform(5, 9) + shift, *random.normal(size=2).round(3), kind]
        for kind in kinds
    ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    data = write_rows(folder / "rows.csv", rows_of(["minus", "plus"] * 20))
    words = ["train", write_net(folder / "net.onnx", TABLE), "--data", data, "--output", folder / "run"]
    words += ["--label-column", "kind", "--standardize", "--epochs", 8, "--lr", 0.05, "--batch-size", 16]
    assert invoke(*words).exit_code == 0
    return folder / "run"


def test_other_data_is_evaluated_whole_by_the_runs_features_and_classes(finished, tmp_path):
    assert "accuracy 1.0000" in invoke("evaluate", finished).stdout
    # Only one class, which alone would be number 0, and all values above 0, which their own mean would hide.
    other = write_rows(tmp_path / "other.csv", rows_of(["plus"] * 9, seed=3))
    assert invoke("evaluate", finished, "--data", other).stdout.startswith("9 examples")
    assert "accuracy 1.0000" in invoke("evaluate", finished, "--data", other).stdout
    foreign = write_rows(tmp_path / "foreign.csv", rows_of(["plus"] * 4 + ["other"] * 4))
    refused(invoke("evaluate", finished, "--data", foreign), r"is 'other' in row 4 .* but the classes are minus, plus")


def test_an_evaluation_touches_nothing_of_a_run_that_is_going_on(finished, tmp_path):
    going = tmp_path / "run"
    shutil.copytree(finished, going)
    half = going / "checkpoints" / "last" / "99.orbax-checkpoint-tmp-7"
    half.mkdir()
    (half / "array").write_bytes(b"half")
    before = sorted(path.relative_to(going) for path in going.rglob("*"))
    assert invoke("evaluate", going).exit_code == 0
    assert sorted(path.relative_to(going) for path in going.rglob("*")) == before


@pytest.fixture
def interrupted(files, tmp_path):
    """A run of one epoch of two, its data beside it."""
    shutil.copy(files / "net.onnx", tmp_path)
    shutil.copy(files / "data.npz", tmp_path)
    assert invoke(*command(tmp_path, tmp_path / "run", "--epochs", 1, "--sched", "constant")).exit_code == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps(config | {"epochs": 2}))
    return tmp_path


def test_a_run_whose_data_has_changed_is_not_resumed(interrupted):
    arrays = dict(np.load(interrupted / "data.npz"))
    np.savez(interrupted / "data.npz", **{name: np.concatenate([array, array[:9]]) for name, array in arrays.items()})
    result = invoke("train", "--resume", "--output", interrupted / "run")
    refused(result, r"the run had 60 training examples, and there are 69 now")


def test_a_run_that_was_moved_is_resumed_where_it_is(interrupted):
    (interrupted / "run").rename(interrupted / "elsewhere")
    assert invoke("train", "--resume", "--output", interrupted / "elsewhere").exit_code == 0
    assert [row["epoch"] for row in history(interrupted / "elsewhere")] == [0, 1, 2]
    assert not (interrupted / "run").exists()


def test_trials_are_not_resumed_and_files_of_options_are_checked(interrupted):
    words = ["train", "--resume", "--output", interrupted / "run"]
    refused(invoke(*words, "--dry-run"), r"--resume goes on with a run; --dry-run, .* choose one")
    (interrupted / "options.toml").write_text("epoch = 3")
    refused(invoke(*words, "--config", interrupted / "options.toml"), r"Unknown training option epoch")
    (interrupted / "options.toml").write_text('workers = "4"')
    refused(invoke(*words, "--config", interrupted / "options.toml"), r"--workers is '4', but must be a whole number")


def test_an_export_overwrites_no_folder_of_something_else(finished, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    words = ["export", finished, "--force", "--output"]
    refused(invoke(*words, tmp_path / "mine"), r"is a folder, but --to onnx writes a file")
    refused(invoke(*words, tmp_path / "mine", "--to", "folder"), r"is no converted folder, and is not overwritten")
    refused(invoke(*words, tmp_path / "mine" / "thesis.txt", "--to", "folder"), r"is a file, but --to folder writes a")
    refused(invoke(*words, "."), r"--output \. names no file or folder")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    assert invoke(*words, tmp_path / "model", "--to", "folder").exit_code == 0
    assert invoke(*words, tmp_path / "model", "--to", "folder").exit_code == 0
