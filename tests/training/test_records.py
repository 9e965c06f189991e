"""ArrayRecord files as training data."""

import io
import pickle

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from onnxeqx import DataError
from onnxeqx.training.records import are_records, read_records

from .command_line import command, history, invoke, refused


def write(path, examples):
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for example in examples:
        if not isinstance(example, bytes):
            buffer = io.BytesIO()
            np.savez(buffer, **example)
            example = buffer.getvalue()
        writer.write(example)
    writer.close()
    return path


def numbered(count):
    return [{"x": np.full((2, 3), number, np.uint8), "y": np.int64(number % 3)} for number in range(count)]


def test_a_file_is_arrays_of_which_only_the_labels_are_in_memory(tmp_path):
    arrays = read_records(write(tmp_path / "a.array_record", numbered(7)))
    assert arrays["x"].shape == (7, 2, 3)
    assert arrays["x"].dtype == np.uint8
    np.testing.assert_array_equal(arrays["x"][4], np.full((2, 3), 4))
    np.testing.assert_array_equal(arrays["y"], np.arange(7) % 3)
    again = pickle.loads(pickle.dumps(arrays["x"]))  # for worker processes
    np.testing.assert_array_equal(again[4], arrays["x"][4])


def test_a_run_on_records_is_that_on_the_same_arrays(files, tmp_path):
    arrays = np.load(files / "data.npz")
    folder = tmp_path / "records"
    folder.mkdir()
    for part, name in (("train", "train"), ("test", "val")):
        pairs = zip(arrays[f"x_{part}"], arrays[f"y_{part}"], strict=True)
        write(folder / f"{name}.array_record", [{"x": x, "y": y} for x, y in pairs])
    assert are_records(folder)
    words = command(files, tmp_path / "run", "--epochs", 1, "--flip", 0.5)
    assert invoke(*words).exit_code == 0
    words[words.index("--data") + 1] = str(folder)
    words[words.index("--output") + 1] = str(tmp_path / "again")
    result = invoke(*words)
    assert result.exit_code == 0, result.output
    assert history(tmp_path / "run") == history(tmp_path / "again")


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([], r"has no records"),
        ([b"text"], r"record 0 is no \.npz archive of arrays"),
        ([*numbered(2), b"text"], r"record 2 is no \.npz archive of arrays"),
        ([*numbered(2), {"x": np.zeros((2, 3), np.uint8)}], r"'y' of record 2 is missing, but int64\[\] in the first"),
    ],
)
def test_what_is_wrong_with_a_record_is_told(examples, message, tmp_path):
    with pytest.raises(DataError, match=message):
        read_records(write(tmp_path / "a.array_record", examples))


def test_an_image_of_another_size_is_told_when_it_is_read(tmp_path):
    examples = [*numbered(2), {"x": np.zeros((2, 4), np.uint8), "y": np.int64(0)}]
    arrays = read_records(write(tmp_path / "a.array_record", examples))
    with pytest.raises(DataError, match=r"'x' of record 2 is uint8\[2, 4\], but uint8\[2, 3\] in the first"):
        arrays["x"][2]


def test_a_damaged_file_is_one_sentence(files, tmp_path):
    (tmp_path / "a.array_record").write_bytes(b"nothing of the kind" * 100)
    words = command(files, tmp_path / "run")
    words[words.index("--data") + 1] = str(tmp_path / "a.array_record")
    refused(invoke(*words), r"a\.array_record cannot be read as an ArrayRecord file")
    words[words.index("--data") + 1] = str(tmp_path / "none.array_record")
    refused(invoke(*words), r"none\.array_record")
