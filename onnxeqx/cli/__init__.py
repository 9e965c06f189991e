"""The command line. Exit codes: 0 good, 1 the check failed, 2 bad usage or bad input."""

import sys

import typer

from .._errors import PluginError
from . import commands
from .conformance import conformance
from .inspect import inspect
from .runs import evaluate, export
from .train import train

app = typer.Typer(
    name="onnxeqx",
    help="Turn ONNX files into Equinox models that train.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
for command in (
    inspect,
    train,
    evaluate,
    export,
    commands.convert,
    commands.verify,
    commands.ops,
    commands.plugins,
    conformance,
):
    app.command()(command)


def main() -> None:
    """Runs the command line, with the commands that plugins add."""
    try:
        from ..plugins.manager import host

        host().pluggy.hook.onnxeqx_register_commands(cli=app)
    except PluginError as error:
        print(f"Error: {error}", file=sys.stderr)  # noqa: T201  before there is a console
        sys.exit(2)
    app()
