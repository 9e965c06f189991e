"""From a model and the inputs of a batch to what the loss is given: the model's outputs, or more."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

Forward = Callable[[Any, Any, PRNGKeyArray | None], Any]
"""`(model, inputs, key)` to outputs. One that holds arrays is an `eqx.Module`, so that they are arguments of the jitted step."""


def call(model: Any, inputs: Any, key: PRNGKeyArray | None = None) -> Any:
    """A model's outputs.

    **Arguments:**

    - `model`: any callable.
    - `inputs`: an array, a tuple of several, or a mapping of several by name.
    - `key`: given to models that take one.
    """
    options = {} if key is None or not takes_key(model) else {"key": key}
    if isinstance(inputs, Mapping):
        return model(**inputs, **options)
    return model(*inputs, **options) if isinstance(inputs, tuple) else model(inputs, **options)


def takes_key(model: Any) -> bool:
    """Whether a model draws random numbers from a `key`."""
    return "key" in inspect.signature(model).parameters


def first_output(model: Any, inputs: Any, key: PRNGKeyArray | None = None) -> Any:
    """As `call`, but of several outputs the first one that holds floating-point numbers: some exporters list the inputs too."""
    outputs = call(model, inputs, key)
    if not isinstance(outputs, tuple):
        return outputs
    return next((output for output in outputs if jnp.issubdtype(output.dtype, jnp.floating)), outputs[0])


class WithTeacher(eqx.Module):
    """The outputs of a model and of its teacher, for [`onnxeqx.training.distillation`][].

    The teacher is called without a key, and gets no gradient.

    **Arguments:**

    - `teacher`: takes the inputs that the model takes.
    """

    teacher: Any

    def __call__(self, model: Any, inputs: Any, key: PRNGKeyArray | None = None) -> tuple[Any, Any]:
        taught = first_output(eqx.nn.inference_mode(self.teacher), inputs)
        return first_output(model, inputs, key), jax.lax.stop_gradient(taught)


def embedded_pairs(model: Any, inputs: Mapping[str, Any], key: PRNGKeyArray | None = None) -> tuple[Any, Any]:
    """Embeddings of pairs, for [`onnxeqx.training.contrastive`][]: both parts go through the model in one batch.

    **Arguments:**

    - `model`: its first output has shape `(batch, width)`, or `(batch, positions, width)`, which is averaged over
      positions: those of which an input called `…mask…` says that they are padding aside.
    - `inputs`: of both parts, `first` and `second`.
    - `key`: as of `call`.

    **Returns:** two arrays of shape `(batch, width)`.
    """
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), inputs["first"], inputs["second"])
    embeddings = _pooled(first_output(model, both, key), both)
    first, second = jnp.split(embeddings, 2)
    return first, second


def _pooled(outputs: Array, inputs: Any) -> Float[Array, "batch width"]:
    if outputs.ndim != 3:
        return outputs.reshape(outputs.shape[0], -1)
    named = inputs if isinstance(inputs, Mapping) else {}
    mask = next((value for name, value in named.items() if "mask" in name.lower()), jnp.ones(outputs.shape[:2]))
    weights = mask.astype(outputs.dtype)[..., None]
    return (outputs * weights).sum(1) / jnp.maximum(weights.sum(1), 1)
