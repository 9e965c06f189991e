"""The tree of a model, as lines of text in columns."""

import dataclasses
from collections.abc import Iterator, Sequence

import rich.table
from rich.text import Text

from .._graph import Role
from ._inspect import Inspection
from ._parts import Part


@dataclasses.dataclass(frozen=True)
class Run:
    """Parts in a row that differ by their number only; mostly a single one."""

    parts: tuple[Part, ...]

    @property
    def first(self) -> Part:
        return self.parts[0]

    @property
    def name(self) -> str:
        """`layer_0…11`, and `[0…11]` for members of a tuple."""
        stem, number = _numbered(self.parts[-1].name)
        name = self.first.name if len(self.parts) == 1 else f"{self.first.name}…{number}"
        return name if stem else f"[{name}]"

    @property
    def outputs(self) -> tuple[str, ...]:
        """What all of them return."""
        return self.first.outputs if len({part.outputs for part in self.parts}) == 1 else ()


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of the tree: a run of parts, below which `inner` stands, under a name that says where it is."""

    label: str
    run: Run
    depth: int


def lines(root: Part, depth: int | None = None) -> list[Line]:
    """The lines of a tree.

    **Arguments:**

    - `root`: the model.
    - `depth`: how many levels below the model; all of them by default.
    """
    found = [Line("Model", Run((root,)), 0)]
    for run in _runs(root.children):
        found += _below(run.name, run, 1, depth)
    return found


def _below(name: str, run: Run, level: int, depth: int | None) -> Iterator[Line]:
    if depth is not None and level > depth:
        return
    inner = _runs(run.first.children)
    if run.first.kind == "tuple" and len(run.parts) == len(inner) == 1:
        # A tuple of equal members is one line with them.
        yield from _below(f"{name}{inner[0].name}", inner[0], level, depth)
        return
    yield Line(name, run, level)
    for member in inner:
        yield from _below(member.name, member, level + 1, depth)


def _runs(children: Sequence[Part]) -> list[Run]:
    """Consecutive children that are alike and numbered in a row, together."""
    runs: list[list[Part]] = []
    for child in children:
        last = runs[-1][-1] if runs else None
        if last is not None and _follows(child, last):
            runs[-1].append(child)
        else:
            runs.append([child])
    return [Run(tuple(run)) for run in runs]


def _follows(part: Part, other: Part) -> bool:
    (stem, number), (before, previous) = _numbered(part.name), _numbered(other.name)
    return stem == before and number == previous + 1 and part.likeness == other.likeness


def _numbered(name: str) -> tuple[str, int]:
    """A name and the number at its end; -1 without one."""
    stem = name.rstrip("0123456789")
    return stem, int(name[len(stem) :] or -1)


def tree(inspection: Inspection, depth: int | None = None) -> rich.table.Table:
    """The tree of a model as a table: key paths, classes, shapes, and who holds how many parameters."""
    shown = lines(inspection.root, depth)
    total = inspection.root.parameters
    stored = any(_other_numbers(line.run.first) for line in shown)
    columns = ["", "Class", "Weights", "Output", "Parameters", "Share", *(["Buffers, constants"] if stored else [])]
    table = rich.table.Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold", justify="right" if column in columns[4:] else "left")
    guides = _guides([line.depth for line in shown])
    for guide, line in zip(guides, shown, strict=True):
        cells = _cells(line, total, stored)
        table.add_row(Text.assemble((guide, "dim"), line.label), *cells)
    return table


def _cells(line: Line, total: int, stored: bool) -> list[Text]:
    part, count = line.run.first, len(line.run.parts)
    each = " each" if count > 1 else ""
    parameters, others = part.parameters, _other_numbers(part)
    cells = [
        f"{count} \N{MULTIPLICATION SIGN} {part.class_name}" if count > 1 else part.class_name,
        ", ".join(f"{tensor.field} {_shape(tensor.shape)}" for tensor in part.tensors),
        ", ".join(text or "?" for text in line.run.outputs),
        f"{short(parameters)}{each}" if parameters else "",
        f"{parameters * count / total:.1%}" if parameters else "",
    ]
    if stored:
        cells.append(f"{short(others)}{each}" if others else "")
    return [Text(cell) for cell in cells]


def _other_numbers(part: Part) -> int:
    return sum(part.numbers.values()) - part.parameters


def _shape(shape: tuple[int, ...]) -> str:
    return f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"


def short(number: int) -> str:
    """`7087872` as `7.09M`."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.3g}{unit}" if number < 1000 * size else f"{number // size}{unit}"
    return str(number)


def _guides(depths: list[int]) -> list[str]:
    """The branches drawn before each line."""
    open_below: set[int] = set()
    guides = []
    for depth in reversed(depths):
        open_below = {level for level in open_below if level <= depth}
        bars = "".join("│  " if level in open_below else "   " for level in range(1, depth))
        guides.append("" if not depth else bars + ("├─ " if depth in open_below else "└─ "))
        open_below.add(depth)
    return guides[::-1]


def summary(inspection: Inspection) -> list[str]:
    """What stands below the tree, a sentence a line."""
    numbers = inspection.root.numbers
    dtypes = ", ".join(inspection.dtypes) or "none"
    found = [
        f"{numbers[Role.PARAMETER.value]:,} parameters ({dtypes}), {numbers[Role.BUFFER.value]:,} numbers in buffers, "
        f"{numbers[Role.CONSTANT.value]:,} in constants.",
        f"Inputs: {_types(inspection.inputs)}",
        f"Outputs: {_types(inspection.outputs)}",
        f"Opset {', '.join(_opset(*entry) for entry in sorted(inspection.opsets.items()))}; "
        f"exported by {inspection.exporter or 'an exporter that left no name'}.",
    ]
    for tie in inspection.ties:
        found.append(f"Tied: {tie.path} is used by {len(tie.nodes)} nodes: {_listed(tie.nodes)}.")
    return found + inspection.batch_norm.sentences()


def _types(values: dict[str, str]) -> str:
    return ", ".join(f"{name}: {text}" for name, text in values.items()) or "none"


def _opset(domain: str, version: int) -> str:
    return f"{domain} {version}" if domain else str(version)


def _listed(names: Sequence[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
