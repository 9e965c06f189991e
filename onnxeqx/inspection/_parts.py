"""The fields of a printed model as a tree: classes, stored tensors, shapes and counts."""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator
from typing import Any

from .._convert import Printed
from .._graph import Call, Graph, Leaf, Lifted, Role, Value
from .._nest import Block
from .._symbolic import Dim


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A stored tensor: key path, shape in the model, dtype, role (`parameter`, `buffer`, `constant`), name in the file."""

    path: str
    shape: tuple[int, ...]
    dtype: str
    role: str
    initializer: str

    @property
    def field(self) -> str:
        return self.path.rpartition(".")[2]


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """A field of the model.

    **Fields:**

    - `path`: the key path; empty for the model itself.
    - `kind`: `block`, `tuple`, `layer` or `tensor`.
    - `class_name`: as in the printed source; the role of a `tensor`.
    - `tensors`: of a layer or tensor, its own; `children` of a block or tuple.
    - `outputs`: the shapes that it returns, as text; empty where they are not known.
    - `constructor`: the literals that a layer is made with.
    """

    path: str
    kind: str
    class_name: str
    tensors: tuple[Tensor, ...] = ()
    children: tuple["Part", ...] = ()
    outputs: tuple[str, ...] = ()
    constructor: str = ""

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]

    def walk(self) -> Iterator["Part"]:
        """The part itself, then those inside it, in the order of the fields."""
        stack: list[Part] = [self]
        while stack:
            part = stack.pop()
            yield part
            stack.extend(reversed(part.children))

    @functools.cached_property
    def numbers(self) -> dict[str, int]:
        """How many numbers it holds, by role."""
        found = dict.fromkeys((role.value for role in Role), 0)
        for tensor in self.tensors:
            found[tensor.role] += math.prod(tensor.shape)
        for child in self.children:
            for role, number in child.numbers.items():
                found[role] += number
        return found

    @property
    def parameters(self) -> int:
        return self.numbers[Role.PARAMETER.value]

    @functools.cached_property
    def likeness(self) -> Any:
        """What two parts have in common that differ by their place only."""
        tensors = tuple((tensor.field, tensor.shape, tensor.dtype, tensor.role) for tensor in self.tensors)
        return self.kind, self.class_name, tensors, tuple((child.name, child.likeness) for child in self.children)


def parts(printed: Printed, skeleton: Any) -> Part:
    """The tree of a converted model.

    **Arguments:**

    - `printed`: the converted model.
    - `skeleton`: an instance of its class `Model`, whose leaves need not be arrays.
    """
    return _Parts(printed, skeleton).part(printed.root)


class _Parts:
    def __init__(self, printed: Printed, skeleton: Any) -> None:
        self.printed, self.skeleton = printed, skeleton
        self.shapes = Shapes(printed.lifted)
        self.calls: dict[int, Call] = {}
        for call in printed.lifted.all_calls():
            if call.lifted is not None:
                self.calls.setdefault(id(call.lifted), call)

    def part(self, child: Block | Lifted | Leaf) -> Part:
        path = ".".join(child.path)
        if isinstance(child, Leaf):
            return Part(path, "tensor", child.role.value, (self._tensor(path),))
        if isinstance(child, Lifted):
            fields = tuple(self._tensor(f"{path}.{field}") for field in child.weights)
            outputs = self.shapes.texts(self.calls[id(child)].outputs)
            literals = ", ".join(f"{name}={value}" for name, value in child.arguments.items())
            return Part(
                path, "layer", child.layer.__name__, fields, (), outputs, f"{child.layer.__name__}({literals})"[:400]
            )
        children = tuple(self.part(inner) for inner in child.children.values())
        if child.is_tuple and child.path:
            return Part(path, "tuple", "tuple", children=children)
        class_name = type(_at(self.skeleton, child.path)).__name__
        return Part(path, "block", class_name, children=children, outputs=self.shapes.texts(child.outputs))

    def _tensor(self, path: str) -> Tensor:
        origin = self.printed.provenance[path]
        return Tensor(path, origin.shape, self.printed.leaves[path][0].dtype.name, origin.role, origin.initializer)


def _at(model: Any, path: tuple[str, ...]) -> Any:
    for part in path:
        model = model[int(part)] if isinstance(model, tuple) else getattr(model, part)
    return model


class Shapes:
    """Shapes as a person writes them: dimensions that the file declares by their names, `?` for what only a call tells."""

    def __init__(self, graph: Graph) -> None:
        declared = {
            value: re.findall(r"[^,\[\] ]+", graph.declared[value.name].partition("[")[2]) for value in graph.inputs
        }
        self._names = {
            (value, axis): name
            for value, names in declared.items()
            for axis, name in enumerate(names)
            if not name.isdecimal()
        }

    def text(self, value: Value) -> str:
        """The shape of a value; empty if not even its rank is known."""
        if value.shape is None:
            return ""
        return f"({', '.join(map(self._size, value.shape))}{',' if len(value.shape) == 1 else ''})"

    def texts(self, values: list[Value]) -> tuple[str, ...]:
        return tuple(self.text(value) for value in values)

    def _size(self, size: Any) -> str:
        if isinstance(size, Dim):
            return self._names.get((size.value, size.axis), "?")
        return str(size) if isinstance(size, int) else "?"
