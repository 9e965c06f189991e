"""The model of a run in another form, compared with it before it is called done."""

import pathlib
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import onnx

import onnxeqx

from .._errors import ConversionError, OnnxeqxError, OutputExistsError
from .._head import declared_inputs
from .._load import SOURCE
from .._origin import origin_of
from .._weights import whole_path, write_whole
from ..nn import Buffer
from .errors import ConfigError
from .finished import best_model
from .folder import PREPROCESSING

TOLERANCE = 1e-4
"""By how much an exported model may differ, relative to the largest output."""


def export_run(folder: pathlib.Path, to: str, path: pathlib.Path, *, force: bool = False) -> float:
    """Writes a run's best model in another form, and compares it with the model before it is called done.

    **Arguments:**

    - `folder`: of the run.
    - `to`: `onnx`; `folder`, a converted folder; or `stablehlo`, what `jax.export.deserialize` reads. ONNX is the original graph
      with the trained weights; where `model/model.py` was edited so that this is another function, the model is traced anew,
      through jax2onnx (`onnxeqx[export]`).
    - `path`: the file or folder to write.
    - `force`: overwrite it.

    **Returns:** the largest difference from the model, relative to its largest output.

    **Raises:** `OnnxeqxError` if it differs by more than 1e-4, and nothing is written then.
    """
    if to not in _FORMATS:
        raise ConfigError(f"--to is {to}, but must be one of {', '.join(_FORMATS)}.")
    _check_target(path, to)
    model = best_model(folder)
    structs = declared_inputs(model)
    inputs = [np.asarray(array) for array in _drawn(structs)]
    expected = [np.asarray(array) for array in jax.tree.leaves(eqx.filter_jit(model)(*map(jnp.asarray, inputs)))]
    description = _description(folder)
    reasons = []
    for write in _FORMATS[to]:
        try:
            with whole_path(path, force=force) as scratch:
                return _compared(write(model, scratch, inputs, description), expected)
        except (ConfigError, OutputExistsError):
            raise
        except OnnxeqxError as error:
            reasons.append(str(error))
    raise OnnxeqxError(f"Nothing was written. {' '.join(reasons)}")


def _check_target(path: pathlib.Path, to: str) -> None:
    """`force` must not cost a folder that holds something else."""
    if not path.name:
        raise ConfigError(f"--output {path} names no file or folder to write; give it a name.")
    if to != "folder" and path.is_dir():
        raise ConfigError(f"--output {path} is a folder, but --to {to} writes a file; give a name within it.")
    if to == "folder" and path.exists():
        if not path.is_dir():
            raise ConfigError(f"--output {path} is a file, but --to folder writes a folder; choose another name.")
        if any(path.iterdir()) and not (path / SOURCE).is_file():
            raise ConfigError(f"--output {path} is no converted folder, and is not overwritten; choose another name.")


def _compared(found: list[np.ndarray], expected: list[np.ndarray]) -> float:
    """**Raises:** `OnnxeqxError` if the outputs are not those of the trained model."""
    scale = max(float(np.abs(array).max(initial=0)) for array in expected) or 1.0
    difference = max(float(np.abs(a - b).max(initial=0)) for a, b in zip(found, expected, strict=True)) / scale
    if not difference <= TOLERANCE:
        raise OnnxeqxError(
            f"The exported model differs from the trained one by {difference:.1e} of its largest output, and not by at most "
            f"{TOLERANCE:.0e}."
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
    return _served(model, path, inputs)


def _to_traced_onnx(
    model: Any, path: pathlib.Path, inputs: list[np.ndarray], description: Mapping[str, str]
) -> list[np.ndarray]:
    """A new graph, from what JAX traces."""
    try:
        import jax2onnx  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ConversionError(
            "The model is no longer that of its ONNX file: to trace it anew, pip install 'onnxeqx[export]'."
        ) from None
    plain: Any = jax.tree.map(_plain, model, is_leaf=_is_buffer)
    specs = _with_free_dimensions(model, inputs)
    names = type(model).input_names
    try:
        proto: Any = jax2onnx.to_onnx(lambda *given: plain(*given), inputs=list(specs), input_names=list(names))
    except Exception as error:  # whatever a tracer of another library meets
        raise ConversionError(f"jax2onnx cannot trace the model: {str(error).splitlines()[0]}") from error
    onnx.helper.set_model_props(proto, dict(description))
    path.write_bytes(proto.SerializeToString())
    return _served(model, path, inputs)


class _Values(eqx.Module):
    """What a `Buffer` looks like to a layer, without its bits, which older opsets cannot cast."""

    value: jax.Array

    def astype(self, dtype: Any) -> jax.Array:
        return self.value.astype(dtype)


def _is_buffer(node: Any) -> bool:
    return isinstance(node, Buffer)


def _plain(node: Any) -> Any:
    return _Values(node.value) if _is_buffer(node) else node


def _served(model: Any, path: pathlib.Path, inputs: list[np.ndarray]) -> list[np.ndarray]:
    """What ONNX Runtime computes."""
    try:
        import onnxruntime
    except ImportError:
        raise ConfigError(
            "Exporting compares with ONNX Runtime, which is not installed: pip install 'onnxeqx[verify]'."
        ) from None
    try:
        session = onnxruntime.InferenceSession(path)
    except Exception as error:  # its classes have no base but this
        raise ConversionError(f"ONNX Runtime cannot load the exported model: {str(error).splitlines()[0]}") from error
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
    function = jax.jit(lambda *given: model(*given))
    try:
        exported = jax.export.export(function)(*_with_free_dimensions(model, inputs))
    except (ValueError, TypeError, NotImplementedError, jax.errors.JAXTypeError) as error:
        raise ConversionError(
            f"The model cannot be exported with free dimensions: {str(error).splitlines()[0]}"
        ) from error
    path.write_bytes(exported.serialize())
    again = jax.export.deserialize(bytearray(path.read_bytes()))
    return [np.asarray(array) for array in jax.tree.leaves(again.call(*inputs))]


def _with_free_dimensions(model: Any, inputs: list[np.ndarray]) -> Any:
    """Shapes and dtypes of the inputs, with symbols for the dimensions that the graph leaves open."""
    graph = onnx.ModelProto.FromString(origin_of(model).graph).graph
    declared = {value.name: value.type.tensor_type.shape.dim for value in graph.input}
    shapes = [
        ", ".join(
            str(dim.dim_value or f"d{_dimension_name(dim, name, axis)}") for axis, dim in enumerate(declared[name])
        )
        for name in type(model).input_names
    ]
    structs = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in inputs]
    return jax.export.symbolic_args_specs(structs, shapes)


def _dimension_name(dim: Any, name: str, axis: int) -> str:
    """An identifier: dimensions of one name are equal."""
    text = dim.dim_param or f"{name}_{axis}"
    return "".join(letter if letter.isalnum() and letter.isascii() else "_" for letter in text)


# Of several ways, the first whose result is the model's.
_FORMATS = {"onnx": (_to_onnx, _to_traced_onnx), "folder": (_to_folder,), "stablehlo": (_to_stablehlo,)}
