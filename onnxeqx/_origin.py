"""Where a printed model comes from: kept with its module, for the way back to ONNX."""

import dataclasses
import hashlib
import sys
import types
from typing import Any

import numpy as np

from ._convert import Printed, Provenance
from ._errors import ConversionError
from ._insert import Dropout
from ._stacks import Stacks, by_layer, set_stacks, stacks_of
from ._weights import arrays
from .runtime import split_layers

_ATTRIBUTE = "__onnxeqx_origin__"


@dataclasses.dataclass(frozen=True, eq=False)
class Origin:
    """The ONNX model that a class was printed from.

    **Fields:** `graph` (the model without weights), `provenance` (where each leaf came from), `source` (the text that runs),
    `patterns` and `dropouts` (those that it was printed with), `printed` (the digest of the text as it was printed; `None` if
    that is not known), `stacks` (which of its blocks are stacked layers), `remat` (whether these are computed again in the
    backward pass).

    Provenance is kept by the key paths of single layers.
    """

    graph: bytes
    provenance: dict[str, Provenance]
    source: str
    patterns: bool | list[str] = True
    dropouts: tuple[Dropout, ...] = ()
    printed: str | None = None
    stacks: Stacks = dataclasses.field(default_factory=dict)
    remat: bool = False

    @classmethod
    def of(cls, printed: Printed) -> "Origin":
        """The origin of a model that was just printed."""
        patterns = printed.patterns if isinstance(printed.patterns, bool) else sorted(printed.patterns)
        return cls(
            printed.graph,
            printed.provenance,
            printed.source,
            patterns,
            printed.dropouts,
            _digest(printed.source),
            printed.stacks,
            printed.remat,
        )

    @property
    def edited(self) -> bool:
        """Whether somebody changed the text since it was printed."""
        return self.printed not in (None, _digest(self.source))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def set_origin(module: types.ModuleType, origin: Origin) -> None:
    """Keeps the origin with the module of the printed source."""
    setattr(module, _ATTRIBUTE, origin)
    set_stacks(module, origin.stacks)


def single_arrays(model: Any) -> dict[str, np.ndarray]:
    """The model's leaves on the host, by the key paths of single layers, as its provenance has them."""
    return by_layer(arrays(model), stacks_of(model), split_layers)


def known_origin(model: Any) -> Origin | None:
    """The origin of a model; `None` if it did not come from an ONNX file."""
    return getattr(sys.modules.get(type(model).__module__), _ATTRIBUTE, None)


def origin_of(model: Any) -> Origin:
    """The origin of a model.

    **Raises:** `ConversionError` if it did not come from an ONNX file.
    """
    origin = known_origin(model)
    if origin is None:
        raise ConversionError(
            f"{type(model).__name__} keeps no ONNX graph: it did not come from onnxeqx.load, or its folder has no graph.onnx; "
            "use onnxeqx.save_weights, or the `export` extra for another architecture."
        )
    return origin
