"""Printing tuples of blocks: members that are constructed alike become a generator expression."""

import ast
import copy
from collections.abc import Collection
from typing import Any, NamedTuple, TypeGuard

from .._names import identifier
from ._expressions import call, literal, name

# Marks a hole, by its number.
_HOLE = "onnxeqx_hole"
# So many equal members in a row are written once.
_SHORTEST_RUN = 3
# Up to so many arguments that differ have names in a generator expression.
_NAMED = 2


class Hole(NamedTuple):
    """A literal in a constructor that may become an argument.

    **Fields:** `hint` (what the argument is called), `value`; `is_default` (the constructor takes it so where nothing is said).
    """

    hint: str
    value: Any
    is_default: bool = False


Holes = list[Hole]
# A constructor, and the holes in it.
Member = tuple[ast.expr, Holes]


def hole(found: Hole, holes: Holes) -> ast.expr:
    """Makes room for a literal; `holes` are those of the constructor so far."""
    holes.append(found)
    return call(name(_HOLE), literal(len(holes) - 1))


class Fill(ast.NodeTransformer):
    """Puts expressions where the holes are; a keyword for which there is `None` is left out."""

    def __init__(self, expressions: dict[int, ast.expr | None]) -> None:
        self.expressions = expressions

    def visit_Call(self, node: ast.Call) -> ast.expr:
        number = _number(node)
        if number is not None:
            return copy.deepcopy(self.expressions[number]) or node
        node.keywords = [keyword for keyword in node.keywords if not self._is_left_out(keyword.value)]
        self.generic_visit(node)
        return node

    def _is_left_out(self, value: ast.expr) -> bool:
        number = _number(value)
        return number is not None and self.expressions[number] is None


def _number(node: ast.expr) -> int | None:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == _HOLE:
        return ast.literal_eval(node.args[0])
    return None


def equal_from(members: list[Member]) -> int:
    """From which member on they are constructed alike, to the last argument."""
    texts = [repr((ast.dump(constructor), inner)) for constructor, inner in members]
    return next((i + 1 for i in reversed(range(len(texts))) if texts[i] != texts[-1]), 0)


def stack_of(field: str, members: list[Member], holes: Holes) -> ast.expr:
    """`stacked(Layer() for _ in range(12))`: one block for members that are constructed alike."""
    return call(name("stacked"), _generator(field, members, holes))


def tuple_of(field: str, members: list[Member], holes: Holes, *, stacked_from: int | None = None) -> ast.expr:
    """`tuple(Layer() for _ in range(12))`, or `(None, *(Layer(channels) for channels in (64, 96, 128)), Head())`.

    Members from `stacked_from` on are one.
    """
    parts: list[ast.expr] = []
    position = 0
    end = len(members) if stacked_from is None else stacked_from
    while position < end:
        run = _run_length(members[position:end])
        if run == len(members) and run > 1:  # the whole tuple
            return call(name("tuple"), _generator(field, members, holes))
        if run >= _SHORTEST_RUN:
            parts.append(ast.Starred(_generator(field, members[position : position + run], holes), ast.Load()))
        else:
            run = 1
            constructor, inner = members[position]
            parts.append(Fill({i: hole(found, holes) for i, found in enumerate(inner)}).visit(constructor))
        position += run
    if stacked_from is not None:
        parts.append(stack_of(field, members[stacked_from:], holes))
    return ast.Tuple(parts, ast.Load())


def _run_length(members: list[Member]) -> int:
    first = ast.dump(members[0][0])
    if isinstance(members[0][0], ast.Constant):
        return 1
    return next((i for i, (constructor, _) in enumerate(members) if ast.dump(constructor) != first), len(members))


def _generator(field: str, members: list[Member], holes: Holes) -> ast.GeneratorExp:
    constructor, inner = members[0]
    rows = [tuple(one.value for one in found) for _, found in members]
    varying = [i for i, column in enumerate(zip(*rows, strict=True)) if len({repr(value) for value in column}) > 1]
    if len(varying) > _NAMED and _takes_holes_only(constructor):
        element = ast.Call(constructor.func, [ast.Starred(name("sizes"), ast.Load())], [])
        return _comprehension(element, ["sizes"], hole(Hole(_hint(field, ["sizes"]), tuple(rows)), holes))
    names = unique_names([inner[i].hint for i in varying])
    fill: dict[int, ast.expr | None] = {i: name(text) for i, text in zip(varying, names, strict=True)}
    fill |= {i: hole(inner[i], holes) for i in range(len(inner)) if i not in fill}
    element = Fill(fill).visit(constructor)
    if not varying:
        return _comprehension(element, ["_"], call(name("range"), hole(Hole("depth", len(members)), holes)))
    table = tuple(tuple(row[i] for i in varying) if len(varying) > 1 else row[varying[0]] for row in rows)
    return _comprehension(element, names, hole(Hole(_hint(field, names), table), holes))


def _hint(field: str, names: list[str]) -> str:
    return "sizes" if field.isdecimal() else f"{'_and_'.join(names)}_of_{identifier(field)}"


def _takes_holes_only(constructor: ast.expr) -> TypeGuard[ast.Call]:
    """Whether it constructs a block of this model, which takes its sizes in order."""
    if not isinstance(constructor, ast.Call) or constructor.args or not isinstance(constructor.func, ast.Name):
        return False
    return all(_number(keyword.value) is not None for keyword in constructor.keywords)


def _comprehension(element: ast.expr, names: list[str], iterator: ast.expr) -> ast.GeneratorExp:
    targets: list[ast.expr] = [ast.Name(text, ast.Store()) for text in names]
    target = targets[0] if len(targets) == 1 else ast.Tuple(targets, ast.Store())
    return ast.GeneratorExp(element, [ast.comprehension(target, iterator, [], 0)])


def unique_names(
    hints: list[str], taken: set[str] | None = None, *, remember: bool = False, reserved: Collection[str] = ()
) -> list[str]:
    used = set(taken or ()) | set(reserved)
    found = []
    for hint in hints:
        candidate, counter = hint, 1
        while candidate in used:
            counter += 1
            candidate = f"{hint}_{counter}" if hint[-1].isdigit() or hint.islower() else f"{hint}{counter}"
        used.add(candidate)
        found.append(candidate)
    if remember and taken is not None:
        taken.update(found)
    return found
