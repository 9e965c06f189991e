"""`onnxeqx evaluate` and `onnxeqx export`: what can be done with a run."""

import pathlib
from typing import Annotated

import typer

from .console import Debug, output, reports_errors

Run = Annotated[pathlib.Path, typer.Argument(metavar="RUN", help="The folder of a run.", show_default=False)]

_SUFFIXES = {"onnx": "exported.onnx", "folder": "exported", "stablehlo": "exported.stablehlo"}


@reports_errors
def evaluate(
    run: Run,
    data: Annotated[
        str | None, typer.Option(help="Other data, whose validation part is used.", show_default="the run's")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples in a step.", show_default="the run's")] = None,
    debug: Debug = False,
) -> None:
    """Evaluate the best model of a run, without training.

    For example: onnxeqx evaluate runs/digits
    """
    from ..training.finished import evaluate_run

    changes = {"data": data, "batch_size": batch_size}
    row = evaluate_run(run, **{name: value for name, value in changes.items() if value is not None})
    figures = "  ".join(f"{name} {value:.4f}" for name, value in row.items() if name != "examples")
    output().print(f"{int(row['examples']):,} examples  {figures}", highlight=False)


@reports_errors
def export(
    run: Run,
    to: Annotated[str, typer.Option(help="onnx, folder or stablehlo.")] = "onnx",
    path: Annotated[
        pathlib.Path | None,
        typer.Option("--output", help="What to write.", show_default="exported… in the run's folder"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite what is there.")] = False,
    debug: Debug = False,
) -> None:
    """Write the best model of a run in another form, and compare it with the model.

    onnx: the original graph with the trained weights and the new head, compared in ONNX Runtime; folder: readable source
    and weights; stablehlo: a program for any JAX installation (jax.export.deserialize), batch and other free dimensions kept.

    For example: onnxeqx export runs/digits --to stablehlo
    """
    from ..training.export import export_run

    path = path or run / _SUFFIXES.get(to, "exported")
    difference = export_run(run, to, path, force=force)
    output().print(
        f"Wrote {path}; it agrees with the trained model ({difference:.1e} of the largest output).",
        soft_wrap=True,
        markup=False,
    )
