"""Where a printed model comes from: kept with its module, for the way back to ONNX."""

import dataclasses
import sys
import types
from typing import Any

from ._convert import Provenance
from ._errors import ConversionError

_ATTRIBUTE = "__onnxeqx_origin__"


@dataclasses.dataclass(frozen=True, eq=False)
class Origin:
    """The ONNX model that a class was printed from, without its weights, and where each leaf came from."""

    graph: bytes
    provenance: dict[str, Provenance]
    source: str


def set_origin(module: types.ModuleType, origin: Origin) -> None:
    """Keeps the origin with the module of the printed source."""
    setattr(module, _ATTRIBUTE, origin)


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
