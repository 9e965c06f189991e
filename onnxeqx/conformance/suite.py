"""Running a whole suite, on several processes."""

import collections
import concurrent.futures
import dataclasses
import functools
import multiprocessing
import pathlib
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax

from .cases import Case, installed_cases, released_cases
from .exclusions import Exclusion
from .runner import Mode, Outcome, run_case

# Compiled programs hold memory maps, of which a process may have some ten thousands.
_CASES_BEFORE_FORGETTING = 100


@dataclasses.dataclass(frozen=True)
class Report:
    """What came of a suite.

    **Fields:** `outcomes` of the cases, sorted by name; `seconds` from beginning to end; `compiling`: seconds that XLA took
    in all processes; `exclusions` that apply.
    """

    outcomes: tuple[Outcome, ...]
    seconds: float
    compiling: float
    exclusions: dict[str, Exclusion]

    @property
    def passed(self) -> int:
        return sum(outcome.passed for outcome in self.outcomes)

    @property
    def failures(self) -> list[Outcome]:
        """Cases that fail and are not excluded."""
        return [outcome for outcome in self.outcomes if not outcome.passed and outcome.case not in self.exclusions]

    @property
    def stale(self) -> list[Exclusion]:
        """Exclusions of cases that pass."""
        passed = {outcome.case for outcome in self.outcomes if outcome.passed}
        return [exclusion for case, exclusion in self.exclusions.items() if case in passed]


def run_suite(
    mode: Mode,
    *,
    folder: pathlib.Path | None = None,
    only: str = "",
    jobs: int = 1,
    exclusions: Sequence[Exclusion] = (),
) -> Report:
    """Runs the installed onnx's cases, or those of a folder.

    **Arguments:**

    - `mode`: eagerly or under `jit`, with 32 or 64 bits.
    - `folder`: of a release, as `released_cases` takes it, and named after it.
    - `only`: text that the names of cases contain.
    - `jobs`: processes. Each takes some 1 GB.
    - `exclusions`: cases that may fail.
    """
    start = time.perf_counter()
    work = functools.partial(_run_share, mode, folder, only, jobs)
    if jobs == 1:
        shares = [work(0)]
    else:
        context = multiprocessing.get_context("spawn")  # JAX's threads do not survive a fork
        with concurrent.futures.ProcessPoolExecutor(jobs, mp_context=context) as pool:
            shares = list(pool.map(work, range(jobs)))
    outcomes = sorted((outcome for found, _ in shares for outcome in found), key=lambda outcome: outcome.case)
    release = folder.name if folder is not None else ""
    applying = {exclusion.case: exclusion for exclusion in exclusions if exclusion.applies_to(mode, release)}
    return Report(tuple(outcomes), time.perf_counter() - start, sum(seconds for _, seconds in shares), applying)


def _run_share(
    mode: Mode, folder: pathlib.Path | None, only: str, jobs: int, share: int
) -> tuple[list[Outcome], float]:
    compiling: collections.Counter[str] = collections.Counter()
    jax.monitoring.register_event_duration_secs_listener(_adder(compiling))
    cases = [case for case in _cases(folder) if only in case.name][share::jobs]
    outcomes = []
    with warnings.catch_warnings(action="ignore"):
        for number, case in enumerate(cases, start=1):
            outcomes.append(run_case(case, mode))
            if number % _CASES_BEFORE_FORGETTING == 0:
                jax.clear_caches()
    return outcomes, compiling["/jax/core/compile/backend_compile_duration"]


def _adder(seconds: collections.Counter[str]) -> Callable[..., None]:
    def add(event: str, duration: float, **_: Any) -> None:
        seconds[event] += duration  # pyright: ignore[reportArgumentType]  counts may be fractions

    return add


def _cases(folder: pathlib.Path | None) -> list[Case]:
    return installed_cases() if folder is None else released_cases(folder)
