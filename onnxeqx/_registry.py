"""Operators and lift rules: how they are marked, registered and looked up.

`@op` and `@lift` only mark a function; a plugin's hook hands it to the registry, so that built-in and third-party
operators come through the same door and every entry remembers its plugin.
"""

import dataclasses
import functools
import inspect
import types
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, TypeVar

from ._errors import PluginError
from ._printing import Printing, unknown_names

CutsOut = Callable[[dict[str, Any]], tuple[tuple[str, ...], tuple[str, ...]]] | None
Function = TypeVar("Function", bound=Callable[..., Any])

_OP_MARK = "__onnxeqx_ops__"
_LIFT_MARK = "__onnxeqx_lift__"
_REWRITE_MARK = "__onnxeqx_rewrite__"
_PATTERN_MARK = "__onnxeqx_pattern__"


def canonical_domain(domain: str) -> str:
    """`""` and `"ai.onnx"` name the same domain: https://github.com/onnx/onnx/blob/main/docs/IR.md."""
    return "" if domain == "ai.onnx" else domain


@dataclasses.dataclass(frozen=True)
class Op:
    """One operator over one range of opset versions.

    **Fields:**

    - `function`: positional parameters are the ONNX inputs, keyword-only ones the ONNX attributes.
    - `name`, `domain`: the ONNX operator.
    - `since`, `until`: the opset versions covered, both inclusive; `until=None` has no end.
    - `host`: the inputs that must be known while tracing (a target shape, axes): they arrive as Python or NumPy values.
    - `prefers_host`: the inputs that an operator makes more of where they are known while tracing (a loop's number of
      iterations): graph inputs that lead there may be given as constants.
    - `on_host`: runs on NumPy when every input is a NumPy array (see [`onnxeqx.runtime.array_namespace`][]).
    - `buffers`: the inputs whose weights are never trained (BatchNormalization's statistics).
    - `from_shapes`: the result depends on the shapes of the inputs only, never on their data (`Shape`, `Size`).
    - `stores`: the node holds a tensor of the file (`Constant`), so that its result may be a weight.
    - `passes_through`: the first output is the first input, unchanged (`Identity`); or a function of a call that gives the
      input that its first output is, or `None` (`Dropout` outside training, `Mul` by one).
    - `converts`: the result is the first input element for element, in another dtype or shape (`Cast`, `Unsqueeze`): a stored
      tensor stays a stored tensor.
    - `dtypes`: the attributes that name a dtype; the function takes ONNX's integers and dtypes alike.
    - `prints`: what printed models say instead of a call of the function: a Python expression in its parameters that gives
      the same result (`"a + b"`, `"jax.nn.softmax(x, axis=axis)"`). Or a function of the same parameters that gives such an
      expression, or `None`: it gets a [`onnxeqx.Operand`][] for each input, and may add values of further names.
    - `chooses`: for an operator with subgraphs, a function of the inputs that gives the name of the one whose outputs are the
      node's own (`If`): where the inputs are known at load, that subgraph takes the node's place.
    - `cuts_out`: for an operator about a part of its own graph (`Gradient`), a function of the attributes that gives the
      names of the values where that part begins and ends; the operator is given it as a subgraph `body`.
    - `sizes`: the input whose numbers above 1 are the sizes of the result along these axes (`shape` of `Reshape`).
    - `result`: what the result is called where it is an argument of a printed function (`"cos"`).
    - `plugin`: the name of the plugin that registered it.
    """

    REQUIRED: ClassVar = inspect.Parameter.empty

    function: Callable[..., Any]
    name: str
    domain: str = ""
    since: int = 1
    until: int | None = None
    host: tuple[str, ...] = ()
    prefers_host: tuple[str, ...] = ()
    on_host: bool = False
    buffers: tuple[str, ...] = ()
    from_shapes: bool = False
    stores: bool = False
    passes_through: bool | Callable[[Any], Any] = False
    converts: bool = False
    dtypes: tuple[str, ...] = ()
    prints: Printing = None
    chooses: Callable[..., str] | None = None
    cuts_out: CutsOut = None
    sizes: str | None = None
    result: str | None = None
    plugin: str = ""

    def covers(self, opset: int) -> bool:
        return self.since <= opset and (self.until is None or opset <= self.until)

    @property
    def full_name(self) -> str:
        return f"{self.domain}::{self.name}" if self.domain else self.name

    @property
    def location(self) -> str:
        """File and line of the function, as `path:line`."""
        function = inspect.unwrap(self.function)
        return f"{inspect.getsourcefile(function)}:{function.__code__.co_firstlineno}"

    @functools.cached_property
    def _parameters(self) -> tuple[inspect.Parameter, ...]:
        return tuple(inspect.signature(self.function).parameters.values())

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the positional inputs, in schema order; a variadic one is last."""
        return tuple(p.name for p in self._parameters if p.kind is not p.KEYWORD_ONLY and p.kind is not p.VAR_KEYWORD)

    @property
    def required_inputs(self) -> tuple[str, ...]:
        """Names of the leading inputs that every node must give."""
        return tuple(p.name for p in self._parameters if p.kind is p.POSITIONAL_OR_KEYWORD and p.default is p.empty)

    @property
    def variadic(self) -> bool:
        return any(p.kind is p.VAR_POSITIONAL for p in self._parameters)

    @property
    def attributes(self) -> dict[str, Any]:
        """Attribute names and defaults; `Op.REQUIRED` marks a required one."""
        return {p.name: p.default for p in self._parameters if p.kind is p.KEYWORD_ONLY}

    @property
    def draws(self) -> bool:
        """Whether it draws random numbers: it then has a keyword-only parameter `key`, which is no ONNX attribute."""
        return "key" in self.attributes

    def input_name(self, position: int) -> str:
        """The parameter that the input at this position binds to."""
        return self.inputs[min(position, len(self.inputs) - 1)]


def op(
    name: str,
    *,
    domain: str = "",
    since: int = 1,
    until: int | None = None,
    host: tuple[str, ...] = (),
    prefers_host: tuple[str, ...] = (),
    on_host: bool = False,
    buffers: tuple[str, ...] = (),
    from_shapes: bool = False,
    stores: bool = False,
    passes_through: bool | Callable[[Any], Any] = False,
    converts: bool = False,
    dtypes: tuple[str, ...] = (),
    prints: Printing = None,
    chooses: Callable[..., str] | None = None,
    cuts_out: CutsOut = None,
    sizes: str | None = None,
    result: str | None = None,
) -> Callable[[Function], Function]:
    """Marks a function as the implementation of an ONNX operator. See [`onnxeqx.Op`][] for the arguments.

    ```python
    @onnxeqx.op("ScaledTanh", domain="org.acme", since=1)
    def scaled_tanh(x, *, alpha=1.0, beta=1.0):
        return alpha * jnp.tanh(beta * x)
    ```

    The function stays an ordinary function; it is registered when a plugin's `onnxeqx_register_ops` hook hands it, or
    its module, to the registry. Stack the decorator to serve several operators or ranges with one function.
    """

    def mark(function: Function) -> Function:
        entry = Op(
            function,
            name,
            canonical_domain(domain),
            since,
            until,
            host=host,
            prefers_host=prefers_host,
            on_host=on_host,
            buffers=buffers,
            from_shapes=from_shapes,
            stores=stores,
            passes_through=passes_through,
            converts=converts,
            dtypes=dtypes,
            prints=prints,
            chooses=chooses,
            cuts_out=cuts_out,
            sizes=sizes,
            result=result,
        )
        unknown = [operand for operand in (*host, *prefers_host, *buffers) if operand not in entry.inputs]
        if unknown:
            raise PluginError(
                f"@op({name!r}) names {unknown[0]!r}, which is not an input of {function.__name__}{inspect.signature(function)}."
            )
        if isinstance(prints, str) and (unknown := unknown_names(prints, {*entry.inputs, *entry.attributes})):
            raise PluginError(
                f"@op({name!r}) prints {prints!r}, where {unknown[0]!r} is neither a parameter of "
                f"{function.__name__}{inspect.signature(function)} nor one of jax, jnp, np and math."
            )
        setattr(function, _OP_MARK, (*getattr(function, _OP_MARK, ()), entry))
        return function

    return mark


@dataclasses.dataclass(frozen=True)
class LiftRule:
    """Which calls with constant weights become which layer. See [`onnxeqx.lift`][]."""

    function: Callable[..., Any]
    layer: type
    ops: tuple[str, ...]
    plugin: str = ""


def lift(layer: type, *, ops: tuple[str, ...]) -> Callable[[Function], Function]:
    """Marks a function as the rule that turns calls of `ops` (full operator names) into a layer of type `layer`.

    The function takes a `Call` and returns a `Lifted` description, or `None` where the call does not fit. It is about
    structure only: the layer must compute exactly what the calls computed.
    """

    def mark(function: Function) -> Function:
        setattr(function, _LIFT_MARK, LiftRule(function, layer, ops))
        return function

    return mark


@dataclasses.dataclass(frozen=True)
class RewriteRule:
    """Which calls become calls of another operator. See [`onnxeqx.rewrite`][]."""

    function: Callable[..., Any]
    ops: tuple[str, ...]
    plugin: str = ""


def rewrite(*, ops: tuple[str, ...]) -> Callable[[Function], Function]:
    """Marks a function as a rule that replaces calls of `ops` by an equal call of an operator that says more.

    The function takes a folded `Call` and returns `(operator name, inputs, attributes)`, or `None` where it does not fit.
    """

    def mark(function: Function) -> Function:
        setattr(function, _REWRITE_MARK, RewriteRule(function, ops))
        return function

    return mark


@dataclasses.dataclass(frozen=True)
class PatternRule:
    """Which groups of calls become one call. See [`onnxeqx.pattern`][]."""

    function: Callable[..., Any]
    terms: tuple[Any, ...]
    rounded: bool = False
    plugin: str = ""

    @property
    def name(self) -> str:
        """That of the function."""
        return self.function.__name__

    @property
    def ops(self) -> frozenset[str]:
        """The operators that a match may end in."""
        return frozenset(term.op for term in self.terms)


def pattern(*terms: Any, rounded: bool = False) -> Callable[[Function], Function]:
    """Marks a function as a rule that replaces what these patterns match by one call.

    ```python
    from onnxeqx.patterns import Node, Replacement, Variable

    x = Variable("x")

    @onnxeqx.pattern(x * Node("Tanh", Node("Softplus", x)))
    def mish(match):
        return Replacement("Mish", 18, (match["x"],))
    ```

    The function takes a [`onnxeqx.patterns.Match`][] and returns a [`onnxeqx.patterns.Replacement`][], or `None` where it does
    not fit. What the pattern computes on the way must have no other reader, or the pattern does not match. Patterns that are
    registered earlier are tried first; `onnxeqx.load(..., patterns=False)` uses none.

    **Arguments:**

    - `terms`: the spellings.
    - `rounded`: the file's constants are roundings of those of the new call (a square root in float32). Such a pattern is not
      applied where JAX is in 64-bit mode, so that there the model computes what the file says.
    """

    def mark(function: Function) -> Function:
        setattr(function, _PATTERN_MARK, PatternRule(function, terms, rounded))
        return function

    return mark


class Registry:
    """All operators, patterns, rewrite rules and lift rules of the loaded plugins.

    A plugin receives a registry that is bound to its name: `registry.add(function)` and `registry.add_module(module)`.
    """

    def __init__(self) -> None:
        self._ops: dict[tuple[str, str], list[Op]] = {}
        self._lifts: list[LiftRule] = []
        self._rewrites: list[RewriteRule] = []
        self._patterns: list[PatternRule] = []
        self._plugin = ""

    def bound_to(self, plugin: str) -> "Registry":
        """The same registry, under the name of the plugin that now registers."""
        view = Registry()
        view._ops, view._lifts, view._rewrites, view._patterns = self._ops, self._lifts, self._rewrites, self._patterns
        view._plugin = plugin
        return view

    def add(self, function: Callable[..., Any], *, override: bool = False) -> None:
        """Registers what `@op`, `@lift`, `@rewrite` or `@pattern` marked on `function`.

        **Arguments:**

        - `function`: a function marked by [`onnxeqx.op`][], [`onnxeqx.lift`][], [`onnxeqx.rewrite`][] or [`onnxeqx.pattern`][].
        - `override`: replace operators that another plugin has registered for overlapping opset versions.

        **Raises:** `PluginError` where the function carries no mark, or where versions overlap without `override`.
        """
        if not is_marked(function):
            raise PluginError(
                f"{function!r} carries no mark; mark it with @onnxeqx.op, @onnxeqx.lift, @onnxeqx.rewrite or "
                "@onnxeqx.pattern, or leave it out."
            )
        for entry in getattr(function, _OP_MARK, ()):
            self._add_op(dataclasses.replace(entry, plugin=self._plugin), override)
        marks = ((_LIFT_MARK, self._lifts), (_REWRITE_MARK, self._rewrites), (_PATTERN_MARK, self._patterns))
        for mark, rules in marks:
            if (rule := getattr(function, mark, None)) is not None:
                rules.append(dataclasses.replace(rule, plugin=self._plugin))

    def add_module(self, module: str | types.ModuleType, *, override: bool = False) -> None:
        """Registers every marked function that the module defines; a name is looked up among the imported modules."""
        if isinstance(module, str):
            import sys

            module = sys.modules[module]
        for member in list(vars(module).values()):
            if is_marked(member) and getattr(member, "__module__", None) == module.__name__:
                self.add(member, override=override)

    def _add_op(self, entry: Op, override: bool) -> None:
        present = self._ops.setdefault((entry.domain, entry.name), [])
        for other in [other for other in present if _overlap(entry, other)]:
            if not override:
                raise PluginError(
                    f"Operator {entry.full_name} is registered twice for overlapping opsets: by plugin {other.plugin!r} "
                    f"({_range_text(other)}, {other.location}) and by plugin {entry.plugin!r} ({_range_text(entry)}, "
                    f"{entry.location}); disable one with ONNXEQX_DISABLE_PLUGINS, or register with override=True."
                )
            present.remove(other)
        present.append(entry)

    def lookup(self, domain: str, name: str, opset: int) -> Op | None:
        """The operator whose range holds `opset`, or `None`."""
        for entry in self._ops.get((canonical_domain(domain), name), ()):
            if entry.covers(opset):
                return entry
        return None

    def ops(self, name: str | None = None) -> list[Op]:
        """Every operator (of this name), sorted by domain, name and version."""
        found = [
            entry for entries in self._ops.values() for entry in entries if name in (None, entry.name, entry.full_name)
        ]
        return sorted(found, key=lambda entry: (entry.domain, entry.name, entry.since))

    def pattern_rules(self) -> Iterable[PatternRule]:
        """Patterns in the order of registration."""
        return tuple(self._patterns)

    def rewrite_rules(self) -> Iterable[RewriteRule]:
        """Rewrite rules in the order of registration."""
        return tuple(self._rewrites)

    def lift_rules(self) -> Iterable[LiftRule]:
        """Lift rules in the order of registration: the first that fits wins."""
        return tuple(self._lifts)


def is_marked(function: Any) -> bool:
    """Whether `@op`, `@lift`, `@rewrite` or `@pattern` marked this object."""
    return any(
        mark in getattr(function, "__dict__", ()) for mark in (_OP_MARK, _LIFT_MARK, _REWRITE_MARK, _PATTERN_MARK)
    )


def _overlap(first: Op, second: Op) -> bool:
    return (second.until is None or first.since <= second.until) and (
        first.until is None or second.since <= first.until
    )


def _range_text(entry: Op) -> str:
    return f"opset {entry.since}-{'' if entry.until is None else entry.until}"
