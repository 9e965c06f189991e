"""Running cases: each is a whole model through the whole pipeline, compared at the suite's own tolerances."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.export
import numpy as np
import onnx

from .._convert import unlifted
from .._fold import host_inputs
from .._load import load_model
from .._read import read_proto
from ..backend import to_numpy
from .cases import Case


@dataclasses.dataclass(frozen=True)
class Mode:
    """How a case is run.

    **Fields:**

    - `jit`: the whole model in one `jax.jit`, every input traced that may be.
    - `x64`: with `jax_enable_x64`.
    - `platform`: if given, the model under `jit` is not run but lowered for this platform (`"tpu"`), as `jax.export` does.
    """

    jit: bool = False
    x64: bool = False
    platform: str = ""

    def __str__(self) -> str:
        return f"{self.how}{64 if self.x64 else 32}"

    @property
    def how(self) -> str:
        """`eager`, `jit`, or the platform."""
        return self.platform or ("jit" if self.jit else "eager")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of a case.

    **Fields:** `case`, `mode`; `problem` is empty if it passed, else one line; `static` are the inputs that were not traced
    under `jit`, as an operator needs their values while tracing; `operators` are those of the model; `seconds` it took.
    """

    case: str
    mode: str
    problem: str
    static: tuple[str, ...]
    operators: tuple[str, ...]
    seconds: float

    @property
    def passed(self) -> bool:
        return not self.problem


def run_case(case: Case, mode: Mode) -> Outcome:
    """Runs one case; whatever goes wrong is its problem."""
    start = time.perf_counter()
    static: tuple[str, ...] = ()
    operators: tuple[str, ...] = ()
    problem = ""
    try:
        model, data_sets = case.load()
        operators = tuple(sorted({f"{node.domain}::{node.op_type}".removeprefix("::") for node in model.graph.node}))
        # Four cases hold doubles beyond float32, infinite on both sides without 64 bits.
        with jax.enable_x64(mode.x64), jax.numpy_dtype_promotion("strict"), np.errstate(over="ignore"):
            static = _run(model, data_sets, mode, case)
    except Exception as error:  # noqa: BLE001  any failure is the outcome
        problem = f"{type(error).__name__}: {error}".replace("\n", " ").strip()[:400]
    return Outcome(case.name, str(mode), problem, static, operators, time.perf_counter() - start)


def _run(
    model: onnx.ModelProto, data_sets: list[tuple[list[Any], list[Any]]], mode: Mode, case: Case
) -> tuple[str, ...]:
    live = load_model(model)
    static = host_inputs(unlifted(read_proto(model))) if mode.how != "eager" else ()
    for inputs, expected in data_sets:
        given = dict(zip(live.input_names, inputs, strict=False)) | dict.fromkeys(live.input_names[len(inputs) :])
        if mode.platform:
            function, traced = _traceable(live, given, static)
            jax.export.export(jax.jit(function), platforms=[mode.platform])(traced)
            continue
        if mode.jit:
            function, traced = _traceable(live, given, static)
            results = jax.jit(function)(traced)
        else:
            results = live(**given)
        results = results if isinstance(results, tuple) else (results,)
        for name, result, wanted in zip(live.output_names, results, expected, strict=True):
            compare(name, to_numpy(result), wanted, case)
    return static


def _traceable(
    live: Any, given: dict[str, Any], static: tuple[str, ...]
) -> tuple[Callable[[dict[str, Any]], Any], dict[str, Any]]:
    """The model as a function of the inputs that may be traced, and those."""
    known = {name: value for name, value in given.items() if name in static or value is None}
    traced = {name: value for name, value in given.items() if name not in known}
    return lambda traced: live(**traced, **known), traced


def compare(name: str, result: Any, expected: Any, case: Case) -> None:
    """As `onnx.backend.test.runner.Runner.assert_similar_outputs`; without 64 bits, JAX's dtypes count as ONNX's.

    **Raises:** `AssertionError`.
    """
    if isinstance(expected, list | tuple):
        assert isinstance(result, list | tuple), f"{name} is no sequence"
        assert len(result) == len(expected), f"{name} has {len(result)} elements, not {len(expected)}"
        for position, (item, wanted) in enumerate(zip(result, expected, strict=True)):
            compare(f"{name}[{position}]", item, wanted, case)
        return
    if expected is None or isinstance(expected, dict):
        assert result == expected, f"{name} is {result!r}, not {expected!r}"
        return
    assert isinstance(result, np.ndarray), f"{name} is a {type(result).__name__}"
    assert result.shape == expected.shape, f"{name} has shape {result.shape}, not {expected.shape}"
    if expected.dtype.kind in "USO":
        np.testing.assert_array_equal(result.astype(object), expected.astype(object))
        return
    wanted = {expected.dtype, jax.dtypes.canonicalize_dtype(expected.dtype)}
    assert result.dtype in wanted, f"{name} is {result.dtype}, not {expected.dtype}"
    rtol = max(case.rtol, 2**-6) if expected.dtype.name == "bfloat16" else case.rtol
    if expected.dtype.kind == "V":
        result, expected = result.astype(np.float32), expected.astype(np.float32)
    np.testing.assert_allclose(result, expected.astype(result.dtype), rtol=rtol, atol=case.atol)
