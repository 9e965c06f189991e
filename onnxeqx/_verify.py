"""Verifying: the model against ONNX Runtime, whole or node by node."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import numpy as np
import onnx
import onnx_ir as ir

from ._convert import convert, unlifted
from ._errors import InputError, OnnxeqxError
from ._graph import Graph
from ._interpret import resolve, start, step_through
from ._load import build
from ._read import InputShapes, read

# Sizes for dimensions that a file leaves open; images want more room than tokens.
_BATCH, _SEQUENCE, _SPATIAL = 2, 12, 64


@dataclasses.dataclass(frozen=True)
class Difference:
    """One compared tensor.

    **Fields:**

    - `name`: the graph output, or the node's output; `node`: the node that gives it and its operator, for a node.
    - `largest`: the largest absolute difference; `scale`: the largest magnitude that ONNX Runtime gave.
    - `agrees`: within `atol * max(scale, 1) + rtol * |expected|`, element by element, with equal shapes and NaNs.
    """

    name: str
    node: str
    shape: tuple[int, ...]
    largest: float
    scale: float
    agrees: bool


@dataclasses.dataclass(frozen=True)
class Verification:
    """The result of [`onnxeqx.verify`][]. True if everything agrees.

    **Fields:** `outputs` (one entry per graph output), `nodes` (one per compared node, where asked).
    """

    outputs: tuple[Difference, ...]
    nodes: tuple[Difference, ...] = ()

    def __bool__(self) -> bool:
        return all(entry.agrees for entry in (*self.outputs, *self.nodes))

    @property
    def first(self) -> Difference | None:
        """The first node (else output) that differs."""
        return next((entry for entry in (*self.nodes, *self.outputs) if not entry.agrees), None)


def verify(
    path: str | os.PathLike[str],
    inputs: Mapping[str, Any] | None = None,
    *,
    per_node: bool = False,
    jit: bool = True,
    rtol: float = 1e-3,
    atol: float = 1e-4,
    seed: int = 0,
    sizes: Mapping[str, int] | None = None,
    input_shapes: InputShapes | None = None,
) -> Verification:
    """Compares a model with ONNX Runtime, whose graph optimisations are off, as those change results by themselves.

    **Arguments:**

    - `path`: an `.onnx` file.
    - `inputs`: arrays by input name; by default random ones of the declared shapes.
    - `per_node`: also compare every node's outputs, each computed from ONNX Runtime's inputs of that node, so that the first
      entry that differs is where the error is.
    - `jit`: call the model under `eqx.filter_jit`.
    - `rtol`, `atol`: tolerances; `atol` is relative to the largest magnitude of the expected tensor, where that exceeds 1.
    - `seed`: of the random inputs.
    - `sizes`: sizes for the file's symbolic dimensions, by name.
    - `input_shapes`: as in [`onnxeqx.load`][].

    **Raises:** as [`onnxeqx.load`][]; `OnnxeqxError` if ONNX Runtime is not installed or refuses the model.
    """
    path = pathlib.Path(path)
    model = read(path, input_shapes)
    arrays = dict(inputs) if inputs is not None else random_inputs(model, seed=seed, sizes=sizes)
    source = _with_input_shapes(path, input_shapes) if input_shapes else os.fspath(path)
    expected = _run(session(source), arrays)
    live = build(convert(model, path.name))
    call = eqx.filter_jit(live) if jit else live
    result = call(**arrays)
    results = result if isinstance(result, tuple) else (result,)
    outputs = tuple(
        compare(name, "", np.asarray(got), wanted, rtol, atol)
        for name, got, wanted in zip(live.output_names, results, expected, strict=True)
    )
    nodes = tuple(_compare_nodes(source, unlifted(model), arrays, rtol, atol)) if per_node else ()
    return Verification(outputs, nodes)


def random_inputs(model: ir.Model, *, seed: int = 0, sizes: Mapping[str, int] | None = None) -> dict[str, np.ndarray]:
    """Random inputs of the declared shapes: normal floats; integers 0 and 1, valid as token ids and as masks.

    The first integer of each row is 1: a row that a mask hides entirely is NaN in most models.
    """
    generator = np.random.default_rng(seed)
    known = dict(sizes or {})
    found = {}
    for value in model.graph.inputs:
        if value.name in model.graph.initializers:
            continue
        shape = tuple(_dimension(value, axis, dim, known) for axis, dim in enumerate(value.shape or ()))
        if value.dtype is None:
            raise OnnxeqxError(f"Input {value.name!r} declares no element type; export the model again.")
        dtype = np.dtype(value.dtype.numpy())
        if dtype.kind in "iu":
            integers = generator.integers(0, 2, shape).astype(dtype)
            if integers.ndim and integers.size:
                integers[..., 0] = 1
            found[value.name] = integers
        elif dtype.kind == "b":
            found[value.name] = np.ones(shape, dtype)
        else:
            found[value.name] = generator.standard_normal(shape).astype(dtype)
    return found


def _dimension(value: ir.Value, axis: int, dim: Any, known: dict[str, int]) -> int:
    if isinstance(dim, int) and dim > 0:
        return dim
    name = getattr(dim, "value", None) or f"{value.name}[{axis}]"
    if name not in known:
        known[name] = _BATCH if axis == 0 else _SPATIAL if len(value.shape or ()) == 4 else _SEQUENCE
    return known[name]


def session(source: str | bytes) -> Any:
    """An ONNX Runtime session with graph optimisations disabled.

    **Raises:** `OnnxeqxError` if ONNX Runtime is not installed or refuses the model.
    """
    try:
        import onnxruntime
    except ImportError:
        raise OnnxeqxError("Verifying needs ONNX Runtime; install it with: pip install 'onnxeqx[verify]'.") from None
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions have no common base class
        raise OnnxeqxError(f"ONNX Runtime does not load the model: {error}".splitlines()[0]) from error


def _with_input_shapes(path: pathlib.Path, input_shapes: InputShapes) -> bytes:
    """The file with other declared input shapes, for ONNX Runtime."""
    proto = onnx.load(path)
    for value in proto.graph.input:
        for dim, size in zip(value.type.tensor_type.shape.dim, input_shapes.get(value.name, ()), strict=False):
            dim.Clear()
            if isinstance(size, int):
                dim.dim_value = size
    del proto.graph.value_info[:]
    for output in proto.graph.output:
        output.type.tensor_type.ClearField("shape")
    return proto.SerializeToString()


def run_onnxruntime(path: str | os.PathLike[str], inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The graph outputs that ONNX Runtime gives."""
    return _run(session(os.fspath(path)), inputs)


def _run(running: Any, inputs: Mapping[str, np.ndarray], names: Sequence[str] | None = None) -> list[np.ndarray]:
    wanted = {value.name for value in running.get_inputs()}
    unknown = sorted(set(inputs) - wanted)
    if unknown:
        raise InputError(
            f"The model has no input {unknown[0]!r}; its inputs are {', '.join(map(repr, sorted(wanted)))}."
        )
    try:
        return running.run(names, {name: np.asarray(array) for name, array in inputs.items()})
    except Exception as error:  # ONNX Runtime's exceptions have no common base class
        raise OnnxeqxError(f"ONNX Runtime does not run the model: {error}".splitlines()[0]) from error


def compare(name: str, node: str, got: np.ndarray, wanted: np.ndarray, rtol: float, atol: float) -> Difference:
    """How far `got` is from `wanted`. Arrays of any dtype; integers and booleans must be equal."""
    if got.shape != wanted.shape:
        return Difference(name, node, wanted.shape, float("inf"), 0.0, False)
    if wanted.dtype.kind in "biu":
        differs = got.astype(np.int64) != wanted.astype(np.int64)
        return Difference(name, node, wanted.shape, float(differs.sum()), 1.0, not differs.any())
    got, wanted = got.astype(np.float64), wanted.astype(np.float64)
    finite = np.isfinite(wanted)
    scale = float(np.abs(wanted[finite]).max(initial=0.0))
    with np.errstate(invalid="ignore"):
        difference = np.where(
            finite, np.abs(got - wanted), np.where((got == wanted) | (np.isnan(got) & np.isnan(wanted)), 0.0, np.inf)
        )
    allowed = atol * max(scale, 1.0) + rtol * np.abs(np.where(finite, wanted, 0.0))
    return Difference(
        name, node, wanted.shape, float(difference.max(initial=0.0)), scale, bool((difference <= allowed).all())
    )


def _compare_nodes(
    source: str | bytes, graph: Graph, inputs: Mapping[str, Any], rtol: float, atol: float
) -> list[Difference]:
    expected = _all_outputs(source, graph, inputs)
    values = start(graph, inputs)
    found = []
    for call, results in step_through(graph, values):
        for output, result in zip(call.outputs, results, strict=False):
            if output.name not in expected:
                continue
            wanted = expected[output.name]
            found.append(compare(output.name, f"{call.name} ({call.op_type})", np.asarray(result), wanted, rtol, atol))
            # Later nodes start from ONNX Runtime's value, so that an error is seen where it is made.
            values[output] = wanted if isinstance(result, np.ndarray) else _like(wanted, resolve(output, values))
    return found


def _like(wanted: np.ndarray, result: Any) -> Any:
    import jax.numpy as jnp

    return jnp.asarray(wanted, result.dtype)


def _all_outputs(source: str | bytes, graph: Graph, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Every node's outputs, from ONNX Runtime, by making them outputs of the graph."""
    proto = onnx.load_from_string(source) if isinstance(source, bytes) else onnx.load(source)
    present = {output.name for output in proto.graph.output}
    produced = {name for node in proto.graph.node for name in node.output}
    wanted = [
        value.name
        for call in graph.calls
        for value in call.outputs
        if value.name in produced and value.dtype is not None
    ]
    for name in wanted:
        if name not in present:
            proto.graph.output.add(name=name)
    inferred = onnx.shape_inference.infer_shapes(proto) if proto.ByteSize() < 1 << 30 else proto
    types = {value.name: value.type for value in inferred.graph.value_info}
    for output in proto.graph.output:
        if output.name not in present and output.name in types:
            output.type.tensor_type.elem_type = types[output.name].tensor_type.elem_type
    running = session(proto.SerializeToString())
    return dict(zip(wanted, _run(running, inputs, wanted), strict=True))
