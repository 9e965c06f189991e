"""The plugin host: built-ins and entry points of the group `onnxeqx`, through one door.

Environment:

- `ONNXEQX_DISABLE_PLUGINS=a,b`: do not load the plugins of these names.
- `ONNXEQX_PLUGIN_AUTOLOAD=0`: load no third-party plugin at all.
"""

import dataclasses
import functools
import importlib
import importlib.metadata
import os
import warnings

import pluggy

from .._errors import PluginError
from .._registry import Registry
from . import hookspecs

GROUP = "onnxeqx"
BUILTINS = (
    "activation",
    "casting",
    "convolution",
    "elementwise",
    "generator",
    "indexing",
    "linear_algebra",
    "logical",
    "normalization",
    "padding",
    "pooling",
    "reduction",
    "rewrites",
    "tensor",
)


@dataclasses.dataclass(frozen=True)
class Plugin:
    """A loaded plugin.

    **Fields:** `name` (entry-point name), `distribution` and `version` (of the installed package), `module`.
    """

    name: str
    distribution: str
    version: str
    module: str


class PluginHost:
    """The pluggy host with its registry. Get the process-wide one from [`onnxeqx.plugins.manager.host`][]."""

    def __init__(self, *, autoload: bool = True, disabled: frozenset[str] = frozenset()) -> None:
        self.pluggy = pluggy.PluginManager(GROUP)
        self.pluggy.add_hookspecs(hookspecs)
        self.registry = Registry()
        self.plugins: list[Plugin] = []
        self._disabled = disabled
        version = importlib.metadata.version("onnxeqx")
        for family in BUILTINS:
            self.register(importlib.import_module(f"onnxeqx.plugins.{family}"), Plugin(family, "onnxeqx", version, f"onnxeqx.plugins.{family}"))
        if autoload:
            self._load_entry_points()
        self.register(importlib.import_module("onnxeqx.plugins.layers"), Plugin("layers", "onnxeqx", version, "onnxeqx.plugins.layers"))
        self.pluggy.check_pending()

    def register(self, module: object, plugin: Plugin) -> None:
        """Registers one plugin object and lets it hand in its operators and layers.

        **Raises:** `PluginError` on a duplicate operator or an unknown hook.
        """
        if plugin.name in self._disabled:
            return
        self.pluggy.register(module, plugin.name)
        try:
            registry = self.registry.bound_to(plugin.name)
            others = [other for name, other in self.pluggy.list_name_plugin() if name != plugin.name and other is not None]
            self.pluggy.subset_hook_caller("onnxeqx_register_ops", others)(registry=registry)
            self.pluggy.subset_hook_caller("onnxeqx_register_layers", others)(registry=registry)
        except PluginError:
            self.pluggy.unregister(name=plugin.name)
            raise
        self.plugins.append(plugin)

    def _load_entry_points(self) -> None:
        # Our own loop: pluggy's load_setuptools_entrypoints lets one broken import take the whole program down.
        for entry_point in sorted(importlib.metadata.entry_points(group=GROUP), key=lambda entry_point: entry_point.name):
            if entry_point.name in self._disabled:
                continue
            distribution = entry_point.dist.name if entry_point.dist else "?"
            version = entry_point.dist.version if entry_point.dist else "?"
            try:
                module = entry_point.load()
            except Exception as error:  # noqa: BLE001  a third party's import may raise anything
                warnings.warn(
                    f"onnxeqx plugin {entry_point.name!r} of {distribution} {version} was not loaded: "
                    f"{type(error).__name__}: {error}; repair or uninstall it, or set ONNXEQX_DISABLE_PLUGINS={entry_point.name}.",
                    RuntimeWarning,
                    stacklevel=2,
                )
                continue
            self.register(module, Plugin(entry_point.name, distribution, version, entry_point.value))


@functools.cache
def host() -> PluginHost:
    """The plugin host of this process, made on first use from the environment."""
    disabled = frozenset(name.strip() for name in os.environ.get("ONNXEQX_DISABLE_PLUGINS", "").split(",") if name.strip())
    return PluginHost(autoload=os.environ.get("ONNXEQX_PLUGIN_AUTOLOAD", "1") != "0", disabled=disabled)
