"""Where the commands print, and how they report errors."""

import functools
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import rich.console
import typer

from .._errors import OnnxeqxError

Command = TypeVar("Command", bound=Callable[..., None])

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]

# A pipe or file has no width: nothing is folded there.
_UNBOUNDED = 100_000


def output() -> rich.console.Console:
    """Standard output, as it is now."""
    bounded = sys.stdout.isatty() or "COLUMNS" in os.environ
    return rich.console.Console(width=None if bounded else _UNBOUNDED)


def plain(text: str) -> str:
    """Text of a model with what a terminal would obey (escapes, directions of writing) made visible."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def reports_errors(command: Command) -> Command:
    """An expected error is one sentence on standard error and exit code 2; `--debug` shows its traceback."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except OnnxeqxError as error:
            if kwargs.get("debug"):
                raise
            rich.console.Console(stderr=True, soft_wrap=True).print(
                f"Error: {error}", style="red", highlight=False, markup=False
            )
            raise typer.Exit(2) from error

    return wrapped  # pyright: ignore[reportReturnType]  functools.wraps keeps the signature
