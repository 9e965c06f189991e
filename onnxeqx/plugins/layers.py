"""Lift rules for the layers that people fine-tune: linear, convolution, embedding, normalisation."""

from typing import Any

import equinox as eqx
import numpy as np

from .. import nn
from .._graph import Call, Kind, Leaf, Lifted, Value
from .._lift import LiftContext
from .._registry import lift
from .hookspecs import hookimpl


@lift(eqx.nn.Linear, ops=("Gemm",))
def linear_from_gemm(call: Call, context: LiftContext) -> Lifted | None:
    """`Gemm(x, W, b)` with constant `W`."""
    x, w, *rest = call.inputs
    weight, bias_value = context.weight(w, ndim=2), rest[0] if rest else None
    options = call.attributes
    plain = options.get("alpha", 1.0) == 1.0 and options.get("beta", 1.0) == 1.0 and not options.get("transA", 0)
    if x is None or x.leaf is not None or weight is None or not plain:
        return None
    transposed = bool(options.get("transB", 0))
    return _linear(call, x, weight, transposed, bias_value, [call], context)


@lift(eqx.nn.Linear, ops=("MatMul",))
def linear_from_matmul(call: Call, context: LiftContext) -> Lifted | None:
    """`MatMul(x, W)`, with the `Add` of a constant bias that follows it; also where `W` is transposed first."""
    x, w = call.inputs
    weight, transposed = _maybe_transposed(w, context)
    if x is None or x.leaf is not None or weight is None:
        return None
    add = context.only_reader(call.outputs[0])
    if add is not None and add.op_type == "Add" and not add.attributes:
        (other,) = [value for value in add.inputs if value is not call.outputs[0]] or [None]
        with_bias = _linear(call, x, weight, transposed, other, [call, add], context)
        if other is not None and with_bias is not None:
            return with_bias
    return _linear(call, x, weight, transposed, None, [call], context)


def _maybe_transposed(value: Value | None, context: LiftContext) -> tuple[Leaf | None, bool]:
    producer = value.producer if value is not None else None
    if (
        producer is not None
        and producer.op_type == "Transpose"
        and tuple(producer.attributes.get("perm", (1, 0))) == (1, 0)
    ):
        return context.weight(producer.inputs[0], ndim=2), True
    return context.weight(value, ndim=2), False


def _linear(
    call: Call,
    x: Value,
    weight: Leaf,
    transposed: bool,
    bias_value: Value | None,
    absorbs: list[Call],
    context: LiftContext,
) -> Lifted | None:
    out_features, in_features = weight.shape if transposed else weight.shape[::-1]
    bias = context.weight(bias_value, ndim=1)
    if bias_value is not None and (bias is None or bias.shape != (out_features,)):
        return None
    arguments: dict[str, Any] = {"in_features": in_features, "out_features": out_features}
    weights = {"weight": (weight, "" if transposed else "transpose")}
    if bias is None:
        arguments["use_bias"] = False
    else:
        weights["bias"] = (bias, "")
    _add_dtype(arguments, weight)
    return Lifted(eqx.nn.Linear, arguments, weights, [x], absorbs[-1].outputs, absorbs, core_ndim=1, needs_key=True)


@lift(nn.Conv, ops=("Conv",))
def conv(call: Call, context: LiftContext) -> Lifted | None:
    """`Conv(x, W, b)` with constant `W` and `b`."""
    x, w, *rest = call.inputs
    weight = context.weight(w)
    bias = context.weight(rest[0], ndim=1) if rest else None
    if x is None or x.leaf is not None or weight is None or (rest and rest[0] is not None and bias is None):
        return None
    options, groups = call.attributes, call.attributes.get("group", 1)
    out_channels, in_channels, *kernel = weight.shape
    if len(options.get("pads") or ()) not in (0, 2 * len(kernel)):
        return None
    arguments: dict[str, Any] = {
        "num_spatial_dims": len(kernel),
        "in_channels": in_channels * groups,
        "out_channels": out_channels,
        "kernel_size": _compact(kernel),
    }
    optional = {
        "stride": (_compact(options.get("strides") or (1,) * len(kernel)), 1),
        "padding": (_padding(options, len(kernel)), 0),
        "dilation": (_compact(options.get("dilations") or (1,) * len(kernel)), 1),
        "groups": (groups, 1),
        "use_bias": (bias is not None, True),
    }
    arguments |= {name: value for name, (value, default) in optional.items() if value != default}
    weights = {"weight": (weight, "")} | ({"bias": (bias, "")} if bias is not None else {})
    _add_dtype(arguments, weight)
    return Lifted(nn.Conv, arguments, weights, [x], call.outputs, [call], core_ndim=len(kernel) + 1)


def _padding(options: dict[str, Any], ndim: int) -> Any:
    auto_pad = options.get("auto_pad", "NOTSET")
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        return auto_pad
    pads = tuple(options.get("pads") or (0,) * (2 * ndim)) if auto_pad == "NOTSET" else (0,) * (2 * ndim)
    pairs = tuple(zip(pads[:ndim], pads[ndim:], strict=True))
    return _compact([low for low, _ in pairs]) if all(low == high for low, high in pairs) else pairs


def _compact(sizes: Any) -> int | tuple[int, ...]:
    sizes = tuple(int(size) for size in sizes)
    return sizes[0] if len(set(sizes)) == 1 else sizes


@lift(eqx.nn.Embedding, ops=("Gather",))
def embedding(call: Call, context: LiftContext) -> Lifted | None:
    """`Gather(W, ids)` along the first axis of a constant table."""
    table, ids = call.inputs
    weight = context.weight(table, ndim=2)
    if weight is None or ids is None or ids.kind is Kind.CONST or call.attributes.get("axis", 0) != 0:
        return None
    arguments = {"num_embeddings": weight.shape[0], "embedding_size": weight.shape[1]}
    _add_dtype(arguments, weight)
    return Lifted(
        eqx.nn.Embedding, arguments, {"weight": (weight, "")}, [ids], call.outputs, [call], core_ndim=0, needs_key=True
    )


@lift(eqx.nn.LayerNorm, ops=("LayerNormalization",))
def layer_norm(call: Call, context: LiftContext) -> Lifted | None:
    """`LayerNormalization(x, scale, bias)` over the axes that `scale` has."""
    x, scale, *rest = call.inputs
    weight = context.weight(scale)
    bias = context.weight(rest[0]) if rest else None
    if x is None or weight is None or len(call.outputs) != 1 or (bias is not None and bias.shape != weight.shape):
        return None
    axis = call.attributes.get("axis", -1)
    normalized = -axis if axis < 0 else None if x.shape is None else len(x.shape) - axis
    if normalized != len(weight.shape) or (rest and rest[0] is not None and bias is None):
        return None
    arguments: dict[str, Any] = {"shape": weight.shape[0] if normalized == 1 else weight.shape, "eps": _eps(call)}
    if bias is None:
        arguments["use_bias"] = False
    _add_dtype(arguments, weight)
    weights = {"weight": (weight, "")} | ({"bias": (bias, "")} if bias is not None else {})
    return Lifted(eqx.nn.LayerNorm, arguments, weights, [x], call.outputs, [call], core_ndim=normalized)


@lift(eqx.nn.RMSNorm, ops=("RMSNormalization",))
def rms_norm(call: Call, context: LiftContext) -> Lifted | None:
    """`RMSNormalization(x, scale)` over the last axis."""
    x, scale = call.inputs
    weight = context.weight(scale, ndim=1)
    axis = call.attributes.get("axis", -1)
    if x is None or weight is None or x.shape is None or axis not in (-1, len(x.shape) - 1):
        return None
    arguments: dict[str, Any] = {"shape": weight.shape[0], "eps": _eps(call), "use_bias": False}
    _add_dtype(arguments, weight)
    return Lifted(eqx.nn.RMSNorm, arguments, {"weight": (weight, "")}, [x], call.outputs, [call], core_ndim=1)


@lift(nn.BatchNorm, ops=("BatchNormalization",))
def batch_norm(call: Call, context: LiftContext) -> Lifted | None:
    """`BatchNormalization` in inference mode, with constant scale, bias, mean and variance."""
    x, *tensors = call.inputs
    leaves = [context.weight(value, ndim=1) for value in tensors]
    inference = (
        not call.attributes.get("training_mode", 0)
        and call.attributes.get("is_test", 1)
        and call.attributes.get("spatial", 1)
    )
    if x is None or not inference or len(call.outputs) != 1 or len({id(leaf) for leaf in leaves}) < 4 or None in leaves:
        return None
    weights: dict[str, tuple[Leaf, str]] = dict(
        zip(("weight", "bias", "running_mean", "running_var"), ((leaf, "") for leaf in leaves if leaf), strict=True)
    )
    arguments: dict[str, Any] = {"channels": weights["weight"][0].shape[0], "eps": _eps(call)}
    _add_dtype(arguments, weights["weight"][0])
    return Lifted(nn.BatchNorm, arguments, weights, [x], call.outputs, [call])


def _eps(call: Call) -> float:
    # Exactly the file's float32, not the decimal that was meant: a float64 cast of the model then computes what the file says.
    return float(np.float32(call.attributes.get("epsilon", 1e-5)))


def _add_dtype(arguments: dict[str, Any], weight: Leaf) -> None:
    if weight.dtype != np.float32:
        arguments["dtype"] = weight.dtype


@hookimpl
def onnxeqx_register_layers(registry) -> None:
    registry.add_module(__name__)
