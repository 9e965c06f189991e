"""Printing loops: equal consecutive lines over the members of a tuple become a `for` statement."""

import ast

from ._expressions import literal, name as name_of


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
            folded.append(_loop(body[position], *first, run, sizes))
        else:
            folded.append(body[position])
            run = 1
        position += run
    return folded


def _indexed_call(statement: ast.stmt) -> tuple[ast.expr, int] | None:
    """The tuple and the index of `x = self.a[i](…x…)` (or of `over_batch(self.a[i], x, …)`), if it is one."""
    if (
        not isinstance(statement, ast.Assign)
        or not isinstance(statement.targets[0], ast.Name)
        or not isinstance(statement.value, ast.Call)
    ):
        return None
    function = _layer_slot(statement.value)
    if isinstance(function, ast.Subscript) and isinstance(function.slice, ast.Constant):
        return function.value, function.slice.value
    return None


def _layer_slot(expression: ast.Call) -> ast.expr:
    if isinstance(expression.func, ast.Attribute) and expression.func.attr == "over_batch":
        return expression.args[0]
    return expression.func


def _run_length(body: list[ast.stmt], start: int) -> int:
    first = _indexed_call(body[start])
    if first is None:
        return 1
    template = _template(body[start])
    run = 1
    while start + run < len(body):
        following = _indexed_call(body[start + run])
        if following is None or following[1] != first[1] + run or _template(body[start + run]) != template:
            break
        run += 1
    target = body[start].targets[0].id
    reads = [node.id for node in ast.walk(body[start].value) if isinstance(node, ast.Name)]
    return run if target in reads else 1


def _template(statement: ast.stmt) -> str:
    copy = ast.parse(ast.unparse(ast.fix_missing_locations(statement))).body[0]
    _layer_slot(copy.value).slice = ast.Constant("*")
    return ast.dump(copy)


def _loop(statement: ast.stmt, sequence: ast.expr, start: int, run: int, sizes: dict[str, int]) -> ast.For:
    used = {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
    member = next(text for text in ("layer", "block", "member", "item_") if text not in used)
    slot = _layer_slot(statement.value)
    if slot is statement.value.func:
        statement.value.func = name_of(member)
    else:
        statement.value.args[0] = name_of(member)
    if start or run < sizes.get(ast.unparse(sequence), run + 1):
        sequence = ast.Subscript(
            sequence, ast.Slice(literal(start) if start else None, literal(start + run)), ast.Load()
        )
    return ast.For(ast.Name(member, ast.Store()), sequence, [statement], [], None, lineno=0)
