"""The plugin host: built-ins and entry points of the group `onnxeqx`, through one door.

Environment:

- `ONNXEQX_DISABLE_PLUGINS=a,b`: do not load the plugins of these names.
- `ONNXEQX_PLUGIN_AUTOLOAD=0`: load no third-party plugin at all.
"""

import contextlib
import dataclasses
import functools
import importlib
import importlib.metadata
import os
import warnings
from collections.abc import Iterator

import pluggy

from .._errors import PluginError
from .._registry import Registry
from . import hookspecs

GROUP = "onnxeqx"
BUILTIN_OPS = (
    "activation",
    "attention",
    "casting",
    "control_flow",
    "convolution",
    "detection",
    "elementwise",
    "feature_encoding",
    "generator",
    "idioms",
    "image_decoding",
    "indexing",
    "linear_algebra",
    "linear_attention",
    "linear_models",
    "logical",
    "loss",
    "normalization",
    "padding",
    "pooling",
    "preview_training",
    "quantization",
    "random_generation",
    "recurrent",
    "reduction",
    "resize",
    "sampling",
    "sequence",
    "signal",
    "strings",
    "tensor",
    "trees",
    "trigonometric",
)
# Registered last: the first rule that fits wins, and third parties come before the built-ins.
BUILTIN_RULES = ("rewrites", "attention_patterns", "mask_patterns", "patterns", "layers")


@dataclasses.dataclass(frozen=True)
class Plugin:
    """A loaded plugin.

    **Fields:** `name` (entry-point name), `distribution` and `version` (of the installed package), `module`.
    """

    name: str
    distribution: str
    version: str
    module: str

    def __str__(self) -> str:
        return f"{self.name!r} of {self.distribution} {self.version}"


class PluginHost:
    """The pluggy host with its registry. Get the process-wide one from [`onnxeqx.plugins.manager.host`][].

    **Arguments:**

    - `autoload`: load the plugins of installed distributions, beside the built-in ones.
    - `disabled`: names of plugins that are not loaded.

    **Raises:** as `register`.
    """

    def __init__(self, *, autoload: bool = True, disabled: frozenset[str] = frozenset()) -> None:
        self.pluggy = pluggy.PluginManager(GROUP)
        self.pluggy.add_hookspecs(hookspecs)
        self.registry = Registry()
        self.plugins: list[Plugin] = []
        self._disabled = disabled
        self._register_builtins(BUILTIN_OPS)
        if autoload:
            self._load_entry_points()
        self._register_builtins(BUILTIN_RULES)

    def register(self, module: object, plugin: Plugin) -> None:
        """Registers one plugin object and lets it hand in its operators, rewrite rules and lift rules.

        Whole or not at all: if this raises, nothing of the plugin stays behind.

        **Raises:** `PluginError` on a duplicate plugin, a duplicate operator, or a hook or hook argument that is not in
        [`onnxeqx.plugins.hookspecs`][]; and whatever the plugin's hooks raise.
        """
        if plugin.name in self._disabled:
            return
        self._refuse_duplicate(module, plugin)
        with self._whole_or_nothing(plugin):
            self._register_hooks(module, plugin)
            registry = self.registry.bound_to(plugin.name)
            others = [other for name, other in self.pluggy.list_name_plugin() if name != plugin.name]
            for hook in ("onnxeqx_register_ops", "onnxeqx_register_layers"):
                self.pluggy.subset_hook_caller(hook, others)(registry=registry)
        self.plugins.append(plugin)

    def _register_builtins(self, names: tuple[str, ...]) -> None:
        version = importlib.metadata.version("onnxeqx")
        for name in names:
            module = f"onnxeqx.plugins.{name}"
            self.register(importlib.import_module(module), Plugin(name, "onnxeqx", version, module))

    def _refuse_duplicate(self, module: object, plugin: Plugin) -> None:
        registered = self.pluggy.get_name(module)
        for other in self.plugins:
            if other.name == plugin.name:
                raise PluginError(
                    f"Two plugins are named {plugin.name!r}: {other.module} of {other.distribution} {other.version}, and "
                    f"{plugin.module} of {plugin.distribution} {plugin.version}; uninstall one, or give its entry point "
                    "another name."
                )
            if other.name == registered:
                raise PluginError(
                    f"Plugins {other} and {plugin} are the same module {plugin.module}; disable one with "
                    "ONNXEQX_DISABLE_PLUGINS."
                )

    def _register_hooks(self, module: object, plugin: Plugin) -> None:
        try:
            self.pluggy.register(module, plugin.name)
            self.pluggy.check_pending()
        except pluggy.PluginValidationError as error:
            names = ", ".join(name for name in vars(hookspecs) if name.startswith("onnxeqx_"))
            raise PluginError(
                f"Plugin {plugin} does not fit the hooks of this onnxeqx ({names}): {' '.join(str(error).split())}"
            ) from error

    @contextlib.contextmanager
    def _whole_or_nothing(self, plugin: Plugin) -> Iterator[None]:
        """Takes back the hooks, operators and rules of a plugin that fails while it registers."""
        registry = self.registry
        ops = {key: list(entries) for key, entries in registry._ops.items()}
        lifts, rewrites, patterns = list(registry._lifts), list(registry._rewrites), list(registry._patterns)
        try:
            yield
        except BaseException:
            self.pluggy.unregister(name=plugin.name)
            # In place: a registry bound to a plugin shares these containers.
            registry._ops.clear()
            registry._ops.update(ops)
            registry._lifts[:], registry._rewrites[:], registry._patterns[:] = lifts, rewrites, patterns
            raise

    def _load_entry_points(self) -> None:
        # Our own loop: pluggy's load_setuptools_entrypoints lets one broken import take the whole program down.
        for entry_point in sorted(
            importlib.metadata.entry_points(group=GROUP), key=lambda entry_point: entry_point.name
        ):
            if entry_point.name in self._disabled:
                continue
            distribution = entry_point.dist.name if entry_point.dist else "?"
            version = entry_point.dist.version if entry_point.dist else "?"
            plugin = Plugin(entry_point.name, distribution, version, entry_point.value)
            try:
                module = entry_point.load()
            except (Exception, SystemExit) as error:  # noqa: BLE001  a third party's import may raise anything
                _warn_not_loaded(plugin, error)
                continue
            try:
                self.register(module, plugin)
            except PluginError:
                raise
            except (Exception, SystemExit) as error:  # noqa: BLE001  and so may its hooks
                _warn_not_loaded(plugin, error)


def _warn_not_loaded(plugin: Plugin, error: BaseException) -> None:
    warnings.warn(
        f"onnxeqx plugin {plugin} was not loaded: {type(error).__name__}: {error}; repair or uninstall it, or set "
        f"ONNXEQX_DISABLE_PLUGINS={plugin.name}.",
        RuntimeWarning,
        stacklevel=3,
    )


@functools.cache
def host() -> PluginHost:
    """The plugin host of this process, made on first use from the environment."""
    disabled = frozenset(
        name.strip() for name in os.environ.get("ONNXEQX_DISABLE_PLUGINS", "").split(",") if name.strip()
    )
    return PluginHost(autoload=os.environ.get("ONNXEQX_PLUGIN_AUTOLOAD", "1") != "0", disabled=disabled)
