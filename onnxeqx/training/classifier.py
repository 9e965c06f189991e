"""What an ONNX file declares about itself as an image classifier, before its weights are loaded."""

import dataclasses
import pathlib
from typing import Self

from .._load import GRAPH
from .._read import read
from .errors import ConfigError

# Operators that leave the values of a classifier's output as they are.
_TRANSPARENT = frozenset({"Cast", "Flatten", "Identity", "Reshape", "Squeeze"})


@dataclasses.dataclass(frozen=True)
class Classifier:
    """An image classifier's input, and whether its output is probabilities.

    - `input_name`: of its only input.
    - `channels`: 1 or 3.
    - `height`, `width`: of its input.
    - `from_probabilities`: the network ends in Softmax, so that its output is not logits.
    """

    input_name: str
    channels: int
    height: int
    width: int
    from_probabilities: bool

    @classmethod
    def of(cls, path: pathlib.Path, image_size: int | None = None) -> Self:
        """Reads an ONNX file, or the graph of a converted folder.

        **Arguments:**

        - `path`: the file or folder.
        - `image_size`: height and width instead of the declared ones.

        **Raises:** `ConfigError` if the model takes no images, or leaves their size open and `image_size` is `None`;
        `ReadError` if the file cannot be read.
        """
        graph = (read(path / GRAPH, weightless=True) if path.is_dir() else read(path)).graph
        inputs = [value for value in graph.inputs if value.name not in graph.initializers]
        shape = inputs[0].shape if len(inputs) == 1 else None
        if shape is None or len(shape) != 4 or shape[1] not in (1, 3):
            declared = "; ".join(f"{value.name} {value.shape}" for value in inputs)
            raise ConfigError(
                f"{path} takes no images of shape (batch, channels, height, width): its inputs are {declared}."
            )
        if path.is_dir() and any(isinstance(dim, int) and image_size not in (None, dim) for dim in shape[2:]):
            raise ConfigError(
                f"{path} is a converted folder for images of {shape[2]}x{shape[3]}, not {image_size}; "
                "take the ONNX file, or convert it again for that size (onnxeqx convert --input-shape)."
            )
        size = [image_size or dim for dim in shape[2:]]
        channels, height, width = (dim if isinstance(dim, int) else 0 for dim in (shape[1], *size))
        if height < 1 or width < 1:
            raise ConfigError(f"{path} leaves the size of its input open ({shape}); choose one with --image-size.")
        return cls(str(inputs[0].name), channels, height, width, _ends_in_softmax(graph.outputs[0]))

    @property
    def input_shapes(self) -> dict[str, tuple[str | int, ...]]:
        """For `onnxeqx.load`: the batch is free, all else fixed."""
        return {self.input_name: ("batch", self.channels, self.height, self.width)}


def _ends_in_softmax(value) -> bool:
    node = value.producer()
    while node is not None and node.op_type in _TRANSPARENT and node.domain == "":
        node = node.inputs[0].producer()
    return node is not None and node.op_type == "Softmax" and node.domain == ""
