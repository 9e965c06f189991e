"""Printing loops: equal consecutive lines over the members of a tuple become a `for` statement."""

import ast
import copy
import dataclasses

from ._expressions import literal, name as name_of


@dataclasses.dataclass(frozen=True, eq=False)
class _IndexedCall:
    """`x = self.a[i](…x…)`, or `x = over_batch(self.a[i], x, …)`.

    **Fields:** the whole `statement`; in it `target` (`x`), `call` (all after `=`), `member` (`self.a[i]`) and `index`.
    """

    statement: ast.Assign
    target: ast.Name
    call: ast.Call
    member: ast.Subscript
    index: int

    def text_without_index(self) -> str:
        """What calls of one loop have in common."""
        twin = copy.deepcopy(self)
        twin.member.slice = ast.Constant("*")
        return ast.unparse(ast.fix_missing_locations(twin.statement))


def fold_loops(body: list[ast.stmt], sizes: dict[str, int]) -> list[ast.stmt]:
    """`x = self.layer[0](x); x = self.layer[1](x); …` is a loop over `self.layer`.

    `sizes` gives the length of each tuple, by the text that names it.
    """
    folded: list[ast.stmt] = []
    position = 0
    while position < len(body):
        run = _run_length(body, position)
        first = _indexed_call(body[position])
        if run >= 2 and first is not None:
            folded.append(_loop(first, run, sizes))
        else:
            folded.append(body[position])
            run = 1
        position += run
    return folded


def _indexed_call(statement: ast.stmt) -> _IndexedCall | None:
    """The statement as a call of a member of a tuple, if it is one."""
    if not isinstance(statement, ast.Assign) or not isinstance(statement.value, ast.Call):
        return None
    target, member = statement.targets[0], _layer_slot(statement.value)
    if not isinstance(target, ast.Name) or not isinstance(member, ast.Subscript):
        return None
    if not isinstance(member.slice, ast.Constant) or not isinstance(member.slice.value, int):
        return None
    return _IndexedCall(statement, target, statement.value, member, member.slice.value)


def _layer_slot(expression: ast.Call) -> ast.expr:
    if isinstance(expression.func, ast.Attribute) and expression.func.attr == "over_batch":
        return expression.args[0]
    return expression.func


def _run_length(body: list[ast.stmt], start: int) -> int:
    first = _indexed_call(body[start])
    if first is None:
        return 1
    text = first.text_without_index()
    run = 1
    while start + run < len(body):
        following = _indexed_call(body[start + run])
        if following is None or following.index != first.index + run or following.text_without_index() != text:
            break
        run += 1
    reads = [node.id for node in ast.walk(first.call) if isinstance(node, ast.Name)]
    return run if first.target.id in reads else 1


def _loop(first: _IndexedCall, run: int, sizes: dict[str, int]) -> ast.For:
    used = {node.id for node in ast.walk(first.statement) if isinstance(node, ast.Name)}
    variable = next(text for text in ("layer", "block", "member", "item_") if text not in used)
    if first.member is first.call.func:
        first.call.func = name_of(variable)
    else:
        first.call.args[0] = name_of(variable)
    sequence, start = first.member.value, first.index
    if start or run < sizes.get(ast.unparse(sequence), run + 1):
        sequence = ast.Subscript(
            sequence, ast.Slice(literal(start) if start else None, literal(start + run)), ast.Load()
        )
    return ast.For(ast.Name(variable, ast.Store()), sequence, [first.statement], [], None, lineno=0)
