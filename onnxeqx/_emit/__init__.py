"""Emitting: from blocks to the text of a Python file. The same graph gives the same text, byte for byte."""

import ast
import dataclasses

import numpy as np

from .._errors import NothingToStackError
from .._fold import host_inputs
from .._graph import Graph, Role
from .._lower import is_floating
from .._nest import Block
from .._stacks import Stacks
from ._calls import Context
from ._classes import ClassPrinter
from ._expressions import Imports, dotted, literal
from ._idioms import Idioms
from ._layout import layout
from ._scans import SHORTEST, Scans


@dataclasses.dataclass(frozen=True)
class Header:
    """What the docstring of a printed file says of its origin.

    **Fields:** `title` (the file's name), `graph_digest` (SHA-256 of the weightless ONNX graph), `version` (of onnxeqx),
    `plugins` (third-party plugins that the model needs).
    """

    title: str
    graph_digest: str
    version: str
    plugins: tuple[str, ...] = ()


def emit(graph: Graph, root: Block, header: Header, scans: Scans | None = None) -> str:
    """The source of the model: imports, classes from the innermost outwards, `Model` last.

    `scans` looks for layers to stack, or says which are stacked.
    """
    imports = Imports()
    for module, alias in (("equinox", "eqx"), ("jax", "jax"), ("jax.numpy", "jnp"), ("numpy", "np"), ("math", "math")):
        imports.name(module, alias)
    for member in (
        "compute_dtype",
        "host_value",
        "model_call",
        "over_batch",
        "scan_layers",
        "stacked",
        "subkey",
        "subkeys",
    ):
        imports.member("onnxeqx.runtime", member)
    main_dtype = _main_dtype(graph)
    classes = ClassPrinter(root, Context(imports, main_dtype, Idioms(graph), scans or Scans())).print()
    _decorate_model(classes[-1], graph, main_dtype)
    used = {node.id for definition in classes for node in ast.walk(definition) if isinstance(node, ast.Name)}
    uses_key = "KEY" in used
    statements = imports.statements(used | ({"jax"} if uses_key else set()))
    sections = [_docstring(header, uses_key), "\n".join(_unparse(statement) for statement in statements)]
    if uses_key:
        sections.append("KEY = jax.random.key(0)")
    text = "\n\n".join(sections)
    return layout(text + "".join(f"\n\n\n{_unparse(definition)}" for definition in classes) + "\n")


def emit_stacked(graph: Graph, root: Block, header: Header, *, remat: bool) -> tuple[str, Stacks]:
    """As [`onnxeqx._emit.emit`][], with equal layers in a row stacked: the source, and what was stacked.

    **Raises:** `NothingToStackError` if no layers can be stacked.
    """
    scans = Scans(wanted=True, remat=remat)
    emit(graph, root, header, scans)
    scans.stacks = scans.chosen()
    if not scans.stacks:
        raise NothingToStackError(
            f"{header.title} has no {SHORTEST} equal layers in a row of which each takes what the one before returns; load it "
            "without scan_layers."
        )
    stacks = {".".join(stack.path): tuple(map(".".join, stack.layers)) for stack in scans.stacks.values()}
    return emit(graph, root, header, scans), stacks


def _main_dtype(graph: Graph) -> np.dtype:
    """The floating dtype that holds most of the parameters."""
    sizes: dict[np.dtype, int] = {}
    for leaf in graph.leaves():
        if leaf.role is Role.PARAMETER and is_floating(leaf.dtype):
            sizes[leaf.dtype] = sizes.get(leaf.dtype, 0) + int(np.prod(leaf.shape))
    return max(sizes, key=lambda dtype: sizes[dtype], default=np.dtype(np.float32))


def _docstring(header: Header, uses_key: bool) -> str:
    title = "".join(character if character.isalnum() or character in " ._-" else "_" for character in header.title)[
        :100
    ]
    lines = [f"{title}, converted by onnxeqx {header.version}.", ""]
    lines += ["`onnxeqx.load` on this folder builds `Model` and binds weights.safetensors to it by key path."]
    if uses_key:
        lines += ["`KEY` only fills layers before their weights are bound."]
    if header.plugins:
        lines += [f"Needs the plugins: {', '.join(header.plugins)}."]
    lines += ["", f"ONNX graph sha256: {header.graph_digest}"]
    return '"""' + "\n".join(lines) + '\n"""'


def _decorate_model(definition: ast.ClassDef, graph: Graph, main_dtype: np.dtype) -> None:
    """Names of inputs and outputs, and the check of every call against the declared shapes."""
    declared = ast.Dict(
        [literal(value.name) for value in graph.inputs],
        [literal(graph.declared[value.name]) for value in graph.inputs],
    )
    keywords = [] if main_dtype == np.float32 else [ast.keyword("dtype", literal(main_dtype.name))]
    if host := host_inputs(graph):
        keywords.append(ast.keyword("host", literal(host)))
    for statement in definition.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == "__call__":
            statement.decorator_list = [ast.Call(dotted("model_call"), [declared], keywords)]
    names = {"input_names": tuple(value.name for value in graph.inputs), "output_names": graph.output_names}
    definition.body[:0] = [
        ast.Assign([ast.Name(key, ast.Store())], literal(value), lineno=0) for key, value in names.items()
    ]


def _unparse(statement: ast.stmt) -> str:
    return ast.unparse(ast.fix_missing_locations(statement))
