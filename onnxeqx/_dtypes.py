"""Which values have the dtype of the model's weights at run time, whatever the model is cast to."""

import functools

import onnx

from ._graph import Call, Value


def follows_weights(value: Value) -> bool:
    """Whether a floating-point value provably changes its dtype with the model.

    The weights do, the inputs do (see [`onnxeqx.runtime.model_call`][]), and so do results of a printed `dtype`.
    """
    source = _dtype_source(value)
    producer = source.producer
    if source.leaf is not None or source.array is not None or producer is None:
        return True
    return producer.lifted is not None or bool(producer.op.dtypes)


def _dtype_source(value: Value) -> Value:
    """The value from which this one has its dtype, through all calls whose types ONNX declares to be equal."""
    while value.leaf is None and value.array is None and value.producer is not None and value.producer.lifted is None:
        call = value.producer
        operands = [call.operand(position) for position in _positions_of_same_type(call, value)]
        if not operands:
            break
        value = next((operand for operand in operands if operand.array is None), operands[0])
    return value


def _positions_of_same_type(call: Call, output: Value) -> list[int]:
    """The inputs that are present and of the output's type, by the operator's schema."""
    types, result = _type_names(call.op.name, call.op.domain, call.opset, call.outputs.index(output))
    names = [types[min(position, len(types) - 1)] for position in range(len(call.inputs))] if types else []
    return [position for position, name in enumerate(names) if name == result and call.inputs[position] is not None]


@functools.cache
def _type_names(name: str, domain: str, opset: int, output: int) -> tuple[tuple[str, ...], str]:
    """The type variables of an operator's inputs, and that of an output."""
    if not onnx.defs.has(name, opset, domain):
        return (), ""
    schema = onnx.defs.get_schema(name, opset, domain)
    result = schema.outputs[min(output, len(schema.outputs) - 1)].type_str
    return tuple(parameter.type_str for parameter in schema.inputs), result
