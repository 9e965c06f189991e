"""Whether BatchNorm is still in a file, or was folded into the layers before it by the exporter."""

import dataclasses
import re

import onnx_ir as ir

from .._names import scope_of

_FOLDS_INTO = ("Conv", "ConvTranspose", "Gemm")
# TorchScript names what it computed itself after the operator that reads it.
_COMPUTED = re.compile(r"^onnx::(Conv|ConvTranspose|Gemm)_\d+$")
_NAMED = re.compile(r"batch_?norm|(^|[/._])bn_?\d*($|[/.:])", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class BatchNorm:
    """Where BatchNorm went.

    **Fields:**

    - `nodes`: how many BatchNormalization nodes there are.
    - `named`: layers whose scope, value names or class say that they were a BatchNorm too, by node name.
    - `computed`: layers with a bias whose tensors have lost their names, as those have that the exporter computed.
    """

    nodes: int
    named: tuple[str, ...]
    computed: tuple[str, ...]

    def sentences(self) -> list[str]:
        """What the evidence says, and no more."""
        found = []
        if self.named:
            found.append(
                f"BatchNorm was folded away: {_layers(self.named)} the name of a batch normalization, and no node of its own "
                "computes it."
            )
        if self.computed:
            found.append(
                f"BatchNorm was probably folded away: {_layers(self.computed)} a weight and a bias that the exporter computed "
                "(onnx::Conv_…), as it does when it folds a batch normalization in."
            )
        if self.nodes and found:
            found.append(f"{self.nodes} BatchNormalization nodes are still there.")
        return found


def _layers(nodes: tuple[str, ...]) -> str:
    first, *others = nodes
    return f"{len(nodes)} layers (first: {first}) carry" if others else f"1 layer ({first}) carries"


def batch_norm(model: ir.Model) -> BatchNorm:
    """Looks for traces of BatchNorm in the nodes of a file."""
    nodes = list(ir.traversal.RecursiveGraphIterator(model.graph))
    layers = [node for node in nodes if node.op_type in _FOLDS_INTO and len(node.inputs) > 2]
    named = [node for node in layers if _is_named(node)]
    computed = [
        node
        for node in layers
        if node not in named
        and all(value is not None and _COMPUTED.match(value.name or "") for value in node.inputs[1:])
    ]
    kept = sum(node.op_type == "BatchNormalization" for node in nodes)
    return BatchNorm(kept, tuple(map(_name, named)), tuple(map(_name, computed)))


def _is_named(node: ir.Node) -> bool:
    scope, classes = scope_of(node)
    own = [scope[-1] if scope else "", classes.get(scope, "")]
    values = [value.name or "" for value in (*node.inputs[2:], *node.outputs) if value is not None]
    return any(_NAMED.search(text) for text in (*own, *values))


def _name(node: ir.Node) -> str:
    return node.name or "".join(value.name or "" for value in node.outputs[:1]) or node.op_type
