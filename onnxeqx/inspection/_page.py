"""One HTML page about a model: nested boxes with the flow of data, to click through without a network.

Text of a model is untrusted. It reaches the page as JSON in an element that is never executed, and is shown by `textContent`
alone; the page's policy allows its own script and style, by their hashes, and nothing else.
"""

import ast
import base64
import dataclasses
import hashlib
import importlib.resources
import json
import string
from typing import Any

from ._diagram import Item
from ._inspect import Inspection, part_json
from ._tree import summary


def page(inspection: Inspection) -> str:
    """The page: self-contained, of ASCII characters only."""
    files = importlib.resources.files("onnxeqx.inspection")
    template, style, script = (files.joinpath(f"page.{kind}").read_text("utf-8") for kind in ("html", "css", "js"))
    return string.Template(template).substitute(
        style=style,
        style_hash=_hash(style),
        script=script,
        script_hash=_hash(script),
        data=_embedded(_data(inspection)),
    )


def _data(inspection: Inspection) -> dict[str, Any]:
    return {
        "name": inspection.name,
        "summary": summary(inspection),
        "root": part_json(inspection.root),
        "diagrams": {path: [_item_json(item) for item in items] for path, items in inspection.diagrams.items()},
        "classes": _class_lines(inspection.source),
        "source": inspection.source,
    }


def _item_json(item: Item) -> dict[str, Any]:
    return {key: value for key, value in dataclasses.asdict(item).items() if value}


def _class_lines(source: str) -> dict[str, tuple[int, int]]:
    """Where each class of a printed model begins and ends, for `splitlines`."""
    classes = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    return {node.name: (node.lineno - 1, node.end_lineno or node.lineno) for node in classes}


def _embedded(data: Any) -> str:
    """JSON that holds no markup, whatever its texts are."""
    text = json.dumps(data, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _hash(text: str) -> str:
    """A source expression of a Content-Security-Policy: https://www.w3.org/TR/CSP3/#grammardef-hash-source"""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
