"""Runs the ONNX project's cases in every mode, and writes `docs/conformance.md`.

    python benchmarks/conformance.py run FOLDER [RELEASES]   # half an hour; outcomes as JSON
    python benchmarks/conformance.py page FOLDER             # the page, from these outcomes

RELEASES holds the suites of older onnx releases, as `benchmarks/released_suites.py` fetches them.
"""

import collections
import dataclasses
import json
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import onnx

from onnxeqx.conformance import Mode, read_exclusions, run_suite
from onnxeqx.plugins.manager import host

ROOT = pathlib.Path(__file__).parents[1]
TESTS = ROOT / "tests" / "conformance"
MODES = {
    "eager, 32 bits": Mode(),
    "eager, 64 bits": Mode(x64=True),
    "`jax.jit`, 32 bits": Mode(jit=True),
    "`jax.jit`, 64 bits": Mode(jit=True, x64=True),
    "lowered for TPU": Mode(platform="tpu"),
}
# Measured once with onnx 1.23.2 at the suite's own tolerances; burn and emx: their own figures, on other editions.
PEERS = [
    ("onnx.reference (NumPy)", "2,014 of 2,033"),
    ("emx-onnx-cgen 1.4", "1,873 of 1,914"),
    ("ONNX Runtime 1.32", "1,738 of 2,033"),
    ("burn-onnx", "1,646 of 1,827"),
    ("tinygrad 0.14", "1,494 of 2,033"),
    ("jaxonnxruntime", "624 of 2,033"),
    ("onnx2torch 1.5.15", "414 of 2,033"),
]
Report = dict[str, Any]


def run(folder: pathlib.Path, releases: pathlib.Path | None) -> None:
    """Runs every mode on the installed onnx's cases, and the default mode on those of each release."""
    folder.mkdir(parents=True, exist_ok=True)
    work = [(f"installed-{mode}", mode, None) for mode in MODES.values()]
    work += [(f"released-{path.name}", Mode(), path) for path in sorted(releases.iterdir())] if releases else []
    for name, mode, cases in work:
        report = run_suite(mode, folder=cases, jobs=2)
        summary = {"seconds": report.seconds, "compiling": report.compiling}
        outcomes = [dataclasses.asdict(outcome) for outcome in report.outcomes]
        (folder / f"{name}.json").write_text(json.dumps(summary | {"outcomes": outcomes}))
        print(f"{name}: {report.passed} of {len(outcomes)}", flush=True)


def page(folder: pathlib.Path) -> str:
    """The text of the page."""
    reports = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    installed = {label: reports[f"installed-{mode}"] for label, mode in MODES.items()}
    released = {
        name.removeprefix("released-"): report for name, report in reports.items() if name.startswith("released-")
    }
    lines = [
        "# Conformance",
        "",
        "Written by `benchmarks/conformance.py` from runs of the ONNX project's own cases, each a whole model through the whole",
        "conversion, at the suite's own tolerances, under strict dtype promotion.",
        "",
        *_modes(installed),
        *_tpu(installed["lowered for TPU"]),
        *_gradients(),
        *_releases(released),
        *_exclusions(),
        *_by_operator(installed),
    ]
    return "\n".join(lines) + "\n"


def _modes(installed: dict[str, Report]) -> Iterator[str]:
    yield f"## The suite of onnx {onnx.__version__}"
    yield ""
    yield "| | pass | seconds on 2 cores | of which XLA compiles (both cores) | cases with an input known while tracing |"
    yield "|---|---|---|---|---|"
    for label, report in installed.items():
        static = sum(bool(outcome["static"]) for outcome in report["outcomes"]) or ""
        yield (
            f"| onnxeqx, {label} | {_score(report)} | {report['seconds']:.0f} | {report['compiling']:.0f} | {static} |"
        )
    yield from (f"| {name} | {score} | | | |" for name, score in PEERS)
    yield ""
    yield "Under `jax.jit` every graph input is traced, but for those that an operator needs while tracing (shapes, axes)."
    yield "Lowered for TPU: `jax.export` of the same function for that platform, which needs no TPU; nothing is computed."
    yield "Seconds are upper bounds where the machine did other work at the time."
    yield ""


def _tpu(report: Report) -> Iterator[str]:
    lowered, failing = set(), collections.defaultdict(set)
    reasons = {exclusion.case: exclusion.reason for exclusion in _read_exclusions("traced")}
    for outcome in report["outcomes"]:
        if not outcome["problem"]:
            lowered.update(outcome["operators"])
    for outcome in report["outcomes"]:
        if outcome["problem"]:
            for operator in set(outcome["operators"]) - lowered:
                failing[operator].add(reasons[outcome["case"]])
    yield "## Lowering for TPU"
    yield ""
    yield f"{len(lowered)} operators of the suite lower for TPU in some case: all that run under `jax.jit`. Those that the suite"
    yield "does not have are lowered by `tests/versions`. These cannot be:"
    yield ""
    reasons_by_operator = {operator: "; ".join(sorted(texts)) for operator, texts in failing.items()}
    reasons_by_operator |= _reasons(ROOT / "tests" / "versions" / "host_only.txt")
    yield from (f"- {operator}: {reasons_by_operator[operator]}" for operator in sorted(reasons_by_operator))
    yield ""


def _gradients() -> Iterator[str]:
    yield "## Gradients"
    yield ""
    yield "`tests/conformance/test_gradients.py` compares the gradient of every operator that has floating-point inputs and"
    yield "outputs with finite differences in float64, but for these:"
    yield ""
    yield from (f"- {operator}: {reason}" for operator, reason in _reasons(TESTS / "without_gradients.txt").items())
    yield ""


def _reasons(path: pathlib.Path) -> dict[str, str]:
    return dict(line.split(None, 1) for line in path.read_text().splitlines())


def _releases(released: dict[str, Report]) -> Iterator[str]:
    yield "## The suites of older releases (eager, 32 bits)"
    yield ""
    yield "| onnx | pass | share |"
    yield "|---|---|---|"
    for version in sorted(released, key=_numbers):
        yield f"| {version} | {_score(released[version])} | {_share([released[version]])} |"
    total = sum(len(report["outcomes"]) for report in released.values())
    passed = sum(not outcome["problem"] for report in released.values() for outcome in report["outcomes"])
    yield f"| all | {passed:,} of {total:,} | {_share(list(released.values()))} |"
    yield ""
    yield "Every case that fails is among those below: its expectation contradicts the specification or later releases, or is"
    yield "drawn at random."
    yield ""


def _exclusions() -> Iterator[str]:
    yield "## Cases that cannot hold"
    yield ""
    yield "`run` is eager and under `jax.jit`; `traced` is under `jax.jit` and lowered; a number is a release's suite."
    yield ""
    yield "| case | where | reason |"
    yield "|---|---|---|"
    yield from (f"| `{entry.case}` | {entry.where} | {entry.reason} |" for entry in _read_exclusions())
    yield ""


def _read_exclusions(where: str = "") -> list[Any]:
    return [entry for entry in read_exclusions(TESTS / "exclusions.txt") if where in entry.where]


def _by_operator(installed: dict[str, Report]) -> Iterator[str]:
    counts: dict[str, dict[str, list[bool]]] = collections.defaultdict(lambda: collections.defaultdict(list))
    for label, report in installed.items():
        for outcome in report["outcomes"]:
            for operator in outcome["operators"]:
                counts[operator][label].append(not outcome["problem"])
    known = {entry.full_name for entry in host().registry.ops()}
    yield "## By operator"
    yield ""
    yield "| operator | cases | " + " | ".join(installed) + " |"
    yield "|---" * (2 + len(installed)) + "|"
    for operator in sorted(set(counts) | known):
        found = counts.get(operator, {})
        cells = [str(sum(found[label])) if label in found else "" for label in installed]
        yield f"| {operator} | {max(map(len, found.values()), default=0)} | " + " | ".join(cells) + " |"


def _score(report: Report) -> str:
    passed = sum(not outcome["problem"] for outcome in report["outcomes"])
    return f"{passed:,} of {len(report['outcomes']):,}"


def _share(reports: list[Report]) -> str:
    outcomes = [outcome for report in reports for outcome in report["outcomes"]]
    return f"{sum(not outcome['problem'] for outcome in outcomes) / len(outcomes):.1%}"


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


if __name__ == "__main__":
    command, target, *rest = sys.argv[1:]
    if command == "run":
        run(pathlib.Path(target), pathlib.Path(rest[0]) if rest else None)
    else:
        (ROOT / "docs" / "conformance.md").write_text(page(pathlib.Path(target)))
