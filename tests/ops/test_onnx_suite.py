"""The ONNX project's own cases for every operator that is registered, at the suite's own tolerances.

`exclusions.txt` holds the cases that cannot hold, with the reason, strictly: an excluded case that passes fails the run.
"""

import pathlib

import jax
import pytest

from onnxeqx.plugins.manager import host
from tests.onnx_suite import check_case, node_cases

EXCLUSIONS = dict(
    line.split(None, 1) for line in (pathlib.Path(__file__).parent / "exclusions.txt").read_text().splitlines()
)


def is_supported(case) -> bool:
    opsets = {entry.domain: entry.version for entry in case.model.opset_import}
    nodes = case.model.graph.node
    return all(host().registry.lookup(node.domain, node.op_type, opsets.get(node.domain, 1)) for node in nodes)


SUPPORTED = [name for name, case in node_cases().items() if is_supported(case)]


@pytest.mark.parametrize("name", SUPPORTED)
def test_case(name):
    with jax.numpy_dtype_promotion("strict"):
        if name not in EXCLUSIONS:
            check_case(name)
            return
        try:
            check_case(name)
        except (AssertionError, AttributeError, TypeError, ValueError):
            return
        pytest.fail(f"{name} passes, but is excluded: {EXCLUSIONS[name]}")


def test_exclusions_are_sorted_cases_with_reasons():
    assert list(EXCLUSIONS) == sorted(EXCLUSIONS)
    assert set(EXCLUSIONS) <= set(SUPPORTED)
    assert all(len(reason) > 20 for reason in EXCLUSIONS.values())


def test_a_thousand_cases_are_run():
    assert len(SUPPORTED) > 1000
