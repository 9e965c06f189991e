"""What a plugin needs to write patterns. See docs/plugins.md."""

from ._patterns import (
    Match as Match,
    Node as Node,
    Replacement as Replacement,
    Term as Term,
    Variable as Variable,
)
