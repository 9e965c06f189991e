import io
import json

import pytest
import rich.console

from onnxeqx.training import Data, History, Progress, Timings, adamw, fit

from .conftest import colours
from .test_checkpoint import make_state


def run(net, data, terminal, tmp_path=None):
    console = rich.console.Console(file=io.StringIO(), force_terminal=terminal, width=120)
    progress = Progress(console, data, epochs=2)
    with progress:
        fit(net, data, optimizer=adamw(0.05), epochs=2, callbacks=[progress])
    return console.file.getvalue(), progress


def test_without_a_terminal_there_is_one_line_for_each_epoch(net, data):
    text, _ = run(net, data, terminal=False)
    lines = text.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("before training  validation loss ")
    assert lines[1].startswith("epoch 1/2  train loss ")
    assert " accuracy " in lines[1]
    assert lines[2].startswith("epoch 2/2  train loss ")
    assert lines[2].endswith("examples/s")
    assert "\x1b" not in text


def test_a_terminal_sees_a_bar_with_loss_speed_and_time_left(net, data):
    text, progress = run(net, data, terminal=True)
    assert "compiling" in text
    assert "left" in text
    assert "epoch 2/2" in text
    assert progress.examples_per_second() > 0


def test_history_is_json_lines_with_extra_columns(net, data, tmp_path):
    history = History(tmp_path / "history.jsonl", extra=lambda row: {"lr": 0.1 * row["epoch"]})
    fitted = fit(net, data, optimizer=adamw(0.05), epochs=2, callbacks=[history])
    lines = (tmp_path / "history.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == history.rows()
    assert [{**row, "lr": 0.1 * row["epoch"]} for row in fitted.history] == history.rows()


@pytest.mark.parametrize("torn", ["", '{"epoch": 3, "st'])
def test_rows_after_the_checkpoint_are_dropped(net, tmp_path, torn):
    history = History(tmp_path / "history.jsonl")
    assert history.rows() == []
    state = make_state(net, adamw(0.1), step=5, epoch=1)
    assert history.rewind(state) is state
    history.path.write_text("".join(json.dumps({"epoch": epoch}) + "\n" for epoch in range(3)) + torn)
    history.rewind(state)
    assert history.rows() == [{"epoch": 0}, {"epoch": 1}]
    history.rewind(make_state(net, adamw(0.1)))
    assert history.rows() == []


def test_speed_without_a_second_step_is_left_out(net):
    data = Data(colours(4, seed=0), colours(4, seed=1), batch_size=4)
    text, progress = run(net, data, terminal=False)
    assert "examples/s" not in text
    assert progress.examples_per_second() == 0


def test_seconds_and_speed_of_each_epoch_stand_in_a_file_of_their_own(net, data, tmp_path):
    path = tmp_path / "timings.jsonl"
    path.write_text('{"epoch": 0, "seconds": 1.0, "examples_per_second": 0}\n{"epoch": 1, "sec')
    progress = Progress(rich.console.Console(file=io.StringIO()), data, epochs=1)
    timings = Timings(path, progress.examples_per_second)
    history = History(tmp_path / "history.jsonl")
    fit(net, data, optimizer=adamw(0.05), epochs=1, callbacks=[progress, history, timings])
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [0, 0, 1]  # that of the killed process, and those of this one
    assert rows[2]["seconds"] > 0
    assert rows[2]["examples_per_second"] == round(progress.examples_per_second(), 3) > 0
    assert not any({"seconds", "examples_per_second"} & set(row) for row in history.rows())


def test_the_speed_counts_what_an_example_is_made_of(net, data):
    console = rich.console.Console(file=io.StringIO())
    progress = Progress(console, data, epochs=1, unit="tokens", units=128)
    fit(net, data, optimizer=adamw(0.05), epochs=1, callbacks=[progress])
    shown = f"{128 * progress.examples_per_second():.0f} tokens/s"
    assert console.file.getvalue().splitlines()[-1].endswith(shown)
