"""The cases: those of the installed onnx, and those of older releases, which hold the old versions of operators."""

import dataclasses
import pathlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import numpy_helper

_KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator")
_LIGHT = pathlib.Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """One case of a suite.

    **Fields:**

    - `name`, `kind`: as in the suite.
    - `load`: gives the model, and the data sets: pairs of inputs in graph order and expected outputs.
    - `rtol`, `atol`: the suite's own tolerances.
    """

    name: str
    kind: str
    load: Callable[[], tuple[onnx.ModelProto, list[tuple[list[Any], list[Any]]]]]
    rtol: float = 1e-3
    atol: float = 1e-7


def installed_cases() -> list[Case]:
    """The 2,033 cases (onnx 1.23.2) that the installed onnx brings, sorted by name. The first call takes some seconds."""
    from onnx.backend.test.loader import load_model_tests

    cases = []
    with warnings.catch_warnings(action="ignore"):  # onnx overflows on purpose while it makes its cases
        for kind in _KINDS:
            for test in load_model_tests(kind=kind):
                cases.append(Case(test.name, kind, _loader(test), test.rtol, test.atol))
    cases += [Case(path.stem, "light", _light_loader(path)) for path in sorted(_LIGHT.glob("light_*.onnx"))]
    return sorted(cases, key=lambda case: case.name)


def released_cases(folder: pathlib.Path) -> list[Case]:
    """The cases below a folder of `KIND/CASE/{model.onnx, test_data_set_N}`, as older releases of onnx hold them."""
    return [released_case(path.parent) for path in sorted(folder.glob("*/*/model.onnx"))]


def released_case(folder: pathlib.Path) -> Case:
    """The case in one folder of `model.onnx` and `test_data_set_N`."""
    return Case(folder.name, folder.parent.name, _folder_loader(folder))


def operator_versions(model: onnx.ModelProto) -> set[tuple[str, str, int]]:
    """The operators that a model's nodes are, inside control flow too: (domain, name, version of the schema)."""
    opsets = {"" if entry.domain == "ai.onnx" else entry.domain: entry.version for entry in model.opset_import}
    found = set()
    for node in _nodes(model.graph):
        domain = "" if node.domain == "ai.onnx" else node.domain
        if onnx.defs.has(node.op_type, domain):
            schema = onnx.defs.get_schema(node.op_type, opsets.get(domain, 1), domain)
            found.add((domain, node.op_type, schema.since_version))
    return found


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _nodes(attribute.g)


def _loader(test: Any) -> Callable[[], tuple[onnx.ModelProto, list[tuple[list[Any], list[Any]]]]]:
    if test.model is None:
        return _folder_loader(pathlib.Path(test.model_dir))

    def load() -> tuple[onnx.ModelProto, list[tuple[list[Any], list[Any]]]]:
        sets = [
            ([_value(item) for item in inputs], [_value(item) for item in outputs])
            for inputs, outputs in test.data_sets
        ]
        return test.model, sets

    return load


def _light_loader(path: pathlib.Path) -> Callable[[], tuple[onnx.ModelProto, list[tuple[list[Any], list[Any]]]]]:
    """Networks with constant weights; onnx feeds them evenly spaced numbers, and stores what its reference computes."""

    def load() -> tuple[onnx.ModelProto, list[tuple[list[Any], list[Any]]]]:
        from onnx.backend.test.runner import Runner

        model = onnx.load(path)
        stored = {tensor.name for tensor in model.graph.initializer}
        inputs = [Runner.generate_dummy_data(value) for value in model.graph.input if value.name not in stored]
        output = onnx.TensorProto.FromString(path.with_name(f"{path.stem}_output_0.pb").read_bytes())
        return model, [(inputs, [numpy_helper.to_array(output)])]

    return load


def _folder_loader(folder: pathlib.Path) -> Callable[[], tuple[onnx.ModelProto, list[tuple[list[Any], list[Any]]]]]:
    def load() -> tuple[onnx.ModelProto, list[tuple[list[Any], list[Any]]]]:
        model = onnx.load(folder / "model.onnx")
        stored = {tensor.name for tensor in model.graph.initializer}
        inputs = [value for value in model.graph.input if value.name not in stored]
        sets = []
        for data in sorted(folder.glob("test_data_set_*")):
            sets.append((list(_values(data, "input", inputs)), list(_values(data, "output", list(model.graph.output)))))
        return model, sets

    return load


def _values(folder: pathlib.Path, stem: str, declared: list[onnx.ValueInfoProto]) -> Iterator[Any]:
    for number, value in enumerate(declared):
        path = folder / f"{stem}_{number}.pb"
        if not path.exists():  # an optional input that is left out
            return
        kind = value.type.WhichOneof("value")
        message = {"sequence_type": onnx.SequenceProto, "optional_type": onnx.OptionalProto}.get(
            kind or "", onnx.TensorProto
        )
        array = _value(message.FromString(path.read_bytes()))
        # Releases of onnx that knew no NumPy dtype for bfloat16 stored its bits.
        bits = value.type.tensor_type.elem_type == onnx.TensorProto.BFLOAT16 and array.dtype == np.uint16
        yield array.view(ml_dtypes.bfloat16) if bits else array


def _value(item: Any) -> Any:
    """A case's value as NumPy: array, list, dictionary or `None`."""
    match item:
        case onnx.TensorProto():
            return numpy_helper.to_array(item)
        case onnx.SequenceProto():
            return numpy_helper.to_list(item)
        case onnx.OptionalProto():
            return numpy_helper.to_optional(item)
        case list() | tuple():
            return [_value(part) for part in item]
        case None | dict():
            return item
    return np.asarray(item)
