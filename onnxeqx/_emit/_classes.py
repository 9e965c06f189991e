"""Printing classes: blocks with equal text share one class; what differs becomes an argument of `__init__`."""

import ast
import dataclasses
import inspect
import re
from collections.abc import Collection
from typing import Any

import numpy as np

from .._graph import Leaf, Lifted, Role, Value
from .._names import Path, identifier
from .._nest import Block
from ._arguments import agreed_names, generic_names
from ._calls import Context
from ._expressions import call, dotted, dtype, function, is_literal, literal, name
from ._function import FunctionPrinter, leaves
from ._tuples import Fill, Hole, Holes, Member, equal_from, hole, stack_of, tuple_of, unique_names


@dataclasses.dataclass(eq=False)
class PrintedBlock:
    """A block with the text of its class.

    **Fields:**

    - `fields`: name, annotation and constructor of each field.
    - `method`: `__call__`, or `None` if the block is not callable.
    - `holes`: the literals in the constructors, in order, with the name of the argument they fill.
    - `optional`: fields, as in `fields`, that its own method does not use, but a block around it does: another block of the
      same class may lack them.
    """

    block: Block
    fields: list[tuple[str, ast.expr, ast.expr]]
    method: ast.FunctionDef | None
    holes: Holes
    optional: dict[str, tuple[ast.expr, ast.expr]] = dataclasses.field(default_factory=dict)
    class_name: str = ""
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)

    def text(self) -> str:
        """What blocks of one class have in common."""
        parts = [f"{field}: {ast.dump(annotation)} = {ast.dump(value)}" for field, annotation, value in self.fields]
        return "\n".join([*parts, ast.dump(self.method) if self.method else ""])


class ClassPrinter:
    """Prints the classes of a model, the innermost first."""

    def __init__(self, root: Block, context: Context) -> None:
        self.root, self.context, self.imports, self.scans = root, context, context.imports, context.scans
        self.printed: dict[Path, PrintedBlock] = {}
        self._names: set[str] = {"Model"}

    def print(self) -> list[ast.ClassDef]:
        """Class definitions in the order in which they may stand in a file; the last is `Model`, without decoration."""
        definitions: list[ast.ClassDef] = []
        for level in _by_height(self.root):
            for block in level:
                self.printed[block.path] = self._print_block(block)
            groups = _of_one_class([self.printed[block.path] for block in level])
            for group in groups:
                _add_optional_fields(group)
            definitions += [self._define(group) for group in groups]
        return definitions

    def _print_block(self, block: Block) -> PrintedBlock:
        method = self._method(block, generic_names(block))
        holes, fields, optional = Holes(), [], {}
        for field, child in block.children.items():
            if isinstance(child, Lifted | Leaf) and self._is_for_others(block, child):
                own = Holes()
                annotation, constructor = self._field(field, child, own)
                given: dict[int, ast.expr | None] = {number: literal(found.value) for number, found in enumerate(own)}
                optional[field] = annotation, Fill(given).visit(constructor)
                continue
            annotation, constructor = self._field(field, child, holes)
            fields.append((field, annotation, constructor))
        return PrintedBlock(block, fields, method, holes, optional)

    def _is_for_others(self, block: Block, child: Lifted | Leaf) -> bool:
        """Whether only blocks around a callable one use a layer of it."""
        leaves = [leaf for leaf, _ in child.weights.values()] if isinstance(child, Lifted) else [child]
        paths = {child.path, *(leaf.path for leaf in leaves)}
        return block.items is not None and block is not self.root and not self.scans.uses(block.path, paths)

    def _method(
        self, block: Block, arguments: list[str], model_outputs: Collection[Value] = ()
    ) -> ast.FunctionDef | None:
        if block.items is None:
            return None
        printer = FunctionPrinter(block, self.context, arguments=arguments, model_outputs=model_outputs)
        return printer.print()

    def _field(self, field: str, child: Block | Lifted | Leaf, holes: Holes) -> tuple[ast.expr, ast.expr]:
        if isinstance(child, Leaf):
            return self._leaf(child, holes)
        if isinstance(child, Lifted):
            return self._layer(child, holes)
        if child.is_tuple:
            return self._tuple(field, child, holes)
        printed = self.printed[child.path]
        keywords = {key: hole(Hole(key, value), holes) for key, value in printed.arguments.items()}
        return name(printed.class_name), call(name(printed.class_name), **keywords)

    def _leaf(self, leaf: Leaf, holes: Holes) -> tuple[ast.expr, ast.expr]:
        nn = self.imports.name("onnxeqx.nn")
        shape = [hole(Hole("size", size), holes) for size in leaf.shape]
        keywords = {} if leaf.dtype == np.float32 else {"dtype": literal(leaf.dtype.name)}
        annotation = dotted(f"{nn}.Buffer") if leaf.role is Role.BUFFER else dotted("jax.Array")
        return annotation, call(dotted(f"{nn}.{leaf.role.value}"), *shape, **keywords)

    def _layer(self, lifted: Lifted, holes: Holes) -> tuple[ast.expr, ast.expr]:
        layer = self._class(lifted.layer)
        positional, keywords = [], {}
        for parameter in inspect.signature(lifted.layer).parameters.values():
            value = lifted.arguments.get(parameter.name, parameter.default)
            given = parameter.name in lifted.arguments
            if not given and (value is parameter.empty or not _may_differ(value)):
                continue
            if isinstance(value, np.dtype):
                expression = dtype(value)
            else:
                expression = (
                    hole(Hole(parameter.name, value, not given), holes) if _may_differ(value) else literal(value)
                )
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

    def _tuple(self, field: str, block: Block, holes: Holes) -> tuple[ast.expr, ast.expr]:
        members: list[Member] = []
        annotation: ast.expr = literal(None)
        for index in range(1 + max(int(index) for index in block.children)):
            child, inner = block.children.get(str(index)), Holes()
            constructor: ast.expr = literal(None)
            if child is not None:
                annotation, constructor = self._field(field, child, inner)
            members.append((constructor, inner))
        if isinstance(child, Block) and any(leaves(child)):
            self.scans.constructed(block.path, equal_from(members))
        stack = self.scans.stacks.get(block.path)
        if stack is None:
            return name("tuple"), tuple_of(field, members, holes)
        if stack.start == 0:
            return annotation, stack_of(field, members, holes)
        return name("tuple"), tuple_of(field, members, holes, stacked_from=stack.start)

    def _define(self, group: list[PrintedBlock]) -> ast.ClassDef:
        class_name = "Model" if group[0].block is self.root else self._class_name(group[0].block)
        columns = list(zip(*[[one.value for one in printed.holes] for printed in group], strict=True))
        argument_of: dict[str, str] = {}
        fill: dict[int, ast.expr | None] = {}
        taken: set[str] = set()
        for i, column in enumerate(columns):
            values = repr(column)
            if len({repr(value) for value in column}) == 1:
                fill[i] = None if group[0].holes[i].is_default else literal(column[0])
                continue
            if values not in argument_of:
                argument_of[values] = unique_names([group[0].holes[i].hint], taken)[0]
                taken.add(argument_of[values])
                for printed, value in zip(group, column, strict=True):
                    printed.arguments[argument_of[values]] = value
            fill[i] = name(argument_of[values])
        blocks = [printed.block for printed in group]
        # Blocks of one class give different outputs of the model.
        model_outputs = self.root.outputs if len(blocks) == 1 else ()
        group[0].method = self._method(blocks[0], agreed_names(blocks), model_outputs)
        for printed in group:
            printed.class_name = class_name
        return self._class_definition(class_name, group[0], list(argument_of.values()), fill)

    def _class_definition(
        self, class_name: str, printed: PrintedBlock, arguments: list[str], fill: dict[int, ast.expr | None]
    ) -> ast.ClassDef:
        body: list[ast.stmt] = [
            ast.AnnAssign(ast.Name(field, ast.Store()), annotation, None, simple=1)
            for field, annotation, _ in printed.fields
        ]
        assignments: list[ast.stmt] = [
            ast.Assign([ast.Attribute(name("self"), field, ast.Store())], Fill(fill).visit(constructor), lineno=0)
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
        if block.class_name is None and block.path[-1].isdecimal():
            hint = re.sub(r"(?<=[^s])s$", "", hint)  # a member of `layers` is a layer
        words = [word for word in re.split(r"[_\W]+", hint) if word]
        text = "".join(word[0].upper() + word[1:] for word in words) if block.class_name is None else identifier(hint)
        stem = identifier(re.sub(r"\d+$", "", text) if block.class_name is None else text).strip("_") or "Block"
        stem = stem if not stem[0].isdigit() else f"Block{stem}"
        return unique_names([stem], self._names, remember=True, reserved=self.imports.names)[0]


def _of_one_class(level: list[PrintedBlock]) -> list[list[PrintedBlock]]:
    """Groups blocks of equal text, whose optional fields do not contradict each other."""
    groups: list[list[PrintedBlock]] = []
    optional: list[dict[str, str]] = []
    by_text: dict[str, list[int]] = {}
    for printed in level:
        own = {field: ast.dump(ast.Tuple([*parts], ast.Load())) for field, parts in printed.optional.items()}
        known = by_text.setdefault(printed.text(), [])
        fitting = (i for i in known if all(optional[i].get(field, text) == text for field, text in own.items()))
        number = next(fitting, len(groups))
        if number == len(groups):
            groups.append([])
            optional.append({})
            known.append(number)
        groups[number].append(printed)
        optional[number] |= own
    return groups


def _add_optional_fields(group: list[PrintedBlock]) -> None:
    """Gives the blocks of one class the fields that some of them have for others: they are `None` in the rest."""
    order = list(max((printed.block.children for printed in group), key=len))
    for field in dict.fromkeys(field for printed in group for field in printed.optional):
        annotation, constructor = next(printed.optional[field] for printed in group if field in printed.optional)
        having = [printed.optional.get(field) for printed in group]
        if all(having):
            for printed in group:
                printed.fields.append((field, annotation, constructor))
            continue
        maybe = ast.BinOp(annotation, ast.BitOr(), literal(None))
        for printed in group:
            has_it = hole(Hole(f"has_{field}", field in printed.optional), printed.holes)
            printed.fields.append((field, maybe, ast.IfExp(has_it, constructor, literal(None))))
    for printed in group:
        printed.fields.sort(key=lambda field: order.index(field[0]) if field[0] in order else len(order))


# Parameters with a default that are nonetheless written without their name.
_POSITIONAL = ("num_embeddings", "embedding_size")


def _may_differ(value: Any) -> bool:
    return is_literal(value) and not isinstance(value, bool | str | None)


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
