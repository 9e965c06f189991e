"""The graph between reading and printing: values, calls, leaves and lifted layers."""

import dataclasses
import enum
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ._registry import Op


class Kind(enum.Enum):
    """When a value is known."""

    CONST = "const"  # at load
    HOST = "host"  # while tracing: it depends on the shapes of inputs only
    DEVICE = "device"  # when the model runs


class Role(enum.Enum):
    """What a stored tensor is to a trainer."""

    PARAMETER = "parameter"  # trained
    BUFFER = "buffer"  # floating point, never trained: statistics, scales, folded tables
    CONSTANT = "constant"  # integers and booleans


@dataclasses.dataclass(eq=False)
class Leaf:
    """A stored tensor of the model.

    **Fields:**

    - `initializer`: its name in the ONNX file: an initializer, or the output of a `Constant`/`ConstantOfShape` node.
    - `load`: gives the tensor as a NumPy array.
    - `shape`, `dtype`: of that array.
    - `from_node`: the tensor is the output of a node rather than an initializer.
    - `folded`: the tensor was computed at load and does not stand in the file.
    - `stored_as`: the tensor that stands in the file, where a node converts it to this one's dtype.
    - `reader`: for a tensor that several nodes share by accident, the one that reads this copy: the name of that node's first
      output, and the position among its inputs.
    - `path`: its place in the model, as parts of a key path; set by [`onnxeqx._names`][].
    """

    initializer: str
    load: Callable[[], np.ndarray]
    shape: tuple[int, ...]
    dtype: np.dtype
    role: Role = Role.PARAMETER
    from_node: bool = False
    folded: bool = False
    stored_as: str | None = None
    reader: tuple[str, int] | None = None
    path: tuple[str, ...] = ()


@dataclasses.dataclass(eq=False)
class Value:
    """An edge of the graph.

    **Fields:**

    - `shape`: one entry per axis: an integer or a [`Symbol`][onnxeqx._symbolic.Symbol]; `None` if the rank is unknown.
    - `array`: the value of a `CONST`; for `HOST` an object array of symbols, or `None` where it is computed while tracing.
    - `leaf`: the stored tensor that this value is.
    - `stored`: a `CONST` that stands in the file as such (not computed at load), so that it may turn out to be a weight.
    - `replaced_by`: the value that took this one's place, where a node that only hands it on was dropped.
    """

    name: str
    dtype: np.dtype | None = None
    shape: tuple[Any, ...] | None = None
    kind: Kind = Kind.DEVICE
    array: np.ndarray | None = None
    leaf: Leaf | None = None
    stored: bool = False
    producer: "Call | None" = None
    replaced_by: "Value | None" = None

    def __repr__(self) -> str:
        return f"<{self.name}: {self.kind.value} {self.dtype}{self.shape}>"

    @property
    def known_array(self) -> np.ndarray:
        """The `array` of a value that has one: a `CONST`, or a `HOST` whose symbols are known."""
        if self.array is None:
            raise AssertionError(f"{self!r} has no array")
        return self.array


@dataclasses.dataclass(eq=False)
class Lifted:
    """A layer that stands for one or more calls.

    **Fields:**

    - `layer`: the class, and `arguments` the literals that construct it, by name.
    - `weights`: field name to (leaf, transform): which stored tensor fills the field, and how it is laid out there, by a
      name in [`onnxeqx._weights.TRANSFORMS`][].
    - `inputs`: what the layer is called with; `outputs`: the values it gives.
    - `absorbs`: the calls it replaces.
    - `core_ndim`: trailing axes of one example, for an unbatched layer; `None` for a layer that takes the batch.
    - `shares`: the layer that this one turned out to be, called once more.
    - `needs_key`: the constructor draws random weights.
    - `path`: its place in the model; set by [`onnxeqx._names`][].
    """

    layer: type
    arguments: dict[str, Any]
    weights: dict[str, tuple[Leaf, str]]
    inputs: list[Value]
    outputs: list[Value]
    absorbs: list["Call"]
    core_ndim: int | None = None
    needs_key: bool = False
    shares: "Lifted | None" = None
    path: tuple[str, ...] = ()

    def same_layer(self, other: "Lifted") -> bool:
        """Whether both are calls of one layer: the same class with the same weights."""
        return self.layer is other.layer and self.arguments == other.arguments and self.weights == other.weights


@dataclasses.dataclass(eq=False)
class Call:
    """One evaluation of an operator, or of a lifted layer.

    **Fields:**

    - `name`: the ONNX node's name; `op_type` the full operator name, `opset` the version its graph imports.
    - `inputs`: in schema order, `None` for an absent optional one; `attributes` as Python values.
    - `scope`: where the exporter's metadata or slash names place the node, as parts of a key path.
    - `class_names`: the exporter's class for each prefix of `scope`, where known.
    - `bodies`: the subgraphs of a control-flow operator, by attribute name. They read values of the graph around as they are.
    - `replaced`: where a rule replaced calls by this one, those: the names of their first outputs, and their inputs.
    """

    name: str
    op_type: str
    opset: int
    op: Op
    inputs: list[Value | None]
    outputs: list[Value]
    attributes: dict[str, Any]
    scope: tuple[str, ...] = ()
    class_names: dict[tuple[str, ...], str] = dataclasses.field(default_factory=dict)
    lifted: Lifted | None = None
    bodies: "dict[str, Graph]" = dataclasses.field(default_factory=dict)
    replaced: list[tuple[str, list[Value | None]]] = dataclasses.field(default_factory=list)

    @property
    def nodes(self) -> list[tuple[str, list[Value | None]]]:
        """The nodes of the file that this call is: the name of the first output, and the inputs, of each."""
        return self.replaced or [(self.outputs[0].name, self.inputs)]

    @property
    def captures(self) -> list[Value]:
        """The values that the bodies read and do not make."""
        return list(dict.fromkeys(value for body in self.bodies.values() for value in body.captures()))

    @property
    def reads(self) -> list[Value]:
        """The values whose data the call reads, stored tensors and the captures of its bodies included."""
        inputs = [value for value in self.inputs if value is not None]
        return [*inputs, *self.captures] if self.bodies else inputs

    def settle(self) -> None:
        """Reads what took the place of its inputs, in its bodies too."""
        self.inputs = [None if value is None else settled(value) for value in self.inputs]
        for body in self.bodies.values():
            body.settle()

    def operand(self, position: int) -> Value:
        """An input that is present, as those are that the schema requires."""
        value = self.inputs[position]
        if value is None:
            raise AssertionError(f"{self.describe()} has no input {position}")
        return value

    def host_operands(self) -> Iterator[tuple[int, Value]]:
        """The inputs that must be known while tracing, with their positions."""
        for position, value in enumerate(self.inputs):
            if value is not None and self.op.input_name(position) in self.op.host:
                yield position, value

    def describe(self) -> str:
        """How errors name this call."""
        return f"node {self.name!r} ({self.op_type}, opset {self.opset})"


@dataclasses.dataclass(eq=False)
class Graph:
    """A model between reading and printing; `calls` are in topological order.

    **Fields:**

    - `output_names`: as in the file; an output may be a value under another name.
    - `declared`: for each input what the file declares, as [`onnxeqx.runtime.model_call`][] takes it.
    """

    name: str
    inputs: list[Value]
    outputs: list[Value]
    calls: list[Call]
    output_names: tuple[str, ...]
    declared: dict[str, str]

    def graphs(self) -> "Iterator[Graph]":
        """The graph itself, then the bodies of its calls, at any depth."""
        yield self
        for call in self.calls:
            for body in call.bodies.values():
                yield from body.graphs()

    def all_calls(self) -> Iterator[Call]:
        """The calls of the graph and of all bodies."""
        for graph in self.graphs():
            yield from graph.calls

    def captures(self) -> list[Value]:
        """The values that a body reads and does not make: those of the graph around, constants and stored tensors."""
        own = {*self.inputs, *(output for call in self.calls for output in call.outputs)}
        read = [*(value for call in self.calls for value in call.reads), *self.outputs]
        return [value for value in dict.fromkeys(read) if value not in own]

    def made(self) -> set[Value]:
        """The inputs and results of the graph and of all bodies."""
        return {value for graph in self.graphs() for value in graph.inputs} | {
            output for call in self.all_calls() for output in call.outputs
        }

    def settle(self) -> None:
        """Reads what took the place of values that were replaced."""
        for call in self.calls:
            call.settle()
        self.outputs = [settled(value) for value in self.outputs]

    def leaves(self) -> list[Leaf]:
        """Every stored tensor that a call or an output uses, in order of first use."""
        found: dict[int, Leaf] = {}
        for call in self.all_calls():
            if call.lifted is not None:
                found |= {id(leaf): leaf for leaf, _ in call.lifted.weights.values() if id(leaf) not in found}
            for value in call.inputs:
                if value is not None and value.leaf is not None:
                    found.setdefault(id(value.leaf), value.leaf)
        for value in [value for graph in self.graphs() for value in graph.outputs]:
            if value.leaf is not None:
                found.setdefault(id(value.leaf), value.leaf)
        return list(found.values())

    def users(self) -> dict[Value, list[Call]]:
        """The calls that read each value, once per operand."""
        found: dict[Value, list[Call]] = {}
        for call in self.calls:
            for value in call.reads:
                found.setdefault(value, []).append(call)
        return found


def settled(value: Value) -> Value:
    """The value that took the place of this one, or the value itself."""
    while value.replaced_by is not None:
        value = value.replaced_by
    return value
