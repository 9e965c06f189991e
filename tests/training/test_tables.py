import csv
import json
import math
import sys

import numpy as np
import pytest

from onnxeqx import DataError
from onnxeqx.training import tables
from onnxeqx.training.tables import (
    Table,
    class_labels,
    features,
    is_saved_dataset,
    multi_labels,
    numeric_columns,
    open_tables,
    read_lines,
    read_saved_dataset,
    read_table,
    standardization,
    standardized,
    targets,
)

pa = pytest.importorskip("pyarrow")

ROWS = [
    {"id": 7, "width": 0.5, "adult": True, "text": "One, two\nlines", "label": "cat"},
    {"id": -3, "width": 1e-3, "adult": False, "text": 'a "quoted" word', "label": "dog"},
    {"id": 2**40, "width": 12.0, "adult": True, "text": "Größe 東京", "label": "cat"},
]


def save(path, rows):
    """Writes rows without the reader's library, where there is another one."""
    if path.suffix == ".parquet":
        from pyarrow import parquet

        parquet.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


def written(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".jsonl"])
def test_every_format_gives_the_same_columns(tmp_path, suffix):
    read = read_table(save(tmp_path / f"data{suffix}", ROWS))
    assert len(read) == 3
    assert read.origin == str(tmp_path / f"data{suffix}")
    assert list(read.columns) == list(ROWS[0])
    dtypes = {"id": np.int64, "width": np.float64, "adult": np.bool_}
    for name, values in read.columns.items():
        assert list(values) == [row[name] for row in ROWS]
        assert getattr(values, "dtype", list) == dtypes.get(name, list)


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_lists_and_missing_values_are_kept(tmp_path, suffix):
    rows = [{"tags": ["a", "b"], "n": 1, "ids": [1, 2], "t": None}, {"tags": [], "n": None, "ids": None, "t": "x"}]
    read = read_table(save(tmp_path / f"data{suffix}", rows))
    assert read.columns["tags"] == [["a", "b"], []]
    assert read.columns["ids"] == [[1, 2], None]
    assert read.columns["t"] == [None, "x"]
    assert read.columns["n"][0] == 1
    assert math.isnan(read.columns["n"][1])


def test_empty_fields_of_csv_are_missing_and_words_are_not(tmp_path):
    read = read_table(written(tmp_path / "data.csv", 'country,size,note\nNA,NA,"x"\n,3,""\nFR,,None\n'))
    assert read.columns["country"] == ["NA", None, "FR"]
    assert read.columns["note"] == ["x", None, "None"]
    np.testing.assert_array_equal(read.columns["size"], [np.nan, 3, np.nan])


def test_types_come_from_the_whole_file_and_rows_may_be_long(tmp_path):
    lines = [f"{row},2" for row in range(300_000)]  # more than a block of pyarrow's
    read = read_table(written(tmp_path / "data.csv", "\n".join(["a,b", *lines, "x,1.5"])))
    assert read.columns["a"][-2:] == ["299999", "x"]
    assert read.columns["b"][-2:].tolist() == [2, 1.5]
    long = "word " * 500_000
    path = save(tmp_path / "data.jsonl", [{"text": long, "n": 1}, {"text": "short", "n": 0.5}])
    assert read_table(path).columns["text"] == [long, "short"]


def test_texts_with_line_breaks_may_lie_across_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "LARGEST_BLOCK", 64)
    rows = [{"text": f"{row}\n\nlines, of text", "n": row} for row in range(40)]
    assert read_table(save(tmp_path / "data.csv", rows)).columns["text"] == [row["text"] for row in rows]


def test_other_types_of_parquet_are_read(tmp_path):
    import datetime
    import decimal

    arrays = {
        "small": pa.array([1, 2], pa.uint8()),
        "large": pa.array([2**63, 1], pa.uint64()),
        "half": pa.array(np.asarray([0.5, 2], np.float16)),
        "exact": pa.array([decimal.Decimal("1.25"), None]),
        "words": pa.array(["a", "b"]).dictionary_encode(),
        "coded": pa.array([5, 5]).dictionary_encode(),
        "day": pa.array([datetime.date(2020, 1, 31), None]),
        "flag": pa.array([True, None]),
        "nothing": pa.nulls(2),
        "image": pa.array([{"path": "a.png"}, None]),
    }
    from pyarrow import parquet

    parquet.write_table(pa.table(arrays), tmp_path / "data.parquet")
    read = read_table(tmp_path / "data.parquet").columns
    np.testing.assert_array_equal(read["small"], np.asarray([1, 2], np.int64), strict=True)
    np.testing.assert_array_equal(read["large"], [2.0**63, 1.0], strict=True)
    np.testing.assert_array_equal(read["half"], [0.5, 2.0], strict=True)
    np.testing.assert_array_equal(read["exact"], [1.25, np.nan])
    np.testing.assert_array_equal(read["flag"], [1.0, np.nan])
    assert read["coded"].dtype == np.int64
    assert read["coded"].tolist() == [5, 5]
    assert read["words"] == ["a", "b"]
    assert read["day"] == ["2020-01-31", None]
    assert read["nothing"] == [None, None]
    assert read["image"] == [{"path": "a.png"}, None]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.csv", "", "Empty CSV file"),
        ("a.csv", "a,b\n", "has no rows"),
        ("a.csv", "a,b\n1,2\n3\n", "Row #3.*Expected 2 columns, got 1"),
        ("a.csv", "a,a\n1,2\n", "two columns called 'a'"),
        ("a.tsv", b"a\tb\n\xff\xfe\t1\n", "column 'a' is not in UTF-8"),
        ("a.jsonl", "", "Empty JSON file"),
        ("a.jsonl", '{"a": 1}\n{"a": ', "in row 1"),
        ("a.jsonl", '{"a": 1}\n{"a": "x"}\n', "changed from number to string in row 1"),
        ("a.jsonl", b'{"a": "\xff\xfe"}\n', "cannot be read as a table"),
        ("a.parquet", b"PAR1 not really PAR1", "cannot be read as a table"),
        ("a.parquet", b"", "cannot be read as a table"),
        ("a.xlsx", b"", "must end in .csv, .tsv, .parquet, .jsonl"),
    ],
)
def test_damaged_files_are_named(tmp_path, name, content, reason):
    with pytest.raises(DataError, match=reason) as caught:
        read_table(written(tmp_path / name, content))
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.csv cannot be read"):
        read_table(tmp_path / "none.csv")


@pytest.mark.parametrize(("module", "extra"), [("pyarrow", "tables"), ("datasets", "hf")])
def test_missing_libraries_are_named(tmp_path, monkeypatch, module, extra):
    path = save(tmp_path / "data.csv", ROWS)
    monkeypatch.setitem(sys.modules, module, None)
    read = read_table if module == "pyarrow" else read_saved_dataset
    with pytest.raises(DataError, match=rf"pip install 'onnxeqx\[{extra}\]'"):
        read(path)


def test_a_column_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(DataError, match=r"data.csv has no column 'x' \(--text-column\); it has a, b\."):
        Table("data.csv", {"a": [1], "b": ["y"]}).column("x", "--text-column")


# --- folders and saved data sets --------------------------------------------------------------------------------------


def test_a_folder_has_a_training_and_perhaps_a_validation_table(tmp_path):
    save(tmp_path / "train.csv", ROWS)
    training, validation = open_tables(tmp_path)
    assert (len(training), validation) == (3, None)
    save(tmp_path / "test.parquet", ROWS[:1])
    assert len(open_tables(tmp_path)[1]) == 1
    save(tmp_path / "validation.jsonl", ROWS[:2])
    assert len(open_tables(tmp_path)[1]) == 2
    assert len(open_tables(tmp_path / "test.parquet")[0]) == 1


def test_a_folder_without_or_with_two_training_tables_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no training table; it must be called one of train\.csv, train\.tsv"):
        open_tables(tmp_path)
    save(tmp_path / "train.csv", ROWS)
    save(tmp_path / "train.jsonl", ROWS)
    with pytest.raises(DataError, match=r"train\.csv and train\.jsonl; keep one"):
        open_tables(tmp_path)


@pytest.fixture
def saved(tmp_path):
    datasets = pytest.importorskip("datasets")
    kinds = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["pos", "neg"]),
            "tags": datasets.List(datasets.ClassLabel(names=["O", "B"])),
        }
    )
    columns = {"text": ["a", "b", "c"], "label": [1, 0, 1], "tags": [[0], [0, 1], []]}
    return datasets.Dataset.from_dict(columns, kinds), tmp_path / "saved"


def test_a_saved_dataset_is_read_with_the_names_of_its_classes(saved):
    dataset, path = saved
    dataset.select([2, 0]).save_to_disk(path)
    assert is_saved_dataset(path)
    training, validation = open_tables(path)
    assert validation is None
    assert training.columns["text"] == ["c", "a"]
    assert training.columns["tags"] == [[], [0]]
    labels, names = class_labels(training, "label")
    assert names == ("pos", "neg")
    assert labels.tolist() == [1, 1]
    hot, names = multi_labels(training, "tags")
    assert names == ("O", "B")
    assert hot.tolist() == [[0, 0], [1, 0]]


def test_saved_splits_are_training_and_validation(saved):
    import datasets

    dataset, path = saved
    splits = {"test": dataset.select([0]), "train": dataset, "validation": dataset.select([1, 2])}
    datasets.DatasetDict(splits).save_to_disk(path)
    assert {name: len(part) for name, part in read_saved_dataset(path).items()} == {
        "test": 1,
        "train": 3,
        "validation": 2,
    }
    training, validation = open_tables(path)
    assert (len(training), validation.columns["text"]) == (3, ["b", "c"])
    assert validation.origin == str(path / "validation")


def test_saved_datasets_without_a_training_split_or_damaged_are_refused(saved):
    import datasets

    dataset, path = saved
    datasets.DatasetDict({"test": dataset}).save_to_disk(path)
    with pytest.raises(DataError, match="has the splits test, but must have 'train'"):
        open_tables(path)
    next((path / "test").glob("*.arrow")).write_bytes(b"broken")
    with pytest.raises(DataError, match="cannot be read as a table"):
        open_tables(path)
    (path / "dataset_dict.json").write_text("{}")
    with pytest.raises(DataError, match="cannot be read as a table"):
        open_tables(path)
    assert not is_saved_dataset(path.parent)
    assert not is_saved_dataset(path / "dataset_dict.json")


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_features_are_columns_in_the_order_asked_for():
    columns = {"a": np.asarray([1.5, 2.5]), "b": np.asarray([1, 2]), "c": np.asarray([True, False]), "d": ["x", "y"]}
    data = Table("data.csv", columns)
    assert numeric_columns(data, without={"b"}) == ["a", "c"]
    expected = np.asarray([[1, 1.5, 1], [2, 2.5, 0]], np.float32)
    np.testing.assert_array_equal(features(data, ["b", "a", "c"]), expected, strict=True)
    np.testing.assert_array_equal(targets(data, ["a"]), expected[:, 1:2], strict=True)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.asarray([1, np.nan]), "'a' .* is missing in row 1"),
        (np.asarray([1, -np.inf]), "'a' .* is -inf, which is not finite in float32 in row 1"),
        (np.asarray([1, 1e39]), r"'a' .* is 1e\+39, which is not finite in float32 in row 1"),
        (["1", "2 cm"], "'a' .* must hold numbers, but is '2 cm' in row 1"),
        ([[1.0], [2.0]], r"'a' .* must hold numbers, but is \[1.0\] in row 0"),
    ],
)
def test_what_is_no_finite_number_is_named(values, reason):
    data = Table("data.csv", {"b": np.zeros(2), "a": values})
    with pytest.raises(DataError, match=reason) as caught:
        features(data, ["b", "a"])
    assert "--feature-columns" in str(caught.value)
    with pytest.raises(DataError, match="--label-column"):
        targets(data, ["a"])


def test_features_are_standardised_in_64_bits_by_the_rows_that_count():
    random = np.random.default_rng(0)
    columns = {
        "large": random.normal(1e6, 1, 300_000),
        "fixed": np.full(300_000, 0.1),
        "time": np.arange(300_000) + 2**40,
    }
    table = Table("rows", columns)
    mean, deviation = standardization(table, list(columns), range(150_000))
    np.testing.assert_allclose(mean, [columns[name][:150_000].mean() for name in columns], rtol=1e-12)
    np.testing.assert_allclose(deviation[0], 1, rtol=0.01)
    assert deviation[1] == 1
    found = standardized(table, list(columns), mean, deviation)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[:150_000, [0, 2]].std(0), [1, 1], rtol=0.01)
    np.testing.assert_allclose(found[:, 1], 0, atol=1e-6)


@pytest.mark.parametrize(
    ("content", "message"), [("é".encode("latin-1"), "is not in UTF-8"), (b" \n\n", "has no text")]
)
def test_lines_of_a_text_file(content, message, tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffone\n\ntwo é\n".encode())
    assert read_lines(tmp_path / "a.txt").columns["text"] == ["one", "two é"]
    (tmp_path / "b.txt").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_lines(tmp_path / "b.txt")


def test_no_feature_at_all_is_refused():
    with pytest.raises(DataError, match="no column of numbers"):
        features(Table("data.csv", {"a": ["x"]}), [])


# --- classes ----------------------------------------------------------------------------------------------------------


def labelled(values):
    return Table("data.csv", {"label": values})


@pytest.mark.parametrize(
    ("values", "given", "labels", "names"),
    [
        (["dog", "cat", "dog"], None, [1, 0, 1], ("cat", "dog")),
        (["dog", "dog"], ("eel", "dog", "cat"), [1, 1], ("eel", "dog", "cat")),
        (np.asarray([2, 0, 1]), None, [2, 0, 1], ("0", "1", "2")),
        (np.asarray([11, *range(12)]), None, [11, *range(12)], tuple(map(str, range(12)))),
        (np.asarray([2.0, 0.0]), ("a", "b", "c"), [2, 0], ("a", "b", "c")),
        (np.asarray([2, 1]), ("1", "2", "unknown"), [1, 0], ("1", "2", "unknown")),
        (np.asarray([True, False]), None, [1, 0], ("False", "True")),
        (np.asarray([True, True]), None, [1, 1], ("False", "True")),
    ],
)
def test_class_labels(values, given, labels, names):
    found, found_names = class_labels(labelled(values), "label", given)
    np.testing.assert_array_equal(found, np.asarray(labels, np.int64), strict=True)
    assert found_names == names


@pytest.mark.parametrize(
    ("values", "given", "reason"),
    [
        (["dog", "eel", "eel"], ("cat", "dog"), "is 'eel' in row 1 .*classes are cat, dog"),
        (["dog", None], None, "is missing in row 1"),
        ([["dog"], ["cat"]], None, r"is \['dog'\] in row 0"),
        (np.asarray([1, 2, 3]), None, "3 classes, which must be the numbers 0 to 2, but one is 1"),
        (np.asarray([0, 1, 3]), None, "numbers 0 to 2, but one is 3"),
        (np.asarray([-1, 0]), None, "numbers 0 to 1, but one is -1"),
        (np.asarray([0, 2]), ("cat", "dog"), "is 2 in row 1"),
        (np.asarray([0, -1]), ("cat", "dog"), "is -1 in row 1"),
        (np.asarray([0, np.nan]), None, "is missing in row 1"),
        (np.asarray([0, 0.5]), None, "is 0.5 in row 1"),
    ],
)
def test_labels_of_no_class_are_named(values, given, reason):
    with pytest.raises(DataError, match=reason) as caught:
        class_labels(labelled(values), "label", given)
    assert "data.csv: column 'label' (--label-column)" in str(caught.value)


def test_many_classes_are_not_all_listed():
    with pytest.raises(DataError, match=r"c0, .*c9, …; correct"):
        class_labels(labelled(["x"]), "label", [f"c{index}" for index in range(1000)])


@pytest.mark.parametrize(
    ("values", "given", "expected", "names"),
    [
        ([["b", "a"], [], None, ["b", "b"]], None, [[1, 1], [0, 0], [0, 0], [0, 1]], ("a", "b")),
        ([["b"]], ("b", "c"), [[1, 0]], ("b", "c")),
        (["x; y z", None, "y z;"], None, [[1, 1], [0, 0], [0, 1]], ("x", "y z")),
        ([[10], [9, 2]], None, [[0, 0, 1], [1, 1, 0]], ("2", "9", "10")),
        (np.asarray([True, False]), None, [[1], [0]], ("label",)),
    ],
)
def test_multi_labels(values, given, expected, names):
    found, found_names = multi_labels(labelled(values), "label", given)
    np.testing.assert_array_equal(found, np.asarray(expected, np.float32), strict=True)
    assert found_names == names


def test_multi_labels_from_columns_of_zeros_and_ones():
    data = Table("data.csv", {"b": np.asarray([0, 1]), "a": np.asarray([1.0, 1.0]), "n": np.asarray([0, 2])})
    found, names = multi_labels(data, "a, b")
    assert names == ("a", "b")
    np.testing.assert_array_equal(found, np.asarray([[1, 0], [1, 1]], np.float32), strict=True)
    with pytest.raises(DataError, match=r"'n' .* is 2 in row 1 .*must be 0 or 1"):
        multi_labels(data, "a,n")
    with pytest.raises(DataError, match="no column 'c'"):
        multi_labels(data, "a,c")


def test_the_separator_can_be_chosen():
    assert multi_labels(labelled(["a;b|c"]), "label", separator="|")[1] == ("a;b", "c")


@pytest.mark.parametrize(
    ("values", "given", "reason"),
    [
        ([["a"], ["a", "z"]], ("a",), "is 'z' in row 1"),
        (["a", "a;z"], ("a",), "is 'z' in row 1"),
        ([["a"], [None]], None, "is missing in row 1"),
        ([[], []], None, "no label in any row"),
    ],
)
def test_multi_labels_of_no_class_are_named(values, given, reason):
    with pytest.raises(DataError, match=reason):
        multi_labels(labelled(values), "label", given)
