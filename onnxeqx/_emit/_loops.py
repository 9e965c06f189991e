"""Printing loops: lines that repeat over the members of a tuple become a `for` statement."""

import ast
import copy
import dataclasses
from typing import TypeGuard

from ._expressions import literal, name as name_of

# How many lines the body of a loop may have.
_MAX_LINES = 6


@dataclasses.dataclass(frozen=True)
class _Member:
    """`self.a[i]`, as it stands in the text: the text of `self.a`, and `i`."""

    sequence: str
    index: int


def fold_loops(body: list[ast.stmt], sizes: dict[str, int]) -> list[ast.stmt]:
    """`x = self.layer[0](x); x = self.layer[1](x); …` is a loop over `self.layer`.

    `sizes` gives the length of each tuple, by the text that names it.
    """
    folded: list[ast.stmt] = []
    position = 0
    while position < len(body):
        for lines in range(1, _MAX_LINES + 1):
            member, run = _longest_run(body[position:], lines)
            if member is not None:
                folded.append(_loop(body[position : position + lines], member, run, sizes))
                position += lines * run
                break
        else:
            folded.append(body[position])
            position += 1
    return folded


def _longest_run(body: list[ast.stmt], lines: int) -> tuple[_Member | None, int]:
    """The member whose index counts up where the first lines repeat, and how often they stand there."""
    first = body[:lines]
    runs = [(member, _run_length(body, first, member)) for member in _members(first)]
    return max(((member, run) for member, run in runs if run > 1), key=lambda found: found[1], default=(None, 1))


def _run_length(body: list[ast.stmt], first: list[ast.stmt], member: _Member) -> int:
    text = _text(first, member)
    run = 1
    while True:
        following = body[run * len(first) : (run + 1) * len(first)]
        if _text(following, dataclasses.replace(member, index=member.index + run)) != text:
            return run
        run += 1


def _members(statements: list[ast.stmt]) -> list[_Member]:
    if not all(isinstance(statement, ast.Assign) for statement in statements):
        return []
    subscripts = [node for statement in statements for node in ast.walk(statement) if _is_member(node)]
    # `for layer in self.features[1:3]: x = layer[0](x)` says less than the lines themselves.
    outer = {id(node.value) for node in subscripts}
    return list(dict.fromkeys(_member(node) for node in subscripts if id(node) not in outer))


def _member(node: ast.Subscript) -> _Member:
    assert isinstance(node.slice, ast.Constant)
    assert isinstance(node.slice.value, int)
    return _Member(ast.unparse(node.value), node.slice.value)


def _is_member(node: ast.AST) -> TypeGuard[ast.Subscript]:
    if (
        not isinstance(node, ast.Subscript)
        or not isinstance(node.slice, ast.Constant)
        or type(node.slice.value) is not int
    ):
        return False
    root = node.value
    while isinstance(root, ast.Attribute | ast.Subscript):
        root = root.value
    return isinstance(root, ast.Name) and root.id == "self" and root is not node.value


class _Replace(ast.NodeTransformer):
    """Puts a variable where a member of a tuple is, and counts the keys of draws from `number` on."""

    def __init__(self, member: _Member, variable: str, number: str, first: int) -> None:
        self.member, self.variable, self.number, self.first = member, variable, number, first
        self.counts = False

    def visit_Call(self, node: ast.Call) -> ast.expr:
        self.generic_visit(node)
        if is_subkey(node):
            self.counts = True
            first = ast.literal_eval(node.args[1]) - self.first
            counted = ast.BinOp(name_of(self.number), ast.Add(), literal(first)) if first else name_of(self.number)
            return ast.Call(node.func, [node.args[0], counted], [])
        return node

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        if _is_member(node) and _member(node) == self.member:
            return name_of(self.variable)
        self.generic_visit(node)
        return node


def is_subkey(node: ast.expr) -> TypeGuard[ast.Call]:
    """Whether this is the key of one of the calls of a block that draw random numbers."""
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "subkey"


def _text(statements: list[ast.stmt], member: _Member) -> str:
    replace = _Replace(member, "*", "#", member.index)
    return "\n".join(ast.dump(replace.visit(copy.deepcopy(statement))) for statement in statements)


def _loop(first: list[ast.stmt], member: _Member, run: int, sizes: dict[str, int]) -> ast.For:
    used = {node.id for statement in first for node in ast.walk(statement) if isinstance(node, ast.Name)}
    variable = next(text for text in ("layer", "block", "member", "item_") if text not in used)
    number = next(text for text in ("number", "i", "j", "number_") if text not in used)
    replace = _Replace(member, variable, number, 0)
    body = [replace.visit(copy.deepcopy(statement)) for statement in first]
    sequence = ast.parse(member.sequence, mode="eval").body
    if member.index or run < sizes.get(member.sequence, run + 1):
        start, stop = literal(member.index) if member.index else None, literal(member.index + run)
        if member.index + run == sizes.get(member.sequence):
            stop = None
        sequence = ast.Subscript(sequence, ast.Slice(start, stop), ast.Load())
    target: ast.expr = ast.Name(variable, ast.Store())
    if replace.counts:
        target = ast.Tuple([ast.Name(number, ast.Store()), target], ast.Store())
        sequence = ast.Call(name_of("enumerate"), [sequence], [])
    return ast.For(target, sequence, body, [], None, lineno=0)
