"""One HTML page about a run: self-contained, without scripts, and readable without a network.

Texts of data are untrusted: each is escaped, and the page's policy allows its own style and embedded pictures, nothing else.
"""

import base64
import binascii
import dataclasses
import hashlib
import html
import io
import json
import math
import pathlib
import string
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import PIL.Image

from .._weights import write_whole
from .scores import ClassScore

PICTURE_SIDE = 160
"""The largest side of a mistake's picture, in pixels."""

DASH = "\N{EN DASH}"
"""Stands for a number that is not there."""

TEXT_LENGTH = 600
"""Longer texts of mistakes are cut."""


@dataclasses.dataclass(frozen=True)
class Mistake:
    """An example that the model gets wrong.

    - `picture`: what a person sees of it, of an image.
    - `text`: of it, of a text.
    - `label`: the name of the true class.
    - `predicted`: the name of the predicted class.
    - `loss`: of the example.
    - `origin`: its file or its index.
    """

    picture: PIL.Image.Image | None
    text: str | None
    label: str
    predicted: str
    loss: float
    origin: str


@dataclasses.dataclass(frozen=True)
class Report:
    """What the page shows.

    - `title`: its heading.
    - `summary`: the few figures that matter most, by name.
    - `history`: a row for each epoch, by column.
    - `configuration`: the options of the run.
    - `timings`: seconds by name.
    - `figures`: plots on white as `data:` URIs by heading (see `onnxeqx.training.figures.data_uri`); dark pages invert them.
    - `scores`: of the classes, if there are any.
    - `mistakes`: the worst ones, the worst first.
    """

    title: str
    summary: Mapping[str, str]
    history: Sequence[Mapping[str, float]]
    configuration: Mapping[str, Any]
    timings: Mapping[str, float]
    figures: Mapping[str, str]
    scores: Sequence[ClassScore] = ()
    mistakes: Sequence[Mistake] = ()


def render(report: Report) -> str:
    """The page: equal reports give equal text, of ASCII characters only."""
    sections = (
        *(_section(heading, _plot(heading, uri)) for heading, uri in report.figures.items()),
        _section("Worst mistakes", _mistakes(report.mistakes), "True class → predicted class."),
        _section("Classes", _scores(report.scores), "The least F1 first."),
        _section("History", _history(report.history)),
        _section("Time", _facts({name: _duration(seconds) for name, seconds in report.timings.items()}, "times")),
        _details("Configuration", _configuration(report.configuration)),
    )
    page = string.Template(_PAGE).substitute(
        title=_escaped(report.title),
        summary=_facts(report.summary, "summary"),
        sections="\n".join(filter(None, sections)),
        style=_STYLE,
        style_hash=f"sha256-{base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()}",
    )
    # References also stand for what has no encoding: names of files that are no UTF-8.
    return page.encode("ascii", "xmlcharrefreplace").decode("ascii")


def write(report: Report, path: pathlib.Path) -> None:
    """Writes the page, whole or not at all."""
    write_whole(path, render(report))


def _section(heading: str, content: str, note: str = "") -> str:
    """Nothing where there is no content."""
    note = f'<p class="quiet">{_escaped(note)}</p>\n' if note else ""
    return f"<section>\n<h2>{_escaped(heading)}</h2>\n{note}{content}\n</section>" if content else ""


def _details(heading: str, content: str) -> str:
    if not content:
        return ""
    return f"<details>\n<summary><h2>{_escaped(heading)}</h2></summary>\n{content}\n</details>"


def _facts(facts: Mapping[str, str], kind: str) -> str:
    """Names and values, side by side."""
    items = "".join(
        f"<div><dt>{_escaped(name)}</dt><dd>{_escaped(value)}</dd></div>\n" for name, value in facts.items()
    )
    return f'<dl class="{kind}">\n{items}</dl>' if items else ""


def _plot(heading: str, uri: str) -> str:
    image = f'<img class="plot" src="{_escaped(uri)}" alt="{_escaped(heading)}"{_css_size(uri)}>'
    return f'<div class="scroll">{image}</div>'


def _css_size(uri: str) -> str:
    """The attributes that show a PNG as large as its resolution says; none for what is no PNG with a resolution."""
    kind, _, data = uri.partition(";base64,")
    if kind != "data:image/png":
        return ""
    try:
        with PIL.Image.open(io.BytesIO(base64.b64decode(data))) as image:
            width, height, (dpi, _) = image.width, image.height, image.info["dpi"]
    except (binascii.Error, PIL.UnidentifiedImageError, KeyError):
        return ""
    return f' width="{round(width / dpi * 96)}" height="{round(height / dpi * 96)}"'


def _mistakes(mistakes: Sequence[Mistake]) -> str:
    kind = "texts" if any(mistake.text for mistake in mistakes) else "pictures"
    items = "\n".join(f"<li>{_mistake(mistake)}</li>" for mistake in mistakes)
    return f'<ul class="mistakes {kind}">\n{items}\n</ul>' if items else ""


def _mistake(mistake: Mistake) -> str:
    text = mistake.text or ""
    text = text if len(text) <= TEXT_LENGTH else f"{text[:TEXT_LENGTH]} …"
    return (
        "<figure>"
        + (_picture(mistake.picture, mistake.origin) if mistake.picture is not None else "")
        + (f"<blockquote>{_escaped(text)}</blockquote>" if text else "")
        + f"<figcaption><b>{_escaped(mistake.label)}</b> → {_escaped(mistake.predicted)}"
        + f'<span class="quiet">loss {_number(mistake.loss)}</span>'
        + f'<span class="quiet">{_escaped(mistake.origin)}</span></figcaption></figure>'
    )


def _picture(picture: PIL.Image.Image, origin: str) -> str:
    """An element that shows a picture; small ones are enlarged in sharp squares."""
    if picture.mode not in ("L", "RGB", "RGBA"):
        picture = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
    kind = "pixels" if max(picture.size) < PICTURE_SIDE else "photo"
    picture = picture.copy()
    picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE), PIL.Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img class="{kind}" src="data:image/png;base64,{data}" alt="{_escaped(origin)}">'


def _scores(scores: Sequence[ClassScore]) -> str:
    worst = sorted(scores, key=lambda score: (math.isnan(score.f1), score.f1))
    rows = (
        [score.name, *map(_share, (score.precision, score.recall, score.f1)), f"{score.examples:,}"] for score in worst
    )
    return _table("Classes", ["class", "precision", "recall", "F1", "examples"], rows) if scores else ""


def _history(history: Sequence[Mapping[str, float]]) -> str:
    # The first row lacks what only training gives; the longest has the columns in their order.
    names = list(dict.fromkeys(column for row in sorted(history, key=len, reverse=True) for column in row))
    columns = [_numbers([row.get(name, math.nan) for row in history]) for name in names]
    return _table("History", [name.replace("_", " ") for name in names], zip(*columns, strict=True)) if names else ""


def _configuration(configuration: Mapping[str, Any]) -> str:
    rows = ([name, value] for name, value in _flat(configuration))
    return _table("Configuration", ["option", "value"], rows, kind="words") if configuration else ""


def _flat(options: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """Names and values, also of options in options: `augment.flip`."""
    for name, value in options.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield (
                f"{prefix}{name}",
                value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False),
            )


def _table(name: str, head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "numbers") -> str:
    """A table that scrolls under its head; the first cell of a row names it."""
    heads = "".join(f'<th scope="col">{_escaped(column)}</th>' for column in head)
    body = "\n".join(
        f'<tr><th scope="row">{_escaped(first)}</th>{"".join(f"<td>{_escaped(cell)}</td>" for cell in cells)}</tr>'
        for first, *cells in rows
    )
    return (
        f'<div class="scroll tall" tabindex="0" role="region" aria-label="{name}">\n<table class="{kind}">\n'
        f"<thead><tr>{heads}</tr></thead>\n"
        f"<tbody>\n{body}\n</tbody>\n</table>\n</div>"
    )


def _share(value: float) -> str:
    return DASH if math.isnan(value) else f"{value:.3f}"


def _numbers(values: Sequence[float]) -> list[str]:
    """A column: of integers, or of four significant digits."""
    integers = all(math.isnan(value) or float(value).is_integer() for value in values)
    return [DASH if math.isnan(value) else f"{value:,.0f}" if integers else _number(value) for value in values]


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.4g}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min {seconds:02} s"


def _escaped(text: str) -> str:
    return html.escape(text, quote=True)


_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src '$style_hash'; \
base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>$title</title>
<style>$style</style>
</head>
<body>
<header>
<h1>$title</h1>
$summary
</header>
<main>
$sections
</main>
</body>
</html>
"""

_STYLE = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --surface: #ffffff; --text: #1b1f24; --quiet: #5c6570; --line: #dde1e6; --accent: #0b5fce;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171b; --surface: #1c1f24; --text: #e6e9ed; --quiet: #9aa4b1; --line: #343b45; --accent: #7ab3ff;
  }
  .plot { filter: invert(1) hue-rotate(180deg); mix-blend-mode: screen; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1120px; padding: 32px 20px 64px; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { margin: 0 0 20px; font-size: 26px; font-weight: 650; line-height: 1.25; letter-spacing: -.01em; }
h2 { margin: 0 0 12px; font-size: 17px; font-weight: 600; }
.quiet { color: var(--quiet); font-size: 13px; }
p.quiet { margin: -8px 0 12px; }
dl { margin: 0; display: flex; flex-wrap: wrap; gap: 14px 36px; }
dt { color: var(--quiet); font-size: 13px; }
dd { margin: 0; font-weight: 550; font-variant-numeric: tabular-nums; }
.summary dd { font-size: 17px; }
section, details { margin-top: 20px; padding: 20px; background: var(--surface); border: 1px solid var(--line);
  border-radius: 10px; }
details > summary { cursor: pointer; }
details > summary h2 { display: inline; }
details > .scroll { margin-top: 12px; }
.scroll { overflow-x: auto; overflow-wrap: normal; }
.tall { max-height: 30em; overflow-y: auto; }
.tall:focus-visible, summary:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
.plot { display: block; max-width: 100%; height: auto; }
table { border-collapse: separate; border-spacing: 0; font-size: 14px; font-variant-numeric: tabular-nums; }
.numbers { width: 100%; }
th, td { padding: 5px 14px; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top;
  font-weight: 400; white-space: nowrap; }
th:first-child { padding-left: 0; }
thead th { position: sticky; top: 0; z-index: 1; background: var(--surface); color: var(--quiet); font-size: 13px; }
tbody tr:last-child > * { border-bottom: 0; }
th:first-child, .words th, .words td { text-align: left; }
.words td { white-space: normal; overflow-wrap: anywhere; font: 13px/1.6 ui-monospace, monospace; }
.mistakes { margin: 0; padding: 0; list-style: none; display: grid; gap: 20px 16px; }
.pictures { grid-template-columns: repeat(auto-fill, minmax(130px, 1fr)); }
.texts { grid-template-columns: repeat(auto-fill, minmax(min(320px, 100%), 1fr)); }
.mistakes figure { margin: 0; }
.mistakes img { display: block; width: 100%; max-width: 160px; aspect-ratio: 1; object-fit: contain; background: var(--page);
  border-radius: 6px; }
.pixels { image-rendering: pixelated; }
blockquote { margin: 0; padding: 10px 12px; max-height: 12em; overflow-y: auto; background: var(--page); border-radius: 6px;
  font-size: 14px; white-space: pre-line; }
figcaption { margin-top: 6px; font-size: 14px; line-height: 1.4; }
figcaption .quiet { display: block; }
@media (max-width: 640px) {
  body { padding: 20px 12px 40px; }
  h1 { font-size: 21px; }
  section, details { padding: 14px; }
  dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(140px, 1fr)); gap: 12px 16px; }
  .plot { max-width: max(100%, 760px); }
  .numbers th:first-child { position: sticky; left: 0; background: var(--surface); padding-right: 10px; }
  .numbers tbody th { max-width: 9em; white-space: normal; overflow-wrap: anywhere; }
  .numbers thead th:first-child { z-index: 2; }
}
@media print { .tall { max-height: none; } section { break-inside: avoid; } }
"""
