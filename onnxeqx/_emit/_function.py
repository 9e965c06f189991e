"""Printing `__call__`: the calls of a block as statements a person would write."""

import ast
import builtins
import itertools
from typing import Any

import numpy as np

from .._fold import symbol_dims
from .._graph import Call, Graph, Kind, Leaf, Lifted, Role, Value
from .._lower import is_floating
from .._names import Path, identifier
from .._nest import Block, BlockCall
from .._reads import axis_of
from .._symbolic import Dim, Symbol
from ._arguments import GENERIC, generic_names
from ._expressions import (
    Imports,
    call as call_of,
    dotted,
    dtype as dtype_of,
    function,
    infix,
    is_operator,
    literal,
    name as name_of,
    plain_numbers,
    symbolic,
)
from ._loops import fold_loops
from ._statements import Item, Statement, open_dims, operands, plan

# Literals above this are infinite in bfloat16.
_FINITE_BF16 = 3.3895e38


class FunctionPrinter:
    """Prints the body of one block's `__call__`.

    **Arguments:**

    - `block`: a callable block.
    - `imports`: collects the modules that the printed text needs.
    - `main_dtype`: the floating dtype in which most parameters are stored. Where the model is cast to another one, values of
      this dtype follow.
    - `around`: for the body of a control-flow call, the printer of the function around it, whose names it sees.
    - `arguments`: what the inputs of the block are called; generic names by default.
    """

    def __init__(
        self,
        block: Block,
        imports: Imports,
        main_dtype: np.dtype,
        around: "FunctionPrinter | None" = None,
        arguments: list[str] | None = None,
    ) -> None:
        self.block, self.imports, self.main_dtype, self.around = block, imports, main_dtype, around
        self._arguments = arguments or generic_names(block)
        self.names: dict[Value, str] = dict(around.names) if around is not None else {}
        self.uses_dtype = False
        self._draws = itertools.count() if around is None else around._draws
        self._plan = plan(block)
        self._current: Statement | None = None
        self._nearby: list[Value] = []
        for item in block.items or ():
            if isinstance(item, Call):  # no variable may take the name of a module that is called
                imports.name(item.op.function.__module__)

    def print(self) -> ast.FunctionDef:
        """The method, without decorators."""
        arguments, body = self._lines()
        if self.uses_dtype:
            compute_dtype = name_of("compute_dtype")
            body.insert(0, _assign("dtype", call_of(compute_dtype, name_of("self"))))
        return function("__call__", ["self", *arguments], body, ("key",) if self.block.draws else ())

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
        return arguments, _fold_last_assignment(fold_loops(body, self._tuple_sizes()))

    def _print_body(self, name: str, body: Graph) -> ast.FunctionDef:
        """A subgraph as a function inside this one: it sees `self` and the names given so far."""
        inside = Block(self.block.path, dict(self.block.children), list(body.calls), body.inputs, body.outputs)
        printer = FunctionPrinter(inside, self.imports, self.main_dtype, self)
        arguments, lines = printer._lines()
        self.uses_dtype |= printer.uses_dtype
        return function(name, arguments, lines)

    def _tuple_sizes(self) -> dict[str, int]:
        """The length of each tuple of the block, by the text that names it."""
        sizes: dict[str, int] = {}
        stack = [self.block]
        while stack:
            block = stack.pop()
            if block.is_tuple:
                sizes[ast.unparse(self._path(block.path))] = 1 + max(int(name) for name in block.children)
            stack.extend(child for child in block.children.values() if isinstance(child, Block))
        return sizes

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
        hint = self._hint(statement.item)
        if hint is None:
            return next((text for text in GENERIC if text not in taken), None) or self._fresh("x", taken)
        return self._fresh(hint, taken)

    def _hint(self, item: Item) -> str | None:
        if isinstance(item, BlockCall):
            path = item.block.path
        elif item.lifted is not None:
            path = item.lifted.path
        elif is_floating(item.outputs[0].dtype):
            return None
        else:
            return item.op.function.__name__.rstrip("_0123456789")
        return (
            next((part for part in reversed(path) if not part.isdecimal()), None) if not path[-1].isdecimal() else None
        )

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

    def _expression(self, item: Item) -> ast.expr:
        if isinstance(item, BlockCall):
            inputs = [self._value(value) for value in item.inputs]
            return call_of(self._path(item.block.path), *inputs, **self._key(item.block.draws))
        if item.lifted is not None:
            return self._layer_call(item, item.lifted)
        operands = [self._operand(item, position, value) for position, value in enumerate(item.inputs)]
        prints = _printing(item)
        attributes = {
            key: value for key, value in item.attributes.items() if not _is_default(value, item.op.attributes.get(key))
        }
        if prints is not None and not attributes and is_operator(prints, len(operands)):
            return infix(prints, operands)
        # What the host computes must stay on the host: jnp.sqrt would trace it.
        on_device = item.outputs[0].kind is Kind.DEVICE
        if prints is not None and on_device and not is_operator(prints, len(operands)) and "." in prints:
            return call_of(
                dotted(prints),
                *operands,
                **{key: self._attribute(item, key, value) for key, value in attributes.items()},
            )
        return call_of(
            self._function(item.op.function),
            *operands,
            **{key: self._attribute(item, key, value) for key, value in attributes.items()},
            **{key: name_of(self._body_names[key]) for key in item.bodies},
            **self._key(item.op.draws),
        )

    def _key(self, draws: bool) -> dict[str, ast.expr]:
        """The argument of a call that draws random numbers: a key of its own."""
        if not draws:
            return {}
        return {"key": call_of(name_of("subkey"), name_of("key"), literal(next(self._draws)))}

    def _layer_call(self, item: Call, lifted: Lifted) -> ast.expr:
        layer = self._path(lifted.path)
        inputs = [self._value(value) for value in item.inputs if value is not None]
        if lifted.core_ndim is None:
            return call_of(layer, *inputs)
        over_batch = name_of("over_batch")
        return call_of(over_batch, layer, *inputs, core_ndim=literal(lifted.core_ndim))

    def _function(self, function: Any) -> ast.expr:
        return dotted(f"{self.imports.name(function.__module__)}.{function.__qualname__}")

    def _path(self, path: Path) -> ast.expr:
        expression: ast.expr = name_of("self")
        for part in path[len(self.block.path) :]:
            if part.isdecimal():
                expression = ast.Subscript(expression, literal(int(part)), ast.Load())
            else:
                expression = ast.Attribute(expression, part, ast.Load())
        return expression

    def _value(self, value: Value) -> ast.expr:
        """A value where an array is expected."""
        if value in self._plan.nested:
            return self._expression(self._plan.nested[value])
        if value in self.names:
            return name_of(self.names[value])
        if value.leaf is not None:
            return self._leaf(value.leaf)
        if value.array is not None and value.kind is Kind.HOST:
            return call_of(dotted("np.array"), self._symbols(value.array))
        if value.array is not None:
            return self._array(value.array)
        raise AssertionError(f"{value!r} has no name in block {self.block.path}")

    def _leaf(self, leaf: Leaf) -> ast.expr:
        path = self._path(leaf.path)
        if leaf.role is not Role.BUFFER:
            return path
        if leaf.dtype != self.main_dtype:
            return ast.Attribute(path, "value", ast.Load())
        return call_of(ast.Attribute(path, "astype", ast.Load()), self._dtype())

    def _dtype(self) -> ast.expr:
        self.uses_dtype = True
        return name_of("dtype")

    def _floating(self, kind: np.dtype) -> ast.expr:
        """A floating dtype: the model's own, or one that the file asks for."""
        return self._dtype() if kind == self.main_dtype else dtype_of(kind)

    def _operand(self, item: Call, position: int, value: Value | None) -> ast.expr:
        if value is None:
            return literal(None)
        self._nearby = [other for other in item.inputs if other is not None]
        if item.op.input_name(position) in item.op.host:
            return self._host_operand(item, position, value)
        if value.leaf is None and value not in self.names and value.array is not None and value.array.size == 1:
            scalar = self._scalar_operand(item, value)
            if scalar is not None:
                return scalar
        expression = self._value(value)
        if (
            value.kind is Kind.HOST
            and value.array is None
            and is_floating(value.dtype)
            and any(other is not None and other.kind is Kind.DEVICE for other in item.inputs)
        ):
            return call_of(dotted("jnp.asarray"), expression, self._floating(value.dtype))
        return expression

    def _scalar_operand(self, item: Call, value: Value) -> ast.expr | None:
        """A constant of one element as a Python scalar, where that means the same."""
        array = value.known_array
        others = [
            other
            for other in item.inputs
            if other is not None and other is not value and (other.array is None or other.leaf)
        ]
        if array.ndim > 0 and not (
            self._is_infix(item) and any(len(other.shape or ()) >= array.ndim for other in others)
        ):
            return None
        if any(other.dtype == value.dtype for other in others) or array.dtype in (np.int64, np.bool_, object):
            return self._scalar(value)
        if is_floating(array.dtype):
            return call_of(dotted("jnp.array"), self._scalar(value), self._floating(array.dtype))
        return call_of(dotted(f"np.{array.dtype.name}"), self._scalar(value))

    def _is_infix(self, item: Call) -> bool:
        prints = _printing(item)
        return prints is not None and is_operator(prints, len(item.inputs))

    def _scalar(self, value: Value) -> ast.expr:
        """A weakly typed Python scalar: it takes the dtype of the array it meets."""
        array = value.known_array
        item = array.reshape(-1)[0]
        if isinstance(item, Symbol):
            return symbolic(item, self._size)
        number = item.item() if array.dtype.kind != "V" else float(item)
        if isinstance(number, float) and _FINITE_BF16 < abs(number) < np.inf and is_floating(value.dtype):
            # The largest float32 is infinite in bfloat16, and 0 * inf is NaN: masks follow the dtype of the model.
            return ast.Attribute(
                call_of(dotted("jnp.finfo"), self._dtype()), "max" if number > 0 else "min", ast.Load()
            )
        return literal(number)

    def _host_operand(self, item: Call, position: int, value: Value) -> ast.expr:
        if value.array is not None and value.kind is Kind.HOST:
            return self._symbols(value.array)
        if value.array is not None:
            if (
                value.array.ndim > 1
                or value.array.dtype.kind not in "iufb"
                or (value.array.ndim == 0 and value.array.dtype not in (np.int64, np.bool_))
            ):
                return self._array(value.array, "np.array")
            return literal(plain_numbers(value.array))
        expression = self._value(value)
        if value.kind is Kind.HOST:
            return expression
        host_value = name_of("host_value")
        origin = f" computed by {value.producer.describe()}" if value.producer is not None else ""
        return call_of(
            host_value,
            expression,
            literal(f"input {item.op.input_name(position)!r} of {item.describe()},{origin or ' ' + value.name}"),
        )

    def _symbols(self, array: np.ndarray) -> ast.expr:
        if array.ndim == 0:
            return symbolic(array.item(), self._size)
        return ast.Tuple([self._symbols(np.asarray(item, dtype=object)) for item in array], ast.Load())

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

    def _array(self, array: np.ndarray, floating: str = "jnp.array") -> ast.expr:
        numbers = literal(plain_numbers(array))
        if is_floating(array.dtype):
            return call_of(dotted(floating), numbers, self._floating(array.dtype))
        if array.dtype.kind in "USO":
            return call_of(dotted("np.array"), numbers, dtype=name_of("object"))
        if array.dtype in (np.int64, np.bool_):
            return call_of(
                dotted("np.array"), numbers, **({} if array.size else {"dtype": dotted(f"np.{array.dtype.name}")})
            )
        return call_of(dotted("np.array"), numbers, dotted(f"np.{array.dtype.name}"))

    def _attribute(self, item: Call, key: str, value: Any) -> ast.expr:
        if key in item.op.dtypes:
            known = _dtype_of_attribute(value)
            if known == self.main_dtype:
                return self._dtype()
            return dtype_of(known)
        if isinstance(value, np.ndarray):
            return self._array(value, "np.array")
        return literal(value)

    def _outputs(self) -> ast.expr:
        expressions = []
        for value in self.block.outputs:
            expression = self._value(value)
            text = value.array is not None and value.array.dtype.kind in "USO" and value.kind is Kind.CONST
            if not self.block.path and self.around is None and value.kind is not Kind.DEVICE and not text:
                expression = call_of(dotted("jnp.asarray"), expression)
            expressions.append(expression)
        return expressions[0] if len(expressions) == 1 else ast.Tuple(expressions, ast.Load())


def _printing(item: Call) -> str | None:
    """What a call of the operator prints as instead: an operator sign or a dotted name."""
    if not callable(item.op.prints):
        return item.op.prints
    dtype = next((value.dtype for value in item.inputs if value is not None), None)
    return item.op.prints(dtype) if dtype is not None else None


def _is_default(value: Any, default: Any) -> bool:
    return not isinstance(value, np.ndarray) and type(value) is type(default) and value == default


def _dtype_of_attribute(value: Any) -> np.dtype:
    import onnx

    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(value)) if isinstance(value, int) else np.dtype(value)


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
