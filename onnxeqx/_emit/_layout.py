"""Laying out printed source as a formatter does: double quotes, lines within a width, no superfluous brackets or blanks."""

import ast
import dataclasses
import io
import token
import tokenize
from collections.abc import Iterator

_WIDTH = 120
_INDENT = "    "
_CLOSING = {"(": ")", "[": "]", "{": "}"}


@dataclasses.dataclass(frozen=True)
class _Piece:
    """A token of a line. `spaced` says whether a blank comes before it."""

    text: str
    kind: int
    spaced: bool

    @property
    def opens(self) -> bool:
        return self.kind == token.OP and self.text in _CLOSING

    @property
    def closes(self) -> bool:
        return self.kind == token.OP and self.text in _CLOSING.values()

    @property
    def is_name(self) -> bool:
        return self.kind == token.NAME and self.text not in ("return", "in", "not", "and", "or", "for", "if", "import")


_Line = list[_Piece]


def layout(source: str) -> str:
    """The same program as `ast.unparse` wrote it, with every statement on one line, as people write it.

    Should a line come out as another program, the text stays as it was: layout never changes what a model computes.
    """
    laid_out = lay_out(source)
    try:
        same = ast.dump(ast.parse(laid_out)) == ast.dump(ast.parse(source))
    except SyntaxError:
        same = False
    return laid_out if same else source


def lay_out(source: str) -> str:
    """As [`onnxeqx._emit._layout.layout`][], unchecked."""
    lines = source.splitlines()
    for tokens in reversed(list(_statements(source))):
        (first, column), last = tokens[0].start, tokens[-1].end[0]
        if first == last:  # else it is a docstring
            lines[first - 1 : last] = _laid_out(_pieces(tokens), lines[first - 1][:column])
    return "\n".join(lines) + "\n"


def _statements(source: str) -> Iterator[list[tokenize.TokenInfo]]:
    statement: list[tokenize.TokenInfo] = []
    for item in tokenize.generate_tokens(io.StringIO(source).readline):
        if item.type == token.NEWLINE:
            yield statement
            statement = []
        elif item.type not in (token.NL, token.INDENT, token.DEDENT, token.COMMENT, token.ENDMARKER):
            statement.append(item)


def _pieces(tokens: list[tokenize.TokenInfo]) -> _Line:
    ends = [tokens[0].start, *(item.end for item in tokens)]
    return [_Piece(_double_quoted(item), item.type, item.start != end) for item, end in zip(tokens, ends, strict=False)]


def _double_quoted(item: tokenize.TokenInfo) -> str:
    """A string as a formatter quotes it; other tokens as they are."""
    text = item.string
    if item.type != token.STRING or not text.startswith("'") or '"' in text:
        return text
    return '"' + text[1:-1].replace("\\'", "'") + '"'


def _laid_out(line: _Line, indent: str) -> list[str]:
    """A statement in as few lines as the width allows."""
    line = _with_blanks(_without_doubled_brackets(line))
    bare = _without_brackets_of_result(line)
    if len(indent) + len(_text(bare)) <= _WIDTH:
        return [indent + _text(bare)]
    if line[0].text == "from":
        names = next(i for i, piece in enumerate(line) if piece.text == "import") + 1
        opening, closing = _Piece("(", token.OP, True), _Piece(")", token.OP, False)
        line = [*line[:names], opening, dataclasses.replace(line[names], spaced=False), *line[names + 1 :], closing]
    return _wrapped(line, indent)


def _wrapped(line: _Line, indent: str, after: str = "") -> list[str]:
    """The line, broken in one of its outermost brackets where it exceeds the width. `after` is put at its end."""
    group = _group_to_break(line, _WIDTH - len(indent))
    if len(indent) + len(_text(line)) + len(after) <= _WIDTH or group is None:
        return [indent + _text(line) + after]
    start, end = group
    while end - start > 2 and _groups(line[start + 1 : end]) == [(0, end - start - 2)]:
        start, end = start + 1, end - 1  # the only argument is in brackets of its own
    head, content, tail = line[: start + 1], line[start + 1 : end], line[end:]
    rest = _wrapped(tail, indent, after)
    inner = indent + _INDENT
    if len(inner) + len(_text(content)) <= _WIDTH:
        return [indent + _text(head), inner + _text(content), *rest]
    items, separator = _items(line, start, content)
    return [indent + _text(head), *_filled(items, separator, inner), *rest]


def _group_to_break(line: _Line, width: int) -> tuple[int, int] | None:
    """The longest outermost brackets that begin within the width; a subscript only where there is nothing else."""

    def rank(group: tuple[int, int]) -> tuple[bool, bool, int]:
        start, end = group
        begins_within = len(_text(line[: start + 1])) <= width
        return not _is_subscript(line, start), begins_within, len(_text(line[start:end]))

    return max((group for group in _groups(line) if group[1] > group[0] + 1), key=rank, default=None)


def _groups(line: _Line) -> list[tuple[int, int]]:
    """Where the outermost brackets open and close. A closing one in the beginning belongs to the line before."""
    found, depth, start = [], 0, 0
    for position, piece in enumerate(line):
        if piece.opens:
            start = position if depth == 0 else start
            depth += 1
        elif piece.closes and depth:
            depth -= 1
            if depth == 0:
                found.append((start, position))
    return found


def _items(line: _Line, start: int, content: _Line) -> tuple[list[_Line], str]:
    """What may stand on lines of its own between brackets, and what separates it."""
    if clauses := [i for i, piece in _top(content) if piece.kind == token.NAME and piece.text in ("for", "if")]:
        return _split(content, clauses, 0), ""
    commas = [i for i, piece in _top(content) if piece.text == ","]
    # A comma after the only item in brackets that merely group would make a tuple of it.
    return _split(content, commas, 1), "," if commas or _is_call(line, start) else ""


def _split(content: _Line, positions: list[int], skipped: int) -> list[_Line]:
    starts = [0, *(position + skipped for position in positions)]
    return [part for part in (content[a:b] for a, b in zip(starts, [*positions, None], strict=True)) if part]


def _top(line: _Line) -> Iterator[tuple[int, _Piece]]:
    """The pieces in no brackets."""
    depth = 0
    for position, piece in enumerate(line):
        depth -= piece.closes
        if depth == 0:
            yield position, piece
        depth += piece.opens


def _filled(items: list[_Line], separator: str, indent: str) -> list[str]:
    """As many items on each line as fit."""
    lines: list[str] = []
    for item in items:
        text = _text(item) + separator
        if lines and len(lines[-1]) + 1 + len(text) <= _WIDTH:
            lines[-1] += " " + text
        else:
            lines += _wrapped(item, indent, separator)
    return lines


def _text(line: _Line) -> str:
    return "".join(" " * piece.spaced + piece.text for piece in line).strip()


def _is_subscript(line: _Line, start: int) -> bool:
    return line[start].text == "[" and _follows_value(line, start)


def _is_call(line: _Line, start: int) -> bool:
    return line[start].text == "(" and _follows_value(line, start)


def _follows_value(line: _Line, start: int) -> bool:
    return start > 0 and (line[start - 1].is_name or line[start - 1].closes)


def _without_doubled_brackets(line: _Line) -> _Line:
    """`tuple((f(x) for x in y))` as `tuple(f(x) for x in y)`."""
    kept: _Line = []
    position = 0
    closing: list[int] = []
    ends = _all_groups(line)
    while position < len(line):
        end = ends.get(position)
        inner = line[position + 1 : end]
        doubled = position > 0 and end is not None and ends.get(position - 1) == end + 1 and line[position].text == "("
        if doubled and line[position - 1].text == "(" and any(piece.text == "for" for _, piece in _top(inner)):
            assert end is not None
            closing.append(end)
        elif position not in closing:
            kept.append(line[position])
        position += 1
    return kept


def _all_groups(line: _Line) -> dict[int, int]:
    open_at: list[int] = []
    ends: dict[int, int] = {}
    for position, piece in enumerate(line):
        if piece.opens:
            open_at.append(position)
        elif piece.closes:
            ends[open_at.pop()] = position
    return ends


def _without_brackets_of_result(line: _Line) -> _Line:
    """`return (x, y)` as `return x, y`."""
    inner = line[2:-1]
    commas = [position for position, piece in _top(inner) if piece.text == ","]
    is_tuple = line[0].text == "return" and _groups(line) == [(1, len(line) - 1)] and line[1].text == "("
    if not is_tuple or not commas or commas[-1] == len(inner) - 1:
        return line
    return [line[0], dataclasses.replace(inner[0], spaced=True), *inner[1:]]


def _with_blanks(line: _Line) -> _Line:
    """`x ** 2` as `x**2`, and `x[:n + 1]` as `x[: n + 1]`."""
    spaced = [piece.spaced for piece in line]
    for position, piece in enumerate(line):
        if piece.text == "**" and piece.spaced and _is_plain(line[position - 1]) and _is_plain(line[position + 1]):
            follows = line[position + 2] if position + 2 < len(line) else None
            if follows is None or not (follows.opens or follows.text == "."):
                spaced[position] = spaced[position + 1] = False
    for start, end in _all_groups(line).items():
        if _is_subscript(line, start):
            _space_slices(line, start, end, spaced)
    return [dataclasses.replace(piece, spaced=space) for piece, space in zip(line, spaced, strict=True)]


def _space_slices(line: _Line, start: int, end: int, spaced: list[bool]) -> None:
    marks = [start, *(start + 1 + i for i, piece in _top(line[start + 1 : end]) if piece.text in (",", ":")), end]
    for before, mark, after in zip(marks, marks[1:], marks[2:], strict=False):
        is_simple = all(b - a <= 2 + (line[a + 1].text == "-") for a, b in ((before, mark), (mark, after)))
        if line[mark].text == ":" and not is_simple:
            spaced[mark] = mark > before + 1 or line[before].text == ","
            spaced[mark + 1] = after > mark + 1


def _is_plain(piece: _Piece) -> bool:
    return piece.is_name or piece.kind == token.NUMBER
