"""Inserting: calls that a model's file does not have, put into its graph between lifting and nesting.

The ONNX graph stays as it is: what is inserted is the identity wherever that graph is served.
"""

import dataclasses
import fnmatch
from collections.abc import Sequence

from ._graph import Call, Graph, Kind, Value
from ._lower import is_floating
from ._nest import nest
from ._registry import Op, Registry


@dataclasses.dataclass(frozen=True)
class Dropout:
    """Dropout at some layers.

    **Fields:** `layers` (a pattern of their key paths), `rate`, `before` (on what they take, not on what they return).
    """

    layers: str
    rate: float
    before: bool = False


def insert(graph: Graph, dropouts: Sequence[Dropout], registry: Registry) -> None:
    """Puts dropouts into a lifted graph whose paths are assigned, at every call of their layers. Changes `graph`.

    Of several that mean the same place, the last counts. One that means no layer is passed over: those were cut away.
    """
    if not dropouts:
        return
    nest(graph)  # settles the key paths
    op = registry.lookup("onnxeqx", "TrainingDropout", 1)
    assert op is not None, "the plugin of activation functions provides it"
    for body in list(graph.graphs()):
        _insert(body, dropouts, op)


def droppable(call: Call, before: bool) -> str | None:
    """The key path of the layer that a call is, if what it returns (or takes) may be dropped: an embedding takes indices."""
    if call.lifted is None:
        return None
    value = call.operand(0) if before else call.outputs[0]
    floating = value.dtype is not None and is_floating(value.dtype)
    return ".".join(call.lifted.path) if floating and value.kind is Kind.DEVICE else None


def _insert(graph: Graph, dropouts: Sequence[Dropout], op: Op) -> None:
    calls: list[Call] = []
    dropped: dict[Value, Value] = {}
    for call in graph.calls:
        _read_instead(call, dropped)
        before, after = (_rate(call, dropouts, before) for before in (True, False))
        if before is not None:
            calls.append(_dropout(call, call.operand(0), before, op))
            call.inputs[0] = calls[-1].outputs[0]
        calls.append(call)
        if after is not None:
            calls.append(_dropout(call, call.outputs[0], after, op))
            dropped[call.outputs[0]] = calls[-1].outputs[0]
    graph.calls = calls
    graph.outputs = [dropped.get(value, value) for value in graph.outputs]


def _rate(call: Call, dropouts: Sequence[Dropout], before: bool) -> float | None:
    path = droppable(call, before)
    if path is None:
        return None
    rates = [entry.rate for entry in dropouts if entry.before == before and fnmatch.fnmatchcase(path, entry.layers)]
    return rates[-1] if rates else None


def _dropout(layer: Call, source: Value, rate: float, op: Op) -> Call:
    """A call in the block that the layer belongs to."""
    assert layer.lifted is not None
    name = f"{source.name}_dropped_by_{layer.name}"
    call = Call(name, op.full_name, op.since, op, [source], [], {"rate": rate}, layer.lifted.path[:-1])
    call.outputs = [Value(name, source.dtype, source.shape, producer=call)]
    return call


def _read_instead(call: Call, dropped: dict[Value, Value]) -> None:
    """Lets a call and its bodies read what took the place of values."""
    call.inputs = [None if value is None else dropped.get(value, value) for value in call.inputs]
    for body in call.bodies.values():
        for inner in body.calls:
            _read_instead(inner, dropped)
        body.outputs = [dropped.get(value, value) for value in body.outputs]
