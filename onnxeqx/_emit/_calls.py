"""Printing calls and their operands: expressions of operators, layers, constants and sizes."""

import ast
import dataclasses
import functools
import itertools
from typing import Any

import ml_dtypes
import numpy as np

from .._dtypes import follows_weights
from .._graph import Call, Kind, Leaf, Lifted, Role, Value
from .._lower import is_floating
from .._names import Path
from .._nest import Block, BlockCall
from .._printing import MODULES, Idiom, filled
from .._symbolic import Dim, Symbol
from ._expressions import (
    Imports,
    call as call_of,
    dotted,
    dtype as dtype_of,
    literal,
    name as name_of,
    plain_numbers,
    symbolic,
)
from ._idioms import Idioms, is_default
from ._scans import Scans
from ._statements import Item

# Literals above this are infinite in bfloat16.
_FINITE_BF16 = float(ml_dtypes.finfo(ml_dtypes.bfloat16).max)
# These names of dtypes mean 32 bits where JAX has no 64, without a warning.
_PYTHON_DTYPES = {"bool": "bool", "int64": "int", "float64": "float"}


@dataclasses.dataclass(frozen=True, eq=False)
class Context:
    """What the functions of one model are printed with.

    **Fields:**

    - `imports`: collects the modules that the printed text needs.
    - `main_dtype`: the floating dtype in which most parameters are stored. Where the model is cast to another one, values of
      this dtype follow.
    - `idioms`: which calls print as an expression of their own.
    - `scans`: which tuples of blocks are printed as stacked ones.
    - `weightless`: the blocks printed so far that take the dtype as an argument.
    """

    imports: Imports
    main_dtype: np.dtype
    idioms: Idioms
    scans: Scans
    weightless: set[Path] = dataclasses.field(default_factory=set)


class CallPrinter:
    """Prints the expressions of one function. [`onnxeqx._emit._function.FunctionPrinter`][] says which values have names.

    **Fields:** `names` of the values so far; `nested`, the values that are written where they are read, and the calls that
    give them; `uses_dtype`: whether the function needs a local `dtype`, that of the model's weights; `weightless`: the blocks
    that have no weights to tell it, and are given it.
    """

    names: dict[Value, str]
    nested: dict[Value, Call]
    uses_dtype: bool
    _draws: "itertools.count[int]"

    def __init__(self, block: Block, context: Context) -> None:
        self.block, self.context = block, context
        self.imports, self.main_dtype, self.idioms = context.imports, context.main_dtype, context.idioms
        self.weightless, self.scans = context.weightless, context.scans
        self.uses_dtype = False
        self._body_names: dict[str, str] = {}
        self._nearby: list[Value] = []

    def _size(self, dim: Dim) -> ast.expr:
        """The size of a dimension, read from a value at hand."""
        raise NotImplementedError

    def _expression(self, item: Item) -> ast.expr:
        if isinstance(item, BlockCall):
            inputs = [self._value(value) for value in item.inputs]
            dtype = {"dtype": self._dtype()} if item.block.path in self.weightless else {}
            return call_of(self._path(item.block.path), *inputs, **self._key(item.block.draws), **dtype)
        if item.lifted is not None:
            return self._layer_call(item, item.lifted)
        idiom = self.idioms.of(item)
        operand = functools.cache(lambda position: self._operand(item, position))
        expression = None if idiom is None else self._idiom(item, idiom, operand)
        if expression is not None:
            return expression
        attributes = {
            key: self._attribute(item, key, value)
            for key, value in item.attributes.items()
            if not is_default(value, item.op.attributes[key])
        }
        return call_of(
            self._function(item.op.function),
            *(operand(position) for position in range(len(item.inputs))),
            **attributes,
            **{key: name_of(self._body_names[key]) for key in item.bodies},
            **self._key(item.op.draws),
        )

    def _idiom(self, item: Call, idiom: Idiom, operand: Any) -> ast.expr | None:
        """The idiom of a call; `None` where it would compute an operand twice."""
        arguments: dict[str, ast.expr] = {}
        for position, parameter in enumerate(item.op.inputs):
            if parameter not in idiom.names:
                continue
            if item.op.variadic and position == len(item.op.inputs) - 1:
                arguments[parameter] = ast.Tuple([operand(i) for i in range(position, len(item.inputs))], ast.Load())
                continue
            arguments[parameter] = operand(position) if position < len(item.inputs) else literal(None)
            once = isinstance(arguments[parameter], ast.Name | ast.Constant) or parameter in item.op.host
            if not once and idiom.names.count(parameter) > 1:
                return None
        for key in idiom.names:
            if key in idiom.values:
                arguments[key] = self._bound(idiom.values[key])
            elif key in item.op.attributes:
                arguments[key] = self._attribute(item, key, item.attributes.get(key, item.op.attributes[key]))
            elif key in MODULES and key not in arguments:
                arguments[key] = name_of(self.imports.name(MODULES[key], key))
        return filled(idiom, arguments)

    def _bound(self, value: Any) -> ast.expr:
        """A value that a printing rule gave."""
        if not isinstance(value, np.dtype):
            return literal(value)
        if value == self.main_dtype:
            return self._dtype()
        return name_of(_PYTHON_DTYPES[value.name]) if value.name in _PYTHON_DTYPES else dtype_of(value)

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
        """What stands at a path, for use."""
        self.scans.named(self.block.path, path)
        return self._spelled(path)

    def _spelled(self, path: Path) -> ast.expr:
        expression: ast.expr = name_of("self")
        for part in path[len(self.block.path) :]:
            if part.isdecimal():
                expression = ast.Subscript(expression, literal(int(part)), ast.Load())
            else:
                expression = ast.Attribute(expression, part, ast.Load())
        return expression

    # Operands.

    def _value(self, value: Value) -> ast.expr:
        """A value where an array is expected."""
        if value in self.nested:
            return self._expression(self.nested[value])
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

    def _operand(self, item: Call, position: int) -> ast.expr:
        value = item.inputs[position]
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
        is_host, dtype = value.kind is Kind.HOST and value.array is None, value.dtype
        meets_device = any(other is not None and other.kind is Kind.DEVICE for other in item.inputs)
        if is_host and is_floating(dtype) and meets_device and not self._has_own_dtype(value):
            return call_of(dotted("jnp.asarray"), expression, self._floating(dtype))
        return expression

    def _has_own_dtype(self, value: Value) -> bool:
        """Whether a value is an array in the dtype of the model as it is now."""
        return self.idioms.is_array(value) and value.dtype == self.main_dtype and follows_weights(value)

    def _scalar_operand(self, item: Call, value: Value) -> ast.expr | None:
        """A constant of one element as a Python scalar, where that means the same."""
        array = value.known_array
        idiom = self.idioms.of(item)
        others = [
            other
            for other in item.inputs
            if other is not None
            and other is not value
            and (other.array is None or other.leaf or (idiom is not None and _is_beyond_bf16(other.array)))
        ]
        broadcasts = idiom is not None and idiom.is_operators
        if array.ndim > 0 and not (broadcasts and any(len(other.shape or ()) >= array.ndim for other in others)):
            return None
        typed = any(other.dtype == value.dtype for other in others) or (idiom is not None and _is_beyond_bf16(array))
        if typed or array.dtype in (np.int64, np.bool_, object):
            return self._scalar(value)
        if is_floating(array.dtype):
            return call_of(dotted("jnp.array"), self._scalar(value), self._floating(array.dtype))
        return call_of(dotted(f"np.{array.dtype.name}"), self._scalar(value))

    def _scalar(self, value: Value) -> ast.expr:
        """A weakly typed Python scalar: it takes the dtype of the array it meets."""
        array = value.known_array
        item = array.reshape(-1)[0]
        if isinstance(item, Symbol):
            return symbolic(item, self._size)
        if _is_beyond_bf16(array):
            # The largest float32 is infinite in bfloat16, and 0 * inf is NaN: masks follow the dtype of the model.
            return ast.Attribute(call_of(dotted("jnp.finfo"), self._dtype()), "max" if item > 0 else "min", ast.Load())
        return literal(plain_numbers(array.reshape(-1))[0])

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


def _is_beyond_bf16(array: np.ndarray) -> bool:
    """Whether this is one finite number that bfloat16 does not hold."""
    if array.size != 1 or not is_floating(array.dtype):
        return False
    return bool(_FINITE_BF16 < abs(float(array.reshape(-1)[0])) < np.inf)


def _dtype_of_attribute(value: Any) -> np.dtype:
    import onnx

    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(value)) if isinstance(value, int) else np.dtype(value)
