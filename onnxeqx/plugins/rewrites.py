"""Rewrite rules: calls that mean more than they say."""

import math
from typing import Any

from .._graph import Call, Kind
from .._registry import rewrite
from .hookspecs import hookimpl


@rewrite(ops=("Reshape",))
def flatten_from_reshape(call: Call) -> tuple[str, list[Any], dict[str, Any]] | None:
    """A reshape to `(batch, everything else)` is `Flatten`.

    Exporters write the width as a number, which a head of another width would contradict.
    """
    if len(call.inputs) != 2:
        return None
    x, target = call.inputs
    if x is None or x.shape is None or len(x.shape) < 2:
        return None
    if target is None or target.kind is not Kind.CONST or target.known_array.shape != (2,):
        return None
    batch, width = target.known_array.tolist()
    inner = x.shape[1:]
    if not all(isinstance(dim, int) for dim in inner) or math.prod(inner) != width:
        return None
    keeps_batch = batch == -1 or (isinstance(x.shape[0], int) and x.shape[0] == batch)
    return ("Flatten", [x], {"axis": 1}) if keeps_batch else None


@hookimpl
def onnxeqx_register_ops(registry) -> None:
    registry.add_module(__name__)
