"""Python expressions, as syntax trees: literals, names of functions, symbolic dimensions.

Text of a model reaches the source through here and `_names.identifier` only: as an identifier that was sanitised, or as
the `repr` of a number, a string, `None` or a tuple.
"""

import ast
import math
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from .._symbolic import Arithmetic, Dim

_BINARY: dict[str, type[ast.operator]] = {
    "+": ast.Add,
    "-": ast.Sub,
    "*": ast.Mult,
    "//": ast.FloorDiv,
    "%": ast.Mod,
}


class Imports:
    """The modules and members that a printed file needs, under names that do not collide."""

    def __init__(self) -> None:
        self._names: dict[tuple[str, str], str] = {}

    def name(self, module: str, alias: str | None = None) -> str:
        """The name under which `module` is imported."""
        return self._take((module, ""), alias or module.rpartition(".")[2])

    def member(self, module: str, member: str) -> str:
        """The name under which `from module import member` is imported."""
        return self._take((module, member), member)

    def _take(self, wanted: tuple[str, str], free: str) -> str:
        if wanted not in self._names:
            taken = set(self._names.values())
            while free in taken:
                free += "_"
            self._names[wanted] = free
        return self._names[wanted]

    @property
    def names(self) -> set[str]:
        return set(self._names.values())

    def statements(self, used: set[str]) -> list[ast.stmt]:
        """Import statements for the names that are used: other packages first, one line for each module."""
        plain: list[ast.stmt] = []
        members: dict[str, list[tuple[str, str]]] = {}
        for (module, member), alias in self._names.items():
            parent, _, last = module.rpartition(".")
            if alias not in used:
                continue
            if member:
                members.setdefault(module, []).append((member, alias))
            elif parent.startswith("onnxeqx") or (parent and last == alias):
                members.setdefault(parent, []).append((last, alias))
            else:
                plain.append(ast.Import([_alias(module, alias)]))
        plain.sort(key=ast.unparse)
        sources = sorted(members, key=lambda module: (module.startswith("onnxeqx"), module))
        return [
            *plain,
            *(ast.ImportFrom(module, [_alias(*pair) for pair in sorted(members[module])], 0) for module in sources),
        ]


def _alias(target: str, alias: str) -> ast.alias:
    return ast.alias(target, alias if alias != target else None)


def name(text: str) -> ast.Name:
    return ast.Name(text, ast.Load())


def dotted(text: str) -> ast.expr:
    """`a.b.c` as attributes."""
    first, *rest = text.split(".")
    expression: ast.expr = name(first)
    for part in rest:
        expression = ast.Attribute(expression, part, ast.Load())
    return expression


def call(function: ast.expr, *arguments: ast.expr, **keywords: ast.expr) -> ast.Call:
    return ast.Call(function, list(arguments), [ast.keyword(key, value) for key, value in keywords.items()])


def literal(value: Any) -> ast.expr:
    """A number, string, `None`, or tuple of these, exactly."""
    if isinstance(value, tuple | list):
        return ast.Tuple([literal(item) for item in value], ast.Load())
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool | str | None):
        return ast.Constant(value)
    if isinstance(value, int | float):
        if isinstance(value, float) and not math.isfinite(value):
            special = dotted("math.nan") if math.isnan(value) else dotted("math.inf")
            return special if not value < 0 else ast.UnaryOp(ast.USub(), special)
        return ast.Constant(value) if value >= 0 else ast.UnaryOp(ast.USub(), ast.Constant(-value))
    raise TypeError(f"{value!r} of type {type(value).__name__} does not print as a literal")


def is_literal(value: Any) -> bool:
    """Whether `literal` takes this value."""
    if isinstance(value, tuple | list):
        return all(is_literal(item) for item in value)
    return isinstance(value, bool | int | float | str | np.generic | None)


def symbolic(symbol: Any, size_of: Callable[[Dim], ast.expr]) -> ast.expr:
    """An integer expression; `size_of` prints a dimension."""
    if isinstance(symbol, Dim):
        return size_of(symbol)
    if isinstance(symbol, Arithmetic):
        left, right = (symbolic(side, size_of) for side in (symbol.left, symbol.right))
        return ast.BinOp(left, _BINARY[symbol.operator](), right)
    return literal(symbol)


def dtype(value: Any) -> ast.expr:
    """A dtype that JAX knows under a name of its own, `jnp.int32`."""
    known = np.dtype(value)
    if known.kind in "USO":
        return dotted("np.str_")
    return dotted("jnp.bool_" if known == np.bool_ else f"jnp.{known.name}")


def plain_numbers(array: np.ndarray) -> Any:
    """Nested tuples of Python numbers or text; narrow floats by way of float32, which holds them exactly."""
    if array.dtype.kind == "V" or array.dtype == ml_dtypes.bfloat16:
        array = array.astype(np.float32)
    return _converted(array.tolist())


def _converted(items: Any) -> Any:
    if isinstance(items, bytes):
        return items.decode(errors="replace")
    return tuple(map(_converted, items)) if isinstance(items, list) else items


def function(
    name: str, parameters: list[str], body: list[ast.stmt], options: Mapping[str, ast.expr] | None = None
) -> ast.FunctionDef:
    """`def name(*parameters, *, **options): body`."""
    options = options or {}
    names = [ast.arg(parameter) for parameter in parameters]
    arguments = ast.arguments(
        posonlyargs=[],
        args=names,
        kwonlyargs=[ast.arg(option) for option in options],
        kw_defaults=list(options.values()),
        defaults=[],
    )
    return ast.FunctionDef(name=name, args=arguments, body=body, decorator_list=[], lineno=0)
