"""What printed models and operator functions import: host and device values, layers over a batch, dtypes."""

import contextlib
import contextvars
import dataclasses
import functools
import inspect
import math
import operator
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array

from ._errors import HostValueError, InputError

Layer = TypeVar("Layer")


def array_namespace(*values: Any) -> types.ModuleType:
    """`jax.numpy` if any of the values is a JAX array (or tracer), else `numpy`.

    NumPy on the host, JAX on the device: an operator written with this namespace keeps shape arithmetic on the host,
    in 64-bit integers and without a tracer, and runs on the device for everything else.
    """
    return jnp if any(isinstance(value, jax.Array) for value in values) else np


def host_ints(value: Any) -> tuple[Any, ...]:
    """A shape-like operand as a tuple of integers (or of symbolic dimensions, under `jax.export`).

    **Arguments:**

    - `value`: a sequence of integers, a NumPy array, or a JAX array that is not being traced. A scalar counts as one
      integer.

    **Raises:** `HostValueError` if the value is traced: it depends on the data of an input.
    """
    if isinstance(value, jax.core.Tracer):
        raise HostValueError(
            f"A shape-like operand ({value.aval.str_short()}) depends on the data of a traced array, but must be known "
            "while tracing; call the model without jit, or make the operand a constant or a function of input shapes."
        )
    if isinstance(value, tuple | list):
        return tuple(item.item() if isinstance(item, np.generic | np.ndarray) else item for item in value)
    return tuple(np.asarray(value).reshape(-1).tolist())


_host_limit: contextvars.ContextVar[float] = contextvars.ContextVar("host_limit", default=math.inf)


@contextlib.contextmanager
def host_limit(elements: int) -> Iterator[None]:
    """Within this context, operators make no array of more than so many elements on the host.

    A file of a few bytes can ask for terabytes; while a model is loaded, that is refused before it is tried.
    """
    token = _host_limit.set(elements)
    try:
        yield
    finally:
        _host_limit.reset(token)


def check_host_size(*dims: Any) -> None:
    """To be called before an operator makes an array of these dimensions on the host.

    **Raises:** `MemoryError` if it exceeds the present [`onnxeqx.runtime.host_limit`][].
    """
    if math.prod(dims) > _host_limit.get():
        raise MemoryError(f"an array of {' x '.join(map(str, dims))} elements is not made while loading")


def host_value(value: Any, operand: str) -> Any:
    """A value computed by the model where an operator needs one that is known while tracing.

    **Arguments:**

    - `value`: an array.
    - `operand`: which operand of which node it is, and where it comes from, for the message.

    **Returns:** the array as NumPy.

    **Raises:** `HostValueError` while tracing: the operand depends on data.
    """
    if isinstance(value, jax.core.Tracer):
        raise HostValueError(
            f"The {operand}, depends on the data of an input, so its value is not known under jit; call the model without "
            "jit, or export it with this operand fixed or computed from input shapes."
        )
    return np.asarray(value)


def over_batch(layer: Callable[..., Array], x: Array, *, core_ndim: int) -> Array:
    """Calls an unbatched Equinox layer over all leading axes of `x`.

    ONNX graphs are batched and Equinox layers are not. Because the call stands in the model's code and the layer in
    its field, `eqx.tree_at(lambda m: m.fc, model, eqx.nn.Linear(...))` needs no adapter.

    **Arguments:**

    - `layer`: any callable on an array with `core_ndim` axes. A layer with a true `batched` attribute is called as is.
    - `x`: shape `(*batch, *core)` with `core_ndim` core axes.
    - `core_ndim`: how many trailing axes belong to one example (1 for `eqx.nn.Linear`, 3 for `eqx.nn.Conv2d`).

    **Returns:** shape `(*batch, *layer_output)`.
    """
    batch = x.shape[: x.ndim - core_ndim]
    if getattr(layer, "batched", False) or not batch:
        return layer(x)
    # One flattened axis instead of nested vmaps: XLA then sees a plain matrix product.
    flat = x.reshape(math.prod(batch), *x.shape[len(batch) :])
    y = jax.vmap(layer)(flat)
    return y.reshape(*batch, *y.shape[1:])


def subkey(key: Any, number: int) -> Any:
    """The key for one of the calls of a block that draw random numbers.

    **Arguments:**

    - `key`: what the block was called with: a key as of `jax.random.key`, or `None`.
    - `number`: which of the calls, counted from 0.

    **Returns:** a key that no other call of the block has; `None` without a key, where nodes draw from their own seeds.
    """
    return None if key is None else jax.random.fold_in(key, number)


def subkeys(key: Any, first: int, count: int) -> Any:
    """The keys of consecutive calls, as [`onnxeqx.runtime.subkey`][] gives them one by one: shape `(count,)`, or `None`."""
    return None if key is None else jax.vmap(functools.partial(jax.random.fold_in, key))(first + np.arange(count))


def stacked(layers: Iterable[Layer]) -> Layer:
    """Equal layers as one, every leaf with a leading axis of layers: for [`onnxeqx.runtime.scan_layers`][].

    **Raises:** `ValueError` if the layers differ in more than the values of their leaves.
    """
    arrays, rest = zip(*(eqx.partition(layer, _is_array) for layer in layers), strict=True)
    if any(not eqx.tree_equal(rest[0], other) for other in rest):
        raise ValueError("Only layers that differ in nothing but the values of their leaves can be stacked.")
    return eqx.combine(jax.tree.map(lambda *leaves: jnp.stack(leaves), *arrays), rest[0])


def split_layers(layers: Layer, count: int) -> list[Layer]:
    """The single layers of a stacked one.

    **Raises:** `ValueError` if not all of its leaves are of `count` layers.
    """
    arrays, rest = eqx.partition(layers, _is_array)
    if not jax.tree.leaves(arrays):  # a function, or dropout
        return [layers] * count
    if (depth := _depth(arrays)) != count:
        raise ValueError(f"The leaves of stacked layers are of {count} layers, not of {depth}.")
    return [eqx.combine(jax.tree.map(operator.itemgetter(i), arrays), rest) for i in range(count)]


def scan_layers(call: Callable[..., Any], layers: Any, x: Any, *each: Any, remat: bool = False) -> Any:
    """Calls stacked layers in turn, compiled once: `for layer in layers: x = call(layer, x)` as one `jax.lax.scan`.

    The time to compile does not grow with the number of layers. Call the model under `jit`: each eager call compiles anew.

    **Arguments:**

    - `call`: what to do with a layer: `lambda layer, x: layer(x, mask)`. It returns the next `x`, or a tuple of it and of what
      each layer gives besides.
    - `layers`: a layer whose leaves have a leading axis of layers, as [`onnxeqx.runtime.stacked`][] makes it.
    - `x`: what the first layer takes: any shape, or a PyTree. Where the first layers change its shape or dtype, they are called
      before the scan.
    - `each`: more arguments of `call` that differ from layer to layer: tuples with an entry for each, or arrays with a leading
      axis of layers.
    - `remat`: compute the inside of each layer again in the backward pass instead of storing it
      (https://docs.jax.dev/en/latest/gradient-checkpointing.html).

    **Returns:** what the last layer returns; of what each layer gives besides, arrays with a leading axis of layers.

    **Raises:** `ValueError` if the leaves of `layers` have different numbers of layers.
    """
    arrays, rest = eqx.partition(layers, _is_array)
    depth = _depth(arrays)

    def step(x: Any, inputs: Any) -> tuple[Any, tuple[Any, ...]]:
        leaves, given = inputs
        result = call(eqx.combine(leaves, rest), x, *given)
        return (result[0], result[1:]) if isinstance(result, tuple) else (result, ())

    inputs = arrays, tuple(_leading_axis(value) for value in each)
    x = jax.tree.map(jnp.asarray, x)
    outputs: list[Any] = []
    for number in range(depth):
        one = jax.tree.map(operator.itemgetter(number), inputs)
        if _types(jax.eval_shape(step, x, one)[0]) == _types(x):
            rest_of_inputs = jax.tree.map(operator.itemgetter(slice(number, None)), inputs) if number else inputs
            x, given = jax.lax.scan(jax.checkpoint(step, prevent_cse=False) if remat else step, x, rest_of_inputs)
            outputs.append(given)
            break
        x, given = step(x, one)
        outputs.append(jax.tree.map(lambda leaf: leaf[None], given))
    joined = jax.tree.map(_concatenated, *outputs)
    return (x, *joined) if joined else x


def _concatenated(leaf: Array, *others: Array) -> Array:
    return jnp.concatenate([leaf, *others]) if others else leaf


def _leading_axis(value: Any) -> Any:
    return jnp.stack(value) if isinstance(value, tuple) else value


def _types(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: (tuple(leaf.shape), leaf.dtype), tree)


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, np.ndarray | jax.ShapeDtypeStruct) or eqx.is_array(leaf)


def _depth(arrays: Any) -> int:
    leaves = {jtu.keystr(path): leaf for path, leaf in jtu.tree_leaves_with_path(arrays)}
    depths = {path: leaf.shape[0] if leaf.ndim else None for path, leaf in leaves.items()}
    depth = next(iter(depths.values()), None)
    if depth is None or any(other != depth for other in depths.values()):
        listed = ", ".join(f"{path} {leaf.shape}" for path, leaf in leaves.items()) or "no arrays"
        raise ValueError(
            f"The leaves of stacked layers need one leading axis of layers, but are {listed}; onnxeqx.unstack the model before "
            "replacing parts of a layer."
        )
    return depth


def canonical_dtype(dtype: Any) -> np.dtype:
    """The dtype in which JAX holds values of this dtype: the one place where 64-bit types become 32-bit ones.

    ONNX shapes and token ids are int64; without `jax_enable_x64`, JAX has 32-bit integers and floats only.
    """
    return jax.dtypes.canonicalize_dtype(dtype)


def compute_dtype(module: Any, default: Any = jnp.float32) -> np.dtype:
    """The floating dtype in which a module computes: that of its first floating-point leaf.

    A cast of all parameters to bfloat16 (or float64) thereby also moves the casts and constants inside the model.
    """
    for leaf in jax.tree.leaves(module):
        if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf.dtype
    return canonical_dtype(default)


def normalize_axes(axes: Sequence[int], ndim: int) -> tuple[int, ...]:
    """Negative axes counted from the end, as everywhere in ONNX.

    **Raises:** `ValueError` if an axis is outside `[-ndim, ndim)`.
    """
    for axis in axes:
        if not -ndim <= axis < ndim:
            raise ValueError(f"axis {axis} is out of range for an array of {ndim} dimensions")
    return tuple(axis % ndim for axis in axes)


def model_call(
    declared: dict[str, str], dtype: str = "float32", host: tuple[str, ...] = ()
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorates the `__call__` of a model: takes inputs by position or by their ONNX names, and checks them.

    A model that draws random numbers also takes a `key`, by keyword (unless an input has that name).

    **Arguments:**

    - `declared`: for each input, in graph order, its dtype and shape: `"float32[batch, 3, 224, 224]"`. A name frees a
      dimension, and equal names are equal sizes. A `"string[2]"` is a NumPy array of text, a `"sequence"` a list of arrays, an
      `"optional"` anything or `None`, a `"map"` a dictionary of text or integers to numbers or text.
    - `dtype`: the floating dtype in which the file stores its parameters. Inputs declared with it follow a cast of the
      model; other floating-point and integer inputs are converted to their declared dtype.
    - `host`: the inputs that set shapes or axes. Given as NumPy arrays or numbers they stay on the host, so that the model
      works under `jit` with them as constants: `jax.jit(lambda x: model(x, np.array([2, 3])))`.

    **Raises:** on a call, `InputError` if an input is missing, unknown, or of a wrong rank, dimension or kind of dtype.
    """
    specs = {name: _InputSpec.parse(name, text) for name, text in declared.items()}

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        draws = "key" in (function.__kwdefaults__ or {}) and "key" not in specs

        @functools.wraps(function)
        def checked(self: Any, /, *args: Any, **kwargs: Any) -> Any:
            options = {"key": kwargs.pop("key", None)} if draws else {}
            given = _bind_inputs(specs, args, kwargs)
            sizes: dict[str, tuple[Any, str]] = {}
            arrays = []
            for name, spec in specs.items():
                wanted = compute_dtype(self, dtype) if spec.dtype == dtype else spec.dtype
                array = spec.check(
                    given[name], wanted, sizes, keep=name in host and not isinstance(given[name], jax.Array)
                )
                arrays.append(array)
            return function(self, *arrays, **options)

        # Callers bind by ONNX names, which need not be the names of the parameters.
        del checked.__wrapped__
        if draws:
            vars(checked)["__signature__"] = inspect.signature(_with_key)
        return checked

    return decorate


def _with_key(self: Any, /, *args: Any, key: Any = None, **kwargs: Any) -> Any:
    """What `inspect.signature` shows of models that draw random numbers."""


def _bind_inputs(specs: "dict[str, _InputSpec]", args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    names = list(specs)
    if len(args) > len(names):
        raise InputError(f"The model has {len(names)} inputs ({', '.join(names)}), but {len(args)} were given.")
    given = dict(zip(names, args, strict=False))
    for name, value in kwargs.items():
        if name not in specs:
            raise InputError(f"The model has no input {name!r}; its inputs are {', '.join(map(repr, names))}.")
        if name in given:
            raise InputError(f"Input {name!r} is given twice, by position and by name.")
        given[name] = value
    missing = [name for name in names if name not in given]
    if missing:
        raise InputError(f"Input {missing[0]!r} is missing; the model takes {', '.join(map(repr, names))}.")
    return given


def _is_text(value: Any) -> bool:
    return not isinstance(value, jax.Array) and np.asarray(value).dtype.kind in "USO"


@dataclasses.dataclass(frozen=True)
class _InputSpec:
    name: str
    dtype: str
    dims: tuple[int | str, ...] | None

    @classmethod
    def parse(cls, name: str, text: str) -> "_InputSpec":
        dtype, _, rest = text.partition("[")
        if not rest:
            return cls(name, dtype, None)
        parts = [part.strip() for part in rest.removesuffix("]").split(",") if part.strip()]
        return cls(name, dtype, tuple(int(part) if part.isdecimal() else part for part in parts))

    @property
    def text(self) -> str:
        return self.dtype if self.dims is None else f"{self.dtype}[{', '.join(map(str, self.dims))}]"

    def check(self, value: Any, wanted: Any, sizes: dict[str, tuple[Any, str]], *, keep: bool = False) -> Any:
        """The value as a JAX array of the wanted dtype, or, to keep it on the host, as a NumPy array of the declared one."""
        if self.dtype in ("sequence", "optional"):
            return jax.tree.map(lambda leaf: leaf if _is_text(leaf) else jnp.asarray(leaf), value)
        if self.dtype == "map":
            if not isinstance(value, dict):
                raise InputError(f"Input {self.name!r} must be a dictionary, not {type(value).__name__}.")
            return value
        if self.dtype == "string":
            value = np.asarray(value)
            self._check_shape(value.shape, sizes)
            return value
        if not isinstance(value, jax.Array):
            value = np.asarray(value)
            if value.dtype == object or value.dtype.kind in "USM":
                raise InputError(
                    f"Input {self.name!r} must be an array of {self.text}, not {type(value).__name__} of {value.dtype}."
                )
        self._check_shape(value.shape, sizes)
        if self.dtype == "any":
            return jnp.asarray(value)
        wanted = canonical_dtype(wanted)
        kinds = (jnp.bool_, jnp.integer, jnp.floating, jnp.complexfloating)
        if not any(jnp.issubdtype(value.dtype, kind) and jnp.issubdtype(wanted, kind) for kind in kinds):
            raise InputError(
                f"Input {self.name!r} has dtype {value.dtype}, but the model takes {self.text}; convert it first."
            )
        return value.astype(self.dtype) if keep else jnp.asarray(value, wanted)

    def _check_shape(self, shape: tuple[Any, ...], sizes: dict[str, tuple[Any, str]]) -> None:
        if self.dims is None:
            return
        if len(shape) != len(self.dims):
            raise InputError(
                f"Input {self.name!r} has shape {tuple(shape)}, {len(shape)} dimensions, but the model takes {self.text}; "
                "add or remove axes (one example is x[None])."
            )
        for axis, (size, dim) in enumerate(zip(shape, self.dims, strict=True)):
            if not isinstance(size, int) or dim == "?":
                continue
            if isinstance(dim, int) and size != dim:
                free = ", ".join(repr(f"dim{i}") if i == axis else repr(other) for i, other in enumerate(self.dims))
                raise InputError(
                    f"Input {self.name!r} has size {size} along axis {axis}, but the file fixes it to {dim} ({self.text}); "
                    f"to free it: onnxeqx.load(path, input_shapes={{{self.name!r}: ({free},)}})."
                )
            known, where = sizes.setdefault(str(dim), (size, f"input {self.name!r}, axis {axis}"))
            if isinstance(dim, str) and isinstance(known, int) and known != size:
                raise InputError(
                    f"Input {self.name!r} has size {size} along axis {axis} ({dim!r}), but {where} has {known}; they must "
                    "be equal."
                )
