"""The conformance runner itself: what it counts, refuses and says."""

import shutil
import zipfile

import numpy as np
import onnx
import onnx.parser
import pytest
import typer.testing

from onnxeqx.cli import app
from onnxeqx.conformance import (
    Case,
    Exclusion,
    Mode,
    operator_versions,
    read_exclusions,
    released_cases,
    run_case,
    run_suite,
)
from tests.versions.test_versions import ARCHIVE

X = np.array([1.0, -2.0], np.float32)


def case(node: str, *expected: np.ndarray, inputs: tuple = (X,)) -> Case:
    text = f'<ir_version: 8, opset_import: ["": 17]> g (float[2] x) => (float[2] y) {{ y = {node} }}'
    return Case("case", "node", lambda: (onnx.parser.parse_model(text), [(list(inputs), list(expected))]))


def test_a_wrong_number_shape_or_dtype_is_a_problem():
    assert run_case(case("Neg (x)", -X), Mode()).passed
    assert "not equal" in run_case(case("Neg (x)", X), Mode()).problem.lower()
    assert "has shape (2,), not (1, 2)" in run_case(case("Neg (x)", -X[None]), Mode()).problem
    assert "is float32, not float16" in run_case(case("Neg (x)", -X.astype(np.float16)), Mode()).problem
    assert "is float32, not float64" in run_case(case("Neg (x)", -X.astype(np.float64)), Mode(x64=True)).problem
    assert "Nothing" in run_case(case("Nothing (x)", X), Mode()).problem


def test_modes_have_names():
    modes = [Mode(), Mode(jit=True), Mode(x64=True), Mode(jit=True, x64=True), Mode(platform="tpu")]
    assert [str(mode) for mode in modes] == ["eager32", "jit32", "eager64", "jit64", "tpu32"]


@pytest.mark.parametrize("mode", [Mode(jit=True), Mode(platform="tpu")], ids=str)
def test_what_cannot_be_traced_fails_where_it_is_traced(mode):
    shaped = case("NonZero (x)", np.array([[0, 1]]))
    assert run_case(shaped, Mode()).passed
    assert "HostValueError" in run_case(shaped, mode).problem


def test_operands_that_set_shapes_are_counted_as_static():
    text = '<ir_version: 8, opset_import: ["": 17]> g (float[2] x, int64[1] s) => (y) { y = Expand (x, s) }'
    expand = Case(
        "expand", "node", lambda: (onnx.parser.parse_model(text), [([X, np.array([2])], [np.broadcast_to(X, 2)])])
    )
    outcome = run_case(expand, Mode(jit=True))
    assert (outcome.passed, outcome.static) == (True, ("s",))
    assert run_case(expand, Mode()).static == ()


@pytest.mark.parametrize(
    ("where", "modes"),
    [
        ("run", {"eager32", "eager64", "jit32", "jit64"}),
        ("traced", {"jit32", "jit64", "tpu32"}),
        ("run+32", {"eager32", "jit32"}),
        ("jit", {"jit32", "jit64"}),
        ("jit+64,eager+32", {"jit64", "eager32"}),
        ("1.18.0", set()),
    ],
)
def test_where_exclusions_apply(where, modes):
    every = [Mode(jit, x64) for jit in (False, True) for x64 in (False, True)] + [Mode(platform="tpu")]
    exclusion = Exclusion("case", where, "because")
    assert {str(mode) for mode in every if exclusion.applies_to(mode)} == modes
    assert exclusion.applies_to(Mode(), "1.18.0") == ("eager32" in modes or where == "1.18.0")


def test_versions_of_operators_inside_control_flow():
    text = """<ir_version: 8, opset_import: ["": 14]>
    g (bool c, float[2] x) => (y) {
      y = If (c) <then_branch = a () => (u) { u = Relu (x) }, else_branch = b () => (v) { v = Abs (x) }>
    }"""
    assert operator_versions(onnx.parser.parse_model(text)) == {("", "If", 13), ("", "Relu", 14), ("", "Abs", 13)}


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """Two cases of an older onnx in a folder named after it."""
    folder = tmp_path_factory.mktemp("releases")
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(folder / "all")
    paths = [path.parent for path in sorted((folder / "all").glob("*/*/model.onnx"))]
    for path in [path for path in paths if "softmax" in path.name][:2]:
        shutil.copytree(path, folder / "1.0.0" / "node" / path.name)
    return folder / "1.0.0"


def invoke(*words):
    return typer.testing.CliRunner().invoke(app, ["conformance", *map(str, words)])


def test_the_command_fails_on_failures_and_on_stale_exclusions(release, tmp_path):
    names = [case.name for case in released_cases(release)]
    result = invoke("--released", release)
    assert result.exit_code == 0
    assert f"{len(names)} of {len(names)} cases pass (eager32)" in result.output
    (tmp_path / "exclusions.txt").write_text(f"# heading\n{names[0]}  1.0.0  it is only a test\n")
    assert read_exclusions(tmp_path / "exclusions.txt") == [Exclusion(names[0], "1.0.0", "it is only a test")]
    result = invoke("--released", release, "--exclusions", tmp_path / "exclusions.txt")
    assert result.exit_code == 1
    assert "passes, but is excluded" in " ".join(result.output.split())
    output = release / "node" / names[0] / "test_data_set_0" / "output_0.pb"
    tensor = onnx.TensorProto.FromString(output.read_bytes())
    wrong = onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) + 1)
    output.write_bytes(wrong.SerializeToString())
    assert invoke("--released", release).exit_code == 1
    assert invoke("--released", release, "--exclusions", tmp_path / "exclusions.txt").exit_code == 0


def test_lowering_is_a_mode_of_the_command(release):
    result = invoke("--released", release, "--lower", "tpu")
    assert result.exit_code == 0
    assert "cases pass (tpu32)" in result.output


def test_a_suite_on_two_processes_is_the_same(release):
    one, two = (run_suite(Mode(), folder=release, jobs=jobs) for jobs in (1, 2))
    assert [outcome.case for outcome in one.outcomes] == [outcome.case for outcome in two.outcomes]
    assert one.passed == two.passed
