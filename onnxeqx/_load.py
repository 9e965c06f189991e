"""Loading and converting: from an ONNX file, or a converted folder, to a live Equinox model."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax.tree_util as jtu
import onnx
import onnx_ir as ir

from ._convert import Printed, Provenance, convert as run_pipeline
from ._errors import ConversionError, ReadError
from ._insert import Dropout
from ._module import import_source
from ._names import NAMING_VERSION
from ._origin import Origin, origin_of, set_origin
from ._outputs import cut, value_names
from ._patterns import Patterns
from ._read import InputShapes, read, read_proto
from ._save_onnx import resized
from ._stand_ins import with_stand_ins
from ._weights import arrays, bind, dotted_path, dump_json, read_weights, save_weights, whole_path
from .plugins.manager import host

SOURCE, WEIGHTS, GRAPH = "model.py", "weights.safetensors", "graph.onnx"


def load(
    path: str | os.PathLike[str],
    *,
    input_shapes: InputShapes | None = None,
    outputs: Sequence[str] | None = None,
    patterns: Patterns = True,
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

    **Returns:** an `eqx.Module`. Call it on the batch, with inputs in graph order or by their ONNX names; one output is an
    array, several are a tuple. `model.input_names` and `model.output_names` are the names in the file.

    **Raises:** `ReadError`, `UnsupportedOpsError`, `ConversionError`, `WeightsError`.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        if input_shapes or outputs:
            option = "input_shapes" if input_shapes else "outputs"
            raise ReadError(f"{str(path)!r} is a converted folder; give {option} when converting the ONNX file.")
        return _load_folder(path)
    return build(_printed(lambda: read(path, input_shapes), path.name, outputs, patterns=patterns))


def load_model(
    model: onnx.ModelProto,
    *,
    input_shapes: InputShapes | None = None,
    outputs: Sequence[str] | None = None,
    patterns: Patterns = True,
) -> Any:
    """As [`onnxeqx.load`][], from an `onnx.ModelProto` in memory, which is not changed."""
    return build(_printed(lambda: read_proto(model, input_shapes=input_shapes), "model", outputs, patterns=patterns))


def truncate(model: Any, at: str | Sequence[str]) -> Any:
    """The part of a model up to a layer or block: it returns what that returns. For features, and for style transfer.

    ```python
    features = onnxeqx.truncate(model, at="layer4")
    ```

    **Arguments:**

    - `model`: a model that came from [`onnxeqx.load`][]. Its present weights are kept.
    - `at`: key paths of layers or blocks, or ONNX names of values; several make a tuple.

    **Returns:** a model whose key paths are those of `model`, as far as they are needed. It can be saved like any other.

    **Raises:** `ConversionError` if there is nothing of that name.
    """
    origin = origin_of(model)
    outputs = [at] if isinstance(at, str) else list(at)
    printed = _printed_again(model, origin, outputs)
    return transplanted(model, skeleton(printed, Origin.of(printed)))


def _printed_again(model: Any, origin: Origin, outputs: Sequence[str] | None = None) -> Printed:
    """The graph of a model, its heads of their present widths, printed as the first time, but for other outputs."""
    proto, leaves = resized(model, origin), arrays(model)
    return _printed(
        lambda: with_stand_ins(proto, origin.provenance, leaves),
        title_of(origin),
        outputs,
        patterns=origin.patterns,
        dropouts=origin.dropouts,
    )


def _printed(
    reading: Callable[[], ir.Model],
    title: str,
    outputs: Sequence[str] | None = None,
    *,
    patterns: Patterns = True,
    dropouts: tuple[Dropout, ...] = (),
) -> Printed:
    """The converted model, with other outputs if some are given. `reading` gives the model anew each time."""
    model = reading()
    if outputs:
        cut(model, value_names(reading(), outputs, host()))
    return run_pipeline(model, title, patterns=patterns, dropouts=dropouts)


def title_of(origin: Origin) -> str:
    """The title of a printed file, from its first line."""
    return origin.source.split(",", 1)[0].strip('"')


def build(printed: Printed) -> Any:
    """The live model of a converted graph: its source imported, its weights bound."""
    return bind(skeleton(printed, Origin.of(printed)), printed.weights(), "the ONNX file", adopt_dtypes=True)


def skeleton(printed: Printed, origin: Origin) -> Any:
    """The model of a converted graph without its weights: its source imported, its leaves shapes."""
    module = import_source(printed.source)
    set_origin(module, origin)
    return eqx.filter_eval_shape(module.Model)


def transplanted(model: Any, printed: Any) -> Any:
    """The classes of a printed model around the layers and leaves that `model` has at its key paths, whatever they are by now.

    **Raises:** `ConversionError` if `model` does not have them all.
    """
    kept, _ = _flatten(model)
    wanted, structure = _flatten(printed)
    missing = next((path for path in wanted if path not in kept), None)
    if missing is not None:
        raise ConversionError(
            f"The model has other blocks than its ONNX graph is printed with (no {missing}): one was replaced, or another "
            "version of onnxeqx converted it; do this before replacing blocks, or convert the file again."
        )
    return jtu.tree_unflatten(structure, [kept[path] for path in wanted])


def _flatten(model: Any) -> tuple[dict[str, Any], Any]:
    """What stands in the fields of printed classes, by key path, and the classes around."""

    def is_kept(node: Any) -> bool:
        return not isinstance(node, tuple) and type(node).__module__ != type(model).__module__

    found, structure = jtu.tree_flatten_with_path(model, is_leaf=is_kept)
    return {dotted_path(path): node for path, node in found}, structure


def convert(
    path: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    force: bool = False,
    input_shapes: InputShapes | None = None,
    outputs: Sequence[str] | None = None,
    patterns: Patterns = True,
) -> None:
    """Writes a converted folder: `model.py`, `weights.safetensors` and `graph.onnx`.

    `model.py` is the source of the model, to read and to edit; `weights.safetensors` holds its leaves by key path, and where
    each came from; `graph.onnx` is the ONNX graph without weights, for [`onnxeqx.save_onnx`][].

    **Arguments:**

    - `path`: an `.onnx` file.
    - `folder`: written whole or not at all.
    - `force`: replace a folder that is there.
    - `input_shapes`, `outputs`, `patterns`: as in [`onnxeqx.load`][].

    **Raises:** as [`onnxeqx.load`][], and `OutputExistsError`.
    """
    path = pathlib.Path(path)
    with whole_path(folder, force=force) as scratch:
        printed = _printed(lambda: read(path, input_shapes), path.name, outputs, patterns=patterns)
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
        for path, array in arrays(model).items()
        if path in origin.provenance
    ):
        # A head of another width: print the model anew, from the graph with that head.
        origin = Origin.of(_printed_again(model, origin))
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
        set_origin(module, Origin(graph, provenance, source, patterns, dropouts, entries.get("printed")))
    return bind(eqx.filter_eval_shape(module.Model), weights, f"{str(folder / WEIGHTS)!r}", adopt_dtypes=True)
