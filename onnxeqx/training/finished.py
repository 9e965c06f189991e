"""Runs that are there already: their model, evaluated or written in another form."""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import onnx

import onnxeqx

from .._errors import ConversionError, OnnxeqxError
from .._head import declared_inputs
from .._origin import origin_of
from .._weights import whole_path, write_whole
from .config import TrainConfig
from .errors import CheckpointError, ConfigError
from .folder import CONFIG, FOLDER, PREPROCESSING
from .loop import epoch_means
from .prepare import Prepared, prepare
from .run import checkpoints_of, new_state, optimizer_of
from .state import zero_totals
from .step import make_eval_step

TOLERANCE = 1e-4
"""By how much an exported model may differ, relative to the largest output."""


class Restored(NamedTuple):
    """A run and the model of its best epoch, of plain layers."""

    prepared: Prepared
    model: Any


def restore_run(folder: pathlib.Path, **changes: Any) -> Restored:
    """Opens a run again, finished or not, from its configuration and its checkpoints.

    **Arguments:**

    - `folder`: of the run.
    - `changes`: options that differ now, such as `data`.

    **Raises:** `ConfigError` if it is no run; `CheckpointError` if it has no checkpoint yet.
    """
    config = TrainConfig.read(folder / CONFIG)
    values = {name: getattr(config, name) for name in TrainConfig.__dataclass_fields__} | changes
    prepared = prepare(TrainConfig(**values))
    _, optimizer = optimizer_of(prepared)
    with checkpoints_of(prepared, folder) as checkpoints:
        if not checkpoints.steps("best"):
            raise CheckpointError(f"{folder} has no checkpoint yet: train for an epoch first (onnxeqx train --resume).")
        state = checkpoints.restore(new_state(prepared, optimizer), "best")
    return Restored(prepared, prepared.finished(state.evaluated))


def evaluate_run(folder: pathlib.Path, **changes: Any) -> dict[str, float]:
    """Loss and metrics of a run's best model on the validation part.

    **Arguments:** as of `restore_run`.
    """
    prepared, model = restore_run(folder, **changes)
    eval_step = make_eval_step(
        prepared.validation_loss, prepared.metrics, forward=prepared.forward, compute_dtype=prepared.compute_dtype
    )
    totals = zero_totals(prepared.metrics)
    for batch in prepared.data.validation_batches():
        totals = eval_step(model, totals, batch)
    return {"examples": int(totals["examples"])} | epoch_means(totals, "")


def best_model(folder: pathlib.Path) -> Any:
    """The model of a run's best epoch: as it was left, or, of a run that is not finished, from its checkpoints."""
    if (folder / FOLDER).is_dir():
        return onnxeqx.load(folder / FOLDER)
    return restore_run(folder).model


def export_run(folder: pathlib.Path, to: str, path: pathlib.Path, *, force: bool = False) -> float:
    """Writes a run's best model in another form, and compares it with the model before it is called done.

    **Arguments:**

    - `folder`: of the run.
    - `to`: `onnx`; `folder`, a converted folder; or `stablehlo`, what `jax.export.deserialize` reads.
    - `path`: the file or folder to write.
    - `force`: overwrite it.

    **Returns:** the largest difference from the model, relative to its largest output.

    **Raises:** `OnnxeqxError` if it differs by more than 1e-4, and nothing is written then.
    """
    if to not in _FORMATS:
        raise ConfigError(f"--to is {to}, but must be one of {', '.join(_FORMATS)}.")
    model = best_model(folder)
    structs = declared_inputs(model)
    inputs = [np.asarray(array) for array in _drawn(structs)]
    expected = [np.asarray(array) for array in jax.tree.leaves(eqx.filter_jit(model)(*map(jnp.asarray, inputs)))]
    description = _description(folder)
    with whole_path(path, force=force) as scratch:
        found = _FORMATS[to](model, scratch, inputs, description)
        scale = max(float(np.abs(array).max(initial=0)) for array in expected) or 1.0
        difference = max(float(np.abs(a - b).max(initial=0)) for a, b in zip(found, expected, strict=True)) / scale
        if not difference <= TOLERANCE:
            raise OnnxeqxError(
                f"The exported model differs from the trained one by {difference:.1e} of its largest output, and not by at most "
                f"{TOLERANCE:.0e}; nothing was written."
            )
    return difference


def _description(folder: pathlib.Path) -> Mapping[str, str]:
    path = folder / PREPROCESSING
    return {"onnxeqx.preprocessing": path.read_text(encoding="utf-8").rstrip("\n")} if path.exists() else {}


def _drawn(structs: Any) -> list[np.ndarray]:
    """Inputs by chance: numbers around zero, or the first few integers, which are tokens or flags."""
    random = np.random.default_rng(0)
    return [
        random.normal(size=struct.shape).astype(struct.dtype)
        if jnp.issubdtype(struct.dtype, jnp.floating)
        else random.integers(0, 2, struct.shape).astype(struct.dtype)
        for struct in structs
    ]


def _to_onnx(
    model: Any, path: pathlib.Path, inputs: list[np.ndarray], description: Mapping[str, str]
) -> list[np.ndarray]:
    onnxeqx.save_onnx(model, path, metadata=description)
    try:
        import onnxruntime
    except ImportError:
        raise ConfigError(
            "Exporting compares with ONNX Runtime, which is not installed: pip install 'onnxeqx[verify]'."
        ) from None
    session = onnxruntime.InferenceSession(path.read_bytes())
    given = {
        value.name: array.astype(onnx.helper.tensor_dtype_to_np_dtype(_element_type(model, value.name)))
        for value, array in zip(session.get_inputs(), inputs, strict=True)
    }
    return [np.asarray(array) for array in session.run(None, given)]


def _element_type(model: Any, name: str) -> int:
    graph = onnx.ModelProto.FromString(origin_of(model).graph).graph
    return next(value.type.tensor_type.elem_type for value in graph.input if value.name == name)


def _to_folder(
    model: Any, path: pathlib.Path, inputs: list[np.ndarray], description: Mapping[str, str]
) -> list[np.ndarray]:
    onnxeqx.save(model, path, force=True)
    if description:
        write_whole(path / PREPROCESSING, next(iter(description.values())) + "\n")
    again = onnxeqx.load(path)
    return [np.asarray(array) for array in jax.tree.leaves(eqx.filter_jit(again)(*map(jnp.asarray, inputs)))]


def _to_stablehlo(
    model: Any, path: pathlib.Path, inputs: list[np.ndarray], description: Mapping[str, str]
) -> list[np.ndarray]:
    del description
    graph = onnx.ModelProto.FromString(origin_of(model).graph).graph
    declared = {value.name: value.type.tensor_type.shape.dim for value in graph.input}
    shapes = [
        ", ".join(
            str(dim.dim_value or f"d{_dimension_name(dim, name, axis)}") for axis, dim in enumerate(declared[name])
        )
        for name in type(model).input_names
    ]
    structs = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in inputs]
    function = jax.jit(lambda *given: model(*given))
    try:
        symbolic = jax.export.symbolic_args_specs(structs, shapes)
        exported = jax.export.export(function)(*symbolic)
    except (ValueError, TypeError, NotImplementedError, jax.errors.JAXTypeError) as error:
        raise ConversionError(
            f"The model cannot be exported with free dimensions ({'; '.join(shapes)}): {str(error).splitlines()[0]}"
        ) from error
    path.write_bytes(exported.serialize())
    again = jax.export.deserialize(bytearray(path.read_bytes()))
    return [np.asarray(array) for array in jax.tree.leaves(again.call(*inputs))]


def _dimension_name(dim: Any, name: str, axis: int) -> str:
    """An identifier: dimensions of one name are equal."""
    text = dim.dim_param or f"{name}_{axis}"
    return "".join(letter if letter.isalnum() and letter.isascii() else "_" for letter in text)


_FORMATS = {"onnx": _to_onnx, "folder": _to_folder, "stablehlo": _to_stablehlo}
