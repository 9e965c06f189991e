"""`onnxeqx inspect`."""

import dataclasses
import json
import pathlib
from typing import TYPE_CHECKING, Annotated

import rich.table
import typer
from rich.text import Text

from .._errors import UnsupportedOpsError
from .console import Debug, output, plain, reports_errors
from .options import InputShape, ModelFile, parse_input_shapes

if TYPE_CHECKING:
    from .._layers import Layer


@reports_errors
def inspect(
    model: ModelFile,
    depth: Annotated[
        int | None,
        typer.Option(min=0, help="How many levels of blocks to show.", show_default="all"),
    ] = None,
    html: Annotated[
        pathlib.Path | None,
        typer.Option(
            metavar="FILE", help="Also write a page with diagrams to click through, for a browser.", show_default=False
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary and the tree as JSON.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the file of --html.")] = False,
    input_shape: InputShape = None,
    debug: Debug = False,
) -> None:
    """Show what is in a model: its blocks and layers, shapes and parameters, and what is not supported.

    Weights are not loaded. Exit code 1 if an operator is not supported; there are then no blocks to show, and nodes are
    listed one by one.

    For example: onnxeqx inspect resnet50.onnx --depth 2 --html resnet50.html
    """
    from .. import inspection
    from .._layers import layers
    from .._weights import write_whole

    shapes = parse_input_shapes(input_shape)
    try:
        found = inspection.inspect(model, input_shapes=shapes)
    except UnsupportedOpsError:
        _print_nodes(layers(model, input_shapes=shapes), as_json)
        raise typer.Exit(1) from None
    console = output()
    if html is not None:
        write_whole(html, inspection.page(found), force=force)
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=2))
        return
    console.print(inspection.tree(found, depth))
    console.print()
    lines = inspection.summary(found) + ([f"Wrote {html}: open it in a browser."] if html is not None else [])
    for line in lines:
        console.print(plain(line), markup=False, highlight=False, soft_wrap=True)


def _print_nodes(nodes: "list[Layer]", as_json: bool) -> None:
    """A flat list: what nodes belong to which block is not known before all of them are."""
    unsupported: dict[str, list[str]] = {}
    for node in nodes:
        if not node.supported:
            unsupported.setdefault(node.kind, []).append(node.name)
    if as_json:
        typer.echo(json.dumps({"unsupported": unsupported, "nodes": list(map(dataclasses.asdict, nodes))}, indent=2))
        return
    table = rich.table.Table(box=None, header_style="bold", pad_edge=False)
    for column in ("Node", "Operator", "Output", "Parameters", ""):
        table.add_column(column, overflow="fold", justify="right" if column == "Parameters" else "left")
    for node in nodes:
        sizes = ", ".join("?" if shape is None else f"({', '.join(map(str, shape))})" for shape in node.output_shapes)
        table.add_row(
            *(Text(plain(text)) for text in (node.name, node.kind, sizes)),
            f"{node.parameters:,}" if node.parameters else "",
            "" if node.supported else "[red]not supported[/red]",
        )
    console = output()
    console.print(table)
    console.print()
    for kind, names in sorted(unsupported.items()):
        console.print(
            plain(f"Not supported by the loaded plugins: {kind}, in {', '.join(names)}."),
            style="red",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    console.print("`onnxeqx plugins` lists the plugins.", highlight=False, soft_wrap=True)
