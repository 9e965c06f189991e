"""Importing printed source. What is printed is what runs."""

import hashlib
import linecache
import sys
import threading
import types

import equinox as eqx

from ._errors import ConversionError

_PREFIX = "onnxeqx.models."
_LOCK = threading.Lock()


def import_source(source: str, filename: str | None = None) -> types.ModuleType:
    """The module with this source, executed once per process.

    The same text gives the same class objects, so that two loads are one PyTree type and `jit` does not trace again.
    Tracebacks show the printed lines.

    **Arguments:**

    - `source`: the text of a printed file.
    - `filename`: where it lies; by default it exists in memory only.

    **Raises:** `ConversionError` if the text does not run or defines no `Model`.
    """
    digest = hashlib.sha256(source.encode()).hexdigest()
    name = f"{_PREFIX}m{digest[:20]}"
    with _LOCK:
        if name in sys.modules:
            return sys.modules[name]
        module = types.ModuleType(name)
        module.__file__ = filename or f"<onnxeqx {digest[:12]}>"
        linecache.cache[module.__file__] = (len(source), None, source.splitlines(keepends=True), module.__file__)
        # Equinox resolves annotations, and pickle finds classes, through sys.modules.
        sys.modules[name] = module
        try:
            exec(compile(source, module.__file__, "exec"), module.__dict__)  # noqa: S102  printed by us, or the user's own file
        except Exception as error:
            del sys.modules[name]
            raise ConversionError(
                f"{module.__file__} does not run: {type(error).__name__}: {error}; correct the file, or convert again."
            ) from error
        model = module.__dict__.get("Model")
        if not (isinstance(model, type) and issubclass(model, eqx.Module)):
            del sys.modules[name]
            raise ConversionError(
                f"{module.__file__} defines no `class Model(eqx.Module)`; name the model's class Model."
            )
        return module
