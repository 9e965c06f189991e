"""Options: a field of a configuration that says what it is for, so that help and errors come from one place."""

import dataclasses
import types
import typing
from typing import Any

from .errors import ConfigError

MODEL, DATA, SCHEDULE, REGULARISATION, RUN = "What is trained", "Data", "Schedule", "Regularisation", "The run"


def option(help: str, default: Any = dataclasses.MISSING, *, panel: str, shown: str | None = None) -> Any:
    """A field of a configuration.

    **Arguments:**

    - `help`: a sentence for people.
    - `default`: its value where none is given; without one, the option is required.
    - `panel`: the heading under which `onnxeqx train --help` lists it.
    - `shown`: how that shows the default, if not as it is written.
    """
    if shown is None and default is not dataclasses.MISSING:
        shown = "none" if default is None or default == () else str(default)
    return dataclasses.field(default=default, metadata={"help": help, "panel": panel, "shown": shown})


def option_name(name: str) -> str:
    """`batch_size` as it is typed: `--batch-size`."""
    return "--" + name.replace("_", "-")


def require(condition: bool, name: str, value: Any, expected: str) -> None:
    """**Raises:** `ConfigError`, if the condition does not hold, with the option, its value and what was expected."""
    if not condition:
        raise ConfigError(f"{option_name(name)} is {value}, but must be {expected}.")


def cast(name: str, value: Any, hint: Any) -> Any:
    """`value` as the type of a field: a list as a tuple, an integer as a float; nothing else is converted.

    **Raises:** `ConfigError` if it is of another type.
    """
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        (hint,) = (arm for arm in typing.get_args(hint) if arm is not type(None))
    if typing.get_origin(hint) is tuple and isinstance(value, list | tuple):
        return tuple(cast(name, item, typing.get_args(hint)[0]) for item in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(hint, type) or not isinstance(value, hint) or isinstance(value, bool) != (hint is bool):
        expected = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}.get(hint, "a list")
        raise ConfigError(f"{option_name(name)} is {value!r}, but must be {expected}.")
    return value
