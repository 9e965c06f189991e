"""Plots of a run. Figures belong to their caller alone: nothing here touches pyplot or settings that others share."""

import base64
import functools
import io
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from matplotlib import colormaps, font_manager
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

DPI = 192
"""Of the pictures: two pixels for each of CSS (https://www.w3.org/TR/css-values-4/#reference-pixel)."""

TEXT, QUIET, LINE = "#1b1f24", "#5c6570", "#dde1e6"
TRAIN, VALIDATION = "#e08a1e", "#0b5fce"

COUNTED_CLASSES = 20
"""Up to so many classes, a confusion matrix shows its counts as text."""

NAMED_CLASSES = 48
"""A confusion matrix names about so many classes at most."""

NAME_LENGTH = 20
"""Longer names of classes are cut."""

WIDE_FONTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "Hiragino Sans GB", "Microsoft YaHei", "Arial Unicode MS")
"""Those on the machine draw what Matplotlib's own font lacks."""


def results(history: Sequence[Mapping[str, float]], best: int | None = None) -> Figure:
    """Draws the loss, each metric and the learning rate by epoch, each in a panel of its own.

    **Arguments:**

    - `history`: rows with `epoch`, and any of `train_loss`, `val_loss`, other `train_…` and `val_…`, and `lr`.
    - `best`: the epoch to mark.

    **Returns:** the figure.
    """
    panels = _panels(history)
    columns = 2 if len(panels) in (2, 4) else min(len(panels), 3)
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(4 * columns, 2.8 * rows), layout="constrained", facecolor="white")
    figure.get_layout_engine().set(wspace=0.06, hspace=0.08)  # pyright: ignore[reportOptionalMemberAccess, reportCallIssue]
    epochs = [row["epoch"] for row in history] or [0]
    for number, (title, lines) in enumerate(panels.items()):
        axes = _plain(figure.add_subplot(rows, columns, number + 1))
        _curves(axes, history, lines, best)
        axes.set_title(title, loc="left", parse_math=False, **_font(11, TEXT))
        axes.set_xlim(min(epochs) - 0.4, max(epochs) + 0.4)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
        if number + columns >= len(panels):
            axes.set_xlabel("epoch", **_font(9, QUIET))
        if len(lines) > 1:
            axes.legend(frameon=False, labelcolor=QUIET, fontsize=9, handlelength=1.4)
    return figure


def _panels(history: Sequence[Mapping[str, float]]) -> dict[str, dict[str, str]]:
    """The columns in each panel, with their names there; the loss comes first, the learning rate last."""
    parts = {"train": "train_", "validation": "val_"}
    seen = list(dict.fromkeys(column for row in history for column in row))
    metrics = dict.fromkeys(
        column.removeprefix(prefix) for column in seen for prefix in parts.values() if column.startswith(prefix)
    )
    panels = {
        metric.replace("_", " "): {name: f"{prefix}{metric}" for name, prefix in parts.items()}
        for metric in dict.fromkeys(["loss", *metrics])
    }
    present = {
        title: {name: column for name, column in lines.items() if column in seen} for title, lines in panels.items()
    }
    return present | ({"learning rate": {"learning rate": "lr"}} if "lr" in seen else {})


def _curves(axes: Axes, history: Sequence[Mapping[str, float]], lines: Mapping[str, str], best: int | None) -> None:
    """Draws the columns of one panel, and marks the best epoch on that of the validation part."""
    colors = {"train": TRAIN, "validation": VALIDATION}
    if best is not None:
        axes.axvline(best, color=LINE, linewidth=1.5, zorder=1)
    for name, column in lines.items():
        points = {row["epoch"]: row[column] for row in history if column in row}
        color = colors.get(name, QUIET)
        marker = "o" if len(points) <= 20 else None
        axes.plot(
            list(points), list(points.values()), color=color, linewidth=1.8, marker=marker, markersize=3.5, label=name
        )
        if name == "validation" and best in points:
            axes.plot(best, points[best], marker="o", markersize=9, color=color, fillstyle="none", markeredgewidth=1.5)
            axes.set_title(f"{points[best]:.4g} at epoch {best}", loc="right", **_font(9, QUIET))


def confusion_matrix(counts: Int[np.ndarray, "classes classes"], class_names: Sequence[str]) -> Figure:
    """Draws how often each class is predicted to be each class.

    Colours are shares of a true class, by their square roots, so that rare mistakes show; a class without examples is grey.

    **Arguments:**

    - `counts`: rows are true classes, columns predicted ones; shape `(classes, classes)`, integers.
    - `class_names`: in the order of the classes.

    **Returns:** the figure, of which the size is bounded; of many classes only some are named.
    """
    classes, examples = len(counts), counts.sum(1, keepdims=True)
    shares = np.divide(counts, examples, out=np.full(counts.shape, np.nan, np.float32), where=examples > 0)
    side = min(max(0.42 * classes, 2.0), 8.5)
    figure = Figure(figsize=(side + 2.6, side + 1.6), layout="compressed", facecolor="white")
    axes = _plain(figure.add_subplot())
    colors = colormaps["Blues"].with_extremes(bad="#eceef1")
    image = axes.imshow(shares, cmap=colors, norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    axes.grid(visible=False)
    _name_classes(axes, class_names, side)
    if classes <= COUNTED_CLASSES:
        _write_counts(axes, counts, shares)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, ticks=[0, 0.01, 0.1, 0.25, 0.5, 1], format="{x:.0%}")
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    bar.ax.tick_params(length=0, labelsize=8, labelcolor=QUIET)
    bar.set_label("share of the true class", **_font(9, QUIET))
    total = counts.sum()
    if total:
        text = f"{counts.trace() / total:.2%} of {total:,} right"
        axes.set_title(text, loc="left", **_font(9, QUIET))
    return figure


def _name_classes(axes: Axes, class_names: Sequence[str], side: float) -> None:
    every = math.ceil(len(class_names) / NAMED_CLASSES)
    at = range(0, len(class_names), every)
    names = [_short(class_names[index]) for index in at]
    size = 9 if len(class_names) <= COUNTED_CLASSES else 7
    # A letter is about 0.6 of the font's size wide, in points of 1/72 inch.
    fits = max(map(len, names), default=0) * 0.6 * size / 72 < side / max(len(names), 1)
    turned: dict[str, Any] = {} if fits else {"rotation": 90}
    axes.set_xticks(at, names, parse_math=False, **turned, **_font(size, TEXT))
    axes.set_yticks(at, names, parse_math=False, **_font(size, TEXT))
    axes.tick_params(length=0 if every == 1 else 2, color=LINE)
    axes.set_xlabel("predicted class", **_font(9, QUIET))
    axes.set_ylabel("true class", **_font(9, QUIET))


def _write_counts(axes: Axes, counts: np.ndarray, shares: np.ndarray) -> None:
    """Writes the counts into the cells, without zeros."""
    for row, column in np.argwhere(counts):
        color = "white" if shares[row, column] > 0.3 else TEXT
        font = _font(8 if len(counts) > 5 else 11, color)
        axes.text(column, row, _brief(int(counts[row, column])), ha="center", va="center", **font)


def _brief(count: int) -> str:
    """A count in at most four characters, up to billions."""
    if count < 10_000:
        return str(count)
    thousands = count / 1000
    return f"{thousands:.0f}k" if thousands < 999.5 else f"{thousands / 1000:.3g}M"


def scatter(predicted: Float[np.ndarray, " examples"], target: Float[np.ndarray, " examples"], name: str) -> Figure:
    """Draws predicted numbers against true ones; what is right lies on the diagonal.

    **Arguments:**

    - `predicted`: shape `(examples,)`, floats; examples with values that are not finite are left out.
    - `target`: what they should be, of the same shape.
    - `name`: what the numbers are.

    **Returns:** the figure.
    """
    kept = np.isfinite(predicted) & np.isfinite(target)
    predicted, target = (np.asarray(values, np.float64)[kept] for values in (predicted, target))
    figure = Figure(figsize=(5, 5), layout="constrained", facecolor="white")
    axes = _plain(figure.add_subplot())
    opacity = float(np.clip(20 / math.sqrt(len(target) + 1), 0.05, 0.7))
    axes.axline((0, 0), slope=1, color=QUIET, linewidth=1, dashes=(4, 3), zorder=1)
    axes.scatter(target, predicted, s=14, color=VALIDATION, alpha=opacity, linewidths=0)
    both = np.concatenate([predicted, target])
    low, high = (both.min(), both.max()) if len(both) else (0.0, 1.0)
    margin = 0.04 * (high - low) or max(abs(low), 1) * 0.1
    axes.set(xlim=(low - margin, high + margin), ylim=(low - margin, high + margin), aspect="equal")
    axes.set_title(_short(name), loc="left", parse_math=False, **_font(11, TEXT))
    axes.set_title(_fit_quality(predicted, target), loc="right", **_font(9, QUIET))
    axes.set_xlabel("target", **_font(9, QUIET))
    axes.set_ylabel("predicted", **_font(9, QUIET))
    return figure


def _fit_quality(predicted: np.ndarray, target: np.ndarray) -> str:
    """The mean absolute error and, where targets differ, the coefficient of determination."""
    if not len(target):
        return ""
    errors, spread = predicted - target, target - target.mean()
    text = f"mean |error| {np.abs(errors).mean():.4g}"
    return f"{text}   R² {1 - (errors @ errors) / (spread @ spread):.3f}" if spread.any() else text


def png(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # A name in a script that no font here has is drawn as boxes: no reason to disturb the end of a run.
        warnings.filterwarnings("ignore", r"(?s)Glyph .* missing from font", UserWarning)
        figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def data_uri(picture: bytes) -> str:
    """A PNG in a `data:` URI."""
    return f"data:image/png;base64,{base64.b64encode(picture).decode()}"


def _plain(axes: Axes) -> Axes:
    """Only what carries information: no frame, no tick marks, a faint grid."""
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.grid(color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=8, labelcolor=QUIET)
    axes.margins(y=0.08)
    return axes


def _font(size: float, color: str) -> dict[str, Any]:
    return {"fontsize": size, "color": color, "fontfamily": _families()}


@functools.cache
def _families() -> list[str]:
    known = set(font_manager.get_font_names())
    return ["DejaVu Sans", *(name for name in WIDE_FONTS if name in known)]


def _short(name: str) -> str:
    """A name in one line of bounded length, without what cannot be encoded (of file names that are no UTF-8)."""
    name = " ".join(name.encode("utf-8", "replace").decode().split())
    return name if len(name) <= NAME_LENGTH else f"{name[: NAME_LENGTH - 1]}…"
