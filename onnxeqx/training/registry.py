"""Losses, metrics, tasks and data sets by name: the built-in ones, and those of plugins."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from .._errors import PluginError
from ..plugins.manager import host
from . import losses, tasks
from .datasets import digits
from .losses import Values
from .tasks import Task

T = TypeVar("T")

DatasetSource = Callable[[], tuple[np.ndarray, np.ndarray, Sequence[str]]]
"""Gives the inputs and labels of all examples, and the names of the classes."""


class TrainingRegistry:
    """What `onnxeqx train` knows by name. Plugins add to it in `onnxeqx_register_losses` and `onnxeqx_register_datasets`."""

    def __init__(self) -> None:
        self.losses: dict[str, Values] = {
            "cross-entropy": losses.cross_entropy,
            "binary-cross-entropy": losses.binary_cross_entropy,
            "squared-error": losses.squared_error,
            "absolute-error": losses.absolute_error,
            "huber": losses.huber,
        }
        self.metrics: dict[str, Values] = {
            function.__name__: function
            for function in (
                losses.accuracy,
                losses.label_accuracy,
                losses.exact_match,
                losses.token_accuracy,
                losses.absolute_error,
                losses.squared_error,
                losses.retrieval,
            )
        }
        self.smaller_is_better = {"loss", "absolute_error", "squared_error"}
        self.tasks: dict[str, Task] = dict(tasks.TASKS)
        self.datasets: dict[str, DatasetSource] = {"digits": digits}

    def add_loss(self, name: str, function: Values) -> None:
        """Adds a loss for `--loss`: `(outputs, labels)` of a batch to one value for each example."""
        _add(self.losses, "loss", name, function)

    def add_metric(self, name: str, function: Values, *, smaller_is_better: bool = False) -> None:
        """Adds a metric for `--metrics` and `--eval-metric`, of the form of a loss."""
        _add(self.metrics, "metric", name, function)
        if smaller_is_better:
            self.smaller_is_better.add(name)

    def add_task(self, task: Task) -> None:
        """Adds a task for `--task`."""
        _add(self.tasks, "task", task.name, task)

    def add_dataset(self, name: str, source: DatasetSource) -> None:
        """Adds a data set for `--data`: images `(n, h, w)` or `(n, h, w, c)`, or rows `(n, features)`."""
        _add(self.datasets, "data set", name, source)


def _add(entries: dict[str, T], kind: str, name: str, entry: T) -> None:
    if name in entries:
        raise PluginError(f"There is a {kind} of the name {name!r} already; give the plugin's another name.")
    entries[name] = entry


@functools.cache
def registry() -> TrainingRegistry:
    """The registry of this process, made on first use."""
    made = TrainingRegistry()
    hooks: Any = host().pluggy.hook
    hooks.onnxeqx_register_losses(registry=made)
    hooks.onnxeqx_register_datasets(registry=made)
    return made
