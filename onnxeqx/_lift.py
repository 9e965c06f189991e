"""Lifting: calls with constant weights become layers that own their weights."""

import dataclasses
import math

import numpy as np

from ._fold import symbol_dims
from ._graph import Call, Graph, Kind, Leaf, Lifted, Role, Value
from ._names import is_anonymous
from ._patterns import Patterns, apply_patterns
from ._registry import Registry
from ._sizes import settle_sizes
from ._structure import nest_concatenations

# Operators on two numbers, whose operands are weights only where the exporter gave them a name.
_ARITHMETIC = ("Add", "Sub", "Mul", "Div", "Pow")
# Of these, those that no bias of a layer is an operand of.
_SCALING = ("Mul", "Div", "Pow")


def lift(graph: Graph, registry: Registry, *, patterns: Patterns = True) -> Graph:
    """Drops calls that pass their input through, applies patterns and lift rules, and settles ties. Changes `graph`."""
    settle_sizes(graph)
    for body in graph.graphs():
        _drop_pass_through(body)
    graph.settle()
    _unmake_scalars(graph, _SCALING)
    if patterns:
        apply_patterns(graph, registry, patterns)
        for body in graph.graphs():
            _drop_unread(body)
    lifted: dict[int, Lifted] = {}
    copies = _UniformCopies(LiftContext(graph, graph))
    for body in graph.graphs():
        _rewrite(body, registry)
        _apply_rules(body, registry, LiftContext(body, graph), copies, lifted)
    _refuse_ties(graph, lifted)
    for body in graph.graphs():
        _replace(body, lifted)
    _unmake_scalars(graph, _ARITHMETIC)
    nest_concatenations(graph)
    return graph


def _apply_rules(
    graph: Graph, registry: Registry, context: "LiftContext", copies: "_UniformCopies", lifted: dict[int, Lifted]
) -> None:
    """Puts what the lift rules find into `lifted`, by the call that they were asked about."""
    absorbed: set[int] = set()
    for call in graph.calls:
        if id(call) in absorbed:
            continue
        for rule in registry.lift_rules():
            if call.op_type in rule.ops and (found := rule.function(call, context)) is not None and found.weights:
                if not any(id(other) in absorbed for other in found.absorbs):
                    copies.separate(found)
                    lifted[id(call)] = found
                    absorbed |= {id(other) for other in found.absorbs}
                break


class LiftContext:
    """What a lift rule may ask about the graph around a call.

    `graph` is the one that holds the call, `model` the whole: a stored tensor may have readers in other bodies.
    """

    def __init__(self, graph: Graph, model: Graph) -> None:
        self._users = graph.users()
        self._outputs = {id(value) for value in graph.outputs}
        self._readers: dict[int, int] = {}
        for call in model.all_calls():
            for value in call.inputs:
                if value is not None and value.leaf is not None:
                    self._readers[id(value.leaf)] = self._readers.get(id(value.leaf), 0) + 1

    def only_reader(self, value: Value) -> Call | None:
        """The call that alone reads `value`; `None` if there are several, or if it is an output of the graph."""
        users = self._users.get(value, [])
        return users[0] if len(users) == 1 and id(value) not in self._outputs else None

    def readers_of(self, leaf: Leaf) -> int:
        """How many operands read a stored tensor."""
        return self._readers.get(id(leaf), 0)

    def weight(self, value: Value | None, ndim: int | None = None) -> Leaf | None:
        """The stored tensor that `value` is, if it may be a layer's weight of this rank."""
        if value is None or value.leaf is None or value.leaf.folded or value.leaf.role is Role.CONSTANT:
            return None
        return value.leaf if ndim in (None, len(value.leaf.shape)) else None


def _rewrite(graph: Graph, registry: Registry) -> None:
    for call in graph.calls:
        for rule in registry.rewrite_rules():
            if call.op_type in rule.ops and (found := rule.function(call)) is not None:
                name, inputs, attributes = found
                op = registry.lookup("", name, call.opset)
                if op is not None:
                    call.replaced = call.nodes
                    call.op, call.op_type, call.inputs, call.attributes = op, name, inputs, attributes
                    break


class _UniformCopies:
    """Gives each layer its own copy of a uniform tensor.

    Exporters merge equal initial values by accident: all biases zero, all scales one. A tensor that is uniform and has
    several readers is separate weights, unless the layers share their other weights too.
    """

    def __init__(self, context: LiftContext) -> None:
        self._context = context
        self._copies: dict[tuple[int, object], Leaf] = {}
        self._kept: set[int] = set()
        self._uniform: dict[int, bool] = {}

    def separate(self, lifted: Lifted) -> None:
        uniform = {field for field, (leaf, _) in lifted.weights.items() if self._is_shared_uniform(leaf)}
        others = tuple(id(leaf) for field, (leaf, _) in lifted.weights.items() if field not in uniform)
        call = lifted.absorbs[0]
        for field in uniform:
            leaf, transform = lifted.weights[field]
            owner = others or call.scope or (id(call),)
            lifted.weights[field] = (self._copy(leaf, owner, lifted), transform)

    def _is_shared_uniform(self, leaf: Leaf) -> bool:
        if id(leaf) not in self._uniform:
            self._uniform[id(leaf)] = self._context.readers_of(leaf) > 1 and is_uniform(leaf)
        return self._uniform[id(leaf)]

    def _copy(self, leaf: Leaf, owner: object, lifted: Lifted) -> Leaf:
        key = (id(leaf), owner)
        if key not in self._copies:
            *prefix, _ = leaf.initializer.split(".")
            named_after_layer = bool(prefix) and lifted.absorbs[0].scope == tuple(prefix)
            unscoped_first = not lifted.absorbs[0].scope and id(leaf) not in self._kept
            if named_after_layer or unscoped_first:
                self._kept.add(id(leaf))
                self._copies[key] = leaf
            else:
                reader = next(
                    (output, position)
                    for call in lifted.absorbs
                    for output, inputs in call.nodes
                    for position, value in enumerate(inputs)
                    if value is not None and value.leaf is leaf
                )
                self._copies[key] = dataclasses.replace(leaf, reader=reader)
        return self._copies[key]


def _drop_pass_through(graph: Graph) -> None:
    """Removes identities. An initializer handed on under another name is one tensor, unless it is uniform.

    Exporters merge equal initial values by accident (all biases zero, all scales one): those are separate weights.
    """
    used = {value for call in graph.calls for value in call.reads} | set(graph.outputs)
    kept = []
    for call in graph.calls:
        call.settle()
        source, target = _passed_through(call), call.outputs[0]
        if source is None or any(output in used for output in call.outputs[1:]):
            kept.append(call)
            continue
        if source.leaf is not None and not source.leaf.folded and is_uniform(source.leaf):
            leaf = source.leaf
            copy = Leaf(target.name, leaf.load, leaf.shape, leaf.dtype, leaf.role, from_node=True)
            target.replaced_by = Value(target.name, source.dtype, source.shape, leaf=copy)
        else:
            target.replaced_by = source
    graph.calls = kept
    graph.settle()


def _passed_through(call: Call) -> Value | None:
    """The input that the first output is, unchanged."""
    rule = call.op.passes_through
    return rule(call) if callable(rule) else call.operand(0) if rule else None


def is_uniform(leaf: Leaf) -> bool:
    """Whether all elements of a stored tensor are equal."""
    array = leaf.load()
    return array.size > 0 and bool(np.all(array == array.reshape(-1)[0]))


def _refuse_ties(graph: Graph, lifted: dict[int, Lifted]) -> None:
    """A tensor has one owner: among layers that share only some of their weights, the first keeps them.

    Calls with exactly the same weights are one layer called several times.
    """
    owners: dict[int, Lifted] = {}
    for key, found in list(lifted.items()):
        others = {id(owners[id(leaf)]): owners[id(leaf)] for leaf, _ in found.weights.values() if id(leaf) in owners}
        if not others:
            owners |= {id(leaf): found for leaf, _ in found.weights.values()}
        elif all(found.same_layer(other) for other in others.values()):
            found.shares = next(iter(others.values()))
        else:
            del lifted[key]


def _replace(graph: Graph, lifted: dict[int, Lifted]) -> None:
    absorbed = {id(call): found for found in lifted.values() for call in found.absorbs}
    last = {id(found): found.absorbs[-1] for found in lifted.values()}
    kept = []
    for call in graph.calls:
        found = absorbed.get(id(call))
        if found is None:
            kept.append(call)
        elif call is last[id(found)]:
            first = found.absorbs[0]
            merged = Call(
                first.name,
                first.op_type,
                first.opset,
                first.op,
                list(found.inputs),
                found.outputs,
                {},
                first.scope,
                first.class_names,
                found.shares or found,
            )
            for output in merged.outputs:
                output.producer = merged
            kept.append(merged)
    graph.calls = kept
    _drop_unread(graph)


def _unmake_scalars(graph: Graph, operators: tuple[str, ...]) -> None:
    """An unnamed tensor of one element that only arithmetic reads is a literal, no weight: the scale of an attention."""
    operands = [value for call in graph.all_calls() for value in call.inputs if value is not None and value.leaf]
    in_arithmetic = [
        value
        for call in graph.all_calls()
        if call.lifted is None and call.op_type in operators
        for value in call.inputs
        if value is not None and value.leaf
    ]
    for value in dict.fromkeys(in_arithmetic):
        leaf = value.leaf
        only_there = operands.count(value) == in_arithmetic.count(value)
        if (
            leaf
            and only_there
            and math.prod(leaf.shape) == 1
            and is_anonymous(leaf.initializer)
            and leaf.reader is None
        ):
            value.array, value.kind, value.leaf = leaf.load(), Kind.CONST, None


def _drop_unread(graph: Graph) -> None:
    """Removes calls whose results the lifted layers no longer read, such as the transpose of a weight."""
    needed = set(graph.outputs)
    kept = []
    for call in reversed(graph.calls):
        if any(output in needed for output in call.outputs):
            kept.append(call)
            for value in call.reads:
                needed |= {value, *(dim.value for dim in symbol_dims(value))}
    graph.calls = kept[::-1]
