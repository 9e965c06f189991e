"""The contract of docs/stability.md: key paths do not move. After a bump of the naming version,

python -m tests.test_stability

writes the expected key paths anew.
"""

import pathlib

import onnx
import pytest

from onnxeqx._convert import convert
from onnxeqx._names import NAMING_VERSION
from onnxeqx._read import read

TESTS = pathlib.Path(__file__).parent
LIGHT = pathlib.Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
MODELS = [*sorted((TESTS / "models").glob("*.onnx")), LIGHT / "light_resnet50.onnx", LIGHT / "light_inception_v1.onnx"]


def key_paths(path: pathlib.Path) -> str:
    """A line for each leaf: key path, shape, role, and the tensor of the file with the transform that lays it out."""
    printed = convert(read(path, weightless=True), path.name)
    lines = [f"naming version {NAMING_VERSION}"]
    for key, entry in sorted(printed.provenance.items()):
        size = "x".join(map(str, entry.shape))
        lines.append(f"{key}  {size}  {entry.role}  {entry.initializer}  {entry.transform}".rstrip())
    return "\n".join(lines) + "\n"


def golden(path: pathlib.Path) -> pathlib.Path:
    return TESTS / "key_paths" / f"{path.stem}.txt"


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_key_paths_have_not_moved(path):
    assert key_paths(path) == golden(path).read_text()


def test_there_are_ten_models():
    assert len(MODELS) >= 10
    assert {path.stem for path in MODELS} == {path.stem for path in (TESTS / "key_paths").glob("*.txt")}


if __name__ == "__main__":
    for model in MODELS:
        golden(model).write_text(key_paths(model))
