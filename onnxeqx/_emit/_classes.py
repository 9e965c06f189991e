"""Printing classes: blocks with equal text share one class; what differs becomes an argument of `__init__`."""

import ast
import copy
import dataclasses
import inspect
import re
from collections.abc import Collection
from typing import Any

import numpy as np

from .._graph import Leaf, Lifted, Role
from .._names import Path, identifier
from .._nest import Block
from ._expressions import Imports, call, dotted, dtype, function, is_literal, literal, name
from ._function import FunctionPrinter
from ._idioms import Idioms

# Marks a literal in a constructor that may become an argument.
_HOLE = "onnxeqx_hole"


@dataclasses.dataclass(eq=False)
class PrintedBlock:
    """A block with the text of its class.

    **Fields:**

    - `fields`: name, annotation and constructor of each field.
    - `method`: `__call__`, or `None` if the block is not callable.
    - `holes`: the literals in the constructors, in order, with the name of the argument they fill.
    """

    block: Block
    fields: list[tuple[str, ast.expr, ast.expr]]
    method: ast.FunctionDef | None
    holes: list[tuple[str, Any]]
    class_name: str = ""
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)

    def text(self) -> str:
        """What blocks of one class have in common."""
        parts = [f"{field}: {ast.dump(annotation)} = {ast.dump(value)}" for field, annotation, value in self.fields]
        return "\n".join([*parts, ast.dump(self.method) if self.method else ""])


class ClassPrinter:
    """Prints the classes of a model, the innermost first."""

    def __init__(self, root: Block, imports: Imports, main_dtype: np.dtype, idioms: Idioms) -> None:
        self.root, self.imports, self.main_dtype, self.idioms = root, imports, main_dtype, idioms
        self.printed: dict[Path, PrintedBlock] = {}
        self._names: set[str] = {"Model"}

    def print(self) -> list[ast.ClassDef]:
        """Class definitions in the order in which they may stand in a file; the last is `Model`, without decoration."""
        definitions: list[ast.ClassDef] = []
        for level in _by_height(self.root):
            groups: dict[str, list[PrintedBlock]] = {}
            for block in level:
                printed = self._print_block(block)
                self.printed[block.path] = printed
                groups.setdefault(printed.text(), []).append(printed)
            definitions += [self._define(group) for group in groups.values()]
        return definitions

    def _print_block(self, block: Block) -> PrintedBlock:
        holes: list[tuple[str, Any]] = []
        fields = []
        for field, child in block.children.items():
            annotation, constructor = self._field(field, child, holes)
            fields.append((field, annotation, constructor))
        printer = FunctionPrinter(block, self.imports, self.main_dtype, self.idioms)
        method = printer.print() if block.items is not None else None
        return PrintedBlock(block, fields, method, holes)

    def _field(
        self, field: str, child: Block | Lifted | Leaf, holes: list[tuple[str, Any]]
    ) -> tuple[ast.expr, ast.expr]:
        if isinstance(child, Leaf):
            return self._leaf(child, holes)
        if isinstance(child, Lifted):
            return self._layer(child, holes)
        if child.is_tuple:
            return name("tuple"), self._tuple(field, child, holes)
        printed = self.printed[child.path]
        keywords = {key: _hole(key, value, holes) for key, value in printed.arguments.items()}
        return name(printed.class_name), call(name(printed.class_name), **keywords)

    def _leaf(self, leaf: Leaf, holes: list[tuple[str, Any]]) -> tuple[ast.expr, ast.expr]:
        nn = self.imports.name("onnxeqx.nn")
        shape = [_hole("size", size, holes) for size in leaf.shape]
        keywords = {} if leaf.dtype == np.float32 else {"dtype": literal(leaf.dtype.name)}
        annotation = dotted(f"{nn}.Buffer") if leaf.role is Role.BUFFER else dotted("jax.Array")
        return annotation, call(dotted(f"{nn}.{leaf.role.value}"), *shape, **keywords)

    def _layer(self, lifted: Lifted, holes: list[tuple[str, Any]]) -> tuple[ast.expr, ast.expr]:
        layer = self._class(lifted.layer)
        positional, keywords = [], {}
        for parameter in list(inspect.signature(lifted.layer).parameters.values()):
            if parameter.name not in lifted.arguments:
                continue
            value = lifted.arguments[parameter.name]
            if isinstance(value, np.dtype):
                expression = dtype(value)
            else:
                expression = _hole(parameter.name, value, holes) if _may_differ(value) else literal(value)
            required = parameter.default is parameter.empty or parameter.name in _POSITIONAL
            if required and not keywords and parameter.kind is not parameter.KEYWORD_ONLY:
                positional.append(expression)
            else:
                keywords[parameter.name] = expression
        if lifted.needs_key:
            keywords["key"] = name("KEY")
        return layer, call(layer, *positional, **keywords)

    def _class(self, layer: type) -> ast.expr:
        if layer.__module__.startswith("equinox.nn"):
            return dotted(f"eqx.nn.{layer.__name__}")
        if layer.__module__.startswith("onnxeqx.nn"):
            return dotted(f"{self.imports.name('onnxeqx.nn')}.{layer.__name__}")
        return dotted(f"{self.imports.name(layer.__module__)}.{layer.__qualname__}")

    def _tuple(self, field: str, block: Block, holes: list[tuple[str, Any]]) -> ast.expr:
        size = 1 + max(int(index) for index in block.children)
        members = [block.children.get(str(index)) for index in range(size)]
        inner: list[list[tuple[str, Any]]] = [[] for _ in members]
        constructors = [
            literal(None) if member is None else self._field(field, member, inner[i])[1]
            for i, member in enumerate(members)
        ]
        same = len({ast.dump(constructor) for constructor in constructors}) == 1 and None not in members
        if not same or size < 2:
            return ast.Tuple(_runs(constructors, inner, holes), ast.Load())
        rows = [tuple(value for _, value in found) for found in inner]
        columns = list(zip(*rows, strict=True))
        varying = [i for i, column in enumerate(columns) if len({repr(value) for value in column}) > 1]
        names = _unique_names([inner[0][i][0] for i in varying])
        fill = {i: name(text) for i, text in zip(varying, names, strict=True)}
        fixed = {i: _hole(inner[0][i][0], inner[0][i][1], holes) for i in range(len(columns)) if i not in fill}
        element = _Fill(fill | fixed).visit(copy.deepcopy(constructors[0]))
        if not varying:
            iterator = call(name("range"), _hole("depth", size, holes))
            return call(
                name("tuple"),
                ast.GeneratorExp(element, [ast.comprehension(ast.Name("_", ast.Store()), iterator, [], 0)]),
            )
        table = tuple(tuple(row[i] for i in varying) if len(varying) > 1 else row[varying[0]] for row in rows)
        stored: list[ast.expr] = [ast.Name(text, ast.Store()) for text in names]
        target = stored[0] if len(stored) == 1 else ast.Tuple(stored, ast.Store())
        iterator = _hole(
            f"{'_and_'.join(names)}_of_{identifier(field)}" if not field.isdecimal() else "sizes", table, holes
        )
        return call(name("tuple"), ast.GeneratorExp(element, [ast.comprehension(target, iterator, [], 0)]))

    def _define(self, group: list[PrintedBlock]) -> ast.ClassDef:
        class_name = "Model" if group[0].block is self.root else self._class_name(group[0].block)
        columns = list(zip(*[[value for _, value in printed.holes] for printed in group], strict=True))
        argument_of: dict[str, str] = {}
        fill: dict[int, ast.expr] = {}
        taken: set[str] = set()
        for i, column in enumerate(columns):
            values = repr(column)
            if len({repr(value) for value in column}) == 1:
                fill[i] = literal(column[0])
                continue
            if values not in argument_of:
                argument_of[values] = _unique_names([group[0].holes[i][0]], taken)[0]
                taken.add(argument_of[values])
                for printed, value in zip(group, column, strict=True):
                    printed.arguments[argument_of[values]] = value
            fill[i] = name(argument_of[values])
        for printed in group:
            printed.class_name = class_name
        return self._class_definition(class_name, group[0], list(argument_of.values()), fill)

    def _class_definition(
        self, class_name: str, printed: PrintedBlock, arguments: list[str], fill: dict[int, ast.expr]
    ) -> ast.ClassDef:
        body: list[ast.stmt] = [
            ast.AnnAssign(ast.Name(field, ast.Store()), annotation, None, simple=1)
            for field, annotation, _ in printed.fields
        ]
        assignments: list[ast.stmt] = [
            ast.Assign([ast.Attribute(name("self"), field, ast.Store())], _Fill(fill).visit(constructor), lineno=0)
            for field, _, constructor in printed.fields
        ]
        if assignments:
            body.append(function("__init__", ["self", *arguments], assignments))
        if printed.method is not None:
            body.append(printed.method)
        base = dotted("eqx.Module")
        return ast.ClassDef(name=class_name, bases=[base], keywords=[], body=body or [ast.Pass()], decorator_list=[])

    def _class_name(self, block: Block) -> str:
        hint = block.class_name or next((part for part in reversed(block.path) if not part.isdecimal()), "Block")
        words = [word for word in re.split(r"[_\W]+", hint) if word]
        text = "".join(word[0].upper() + word[1:] for word in words) if block.class_name is None else identifier(hint)
        stem = identifier(re.sub(r"\d+$", "", text) if block.class_name is None else text).strip("_") or "Block"
        stem = stem if not stem[0].isdigit() else f"Block{stem}"
        return _unique_names([stem], self._names, remember=True, reserved=self.imports.names)[0]


# Parameters with a default that are nonetheless written without their name.
_POSITIONAL = ("num_embeddings", "embedding_size")


def _may_differ(value: Any) -> bool:
    return is_literal(value) and not isinstance(value, bool | str | None)


def _hole(hint: str, value: Any, holes: list[tuple[str, Any]]) -> ast.expr:
    holes.append((hint, value))
    return call(name(_HOLE), literal(len(holes) - 1))


class _Fill(ast.NodeTransformer):
    """Puts expressions where the holes are."""

    def __init__(self, expressions: dict[int, ast.expr]) -> None:
        self.expressions = expressions

    def visit_Call(self, node: ast.Call) -> ast.expr:
        if isinstance(node.func, ast.Name) and node.func.id == _HOLE:
            return copy.deepcopy(self.expressions[ast.literal_eval(node.args[0])])
        self.generic_visit(node)
        return node


class _Renumber(ast.NodeTransformer):
    """Numbers holes one after the other."""

    def __init__(self, start: int) -> None:
        self.next = start

    def visit_Call(self, node: ast.Call) -> ast.expr:
        if isinstance(node.func, ast.Name) and node.func.id == _HOLE:
            self.next += 1
            return call(name(_HOLE), literal(self.next - 1))
        self.generic_visit(node)
        return node


def _runs(
    constructors: list[ast.expr], inner: list[list[tuple[str, Any]]], holes: list[tuple[str, Any]]
) -> list[ast.expr]:
    """The members of a tuple, three and more equal ones in a row as `*(Layer() for _ in range(3))`."""
    members: list[ast.expr] = []
    position = 0
    while position < len(constructors):
        constructor = constructors[position]
        run = 1
        while (
            position + run < len(constructors)
            and ast.dump(constructors[position + run]) == ast.dump(constructor)
            and inner[position + run] == inner[position]
        ):
            run += 1
        if run < 3 or isinstance(constructor, ast.Constant):
            run = 1
        # The holes of a member are numbered from zero; here they take their place in the whole.
        constructor = _Renumber(len(holes)).visit(copy.deepcopy(constructor))
        holes.extend(inner[position])
        if run > 1:
            iterator = call(name("range"), _hole("depth", run, holes))
            generator = ast.GeneratorExp(constructor, [ast.comprehension(ast.Name("_", ast.Store()), iterator, [], 0)])
            constructor = ast.Starred(generator, ast.Load())
        members.append(constructor)
        position += run
    return members


def _unique_names(
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


def _by_height(root: Block) -> list[list[Block]]:
    """All blocks that are classes, grouped by height: children before parents, each level in the order of the file."""
    order: list[Block] = []
    stack = [root]
    while stack:
        block = stack.pop()
        order.append(block)
        stack.extend(child for child in reversed(list(block.children.values())) if isinstance(child, Block))
    height: dict[Path, int] = {}
    for block in reversed(order):
        below = [height[child.path] for child in block.children.values() if isinstance(child, Block)]
        height[block.path] = max(below, default=-1) + 1
    levels: list[list[Block]] = [[] for _ in range(height[root.path] + 1)]
    for block in order:
        if not block.is_tuple or block is root:
            levels[height[block.path]].append(block)
    return [level for level in levels if level]
