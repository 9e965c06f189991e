"""Loading and converting: from an ONNX file, or a converted folder, to a live Equinox model."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import onnx

from ._convert import Printed, Provenance, check_remat, convert as run_pipeline
from ._errors import ReadError
from ._insert import Dropout
from ._module import import_source
from ._names import NAMING_VERSION
from ._origin import Origin, origin_of, set_origin, single_arrays
from ._patterns import Patterns
from ._read import InputShapes, read, read_proto
from ._reprint import cut_to, printed_with_heads, skeleton, stack
from ._weights import bind, dump_json, read_weights, save_weights, whole_path

SOURCE, WEIGHTS, GRAPH = "model.py", "weights.safetensors", "graph.onnx"


def load(
    path: str | os.PathLike[str],
    *,
    input_shapes: InputShapes | None = None,
    outputs: Sequence[str] | None = None,
    patterns: Patterns = True,
    scan_layers: bool = False,
    remat: bool = False,
) -> Any:
    """An ONNX file, or a folder written by [`onnxeqx.convert`][], as an Equinox model.

    ```python
    model = onnxeqx.load("resnet50.onnx")
    logits = eqx.filter_jit(model)(images)
    ```

    **Arguments:**

    - `path`: an `.onnx` file or a converted folder, whose `model.py` may have been edited.
    - `input_shapes`: shapes that replace the declared ones of an ONNX file, by input name; a string or `None` frees a
      dimension: `{"input": ("batch", 3, 128, 128)}`.
    - `outputs`: what to return instead of the file's outputs: key paths of layers or blocks (`"layer4.1"`), or ONNX names of
      values. What they do not need is not loaded.
    - `patterns`: whether groups of operators that are one idea (a GELU, an attention) become one call, or the names of the
      patterns for which they do. `False` computes each operator as the file has it.
    - `scan_layers`: whether equal layers in a row become one block, its leaves with a leading axis of layers, under
      `jax.lax.scan`; see [`onnxeqx.stack`][].
    - `remat`: with `scan_layers`, whether the inside of each layer is computed again in the backward pass, to save memory.

    **Returns:** an `eqx.Module`. Call it on the batch, with inputs in graph order or by their ONNX names; one output is an
    array, several are a tuple. `model.input_names` and `model.output_names` are the names in the file.

    **Raises:** `ReadError`, `UnsupportedOpsError`, `ConversionError`, `WeightsError`.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        if input_shapes or outputs:
            option = "input_shapes" if input_shapes else "outputs"
            raise ReadError(f"{str(path)!r} is a converted folder; give {option} when converting the ONNX file.")
        check_remat(remat, scan_layers=scan_layers)
        model = _load_folder(path)
        return stack(model, remat=remat) if scan_layers else model
    graph = cut_to(lambda: read(path, input_shapes), outputs)
    return build(run_pipeline(graph, path.name, patterns=patterns, scan_layers=scan_layers, remat=remat))


def load_model(
    model: onnx.ModelProto,
    *,
    input_shapes: InputShapes | None = None,
    outputs: Sequence[str] | None = None,
    patterns: Patterns = True,
    scan_layers: bool = False,
    remat: bool = False,
) -> Any:
    """As [`onnxeqx.load`][], from an `onnx.ModelProto` in memory, which is not changed."""
    graph = cut_to(lambda: read_proto(model, input_shapes=input_shapes), outputs)
    return build(run_pipeline(graph, "model", patterns=patterns, scan_layers=scan_layers, remat=remat))


def build(printed: Printed) -> Any:
    """The live model of a converted graph: its source imported, its weights bound."""
    return bind(skeleton(printed, Origin.of(printed)), printed.weights(), "the ONNX file", adopt_dtypes=True)


def convert(
    path: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    force: bool = False,
    input_shapes: InputShapes | None = None,
    outputs: Sequence[str] | None = None,
    patterns: Patterns = True,
    scan_layers: bool = False,
    remat: bool = False,
) -> None:
    """Writes a converted folder: `model.py`, `weights.safetensors` and `graph.onnx`.

    `model.py` is the source of the model, to read and to edit; `weights.safetensors` holds its leaves by key path, and where
    each came from; `graph.onnx` is the ONNX graph without weights, for [`onnxeqx.save_onnx`][].

    **Arguments:**

    - `path`: an `.onnx` file.
    - `folder`: written whole or not at all.
    - `force`: replace a folder that is there.
    - `input_shapes`, `outputs`, `patterns`, `scan_layers`, `remat`: as in [`onnxeqx.load`][].

    **Raises:** as [`onnxeqx.load`][], and `OutputExistsError`.
    """
    path = pathlib.Path(path)
    with whole_path(folder, force=force) as scratch:
        graph = cut_to(lambda: read(path, input_shapes), outputs)
        printed = run_pipeline(graph, path.name, patterns=patterns, scan_layers=scan_layers, remat=remat)
        _write_folder(scratch, build(printed), Origin.of(printed))


def save(model: Any, folder: str | os.PathLike[str], *, force: bool = False) -> None:
    """Writes a live model as a converted folder, with its present weights.

    **Arguments:**

    - `model`: a model that came from [`onnxeqx.load`][]. A replaced head of another width is written into `model.py`.
    - `folder`, `force`: as in [`onnxeqx.convert`][].
    """
    origin = origin_of(model)
    if any(
        array.shape != origin.provenance[path].shape
        for path, array in single_arrays(model).items()
        if path in origin.provenance
    ):
        # A head of another width: print the model anew, from the graph with that head.
        origin = Origin.of(printed_with_heads(model))
    with whole_path(folder, force=force) as scratch:
        _write_folder(scratch, model, origin)


def _write_folder(folder: pathlib.Path, model: Any, origin: Origin) -> None:
    folder.mkdir()
    (folder / SOURCE).write_text(origin.source)
    (folder / GRAPH).write_bytes(origin.graph)
    # One entry: safetensors writes several in random order, and equal files must be equal bytes.
    provenance = {path: dataclasses.asdict(entry) for path, entry in origin.provenance.items()}
    dropouts = [dataclasses.asdict(entry) for entry in origin.dropouts]
    entries = {
        "naming": NAMING_VERSION,
        "provenance": provenance,
        "patterns": origin.patterns,
        "dropouts": dropouts,
        "printed": origin.printed,
        "stacks": origin.stacks,
        "remat": origin.remat,
    }
    save_weights(model, folder / WEIGHTS, metadata={"onnxeqx": dump_json(entries)})


def _load_folder(folder: pathlib.Path) -> Any:
    missing = [name for name in (SOURCE, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise ReadError(
            f"Folder {str(folder)!r} has no {missing[0]}; give an .onnx file, or a folder written by onnxeqx.convert."
        )
    weights, metadata = read_weights(folder / WEIGHTS)
    module = import_source((folder / SOURCE).read_text(), str(folder / SOURCE))
    if (folder / GRAPH).is_file():
        entries = json.loads(metadata.get("onnxeqx", "{}"))
        provenance = {path: Provenance.from_json(entry) for path, entry in entries.get("provenance", {}).items()}
        dropouts = tuple(Dropout(**entry) for entry in entries.get("dropouts", ()))
        graph, source = (folder / GRAPH).read_bytes(), (folder / SOURCE).read_text()
        patterns = entries.get("patterns", True)
        stacks = {path: tuple(layers) for path, layers in entries.get("stacks", {}).items()}
        printed, remat = entries.get("printed"), entries.get("remat", False)
        set_origin(module, Origin(graph, provenance, source, patterns, dropouts, printed, stacks, remat))
    return bind(eqx.filter_eval_shape(module.Model), weights, f"{str(folder / WEIGHTS)!r}", adopt_dtypes=True)
