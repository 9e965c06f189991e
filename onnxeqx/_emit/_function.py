"""Printing `__call__`: the calls of a block as statements a person would write."""

import ast
import builtins
import itertools
from collections.abc import Collection, Iterator

from .._fold import symbol_dims
from .._graph import Call, Graph, Kind, Leaf, Role, Value
from .._lower import is_floating
from .._names import Path, identifier
from .._nest import Block, BlockCall
from .._reads import axis_of
from .._symbolic import Dim
from ._arguments import GENERIC, generic_names, result_name
from ._calls import CallPrinter, Context
from ._expressions import call as call_of, dotted, dtype as dtype_of, function, literal, name as name_of
from ._loops import fold_loops
from ._statements import Item, Statement, open_dims, operands, plan


class FunctionPrinter(CallPrinter):
    """Prints the body of one block's `__call__`.

    **Arguments:**

    - `block`: a callable block.
    - `context`: what the functions of the model are printed with.
    - `around`: for the body of a control-flow call, the printer of the function around it, whose names it sees.
    - `arguments`: what the inputs of the block are called; generic names by default.
    - `model_outputs`: the values that may be called as the model calls its outputs.
    """

    def __init__(
        self,
        block: Block,
        context: Context,
        around: "FunctionPrinter | None" = None,
        arguments: list[str] | None = None,
        model_outputs: Collection[Value] = (),
    ) -> None:
        super().__init__(block, context)
        self.around = around
        self._arguments = arguments or generic_names(block)
        self._model_outputs = model_outputs
        self.names = dict(around.names) if around is not None else {}
        self._draws = itertools.count() if around is None else around._draws
        self._plan = plan(block)
        self.nested = self._plan.nested
        self._handed_to_sequences = {
            value
            for item in block.items or ()
            if isinstance(item, BlockCall) and item.block.path[-1].isdecimal()
            for value in item.inputs
        }
        self._current: Statement | None = None
        for item in block.items or ():
            if isinstance(item, Call):  # no variable may take the name of a module that is called
                self.imports.name(item.op.function.__module__)

    def print(self) -> ast.FunctionDef:
        """The method, without decorators."""
        arguments, body = self._lines()
        options: dict[str, ast.expr] = {"key": literal(None)} if self.block.draws else {}
        if self.uses_dtype and self.block.path and not _has_weights(self.block):
            self.weightless.add(self.block.path)
            options["dtype"] = dtype_of(self.main_dtype)
        elif self.uses_dtype:
            body.insert(0, _assign("dtype", call_of(name_of("compute_dtype"), name_of("self"))))
        return function("__call__", ["self", *arguments], body, options)

    def _lines(self) -> tuple[list[str], list[ast.stmt]]:
        """Arguments and statements."""
        statements = self._plan.statements
        self._last_use = self._liveness(statements)
        arguments = self._name_inputs()
        body: list[ast.stmt] = []
        for position, statement in enumerate(statements):
            body += self._print_statement(statement, position)
        self._current = None
        body.append(ast.Return(self._outputs()))
        tuples = self._tuples()
        if self.around is None:
            body = self.scans.folded(self.block.path, body, tuples)
        return arguments, _fold_last_assignment(fold_loops(body, {text: size for text, (_, size) in tuples.items()}))

    def _print_body(self, name: str, body: Graph) -> ast.FunctionDef:
        """A subgraph as a function inside this one: it sees `self` and the names given so far."""
        inside = Block(self.block.path, dict(self.block.children), list(body.calls), body.inputs, body.outputs)
        printer = FunctionPrinter(inside, self.context, self)
        arguments, lines = printer._lines()
        self.uses_dtype |= printer.uses_dtype
        return function(name, arguments, lines)

    def _tuples(self) -> dict[str, tuple[Path, int]]:
        """The path and the length of each tuple of the block, by the text that names it."""
        found: dict[str, tuple[Path, int]] = {}
        stack = [self.block]
        while stack:
            block = stack.pop()
            if block.is_tuple:
                size = 1 + max(int(name) for name in block.children)
                found[ast.unparse(self._spelled(block.path))] = block.path, size
            stack.extend(child for child in block.children.values() if isinstance(child, Block))
        return found

    # Which names they use.

    def _liveness(self, statements: list[Statement]) -> dict[Value, int]:
        last: dict[Value, int] = {}
        for position, statement in enumerate(statements):
            for value in self._variables(statement):
                last[value] = position
            for dim in self._dims_of_others(statement):
                last[self._holder(dim, statements[: position + 1])] = position
        for value in self.block.outputs:
            last[value] = len(statements)
            for dim in symbol_dims(value):
                last[self._holder(dim, statements)] = len(statements)
        return last

    def _variables(self, statement: Statement) -> list[Value]:
        """The named values that a statement reads, in order."""
        return [
            value
            for item in reversed(statement.items)
            for value in operands(item)
            if value not in self._plan.nested and self._is_variable(value)
        ]

    def _is_variable(self, value: Value) -> bool:
        own = value in self._plan.producer or value in self.block.inputs
        return own or (self.around is not None and self.around._is_variable(value))

    def _dims_of_others(self, statement: Statement) -> list[Dim]:
        """The dimensions that none of the statement's own operands can tell."""
        variables = self._variables(statement)
        return [
            dim
            for item in statement.items
            for dim in open_dims(item)
            if all(axis_of(value, dim) is None for value in variables)
        ]

    def _holder(self, dim: Dim, statements: list[Statement]) -> Value:
        """The named value whose shape is read for a dimension: an argument if possible, else the earliest result."""
        produced = [output for statement in statements for output in statement.item.outputs]
        outside = self.names if self.around is not None else ()
        for value in (*self.block.inputs, *produced, *outside):
            if axis_of(value, dim) is not None:
                return value
        raise AssertionError(f"no value at hand has the dimension {dim!r}")

    def _name_inputs(self) -> list[str]:
        for value, hint in zip(self.block.inputs, self._arguments, strict=True):
            self.names[value] = self._fresh(hint, set(self.names.values()) | self._outer_names())
        return [self.names[value] for value in self.block.inputs]

    def _outer_names(self) -> set[str]:
        """Names of the functions around: assigning one of them would hide it in all of this function."""
        return set() if self.around is None else {*self.around.names.values(), *self.around._outer_names()}

    def _fresh(self, hint: str, taken: set[str]) -> str:
        stem = identifier(hint).strip("_") or "x"
        stem = f"_{stem}" if stem[0].isdigit() else stem
        reserved = {"self", "dtype", "jax", "jnp", "np", "eqx", "math", "nn", *self.imports.names}
        if self.around is not None or self.block.draws:
            reserved.add("key")
        if stem in reserved or hasattr(builtins, stem) or identifier(stem) != stem:
            stem += "_"
        candidate, counter = stem, 1
        while candidate in taken:
            counter += 1
            candidate = f"{stem}_{counter}"
        return candidate

    def _name_result(self, value: Value, statement: Statement, position: int, siblings: set[str]) -> str:
        """A dying operand that only this line reads hands its name on; otherwise the result is named after what made it."""
        dying = [
            self.names[operand]
            for operand in self._variables(statement)
            if self._last_use[operand] == position
            and operand.leaf is None
            and operand.kind is Kind.DEVICE
            and operand.dtype == value.dtype
            and self.names[operand] not in siblings | self._outer_names()
        ]
        handed_on = [name for name in GENERIC if name in dying] if value.kind is Kind.DEVICE else []
        if handed_on:
            return handed_on[0]
        taken = (
            siblings
            | self._outer_names()
            | {self.names[other] for other, last in self._last_use.items() if other in self.names and last >= position}
        )
        hint = self._hint(statement.item, value)
        if hint in dying:
            return hint
        if hint is None:
            return next((text for text in GENERIC if text not in taken), None) or self._fresh("x", taken)
        return self._fresh(hint, taken)

    def _hint(self, item: Item, value: Value) -> str | None:
        """What a result is called; `None` for one that says nothing, such as what a sequence of blocks hands on."""
        if known := self._known_name(item, value):
            return known
        if value in self._handed_to_sequences:
            return None
        if isinstance(item, BlockCall):
            path = item.block.path
        elif item.lifted is not None:
            path = item.lifted.path
        elif is_floating(value.dtype):
            return None
        else:
            return item.op.function.__name__.rstrip("_0123456789")
        return None if path[-1].isdecimal() else next(part for part in reversed(path) if not part.isdecimal())

    def _known_name(self, item: Item, value: Value) -> str | None:
        """After the operator that made it, unless it is what a layer or block is there for."""
        if isinstance(item, Call):
            return result_name(value) if item.lifted is None else None
        if len(item.outputs) == 1:
            return None
        return result_name(value) or (value.name if value in self._model_outputs else None)

    # How they read.

    def _print_statement(self, statement: Statement, position: int) -> list[ast.stmt]:
        self._current = statement
        bodies = statement.item.bodies if isinstance(statement.item, Call) else {}
        self._body_names = {}
        for key in bodies:
            self._body_names[key] = self._fresh(
                key, {*self.names.values(), *self._body_names.values()} | self._outer_names()
            )
        functions = [self._print_body(self._body_names[key], body) for key, body in bodies.items()]
        expression = self._expression(statement.item)
        targets = []
        names: dict[Value, str] = {}
        for output in statement.item.outputs:
            if output in self._last_use:
                names[output] = self._name_result(output, statement, position, set(names.values()))
                targets.append(names[output])
            else:
                targets.append("_")
        self.names |= names
        return [*functions, _assign(targets[0] if len(targets) == 1 else tuple(targets), expression)]

    def _size(self, dim: Dim) -> ast.expr:
        variables = [] if self._current is None else self._variables(self._current)
        live = [value for value in self._last_use if value in self.names and value in self.block.inputs]
        for value in (*self._nearby, *live, *variables, *self.names):
            if value in self.names and axis_of(value, dim) is not None and self._is_current(value):
                shape = ast.Attribute(name_of(self.names[value]), "shape", ast.Load())
                return ast.Subscript(shape, literal(axis_of(value, dim)), ast.Load())
        raise AssertionError(f"no named value has the dimension {dim!r}")

    def _is_current(self, value: Value) -> bool:
        """Whether the name of a value still stands for it."""
        holders = [other for other, text in self.names.items() if text == self.names[value]]
        return holders[-1] is value

    def _outputs(self) -> ast.expr:
        expressions = []
        for value in self.block.outputs:
            expression = self._value(value)
            text = value.array is not None and value.array.dtype.kind in "USO" and value.kind is Kind.CONST
            if not self.block.path and self.around is None and value.kind is not Kind.DEVICE and not text:
                expression = call_of(dotted("jnp.asarray"), expression)
            expressions.append(expression)
        return expressions[0] if len(expressions) == 1 else ast.Tuple(expressions, ast.Load())


def _has_weights(block: Block) -> bool:
    """Whether a cast of the model shows in the block itself, which `compute_dtype` asks."""
    return any(leaf.role is Role.PARAMETER and is_floating(leaf.dtype) for leaf in leaves(block))


def leaves(block: Block) -> Iterator[Leaf]:
    """The leaves below a block."""
    for child in block.children.values():
        if isinstance(child, Block):
            yield from leaves(child)
        else:
            yield from [child] if isinstance(child, Leaf) else [leaf for leaf, _ in child.weights.values()]


def _assign(target: str | tuple[str, ...], expression: ast.expr) -> ast.Assign:
    names = (
        ast.Name(target, ast.Store())
        if isinstance(target, str)
        else ast.Tuple([ast.Name(item, ast.Store()) for item in target], ast.Store())
    )
    return ast.Assign([names], expression, lineno=0)


def _fold_last_assignment(body: list[ast.stmt]) -> list[ast.stmt]:
    """`y = f(x); return y` is `return f(x)`."""
    if len(body) >= 2 and isinstance(body[-1], ast.Return) and isinstance(body[-2], ast.Assign):
        target, result = body[-2].targets[0], body[-1].value
        if isinstance(target, ast.Name) and isinstance(result, ast.Name) and target.id == result.id:
            return [*body[:-2], ast.Return(body[-2].value)]
    return body
