"""Tasks: what labels mean, and with it loss, metrics and the width of the head."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array

from . import losses
from .losses import Values

Labels = Literal["class", "classes", "numbers", "token classes", "next tokens", "masked tokens", "pairs", "teacher"]


UNLABELLED: frozenset[Labels] = frozenset({"next tokens", "masked tokens", "pairs", "teacher"})
"""Kinds of labels that are not in the data."""

LOSS_LABELS: Mapping[str, tuple[Labels, ...]] = {
    "cross-entropy": ("class",),
    "binary-cross-entropy": ("classes",),
    "squared-error": ("numbers",),
    "absolute-error": ("numbers",),
    "huber": ("numbers",),
}
"""Of the built-in losses, the kinds of labels that they are for."""


@dataclasses.dataclass(frozen=True)
class Task:
    """What a network is to learn.

    **Arguments:**

    - `name`: as `--task` has it.
    - `labels`: of an example: one class, several, numbers, a class for each token, the token behind each, tokens that were
      masked, the other one of a pair, or what a teacher says.
    - `loss`: `(outputs, labels) -> (batch,)`, from logits.
    - `metrics`: of that form too, by name; the first decides which epoch is best, else the loss.
    - `smoothed`: makes a loss with label smoothing; `None` if the task has none.
    - `new_head`: whether the old head gives way to a new one, as wide as there are classes or numbers.
    """

    name: str
    labels: Labels
    loss: Values
    metrics: Mapping[str, Values]
    smoothed: Callable[[float], Values] | None = None
    new_head: bool = True


_LANGUAGE: tuple[tuple[str, Labels], ...] = (("causal-lm", "next tokens"), ("masked-lm", "masked tokens"))

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            "classification",
            "class",
            losses.cross_entropy,
            {"accuracy": losses.accuracy},
            smoothed=losses.smoothed_cross_entropy,
        ),
        Task(
            "multi-label",
            "classes",
            losses.binary_cross_entropy,
            {"label_accuracy": losses.label_accuracy, "exact_match": losses.exact_match},
        ),
        Task("regression", "numbers", losses.squared_error, {"absolute_error": losses.absolute_error}),
        Task(
            "token-classification",
            "token classes",
            losses.token_cross_entropy,
            {"token_accuracy": losses.token_accuracy},
            smoothed=losses.smoothed_token_cross_entropy,
        ),
        *(
            Task(
                name,
                labels,
                losses.token_cross_entropy,
                {"token_accuracy": losses.token_accuracy},
                smoothed=losses.smoothed_token_cross_entropy,
                new_head=False,
            )
            for name, labels in _LANGUAGE
        ),
        Task("contrastive", "pairs", losses.contrastive(), {"retrieval": losses.retrieval}, new_head=False),
        Task("distillation", "teacher", losses.distillation(losses.cross_entropy, share=1), {}, new_head=False),
    )
}


def from_logits(function: Values, ends_in: str | None) -> Values:
    """A loss or a metric of logits, for a network that ends in Softmax or Sigmoid."""
    if ends_in is None:
        return function
    logits = losses.logits_of_probabilities if ends_in == "Softmax" else _logits_of_sigmoid
    return lambda outputs, labels: function(logits(outputs), labels)


def _logits_of_sigmoid(outputs: Array) -> Array:
    tiny = jnp.finfo(outputs.dtype).eps
    probabilities = jnp.clip(outputs, tiny, 1 - tiny)
    return jnp.log(probabilities) - jnp.log1p(-probabilities)
