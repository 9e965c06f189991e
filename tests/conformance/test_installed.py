"""The cases of the installed onnx, as whole models, at the suite's own tolerances.

`exclusions.txt` holds the cases that cannot hold, strictly: an excluded case that passes fails the run. Here they run
eagerly with 32 bits; `onnxeqx conformance` runs the other modes, and the suites of older releases.
"""

import functools
import itertools
import pathlib

import jax
import pytest

from onnxeqx.conformance import Case, Mode, installed_cases, read_exclusions, run_case

EXCLUSIONS = read_exclusions(pathlib.Path(__file__).parent / "exclusions.txt")


@functools.cache
def cases() -> dict[str, Case]:
    return {case.name: case for case in installed_cases()}


_run = itertools.count(1)


@pytest.fixture(autouse=True)
def forget_compiled_models():
    """Compiled programs hold memory maps, of which a process may have some ten thousands."""
    yield
    if next(_run) % 100 == 0:
        jax.clear_caches()


@pytest.mark.parametrize("name", cases())
def test_case(name):
    outcome = run_case(cases()[name], Mode())
    reasons = [exclusion.reason for exclusion in EXCLUSIONS if exclusion.case == name and exclusion.applies_to(Mode())]
    if reasons:
        assert not outcome.passed, f"{name} passes, but is excluded: {reasons[0]}"
    else:
        assert outcome.passed, outcome.problem


def test_exclusions_are_sorted_cases_with_reasons():
    keys = [(exclusion.case, exclusion.where) for exclusion in EXCLUSIONS]
    assert keys == sorted(set(keys))
    assert {case for case, where in keys if "." not in where} <= set(cases())
    assert all(exclusion.reason for exclusion in EXCLUSIONS)
    assert all(len(exclusion.reason) > 20 for exclusion in EXCLUSIONS)


def test_there_are_two_thousand_cases():
    assert len(cases()) > 2000
