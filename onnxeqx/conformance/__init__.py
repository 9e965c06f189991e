"""Conformance: the ONNX project's own cases, run on whole models, eagerly and under `jit`, with 32 and with 64 bits."""

from .cases import Case as Case, installed_cases as installed_cases, released_cases as released_cases
from .runner import Mode as Mode, Outcome as Outcome, run_case as run_case
