"""Rewrite rules: calls that mean more than they say."""

import math
from typing import Any

import numpy as np

from .._fold import symbol_dims
from .._graph import Call, Kind, Value
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


# Operators that give the same elements in another shape.
_VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")


@rewrite(ops=("Reshape",))
def reshape_of_the_tensor_before(call: Call) -> tuple[str, list[Any], dict[str, Any]] | None:
    """A reshape of a reshape is one of the tensor before."""
    if len(call.inputs) != 2:
        return None
    x, target = (call.operand(position) for position in (0, 1))
    view = x.producer
    if view is None or view.op_type not in _VIEWS or target.array is None:
        return None
    copies = not call.attributes.get("allowzero") and any(isinstance(n, int) and n == 0 for n in target.array.tolist())
    if copies or any(dim.value is x for dim in symbol_dims(target)):
        return None
    return "Reshape", [view.inputs[0], target], call.attributes


@rewrite(ops=("Unsqueeze",))
def one_unsqueeze(call: Call) -> tuple[str, list[Any], dict[str, Any]] | None:
    """Axes that are inserted one after the other are inserted at once."""
    first = call.operand(0).producer
    if first is None or first.op_type != "Unsqueeze":
        return None
    x, inner, outer = first.operand(0), _inserted(first), _inserted(call)
    if inner is None or outer is None:
        return None
    ndim = len(x.shape or ()) + len(inner) + len(outer)
    kept = [axis for axis in range(ndim) if axis not in outer]
    axes = tuple(sorted((*outer, *(kept[axis] for axis in inner))))
    if len(call.inputs) == 1:
        return "Unsqueeze", [x], {"axes": axes}
    array = np.array(axes, np.int64)
    return "Unsqueeze", [x, Value(call.operand(1).name, array.dtype, array.shape, Kind.CONST, array)], {}


def _inserted(call: Call) -> tuple[int, ...] | None:
    """The axes that an Unsqueeze inserts, counted from the front, if they and the rank are known."""
    x = call.operand(0)
    axes = call.attributes.get("axes") if len(call.inputs) == 1 else call.operand(1).array
    if x.shape is None or axes is None or (len(call.inputs) > 1 and call.operand(1).kind is not Kind.CONST):
        return None
    return tuple(int(axis) % (len(x.shape) + len(axes)) for axis in axes)


@rewrite(ops=("Transpose",))
def one_transpose(call: Call) -> tuple[str, list[Any], dict[str, Any]] | None:
    """Axes that are exchanged twice are exchanged at once."""
    first, last = _perm(call.operand(0).producer), _perm(call)
    if first is None or last is None:
        return None
    source, inner = first
    return "Transpose", [source], {"perm": tuple(inner[axis] for axis in last[1])}


@rewrite(ops=("Squeeze",))
def squeeze_of_an_axis_that_was_inserted(call: Call) -> tuple[str, list[Any], dict[str, Any]] | None:
    """PyTorch takes packed queries, keys and values apart by inserting an axis, exchanging it with theirs, and removing it."""
    found = _perm(call.operand(0).producer)
    inserted = None if found is None else found[0].producer
    if found is None or inserted is None or inserted.op_type != "Unsqueeze" or len(call.inputs) != 2:
        return None
    axes, removed, perm = _inserted(inserted), call.operand(1).array, found[1]
    if axes is None or removed is None or call.operand(1).kind is not Kind.CONST:
        return None
    gone = {int(axis) % len(perm) for axis in removed}
    if {perm[axis] for axis in gone} != set(axes):
        return None
    kept = [axis for axis in range(len(perm)) if axis not in axes]
    left = tuple(kept.index(source) for axis, source in enumerate(perm) if axis not in gone)
    return "Transpose", [inserted.operand(0)], {"perm": left}


def _perm(call: Call | None) -> tuple[Value, tuple[int, ...]] | None:
    """What a Transpose takes, and its permutation, if that is written down."""
    if call is None or call.op_type != "Transpose" or not call.attributes.get("perm"):
        return None
    return call.operand(0), tuple(call.attributes["perm"])


@hookimpl
def onnxeqx_register_ops(registry) -> None:
    registry.add_module(__name__)
