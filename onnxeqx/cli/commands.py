"""`onnxeqx convert`, `verify`, `ops` and `plugins`."""

import pathlib
import time
from typing import Annotated

import rich.markup
import rich.table
import typer

from .._errors import OnnxeqxError
from .console import Debug, output, reports_errors
from .options import InputShape, ModelFile, parse_input_shapes


@reports_errors
def convert(
    model: ModelFile,
    folder: Annotated[pathlib.Path, typer.Argument(help="The folder to write.", show_default=False)],
    force: Annotated[bool, typer.Option("--force", help="Replace a folder that is there.")] = False,
    patterns: Annotated[
        bool, typer.Option("--patterns/--no-patterns", help="Print groups of operators that are one idea as one call.")
    ] = True,
    scan_layers: Annotated[
        bool,
        typer.Option(
            "--scan-layers", help="Stack equal layers in a row, so that compile time does not grow with their number."
        ),
    ] = False,
    remat: Annotated[
        bool,
        typer.Option("--remat", help="With --scan-layers: compute layers again in the backward pass, to save memory."),
    ] = False,
    input_shape: InputShape = None,
    debug: Debug = False,
) -> None:
    """Convert a model to readable Equinox source and named weights.

    Writes FOLDER/model.py (to read and to edit), FOLDER/weights.safetensors and FOLDER/graph.onnx (the graph without
    weights, for the way back to ONNX). In Python: onnxeqx.load(FOLDER).

    For example: onnxeqx convert resnet50.onnx resnet50/
    """
    from .._load import SOURCE, convert as convert_model

    start = time.perf_counter()
    convert_model(
        model,
        folder,
        force=force,
        input_shapes=parse_input_shapes(input_shape),
        patterns=patterns,
        scan_layers=scan_layers,
        remat=remat,
    )
    lines = len((folder / SOURCE).read_text().splitlines())
    output().print(
        f"Wrote {folder}: model.py ({lines} lines), weights.safetensors, graph.onnx, in {time.perf_counter() - start:.1f} s.",
        soft_wrap=True,
    )


@reports_errors
def verify(
    model: ModelFile,
    per_node: Annotated[
        bool, typer.Option("--per-node", help="Also compare every node, and show the first that differs.")
    ] = False,
    eager: Annotated[bool, typer.Option("--eager", help="Call the model without jit.")] = False,
    rtol: Annotated[float, typer.Option(help="Relative tolerance.")] = 1e-3,
    atol: Annotated[float, typer.Option(help="Absolute tolerance, relative to the output's scale.")] = 1e-4,
    seed: Annotated[int, typer.Option(help="Of the random inputs.")] = 0,
    input_shape: InputShape = None,
    debug: Debug = False,
) -> None:
    """Compare a model with ONNX Runtime on random inputs.

    Needs onnxruntime: pip install 'onnxeqx[verify]'. Exit code 1 if an output (or node) differs.

    For example: onnxeqx verify resnet50.onnx --per-node
    """
    from .._verify import verify as verify_model

    result = verify_model(
        model,
        per_node=per_node,
        jit=not eager,
        rtol=rtol,
        atol=atol,
        seed=seed,
        input_shapes=parse_input_shapes(input_shape),
    )
    table = rich.table.Table(
        "Output", "Shape", "Largest difference", "Largest value", "", box=None, header_style="bold"
    )
    for entry in result.outputs:
        mark = "[green]agrees[/green]" if entry.agrees else "[red]differs[/red]"
        table.add_row(
            rich.markup.escape(entry.name), str(entry.shape), f"{entry.largest:.3g}", f"{entry.scale:.3g}", mark
        )
    console = output()
    console.print(table)
    if result.nodes:
        agreeing = sum(entry.agrees for entry in result.nodes)
        console.print(f"\n{agreeing} of {len(result.nodes)} node outputs agree.")
    if result.first is not None:
        first = result.first
        console.print(
            f"First that differs: {first.node or 'output'} {first.name!r}, by {first.largest:.3g}.", markup=False
        )
        raise typer.Exit(1)


@reports_errors
def ops(
    name: Annotated[str | None, typer.Argument(help="Show this operator only.", show_default="all")] = None,
    debug: Debug = False,
) -> None:
    """List the operators that are supported: opset versions, plugin, file and line.

    For example: onnxeqx ops Softmax
    """
    from ..plugins.manager import host

    found = host().registry.ops(name)
    if not found:
        raise OnnxeqxError(
            f"No loaded plugin provides an operator {name!r}; `onnxeqx ops` lists all of them, `onnxeqx plugins` the plugins."
        )
    table = _table("Operator", "Opset", "Plugin", "Function")
    for entry in found:
        versions = f"{entry.since}-" + ("" if entry.until is None else str(entry.until))
        table.add_row(entry.full_name, versions, entry.plugin, entry.location)
    output().print(table)


@reports_errors
def plugins(debug: Debug = False) -> None:
    """List the loaded plugins: name, distribution and version, module.

    ONNXEQX_DISABLE_PLUGINS=a,b leaves plugins out; ONNXEQX_PLUGIN_AUTOLOAD=0 loads only the built-in ones.
    """
    from ..plugins.manager import host

    table = _table("Plugin", "Distribution", "Version", "Module", "Operators")
    entries = host().registry.ops()
    for plugin in host().plugins:
        count = len({entry.full_name for entry in entries if entry.plugin == plugin.name})
        table.add_row(plugin.name, plugin.distribution, plugin.version, plugin.module, str(count))
    output().print(table)


def _table(*columns: str) -> rich.table.Table:
    """A table whose cells are folded, never cut, where the terminal is too narrow."""
    table = rich.table.Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
