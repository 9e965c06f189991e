"""Every version of every operator against an oracle, with the semantics that it had.

An oracle is, in this order: a case of the installed onnx that its suite runs (`tests/conformance`), a case that an older
release brought (`released_cases.zip`, picked by `benchmarks/released_suites.py`), or a case written here.
"""

import pathlib
import zipfile

import onnx
import pytest

from onnxeqx.conformance import (
    Mode,
    installed_cases,
    operator_versions,
    read_exclusions,
    released_case,
    run_case,
)

from .written_cases import WRITTEN

ARCHIVE = pathlib.Path(__file__).parent / "released_cases.zip"
RELEASED = [
    name.removesuffix("/model.onnx") for name in zipfile.ZipFile(ARCHIVE).namelist() if name.endswith("/model.onnx")
]


# Operators that cannot be traced, each with its reason.
HOST_ONLY = dict(
    line.split(None, 1) for line in (pathlib.Path(__file__).parent / "host_only.txt").read_text().splitlines()
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    target = tmp_path_factory.mktemp("released")
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(target)
    return target


@pytest.mark.parametrize("name", RELEASED)
def test_released_cases(folder, name):
    outcome = run_case(released_case(folder / name), Mode())
    assert outcome.passed, outcome.problem


@pytest.mark.parametrize("written", WRITTEN, ids=lambda written: written.name)
def test_written_cases(written):
    outcome = run_case(written.case(), Mode())
    assert outcome.passed, outcome.problem


@pytest.mark.parametrize("mode", [Mode(jit=True), Mode(platform="tpu")], ids=str)
@pytest.mark.parametrize("written", WRITTEN, ids=lambda written: written.name)
def test_written_cases_under_jit_and_for_tpu(written, mode):
    outcome = run_case(written.case(), mode)
    if f"{written.domain}::{written.op}".removeprefix("::") in HOST_ONLY:
        assert not outcome.passed
    else:
        assert outcome.passed, outcome.problem


def test_every_version_has_an_oracle(folder):
    excluded = read_exclusions(pathlib.Path(__file__).parents[1] / "conformance" / "exclusions.txt")
    unusable = {exclusion.case for exclusion in excluded if exclusion.applies_to(Mode())}
    cases = [case for case in installed_cases() if case.name not in unusable]
    cases += [released_case(folder / name) for name in RELEASED]
    found = set().union(*(operator_versions(case.load()[0]) for case in cases))
    found |= {(written.domain, written.op, written.version) for written in WRITTEN}
    every = {(schema.domain, schema.name, schema.since_version) for schema in onnx.defs.get_all_schemas_with_history()}
    assert every <= found, sorted(every - found)
