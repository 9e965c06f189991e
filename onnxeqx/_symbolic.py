"""Symbolic dimensions: integers that are known only once the model is called, and the arithmetic on them.

Shape arithmetic (`Shape`, `Gather`, `Concat`, `Mul`, …) is evaluated at load on NumPy arrays of `dtype=object` that hold
integers and symbols, by the very functions that implement the operators. What comes out prints as Python:
`(x.shape[0], -1, 768)`.
"""

import dataclasses
import operator
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._graph import Value


# Shared parts count each time they are read: a chain of doublings would otherwise take exponential time to print.
_MAX_SIZE = 200


class UndecidedError(TypeError):
    """A comparison whose outcome depends on the sizes of a later call; the value is then computed while tracing."""


class Symbol:
    """An integer expression over dimensions of values. Immutable; compares like an integer where that is decidable."""

    __slots__ = ()

    def __add__(self, other):
        return _arithmetic("+", self, other)

    def __radd__(self, other):
        return _arithmetic("+", other, self)

    def __sub__(self, other):
        return _arithmetic("-", self, other)

    def __rsub__(self, other):
        return _arithmetic("-", other, self)

    def __mul__(self, other):
        return _arithmetic("*", self, other)

    def __rmul__(self, other):
        return _arithmetic("*", other, self)

    def __floordiv__(self, other):
        return _arithmetic("//", self, other)

    def __rfloordiv__(self, other):
        return _arithmetic("//", other, self)

    def __mod__(self, other):
        return _arithmetic("%", self, other)

    def __neg__(self):
        return _arithmetic("-", 0, self)

    def __abs__(self):
        if is_non_negative(self):
            return self
        raise UndecidedError(f"the sign of {self!r} is not known at load")

    def __eq__(self, other):
        if isinstance(other, Symbol):
            if self is other or key(self) == key(other):
                return True
        elif other < 0 and is_non_negative(self):
            return False
        raise UndecidedError(f"whether {self!r} equals {other!r} is not known at load")

    def __ne__(self, other):
        return not self == other

    def __lt__(self, other):
        if not isinstance(other, Symbol) and other <= 0 and is_non_negative(self):
            return False
        raise UndecidedError(f"whether {self!r} is less than {other!r} is not known at load")

    def __ge__(self, other):
        return not self < other

    def __gt__(self, other):
        if not isinstance(other, Symbol) and other < 0 and is_non_negative(self):
            return True
        raise UndecidedError(f"whether {self!r} is greater than {other!r} is not known at load")

    def __le__(self, other):
        return not self > other

    def __bool__(self):
        raise UndecidedError(f"whether {self!r} is zero is not known at load")

    def __int__(self):
        raise UndecidedError(f"{self!r} is not known at load")

    __index__ = __int__
    __float__ = __int__

    def __hash__(self):
        return hash(key(self))


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Dim(Symbol):
    """The size of one axis of a value."""

    of: "Value"
    axis: int

    @property
    def value(self) -> "Value":
        value = self.of
        while value.replaced_by is not None:
            value = value.replaced_by
        return value

    def __repr__(self) -> str:
        return f"{self.value.name}.shape[{self.axis}]"


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Arithmetic(Symbol):
    """`left operator right`, with operators as in Python: `+ - * // %`."""

    operator: str
    left: Any
    right: Any
    size: int = 1

    def __repr__(self) -> str:
        return f"({self.left!r} {self.operator} {self.right!r})"


_FUNCTIONS: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "//": operator.floordiv,
    "%": operator.mod,
}


def key(symbol: Any) -> Any:
    """A hashable description; equal keys mean equal integers."""
    if isinstance(symbol, Dim):
        return (symbol.value.name, symbol.axis)
    if isinstance(symbol, Arithmetic):
        return (symbol.operator, key(symbol.left), key(symbol.right))
    return int(symbol)


def is_non_negative(symbol: Any) -> bool:
    if isinstance(symbol, Dim):
        return True
    if isinstance(symbol, Arithmetic):
        return symbol.operator != "-" and is_non_negative(symbol.left) and is_non_negative(symbol.right)
    return symbol >= 0


def _arithmetic(name: str, left: Any, right: Any) -> Any:
    left, right = (side if isinstance(side, Symbol) else operator.index(side) for side in (left, right))
    if not isinstance(left, Symbol) and not isinstance(right, Symbol):
        return _FUNCTIONS[name](left, right)
    # A symbol must not meet `==` here: whether it equals 1 is undecided.
    plain_left, plain_right = (None if isinstance(side, Symbol) else side for side in (left, right))
    if (plain_left == 0 and name == "+") or (plain_left == 1 and name == "*"):
        return right
    if (plain_right == 0 and name in "+-") or (plain_right == 1 and name in ("*", "//")):
        return left
    if name == "*" and 0 in (plain_left, plain_right):
        return 0
    if name == "//" and not (is_non_negative(left) and is_non_negative(right)):
        # ONNX divides integers towards zero, Python towards minus infinity; they agree on sizes.
        raise UndecidedError(f"the sign of {left!r} // {right!r} is not known at load")
    size = _size(left) + _size(right) + 1
    if size > _MAX_SIZE:
        raise UndecidedError(f"the expression {name!r} has over {_MAX_SIZE} terms")
    return Arithmetic(name, left, right, size)


def _size(symbol: Any) -> int:
    return symbol.size if isinstance(symbol, Arithmetic) else 1


def dims(symbol: Any) -> list[Dim]:
    """The dimensions an expression reads, in order of appearance."""
    if isinstance(symbol, Dim):
        return [symbol]
    if isinstance(symbol, Arithmetic):
        return dims(symbol.left) + dims(symbol.right)
    return []


def evaluate(symbol: Any, sizes: Callable[[Dim], Any] | Mapping[Any, Any]) -> Any:
    """The integer that the expression stands for, given the size of each dimension."""
    if isinstance(symbol, Dim):
        return sizes(symbol) if callable(sizes) else sizes[key(symbol)]
    if isinstance(symbol, Arithmetic):
        return _FUNCTIONS[symbol.operator](evaluate(symbol.left, sizes), evaluate(symbol.right, sizes))
    return symbol
