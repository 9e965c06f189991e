"""What an ONNX file declares about its inputs and output, before its weights are loaded."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, Literal, Self

import jax
import numpy as np
import onnx_ir as ir

from .._errors import DataError
from .._load import GRAPH
from .._read import read
from ..runtime import canonical_dtype
from .array_files import blocks
from .errors import ConfigError

Kind = Literal["images", "table", "tokens", "arrays"]

# Operators that leave the values of a classifier's output as they are.
_TRANSPARENT = frozenset({"Cast", "Flatten", "Identity", "Reshape", "Squeeze"})


@dataclasses.dataclass(frozen=True)
class Signature:
    """The inputs of a network, and how its first output is made.

    - `inputs`: dtype and shape by name; a dimension that is not fixed is 0.
    - `ends_in`: `"Softmax"` or `"Sigmoid"`, if the network gives probabilities.
    - `logits`: the ONNX name of what that is computed from; without it, of the first output.
    - `folder`: whether the network is a converted folder, whose shapes are fixed.
    - `embeddings`: of inputs that are looked up in a table, such as tokens, how many rows it has.
    """

    inputs: Mapping[str, tuple[np.dtype, tuple[int, ...]]]
    ends_in: Literal["Softmax", "Sigmoid"] | None
    logits: str
    folder: bool
    embeddings: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, path: pathlib.Path) -> Self:
        """Reads an ONNX file, or the graph of a converted folder.

        **Raises:** `ReadError` if the file cannot be read.
        """
        graph = (read(path / GRAPH, weightless=True) if path.is_dir() else read(path)).graph
        inputs = {}
        for value in graph.inputs:
            if value.name not in graph.initializers:
                shape = tuple(dim if isinstance(dim, int) else 0 for dim in value.shape or ())
                inputs[str(value.name)] = (value.dtype.numpy() if value.dtype else np.dtype("float32"), shape)
        last = _last_node(graph.outputs[0])
        ends_in: Any = last.op_type if last is not None and last.op_type in ("Softmax", "Sigmoid") else None
        before = last.inputs[0] if last is not None and ends_in else graph.outputs[0]
        logits = str(before.name if before is not None else "")
        rows = {str(value.name): _embedding_rows(value) for value in graph.inputs}
        embeddings = {name: count for name, count in rows.items() if count is not None}
        return cls(inputs, ends_in, logits, path.is_dir(), embeddings)

    @property
    def kind(self) -> Kind:
        """What the network takes: images of shape `(batch, 1 or 3, height, width)`, rows of a table of shape `(batch, features)`,
        tokens (integers of shape `(batch, positions)`), or other arrays."""
        entries = list(self.inputs.values())
        if all(dtype.kind in "iu" and len(shape) == 2 for dtype, shape in entries):
            return "tokens"
        (dtype, shape), *others = entries
        if not others and dtype.kind == "f" and len(shape) == 4 and shape[1] in (1, 3):
            return "images"
        return "table" if not others and dtype.kind == "f" and len(shape) == 2 else "arrays"

    def image_size(self, path: str, size: int | None) -> tuple[int, int, int]:
        """Channels, height and width of the network's images.

        **Arguments:**

        - `path`: of the network, for the message.
        - `size`: height and width instead of the declared ones.

        **Raises:** `ConfigError` if the network leaves them open and `size` is `None`, or if they are fixed.
        """
        (_, (_, channels, *declared)) = next(iter(self.inputs.values()))
        if self.folder and any(dim and size not in (None, dim) for dim in declared):
            raise ConfigError(
                f"{path} is a converted folder for images of {declared[0]}x{declared[1]}, not {size}; "
                "take the ONNX file, or convert it again for that size (onnxeqx convert --input-shape)."
            )
        height, width = (size or dim for dim in declared)
        if not (height and width):
            raise ConfigError(f"{path} leaves the size of its images open; choose one with --image-size.")
        return channels, height, width

    def input_shapes(self, size: tuple[int, ...] | None = None) -> dict[str, tuple[str | int, ...]] | None:
        """For `onnxeqx.load`: the batch is free, and images have a size; `None` for a converted folder."""
        if self.folder:
            return None
        return {
            name: ("batch", *(size or (dim or f"{name}_{axis}" for axis, dim in enumerate(shape[1:], 1))))
            for name, (_, shape) in self.inputs.items()
            if len(shape) and (size is not None or shape[0])
        } or None

    def structs(self, batch: int, size: tuple[int, ...] | None = None) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shapes and dtypes to call the network with; `size` stands for all axes behind the batch, 1 for what is open."""
        return tuple(
            jax.ShapeDtypeStruct((batch, *(size or (dim or 1 for dim in shape[1:]))), canonical_dtype(dtype))
            for dtype, shape in self.inputs.values()
        )

    def check_ids(self, origin: str, name: str, ids: Any) -> None:
        """Refuses tokens (or positions) that the network does not know, for which JAX would take others in silence.

        **Arguments:**

        - `origin`: where they come from, for people.
        - `name`: of the input that takes them.
        - `ids`: whole numbers; the first axis is the example.

        **Raises:** `DataError`.
        """
        rows = self.embeddings.get(name)
        if rows is None:
            return
        for first, block in blocks(ids):
            if (unknown := np.argwhere((block < 0) | (block >= rows))).size:
                place = tuple(unknown[0])
                raise DataError(
                    f"{origin}: {name} of example {first + place[0]} holds the number {block[place]}, which the network looks "
                    f"up in a table of {rows:,} rows: use the tokenizer that belongs to it, and a --max-length that it allows."
                )


def _embedding_rows(value: ir.Value) -> int | None:
    """How many rows has the table in which an input is looked up; `None` if it is not, or they are not known."""
    for node, position in value.uses():
        table = node.inputs[0]
        if node.op_type in ("Cast", "Identity") and (rows := _embedding_rows(node.outputs[0])) is not None:
            return rows
        if node.op_type == "Gather" and position == 1 and table is not None and table.shape:
            rows = table.shape[0]
            return rows if isinstance(rows, int) else None
    return None


def _last_node(value: ir.Value) -> ir.Node | None:
    node = value.producer()
    while node is not None and node.op_type in _TRANSPARENT and node.domain == "" and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node
