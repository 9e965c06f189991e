"""What a person sees at the end of a run: scores, figures and the page."""

import base64
import functools
import html.parser
import io
import math
import re

import matplotlib._pylab_helpers
import numpy as np
import PIL.Image
import pytest
import sklearn.metrics

from onnxeqx._errors import DataError, OnnxeqxError
from onnxeqx.training import figures, page
from onnxeqx.training.scores import ClassScore, class_scores, confusion

BEFORE = {"epoch": 0, "step": 0, "val_loss": 2.5, "val_accuracy": 0.125}
FIRST = {
    "epoch": 1,
    "step": 45,
    "train_loss": 1.5,
    "train_accuracy": 0.5,
    "val_loss": 1.25,
    "val_accuracy": 0.625,
    "lr": 0.001,
    "examples_per_second": 1234.5,
}
SECOND = FIRST | {"epoch": 2, "step": 90, "val_loss": 1.75, "val_accuracy": math.nan}
HOSTILE = "<script>alert('x')</script>\"&"
DASH = "\N{EN DASH}"

VOID = {"meta", "img", "br", "hr", "input", "link"}


class Tree(html.parser.HTMLParser):
    """Fails on tags that are not balanced; keeps elements with their attributes, and the texts within each."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        self.texts.append((self.open[-1] if self.open else None, text))

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def within(self, tag):
        return [text for name, text in self.texts if name == tag]


@functools.cache
def a_plot():
    return figures.data_uri(figures.png(figures.results([BEFORE, FIRST], best=1)))


def a_report(**changes):
    parts = {
        "title": "tiny on digits",
        "summary": {"best accuracy": "0.625 (epoch 1)"},
        "history": [BEFORE, FIRST, SECOND],
        "configuration": {"lr": 0.001, "augment": {"flip": True}, "size": (8, 8)},
        "timings": {"compiling": 1.5, "training": 125.0, "search": 7384.0},
        "figures": {"Training": a_plot()},
        "scores": (ClassScore("rare", math.nan, 0.0, 0.0, 1200), ClassScore("never", math.nan, math.nan, math.nan, 0)),
        "mistakes": (page.Mistake(PIL.Image.new("RGB", (400, 200), "red"), None, "cat", "dog", 3.25, "cat/1.png"),),
    }
    return page.Report(**parts | changes)


def rows_of(tree_text, label):
    table = re.search(rf'aria-label="{label}">(.*?)</table>', tree_text, re.DOTALL)
    assert table
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", table[1], re.DOTALL)]


def opened(uri):
    kind, data = uri.split(",", 1)
    assert kind == "data:image/png;base64"
    image = PIL.Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
    image.load()
    return image


# Scores


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_those_of_scikit_learn(seed):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 6, 80)
    predicted = np.where(generator.random(80) < 0.6, labels, generator.integers(0, 6, 80))
    labels[labels == 2] = 3  # class 2 has no examples
    predicted[predicted == 4] = 5  # class 4 is never predicted

    counts = confusion(labels, predicted, 8)  # class 7 appears nowhere
    np.testing.assert_array_equal(counts, sklearn.metrics.confusion_matrix(labels, predicted, labels=range(8)))
    assert counts.dtype == np.int64

    found = class_scores(counts, [f"class {index}" for index in range(8)])
    wanted = sklearn.metrics.precision_recall_fscore_support(
        labels,
        predicted,
        labels=range(8),
        zero_division=np.nan,
    )
    for name, values in zip(("precision", "recall", "f1", "examples"), wanted, strict=True):
        np.testing.assert_allclose([getattr(score, name) for score in found], values, err_msg=name)
    assert math.isnan(found[4].precision)
    assert math.isnan(found[7].f1)
    assert [score.name for score in found] == [f"class {index}" for index in range(8)]


@pytest.mark.parametrize(
    ("labels", "predicted", "name"), [([0, -100], [0, 1], "labels"), ([0, 1], [0, 3], "predicted")]
)
def test_a_class_outside_the_range_is_refused(labels, predicted, name):
    with pytest.raises(DataError, match=rf"^{name} has class {'-100' if name == 'labels' else '3'} at index 1, "):
        confusion(np.array(labels), np.array(predicted), 3)


# Figures


def panels(figure):
    return {axes.get_title(loc="left"): axes for axes in figure.axes}


def lines_of(axes):
    return {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines() if line.get_label()[0] != "_"}


def test_results_show_loss_metrics_and_learning_rate():
    found = panels(figures.results([BEFORE, FIRST, FIRST | {"epoch": 2, "train_loss": 1.0}]))
    assert list(found) == ["loss", "accuracy", "learning rate"]
    assert lines_of(found["loss"]) == {"train": [[1, 1.5], [2, 1.0]], "validation": [[0, 2.5], [1, 1.25], [2, 1.25]]}
    assert lines_of(found["learning rate"]) == {"learning rate": [[1, 0.001], [2, 0.001]]}


def test_the_best_epoch_is_marked_in_each_panel_that_has_it():
    found = panels(figures.results([BEFORE, FIRST, SECOND], best=1))
    assert found["loss"].get_title(loc="right") == "1.25 at epoch 1"
    assert found["accuracy"].get_title(loc="right") == "0.625 at epoch 1"
    assert found["learning rate"].get_title(loc="right") == ""
    assert [1, 1.25] in [
        line.get_xydata().tolist()[0] for line in found["loss"].get_lines() if len(line.get_xydata()) == 1
    ]
    assert not any(axes.get_title(loc="right") for axes in figures.results([BEFORE, FIRST]).axes)


def test_the_only_row_is_one_marker():
    figure = figures.results([BEFORE])
    found = panels(figure)
    assert list(found) == ["loss", "accuracy"]
    (line,) = found["loss"].get_lines()
    assert line.get_xydata().tolist() == [[0, 2.5]]
    assert line.get_marker() == "o"
    opened(figures.data_uri(figures.png(figure)))
    shown = [tick for tick in found["loss"].get_xticks() if -0.4 <= tick <= 0.4]
    assert shown == [0]


def test_a_history_without_rows_or_with_losses_that_are_not_finite_can_be_drawn():
    opened(figures.data_uri(figures.png(figures.results([]))))
    opened(
        figures.data_uri(
            figures.png(figures.results([BEFORE, FIRST | {"train_loss": math.nan, "val_loss": math.inf}], best=1))
        )
    )


@pytest.mark.parametrize("classes", [2, 20, 21, 1000])
def test_a_confusion_matrix_is_a_picture_of_bounded_size(classes):
    counts = np.random.default_rng(0).integers(1, 50_000, (classes, classes))
    figure = figures.confusion_matrix(counts, [f"n{index:08} a fish of rivers" for index in range(classes)])
    with PIL.Image.open(io.BytesIO(figures.png(figure))) as image:
        image.load()
        assert image.format == "PNG"
        assert all(500 <= side <= 2400 for side in image.size)
    axes = figure.axes[0]
    assert len(axes.texts) == (classes**2 if classes <= 20 else 0)
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert 2 <= len(names) <= 48
    assert all(len(name) <= 20 for name in names)


def test_a_confusion_matrix_shows_shares_of_the_true_class():
    figure = figures.confusion_matrix(np.array([[3, 1, 0], [0, 0, 0], [0, 12_345, 0]]), ["a", "b", "c"])
    shares = figure.axes[0].images[0].get_array()
    np.testing.assert_array_equal(shares.filled(np.nan), [[0.75, 0.25, 0], [np.nan] * 3, [0, 1, 0]])
    texts = {text.get_position(): text.get_text() for text in figure.axes[0].texts}
    assert texts == {(0, 0): "3", (1, 0): "1", (1, 2): "12k"}
    assert figure.axes[0].get_title(loc="left") == "0.02% of 12,349 right"


def test_a_confusion_matrix_without_examples_can_be_drawn():
    opened(figures.data_uri(figures.png(figures.confusion_matrix(np.zeros((3, 3), np.int64), ["a", "b", "c"]))))


def test_names_are_neither_formulas_nor_in_need_of_a_font_or_an_encoding():
    names = [r"$\frac$", "cost $5 or $6", "日本語", "file\udcff", "two\nlines"]
    figure = figures.confusion_matrix(np.eye(5, dtype=np.int64), names)
    opened(figures.data_uri(figures.png(figure)))
    shown = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert shown == [r"$\frac$", "cost $5 or $6", "日本語", "file?", "two lines"]


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (9999, "9999"), (10_000, "10k"), (999_499, "999k"), (999_500, "1M")]
)
def test_counts_are_brief(count, text):
    assert figures._brief(count) == text


def test_a_scatter_states_error_and_determination_of_the_finite_values():
    generator = np.random.default_rng(0)
    target = generator.normal(size=50)
    predicted = target + 0.1 * generator.normal(size=50)
    r2, error = sklearn.metrics.r2_score(target, predicted), sklearn.metrics.mean_absolute_error(target, predicted)
    figure = figures.scatter(np.append(predicted, np.nan), np.append(target, 0.0), "price")
    (axes,) = figure.axes
    assert axes.get_title(loc="right") == f"mean |error| {error:.4g}   R² {r2:.3f}"
    np.testing.assert_allclose(axes.collections[0].get_offsets(), np.stack([target, predicted], 1))
    assert axes.get_xlim() == axes.get_ylim()
    assert opened(figures.data_uri(figures.png(figure))).size == (960, 960)


@pytest.mark.parametrize("values", [[], [math.nan], [3.0], [0.0, 0.0]])
def test_a_scatter_of_few_or_equal_values_can_be_drawn(values):
    opened(figures.data_uri(figures.png(figures.scatter(np.array(values), np.array(values), "x"))))


# The page


def test_the_page_is_balanced_and_shows_all_parts():
    tree = Tree(page.render(a_report()))
    assert tree.within("h1") == tree.within("title") == ["tiny on digits"]
    assert tree.within("h2") == ["Training", "Worst mistakes", "Classes", "History", "Time", "Configuration"]
    assert tree.within("dd") == ["0.625 (epoch 1)", "1.5 s", "2 min 05 s", "2 h 03 min"]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in tree.of("meta")
    assert not tree.of("script")


def test_parts_without_content_are_left_out():
    empty = a_report(scores=(), mistakes=(), figures={}, timings={}, configuration={}, summary={}, history=[])
    assert Tree(page.render(empty)).within("h2") == []


def test_tables_show_dashes_for_what_is_not_there():
    text = html.unescape(page.render(a_report()))
    head, before, first, second = rows_of(text, "History")
    assert head == [name.replace("_", " ") for name in FIRST]
    assert before == ["0", "0", DASH, DASH, "2.500", "0.1250", DASH, DASH]
    assert first == ["1", "45", "1.500", "0.5000", "1.250", "0.6250", "0.001000", "1,234"]
    assert second[5] == DASH
    assert rows_of(text, "Classes")[1:] == [["rare", DASH, "0.000", "0.000", "1,200"], ["never", DASH, DASH, DASH, "0"]]
    assert rows_of(text, "Configuration")[1:] == [["lr", "0.001"], ["augment.flip", "true"], ["size", "[8, 8]"]]


def test_classes_come_by_their_scores():
    scores = [ClassScore(name, f1, f1, f1, 5) for name, f1 in (("b", 0.9), ("none", math.nan), ("a", 0.2), ("c", 0.5))]
    assert [row[0] for row in rows_of(page.render(a_report(scores=scores)), "Classes")[1:]] == ["a", "c", "b", "none"]


def test_every_text_is_escaped():
    picture = PIL.Image.new("L", (8, 8))
    hostile = page.Report(
        title=HOSTILE,
        summary={HOSTILE: HOSTILE},
        history=[{HOSTILE: 1.0}],
        configuration={HOSTILE: HOSTILE, "nested": {HOSTILE: [HOSTILE]}},
        timings={HOSTILE: 1.0},
        figures={HOSTILE: f"data:,{HOSTILE}"},
        scores=[ClassScore(HOSTILE, 1, 1, 1, 1)],
        mistakes=[page.Mistake(picture, HOSTILE, HOSTILE, HOSTILE, 1.0, HOSTILE)],
    )
    text = page.render(hostile)
    tree = Tree(text)
    assert "<script" not in text
    assert {tag for tag, _ in tree.elements} == {tag for tag, _ in Tree(page.render(a_report())).elements} | {
        "blockquote"
    }
    for tag in ("title", "h1", "h2", "dt", "dd", "th", "td", "blockquote", "b", "figcaption", "span"):
        assert any(HOSTILE in part for part in tree.within(tag)), tag
    for attributes in (attributes for _, attributes in tree.elements):
        assert attributes.keys() <= {
            *("lang", "charset", "http-equiv", "content", "name", "class", "src", "alt", "width", "height"),
            *("scope", "tabindex", "role", "aria-label"),
        }


def test_nothing_is_loaded_from_elsewhere():
    text = page.render(a_report())
    tree = Tree(text)
    assert not re.search(r"https?:|@import|url\(", text)
    assert all(attributes["src"].startswith("data:") for attributes in tree.of("img"))
    (policy,) = (meta["content"] for meta in tree.of("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "script-src" not in policy


def test_equal_reports_give_equal_bytes(tmp_path):
    page.write(a_report(), tmp_path / "a.html")
    page.write(a_report(), tmp_path / "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert (tmp_path / "a.html").read_bytes().isascii()
    assert {path.name for path in tmp_path.iterdir()} == {"a.html", "b.html"}


def test_a_page_needs_its_folder(tmp_path):
    with pytest.raises(OnnxeqxError, match="no folder"):
        page.write(a_report(), tmp_path / "missing" / "report.html")


def test_names_without_an_encoding_can_be_written(tmp_path):
    mistake = page.Mistake(None, None, "猫", "犬", math.nan, "cat/\udcff.png")
    page.write(a_report(mistakes=[mistake]), tmp_path / "report.html")
    tree = Tree((tmp_path / "report.html").read_text("ascii"))
    assert tree.within("b") == ["猫"]
    assert "cat/\N{REPLACEMENT CHARACTER}.png" in tree.within("span")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I", "I;16", "F"])
def test_pictures_of_all_modes_are_shown(mode):
    picture = PIL.Image.new(mode, (400, 200))
    tree = Tree(page.render(a_report(mistakes=[page.Mistake(picture, None, "a", "b", 1.0, "1")], figures={})))
    (image,) = tree.of("img")
    assert opened(image["src"]).size == (160, 80)
    assert picture.size == (400, 200)


def test_only_small_pictures_are_enlarged_in_squares():
    small = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (28, 28), np.uint8))
    mistakes = [
        page.Mistake(picture, None, "a", "b", 1.0, "1") for picture in (small, PIL.Image.new("RGB", (300, 300)))
    ]
    tree = Tree(page.render(a_report(mistakes=mistakes, figures={})))
    first, second = tree.of("img")
    assert (first["class"], second["class"]) == ("pixels", "photo")
    np.testing.assert_array_equal(np.asarray(opened(first["src"])), np.asarray(small))
    assert ".pixels { image-rendering: pixelated; }" in tree.within("style")[0]


def test_long_texts_are_cut():
    tree = Tree(page.render(a_report(mistakes=[page.Mistake(None, "word " * 1000, "a", "b", 1.0, "1")])))
    (text,) = tree.within("blockquote")
    assert text == "word " * 120 + " …"


def test_plots_are_as_large_as_their_resolution_says():
    figure = figures.scatter(np.arange(3.0), np.arange(3.0), "x")
    inches = figure.get_size_inches()
    sizes = {
        "a plot": figures.data_uri(figures.png(figure)),
        "a drawing": "data:image/svg+xml,%3Csvg/%3E",
        "damaged": "data:image/png;base64,AAAA",
    }
    plot, drawing, damaged = Tree(page.render(a_report(figures=sizes, mistakes=()))).of("img")
    assert (plot["width"], plot["height"]) == tuple(str(round(96 * side)) for side in inches)
    assert "width" not in drawing
    assert "width" not in damaged


def test_figures_leave_shared_settings_alone():
    before = matplotlib.rcParams.copy()
    opened(figures.data_uri(figures.png(figures.results([BEFORE]))))
    assert matplotlib.rcParams.copy() == before
    assert not matplotlib._pylab_helpers.Gcf.figs  # where pyplot keeps its figures
