"""Patterns: operators that together are one idea become one call.

A pattern is written as the expression that exporters spell out, over variables: `x * 0.5 * (1.0 + Erf(x / sqrt2))`. A rule
(marked by `@onnxeqx.pattern`) says which operator takes the place of what matched.
"""

import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from ._errors import ConversionError
from ._graph import Call, Graph, Kind, Value
from ._registry import PatternRule, Registry
from ._shapes import infer_call

# Constants are written in float32, and exporters round them once more.
_SAME_CONSTANT = 1e-6
_COMMUTATIVE = ("Add", "And", "Mul")


class Term:
    """A part of a pattern. Arithmetic on terms makes terms."""

    def __add__(self, other: "Term | float") -> "Term":
        return Node("Add", self, other)

    def __radd__(self, other: float) -> "Term":
        return Node("Add", self, other)

    def __sub__(self, other: "Term | float") -> "Term":
        return Node("Sub", self, other)

    def __mul__(self, other: "Term | float") -> "Term":
        return Node("Mul", self, other)

    def __rmul__(self, other: float) -> "Term":
        return Node("Mul", self, other)

    def __truediv__(self, other: "Term | float") -> "Term":
        return Node("Div", self, other)

    def __rtruediv__(self, other: float) -> "Term":
        return Node("Div", other, self)

    def __pow__(self, other: "Term | float") -> "Term":
        return Node("Pow", self, other)

    def __matmul__(self, other: "Term") -> "Term":
        return Node("MatMul", self, other)


@dataclasses.dataclass(frozen=True, eq=False)
class Variable(Term):
    """Any value; the same one wherever the variable stands.

    **Fields:** `scalar`: it is a constant of one element, known at load.
    """

    name: str
    scalar: bool = False


class Node(Term):
    """A call of an operator (a full name). Attributes that are not named may have any value."""

    def __init__(self, op: str, *inputs: Term | float, **attributes: Any) -> None:
        self.op, self.inputs, self.attributes = op, inputs, attributes


@dataclasses.dataclass(frozen=True)
class Match:
    """What a pattern was found to stand for.

    **Fields:** `values` of the variables; `calls` that matched, the last one first.
    """

    values: Mapping[str, Value]
    calls: tuple[Call, ...]

    def __getitem__(self, variable: str) -> Value:
        return self.values[variable]

    def number(self, variable: str) -> float:
        """The value of a scalar variable."""
        return float(self.values[variable].known_array.reshape(-1)[0])

    def call(self, op: str) -> Call:
        """The call of this operator that is nearest to the result."""
        return next(call for call in self.calls if call.op_type == op)


@dataclasses.dataclass(frozen=True)
class Replacement:
    """The call that takes the place of what matched.

    **Fields:** `op` (full name) of which version `opset`; `inputs`: values, or replacements that compute them;
    `attributes`.
    """

    op: str
    opset: int
    inputs: "tuple[Value | Replacement | None, ...]"
    attributes: dict[str, Any] = dataclasses.field(default_factory=dict)


# Which patterns are applied: all, none, or those of these names.
Patterns = bool | Collection[str]


def apply_patterns(graph: Graph, registry: Registry, patterns: Patterns = True) -> None:
    """Replaces what the registered patterns match, the last calls first: the longer of two patterns ends later.

    What is no longer read stays in `graph.calls`.

    **Raises:** `ConversionError` if no pattern has one of the names.
    """
    rules = _chosen(registry, patterns)
    for body in graph.graphs():
        _apply(body, registry, rules)


def _chosen(registry: Registry, patterns: Patterns) -> list[PatternRule]:
    rules = list(registry.pattern_rules())
    if isinstance(patterns, bool):
        return [rule for rule in rules if patterns and not (rule.rounded and jax.config.read("jax_enable_x64"))]
    known = sorted({rule.name for rule in rules})
    unknown = sorted(set(patterns) - set(known))
    if unknown:
        raise ConversionError(
            f"There is no pattern {unknown[0]!r}; give some of {', '.join(known)}, or patterns=False."
        )
    return [rule for rule in rules if rule.name in patterns]


def _apply(graph: Graph, registry: Registry, rules: list[PatternRule]) -> None:
    users = graph.users()
    for output in graph.outputs:
        users.setdefault(output, []).append(_OUTSIDE)
    calls: list[Call] = []
    replaced: set[int] = set()
    for call in reversed(graph.calls):
        calls.append(call)
        if id(call) in replaced or call.bodies:
            continue
        found = next((found for rule in rules if (found := _find(rule, call, users))), None)
        nodes = [] if found is None else [node for other in found[0].calls for node in other.nodes]
        if found is not None and (made := _replace(call, found[1], registry)) is not None:
            call.replaced = nodes
            replaced |= {id(other) for other in found[0].calls}
            calls += reversed(made)
    graph.calls = calls[::-1]


# Stands for whoever reads an output of the graph.
_OUTSIDE: Any = object()


def _find(rule: PatternRule, call: Call, users: Mapping[Value, list[Call]]) -> tuple[Match, Replacement] | None:
    if call.op_type not in rule.ops:
        return None
    for term in rule.terms:
        for match in _matches(term, call.outputs[0], Match({}, ())):
            inside = {id(other) for other in match.calls}
            inner = [output for other in match.calls if other is not call for output in other.outputs]
            # What depends on sizes only may have other readers: to compute it once more costs nothing.
            inner = [output for output in inner if output.kind is not Kind.HOST]
            if all(id(user) in inside for value in inner for user in users.get(value, ())):
                replacement = rule.function(match)
                if replacement is not None:
                    return match, replacement
    return None


def _replace(call: Call, replacement: Replacement, registry: Registry) -> list[Call] | None:
    """Makes `call` the replacement; gives the calls that compute its inputs, or `None` where no plugin has an operator."""
    domain, _, name = replacement.op.rpartition("::")
    op = registry.lookup(domain, name, replacement.opset)
    if op is None:
        return None
    made: list[Call] = []
    inputs: list[Value | None] = []
    for position, operand in enumerate(replacement.inputs):
        if isinstance(operand, Replacement):
            value = Value(f"{call.outputs[0].name}_input_{position}")
            inner = Call(f"{call.name}_input_{position}", "", 0, op, [], [value], {}, call.scope, call.class_names)
            value.producer = inner
            before = _replace(inner, operand, registry)
            if before is None:
                return None
            made += [*before, inner]
            value.dtype = next((source.dtype for source in inner.inputs if source is not None), None)
            infer_call(inner)
            operand = value
        inputs.append(operand)
    call.op, call.op_type, call.opset = op, op.full_name, replacement.opset
    call.inputs, call.attributes = inputs, dict(replacement.attributes)
    return made


def _matches(term: Term | float, value: Value | None, match: Match) -> Iterator[Match]:
    if value is None:
        return
    if isinstance(term, Variable):
        yield from _bind(term, value, match)
    elif isinstance(term, Node):
        yield from _match_call(term, value, match)
    elif _is_constant(value, float(term)):  # pyright: ignore[reportArgumentType]
        yield match


def _bind(variable: Variable, value: Value, match: Match) -> Iterator[Match]:
    if variable.scalar and (value.array is None or value.array.size != 1 or value.array.dtype == object):
        return
    if match.values.get(variable.name, value) is value:
        yield dataclasses.replace(match, values={**match.values, variable.name: value})


def _match_call(term: Node, value: Value, match: Match) -> Iterator[Match]:
    call = value.producer
    if call is None or call.op_type != term.op or call.lifted is not None or value is not call.outputs[0]:
        return
    attributes = call.op.attributes | call.attributes
    if any(not _is_same(attributes.get(key), wanted) for key, wanted in term.attributes.items()):
        return
    if len(call.inputs) != len(term.inputs) or not _keeps_axes(call):
        return
    orders = [call.inputs, call.inputs[::-1]] if call.op_type in _COMMUTATIVE else [call.inputs]
    for inputs in orders:
        partial = [dataclasses.replace(match, calls=(*match.calls, call))]
        for inner, operand in zip(term.inputs, inputs, strict=True):
            partial = [longer for found in partial for longer in _matches(inner, operand, found)]
        yield from partial


def _is_same(attribute: Any, wanted: Any) -> bool:
    if isinstance(attribute, float) and isinstance(wanted, float):
        return math.isclose(attribute, wanted, rel_tol=_SAME_CONSTANT)
    return attribute == wanted


def _keeps_axes(call: Call) -> bool:
    """Whether no constant of one element, which a pattern takes for a number, adds axes to the result."""
    constants = [
        value for value in call.inputs if value is not None and value.array is not None and value.array.size == 1
    ]
    ranks = [len(value.shape or ()) for value in call.inputs if value is not None and value not in constants]
    return all(value.array.ndim <= max(ranks, default=0) for value in constants if value.array is not None)


def _is_constant(value: Value, wanted: float) -> bool:
    array = value.array
    if array is None or array.size != 1 or array.dtype.kind not in "fiuV":
        return False
    return math.isclose(float(np.asarray(array).reshape(-1)[0]), wanted, rel_tol=_SAME_CONSTANT)
