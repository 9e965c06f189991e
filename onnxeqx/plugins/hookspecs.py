"""The hooks that a plugin may implement. Mark an implementation with `onnxeqx.hookimpl`."""

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    import typer

    from .._registry import Registry
    from ..training.registry import TrainingRegistry

hookspec = pluggy.HookspecMarker("onnxeqx")
hookimpl = pluggy.HookimplMarker("onnxeqx")


@hookspec
def onnxeqx_register_ops(registry: "Registry") -> None:
    """Hand operators to `registry.add(function)` or `registry.add_module(__name__)`."""


@hookspec
def onnxeqx_register_layers(registry: "Registry") -> None:
    """Hand lift rules (marked by `@onnxeqx.lift`) to `registry.add(function)`; they are tried before the built-in ones."""


@hookspec
def onnxeqx_register_losses(registry: "TrainingRegistry") -> None:
    """Add losses, metrics and tasks of training by `registry.add_loss(name, function)`, `add_metric` and `add_task`."""


@hookspec
def onnxeqx_register_datasets(registry: "TrainingRegistry") -> None:
    """Add data sets that `onnxeqx train --data NAME` opens by `registry.add_dataset(name, source)`."""


@hookspec
def onnxeqx_register_commands(cli: "typer.Typer") -> None:
    """Add commands to the `onnxeqx` command line."""
