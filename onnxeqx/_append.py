"""Appends a head to a model that has none: a classifier of texts behind an encoder."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import onnx
from jaxtyping import PRNGKeyArray
from onnx import helper, numpy_helper

from ._convert import convert
from ._errors import HeadError
from ._head import declared_inputs
from ._origin import Origin, origin_of, single_arrays
from ._outputs import cut
from ._reprint import on_single_layers, skeleton, title_of, transplanted
from ._save_onnx import resized
from ._stand_ins import with_stand_ins

LOGITS = "logits"


@on_single_layers
def append_head(
    model: Any,
    classes: int,
    *,
    key: PRNGKeyArray,
    output: str | None = None,
    pool: bool = True,
    name: str = "classifier",
) -> Any:
    """The model with a linear layer behind one of its outputs, written into its ONNX graph: for encoders without a head.

    ```python
    model = onnxeqx.append_head(onnxeqx.load("minilm.onnx"), 2, key=jax.random.key(0))
    logits = model(input_ids, attention_mask)  # (batch, 2)
    ```

    **Arguments:**

    - `model`: a model that came from [`onnxeqx.load`][], of one output or several.
    - `classes`: the width of the new layer.
    - `key`: for its initialisation, uniform by the number of its inputs, as Equinox does.
    - `output`: the ONNX name of the output that it reads, of shape `(batch, width)` or `(batch, positions, width)`. By default
      the first that holds floating-point numbers: some exporters list the inputs too.
    - `pool`: average over positions first, those of which an input called `…mask…` says that they are padding aside. Without
      it, each position gets its classes.
    - `name`: key path of the new `eqx.nn.Linear`.

    **Returns:** a model whose only output, `logits`, has shape `(batch, classes)` or `(batch, positions, classes)`. Key paths of
    what it needs of the old one stay; it can be saved like any other, to ONNX too.

    **Raises:** `HeadError` if there is no such output, or it has another shape.
    """
    origin = origin_of(model)
    names = type(model).output_names
    structs = dict(zip(names, jax.tree.leaves(eqx.filter_eval_shape(model, *declared_inputs(model))), strict=True))
    floating = (name for name, struct in structs.items() if jnp.issubdtype(struct.dtype, jnp.floating))
    output = next(floating, str(names[0])) if output is None else output
    if output not in names:
        raise HeadError(f"The model has no output {output!r} to append a head to; it has {', '.join(names)}.")
    shape, dtype = structs[output].shape, structs[output].dtype
    if len(shape) not in (2, 3):
        raise HeadError(
            f"Output {output!r} has shape {shape}; a head takes (batch, width) or (batch, positions, width)."
        )
    layer = eqx.nn.Linear(shape[-1], classes, dtype=dtype, key=key)
    proto = resized(model, origin)
    head = _Head(proto, output, name)
    source = head.pooled() if pool and len(shape) == 3 else output
    logits = head.linear(source, layer, positions=len(shape) == 3 and not pool)
    graph = with_stand_ins(proto, origin.provenance, single_arrays(model))
    cut(graph, [logits])
    printed = convert(graph, title_of(origin), patterns=origin.patterns, dropouts=origin.dropouts)
    return transplanted(model, skeleton(printed, Origin.of(printed)), {name: layer})


class _Head:
    """Writes nodes behind an output of a graph."""

    def __init__(self, proto: onnx.ModelProto, output: str, name: str):
        self.graph, self.output, self.name = proto.graph, output, name
        self.opset = next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
        (self.value,) = [value for value in proto.graph.output if value.name == output]
        self.dtype = self.value.type.tensor_type.elem_type

    def pooled(self) -> str:
        """The mean over positions, of those that a mask among the inputs keeps."""
        mask = next((value.name for value in self.graph.input if "mask" in value.name.lower()), None)
        if mask is None:
            return self._along("ReduceMean", self.output, 1, "mean", takes_axes=18, keepdims=0)
        column = self._along(
            "Unsqueeze", self._node("Cast", [mask], "mask", to=self.dtype), -1, "column", takes_axes=13
        )
        kept = self._node("Mul", [self.output, column], "kept")
        total = self._along("ReduceSum", kept, 1, "sum", takes_axes=13, keepdims=0)
        count = self._along("ReduceSum", column, 1, "count", takes_axes=13, keepdims=0)
        one = self._tensor(np.array(1, helper.tensor_dtype_to_np_dtype(self.dtype)), "one")
        return self._node("Div", [total, self._node("Max", [count, one], "at_least_one")], "mean")

    def linear(self, source: str, layer: eqx.nn.Linear, *, positions: bool) -> str:
        """The layer as the last of the graph, and its output."""
        taken = {name for node in self.graph.node for name in node.output}
        logits = LOGITS if LOGITS not in taken else f"{self.name}/{LOGITS}"
        # Named like the fields of the layer, so that key paths are the same when the file is read again.
        weight, bias = f"{self.name}.weight", f"{self.name}.bias"
        array = np.asarray(layer.weight.T if positions else layer.weight)
        self.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), weight))
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(layer.bias), bias))
        if positions:
            product = self._node("MatMul", [source, weight], "product")
            node = helper.make_node("Add", [product, bias], [logits], name=f"/{self.name}/Add")
        else:
            node = helper.make_node("Gemm", [source, weight, bias], [logits], name=f"/{self.name}/Gemm", transB=1)
        self.graph.node.append(node)
        kept = [dim.dim_param or dim.dim_value for dim in self.value.type.tensor_type.shape.dim[: 1 + positions]]
        self.graph.output.append(
            helper.make_tensor_value_info(logits, self.dtype, [*(dim or None for dim in kept), layer.out_features])
        )
        return logits

    def _node(self, op_type: str, inputs: list[str], result: str, **attributes: Any) -> str:
        path = f"{self.name}/{result}"
        self.graph.node.append(helper.make_node(op_type, inputs, [path], name=f"/{path}/{op_type}", **attributes))
        return path

    def _along(self, op_type: str, source: str, axis: int, result: str, *, takes_axes: int, **attributes: Any) -> str:
        """A node along an axis, which is an input from opset `takes_axes` on, and an attribute before."""
        if self.opset < takes_axes:
            return self._node(op_type, [source], result, axes=[axis], **attributes)
        axes = self._tensor(np.array([axis], np.int64), f"{result}_axis")
        return self._node(op_type, [source, axes], result, **attributes)

    def _tensor(self, array: np.ndarray, name: str) -> str:
        path = f"{self.name}/{name}"
        self.graph.initializer.append(numpy_helper.from_array(array, path))
        return path
