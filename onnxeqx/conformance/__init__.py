"""Conformance: the ONNX project's own cases, run on whole models, eagerly and under `jit`, with 32 and with 64 bits."""

from .cases import (
    Case as Case,
    installed_cases as installed_cases,
    operator_versions as operator_versions,
    released_case as released_case,
    released_cases as released_cases,
)
from .exclusions import Exclusion as Exclusion, read_exclusions as read_exclusions
from .runner import Mode as Mode, Outcome as Outcome, run_case as run_case
from .suite import Report as Report, run_suite as run_suite
