"""`onnxeqx conformance`."""

import pathlib
from typing import Annotated

import rich.markup
import rich.table
import typer

from .console import Debug, output, reports_errors


@reports_errors
def conformance(
    only: Annotated[str, typer.Option(help="Only cases whose names contain this text.")] = "",
    jit: Annotated[
        bool, typer.Option("--jit", help="Each model in one jax.jit, every input traced that may be.")
    ] = False,
    x64: Annotated[bool, typer.Option("--x64", help="With 64-bit types.")] = False,
    lower: Annotated[
        str, typer.Option(help="Only lower each model for this platform, such as tpu.", show_default=False)
    ] = "",
    released: Annotated[
        pathlib.Path | None,
        typer.Option(
            help="Cases of an older onnx: a folder named after it, of KIND/CASE/model.onnx.",
            show_default="the installed onnx's",
        ),
    ] = None,
    exclusions: Annotated[
        pathlib.Path | None, typer.Option(help="A file of cases that may fail: CASE WHERE REASON.", show_default=False)
    ] = None,
    jobs: Annotated[int, typer.Option(help="Processes; each takes some 1 GB.", min=1)] = 1,
    debug: Debug = False,
) -> None:
    """Run the ONNX project's own test cases.

    Each case is a model that goes through the whole conversion. Exit code 1 if one fails that is not excluded, or if an
    excluded one passes.

    For example: onnxeqx conformance --jit --only test_softmax
    """
    from ..conformance import Mode, read_exclusions, run_suite

    mode = Mode(jit, x64, lower)
    excluded = read_exclusions(exclusions) if exclusions is not None else []
    report = run_suite(mode, folder=released, only=only, jobs=jobs, exclusions=excluded)
    console = output()
    if report.failures or report.stale:
        table = rich.table.Table("Case", "Problem", box=None, header_style="bold")
        for outcome in report.failures:
            table.add_row(rich.markup.escape(outcome.case), rich.markup.escape(outcome.problem))
        for exclusion in report.stale:
            table.add_row(
                rich.markup.escape(exclusion.case), f"passes, but is excluded: {rich.markup.escape(exclusion.reason)}"
            )
        console.print(table)
    static = sum(bool(outcome.static) for outcome in report.outcomes)
    console.print(
        f"{report.passed:,} of {len(report.outcomes):,} cases pass ({mode}), in {report.seconds:.0f} s, of which XLA compiled "
        f"{report.compiling:.0f} s"
        + (f"; {static} have an input that is known while tracing." if mode.how != "eager" else ".")
    )
    if report.failures or report.stale:
        raise typer.Exit(1)
