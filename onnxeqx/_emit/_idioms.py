"""Which calls print as an expression instead of a call of their operator's function, and where values are computed.

A value that depends on shapes only is computed on the host, with NumPy, where an operator needs it while tracing. Where none
does, the printed model computes it with JAX like everything else.
"""

import numpy as np

from .._fold import needed_on_host, symbol_dims
from .._graph import Call, Graph, Kind, Value
from .._printing import Idiom, Operand, idiom_from


class Idioms:
    """The idioms of all calls of a graph and its bodies."""

    def __init__(self, graph: Graph) -> None:
        self._needed = needed_on_host(graph)
        self._arrays: set[Value] = {value for value in graph.inputs if value not in self._needed and value.dtype}
        self._symbolic: set[Value] = set()
        self._found: dict[Call, Idiom] = {}
        self._add(graph)

    def of(self, call: Call) -> Idiom | None:
        """What a call prints as; `None` for a call of its operator's function."""
        return self._found.get(call)

    def is_array(self, value: Value) -> bool:
        """Whether a value is certainly a JAX array when the model runs."""
        return value.leaf is not None or value in self._arrays

    def _add(self, graph: Graph) -> None:
        for call in graph.calls:
            for body in call.bodies.values():
                self._add(body)
            idiom = None if call.lifted is not None or call.bodies else self._idiom(call)
            if idiom is not None:
                self._found[call] = idiom
            if call.op.from_shapes or any(map(self._may_be_symbolic, data_operands(call))):
                self._symbolic |= {output for output in call.outputs if output.kind is Kind.HOST}
            if self._gives_arrays(call, idiom):
                self._arrays |= {output for output in call.outputs if output.dtype is not None}

    def _gives_arrays(self, call: Call, idiom: Idiom | None) -> bool:
        if call.lifted is not None or (idiom is not None and idiom.makes_jax_arrays):
            return True
        if call.bodies:
            ends = [body.outputs for body in call.bodies.values()]
            return call.op.chooses is not None and all(self.is_array(value) for end in ends for value in end)
        return not call.op.from_shapes and any(self.is_array(value) for value in data_operands(call))

    def _idiom(self, call: Call) -> Idiom | None:
        idiom = self._declared(call)
        if idiom is None or idiom.is_operators or (self._may_use_jax(call) and self._has_arrays(call, idiom)):
            return idiom
        return None

    def _may_use_jax(self, call: Call) -> bool:
        """Whether the result may be a JAX array: it is one anyway, or nobody needs it on the host."""
        if any(self.is_array(value) for value in data_operands(call)):
            return True
        output = call.outputs[0]
        if self._needed.intersection(call.outputs) or any(map(self._may_be_symbolic, data_operands(call))):
            return False
        return output.kind is Kind.DEVICE or (output.dtype is not None and output.dtype != np.float64)

    def _has_arrays(self, call: Call, idiom: Idiom) -> bool:
        """Whether the operands of which it reads parts or calls methods are arrays, or tuples that are known."""
        for position, value in enumerate(call.inputs):
            name = call.op.input_name(position)
            if value is None or name not in idiom.as_arrays or (name == call.op.inputs[-1] and call.op.variadic):
                continue
            if not (value.array is not None if name in call.op.host else self.is_array(value)):
                return False
        return True

    def _may_be_symbolic(self, value: Value) -> bool:
        """Whether a value may hold sizes, which under `jax.export` are symbols that NumPy keeps as objects."""
        return value in self._symbolic or bool(symbol_dims(value))

    def _declared(self, call: Call) -> Idiom | None:
        """What the operator's printing rule gives."""
        rule, options = call.op.prints, call.op.attributes | call.attributes
        if callable(rule):
            operands = [None if value is None else self._operand(value) for value in call.inputs]
            return idiom_from(rule(*operands, **options))
        idiom = idiom_from(rule)
        if idiom is None:
            return None
        given = {call.op.input_name(position) for position, value in enumerate(call.inputs) if value is not None}
        given |= {name for name, value in call.attributes.items() if not is_default(value, call.op.attributes[name])}
        return idiom if given <= set(idiom.names) else None

    def _operand(self, value: Value) -> Operand:
        array = None if value.leaf is not None else value.array
        return Operand(value.dtype, value.shape, array, self.is_array(value))


def data_operands(call: Call) -> list[Value]:
    """The inputs of a call that need not be known while tracing."""
    return [
        value
        for position, value in enumerate(call.inputs)
        if value is not None and call.op.input_name(position) not in call.op.host
    ]


def is_default(value: object, default: object) -> bool:
    """Whether an attribute has its default value."""
    return not isinstance(value, np.ndarray) and type(value) is type(default) and value == default
