"""What a call prints as: a Python expression in the operator's own parameters, filled in on the syntax tree.

An operator declares it beside its function: `@op("Softmax", prints="jax.nn.softmax(x, axis=axis)")`.
"""

import ast
import builtins
import copy
import dataclasses
import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np

# A printing rule is an expression, or a function of the operator's parameters that gives one, alone or with the values of
# further names in it, or `None`. It is given an `Operand` for each input, and the attributes as they are.
Printing = str | Callable[..., str | tuple[str, dict[str, Any]] | None] | None

# The modules that an expression may name.
MODULES = {"jax": "jax", "jnp": "jax.numpy", "math": "math", "np": "numpy"}


@dataclasses.dataclass(frozen=True, eq=False)
class Operand:
    """What a printing rule is told of an input.

    **Fields:**

    - `dtype`: that of the file: where the model is cast, its main floating dtype is another one at run time.
    - `shape`: an integer or a symbol for each axis; `None` if the rank is unknown.
    - `value`: a NumPy array, if the data is known at load and no weight; of `dtype=object` if it has symbols.
    - `on_device`: a JAX array; else a NumPy array or a Python number.
    """

    dtype: np.dtype | None
    shape: tuple[Any, ...] | None
    value: np.ndarray | None
    on_device: bool

    @property
    def ndim(self) -> int | None:
        return None if self.shape is None else len(self.shape)


@dataclasses.dataclass(frozen=True)
class Idiom:
    """An expression to print, with the values of those of its names that are no parameters."""

    expression: ast.expr
    values: Mapping[str, Any]

    @functools.cached_property
    def names(self) -> list[str]:
        """The names in it, one for each time that they are read."""
        return [node.id for node in ast.walk(self.expression) if isinstance(node, ast.Name)]

    @property
    def is_operators(self) -> bool:
        """Whether it is made of Python's operators alone, which NumPy and JAX share."""
        allowed = (ast.Name, ast.Constant, ast.BinOp, ast.UnaryOp, ast.Compare, ast.operator, ast.unaryop, ast.cmpop)
        return all(isinstance(node, (*allowed, ast.expr_context)) for node in ast.walk(self.expression))

    @property
    def makes_jax_arrays(self) -> bool:
        """Whether it calls a function of JAX."""
        return not {"jax", "jnp"}.isdisjoint(self.names)

    @functools.cached_property
    def as_arrays(self) -> set[str]:
        """The names of which a method, an attribute or a part is read."""
        readers = [node for node in ast.walk(self.expression) if isinstance(node, ast.Attribute | ast.Subscript)]
        return {node.value.id for node in readers if isinstance(node.value, ast.Name)} - set(MODULES)


@functools.cache
def parsed(text: str) -> ast.expr:
    """The syntax tree of an expression, not to be changed.

    **Raises:** `SyntaxError`.
    """
    return ast.parse(text, mode="eval").body


def unknown_names(text: str, parameters: set[str]) -> list[str]:
    """The names in an expression that are no parameter, no module that it may use, and nothing that Python has."""
    names = [node.id for node in ast.walk(parsed(text)) if isinstance(node, ast.Name)]
    return [name for name in names if name not in parameters | set(MODULES) and not hasattr(builtins, name)]


def idiom_from(found: str | tuple[str, dict[str, Any]] | None) -> Idiom | None:
    """What a printing rule gave."""
    if found is None:
        return None
    text, values = found if isinstance(found, tuple) else (found, {})
    return Idiom(parsed(text), values)


def filled(idiom: Idiom, arguments: Mapping[str, ast.expr]) -> ast.expr:
    """The expression with `arguments` in place of its names, in the shortest form that means the same."""
    return cast(ast.expr, _Filling(arguments).visit(copy.deepcopy(idiom.expression)))


class _Filling(ast.NodeTransformer):
    """Replaces names, and simplifies what thereby became simple."""

    def __init__(self, arguments: Mapping[str, ast.expr]) -> None:
        self.arguments = arguments

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return copy.deepcopy(self.arguments.get(node.id, node))

    def visit_Call(self, node: ast.Call) -> ast.expr:
        self.generic_visit(node)
        node.args = _unpacked(node.args)
        defaults = _defaults(ast.unparse(node.func)) if _is_dotted(node.func) else {}
        node.keywords = [
            keyword for keyword in node.keywords if not _is_default(keyword.value, defaults.get(keyword.arg or ""))
        ]
        return node

    def visit_List(self, node: ast.List) -> ast.expr:
        self.generic_visit(node)
        return ast.List(_unpacked(node.elts), node.ctx)

    def visit_Tuple(self, node: ast.Tuple) -> ast.expr:
        self.generic_visit(node)
        return ast.Tuple(_unpacked(node.elts), node.ctx)

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        self.generic_visit(node)
        index = node.slice.value if isinstance(node.slice, ast.Constant) else None
        if isinstance(node.value, ast.Tuple) and isinstance(index, int):
            return node.value.elts[index]
        if isinstance(node.value, ast.Subscript):
            merged = _merged(_entries(node.value.slice), _entries(node.slice))
            if merged is not None:
                return ast.Subscript(node.value.value, ast.Tuple(merged, ast.Load()), ast.Load())
        return node


def _unpacked(items: list[ast.expr]) -> list[ast.expr]:
    """`*(a, b)` as `a, b`, and `x.shape[0], x.shape[1]` as `*x.shape[:2]`."""
    found: list[ast.expr] = []
    for item in items:
        content = item.value if isinstance(item, ast.Starred) else None
        found += content.elts if isinstance(content, ast.Tuple) else [item]
    count = next((i for i, item in enumerate(found) if not _is_size(item, found[0], i)), len(found))
    if count < 2:
        return found
    shape = cast(ast.Subscript, found[0]).value
    leading = ast.Subscript(shape, ast.Slice(None, ast.Constant(count), None), ast.Load())
    return [ast.Starred(leading, ast.Load()), *found[count:]]


def _is_size(item: ast.expr, first: ast.expr, axis: int) -> bool:
    """Whether this is `x.shape[axis]`, of the `x` of which `first` is a size."""
    if not isinstance(item, ast.Subscript) or not isinstance(first, ast.Subscript):
        return False
    is_shape = isinstance(item.value, ast.Attribute) and item.value.attr == "shape"
    is_axis = isinstance(item.slice, ast.Constant) and item.slice.value == axis
    return is_shape and is_axis and ast.dump(item.value) == ast.dump(first.value)


def _entries(subscript: ast.expr) -> list[ast.expr]:
    return subscript.elts if isinstance(subscript, ast.Tuple) else [subscript]


def _merged(first: list[ast.expr], second: list[ast.expr]) -> list[ast.expr] | None:
    """`[first][second]` as one subscript, where both only keep axes and insert new ones."""
    if not all(_keeps(entry) or _inserts(entry) for entry in (*first, *second)):
        return None
    rest = list(first)
    merged = [entry if _inserts(entry) or not rest else rest.pop(0) for entry in second]
    return merged + rest


def _inserts(entry: ast.expr) -> bool:
    return isinstance(entry, ast.Constant) and entry.value is None


def _keeps(entry: ast.expr) -> bool:
    return isinstance(entry, ast.Slice) and (entry.lower, entry.upper, entry.step) == (None, None, None)


def _is_dotted(expression: ast.expr) -> bool:
    """Whether it is a member of a module that expressions may name: `jax.nn.softmax`."""
    while isinstance(expression, ast.Attribute):
        expression = expression.value
    return isinstance(expression, ast.Name) and expression.id in MODULES


@functools.cache
def _defaults(function: str) -> dict[str, inspect.Parameter]:
    """The parameters that have a default, of a function such as `jnp.sum`."""
    module, *members = function.split(".")
    target: Any = importlib.import_module(MODULES[module])
    try:
        for member in members:
            target = getattr(target, member)
        parameters = inspect.signature(target).parameters
    except (AttributeError, TypeError, ValueError):
        return {}
    return {name: parameter for name, parameter in parameters.items() if parameter.default is not parameter.empty}


def _is_default(argument: ast.expr, parameter: inspect.Parameter | None) -> bool:
    if parameter is None:
        return False
    try:
        value = ast.literal_eval(argument)
    except ValueError:
        return False
    return type(value) is type(parameter.default) and value == parameter.default
