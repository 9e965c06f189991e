"""Structure of the graph that exporters hide, and that the nesting needs."""

from ._graph import Call, Graph, Value


def nest_concatenations(graph: Graph) -> None:
    """`Concat(a, b, c)` after `Concat(a, b)` reads that one's result: `Concat(Concat(a, b), c)`.

    A dense block concatenates all that came before in each of its layers. Written so, its layers are equal, and nothing is
    copied twice.
    """
    for body in graph.graphs():
        known: dict[tuple[int, tuple[Value | None, ...]], Value] = {}
        for call in body.calls:
            if call.op_type == "Concat" and call.lifted is None:
                _nest_concatenation(call, known)


def _nest_concatenation(call: Call, known: dict[tuple[int, tuple[Value | None, ...]], Value]) -> None:
    axis, inputs = call.attributes.get("axis", 1), tuple(call.inputs)  # required since opset 4
    for size in range(len(inputs) - 1, 1, -1):
        if (axis, inputs[:size]) in known:
            call.inputs = [known[axis, inputs[:size]], *inputs[size:]]
            break
    known[axis, inputs] = call.outputs[0]
