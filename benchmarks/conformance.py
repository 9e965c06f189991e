"""Runs the ONNX project's cases in every mode, and writes `docs/conformance.md`.

    python benchmarks/conformance.py run FOLDER [RELEASES]   # half an hour; outcomes as JSON
    python benchmarks/conformance.py page FOLDER             # the page, from these outcomes

RELEASES holds the suites of older onnx releases, as VERSION/KIND/CASE/model.onnx.
"""

import collections
import dataclasses
import json
import pathlib
import sys

import onnx

from onnxeqx.conformance import Mode, read_exclusions, run_suite
from onnxeqx.plugins.manager import host

ROOT = pathlib.Path(__file__).parents[1]
MODES = [Mode(jit, x64) for jit in (False, True) for x64 in (False, True)]
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


def run(folder: pathlib.Path, releases: pathlib.Path | None) -> None:
    """Runs every mode on the installed onnx's cases, and the default mode on those of each release."""
    folder.mkdir(parents=True, exist_ok=True)
    work = [(f"installed-{mode}", mode, None) for mode in MODES]
    work += [(f"released-{path.name}", Mode(), path) for path in sorted(releases.iterdir())] if releases else []
    for name, mode, cases in work:
        report = run_suite(mode, folder=cases, jobs=2)
        summary = {"seconds": report.seconds, "compiling": report.compiling}
        outcomes = [dataclasses.asdict(outcome) for outcome in report.outcomes]
        (folder / f"{name}.json").write_text(json.dumps(summary | {"outcomes": outcomes}))
        print(f"{name}: {report.passed} of {len(outcomes)}", flush=True)


def page(folder: pathlib.Path) -> str:
    """The text of the page."""
    reports = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    lines = [
        "# Conformance",
        "",
        "Written by `benchmarks/conformance.py` from runs of the ONNX project's own cases, each a whole model through the whole",
        "conversion, at the suite's own tolerances, under strict dtype promotion.",
        "",
        f"## The suite of onnx {onnx.__version__}",
        "",
        "| | pass | seconds on 2 cores | of which XLA compiles (both cores) | cases with an input known while tracing |",
        "|---|---|---|---|---|",
    ]
    names = {
        "eager32": "eager, 32 bits",
        "eager64": "eager, 64 bits",
        "jit32": "`jax.jit`, 32 bits",
        "jit64": "`jax.jit`, 64 bits",
    }
    for mode, label in names.items():
        if report := reports.get(f"installed-{mode}"):
            static = sum(bool(outcome["static"]) for outcome in report["outcomes"])
            lines.append(
                f"| onnxeqx, {label} | {_score(report)} | {report['seconds']:.0f} | {report['compiling']:.0f} | {static or ''} |"
            )
    lines += [f"| {name} | {score} | | | |" for name, score in PEERS]
    lines += [
        "",
        "Under `jax.jit` every graph input is traced, but for those that an operator needs while tracing (shapes, axes).",
        "Seconds are upper bounds where the machine did other work at the time.",
        "",
    ]
    if any(name.startswith("released-") for name in reports):
        lines += ["## The suites of older releases (eager, 32 bits)", "", "| onnx | pass |", "|---|---|"]
        releases = {
            name.removeprefix("released-"): report for name, report in reports.items() if name.startswith("released-")
        }
        for version in sorted(releases, key=lambda text: [int(part) for part in text.split(".")]):
            lines.append(f"| {version} | {_score(releases[version])} |")
        lines += ["", "What fails there:", ""]
        problems: dict[str, set[str]] = collections.defaultdict(set)
        for version, report in releases.items():
            for outcome in report["outcomes"]:
                if outcome["problem"]:
                    problems[outcome["case"]].add(version)
        lines += [f"- `{case}` ({', '.join(sorted(versions))})" for case, versions in sorted(problems.items())]
        lines.append("")
    lines += ["## Cases that cannot hold", "", "| case | where | reason |", "|---|---|---|"]
    for exclusion in read_exclusions(ROOT / "tests" / "conformance" / "exclusions.txt"):
        lines.append(f"| `{exclusion.case}` | {exclusion.where} | {exclusion.reason} |")
    lines += ["", "## By operator", "", "| operator | cases | " + " | ".join(names) + " |", "|---|---|---|---|---|---|"]
    lines += _by_operator(reports, names)
    return "\n".join(lines) + "\n"


def _score(report: dict) -> str:
    passed = sum(not outcome["problem"] for outcome in report["outcomes"])
    return f"{passed:,} of {len(report['outcomes']):,}"


def _by_operator(reports: dict, names: dict) -> list[str]:
    counts: dict[str, dict[str, list[bool]]] = collections.defaultdict(lambda: collections.defaultdict(list))
    for mode in names:
        for outcome in reports.get(f"installed-{mode}", {"outcomes": []})["outcomes"]:
            for operator in outcome["operators"]:
                counts[operator][mode].append(not outcome["problem"])
    known = {entry.full_name for entry in host().registry.ops()}
    rows = []
    for operator in sorted(set(counts) | known):
        found = counts.get(operator, {})
        cells = [f"{sum(found[mode])}" if mode in found else "" for mode in names]
        rows.append(
            f"| {operator} | {max((len(found[mode]) for mode in found), default=0)} | " + " | ".join(cells) + " |"
        )
    return rows


if __name__ == "__main__":
    command, target, *rest = sys.argv[1:]
    if command == "run":
        run(pathlib.Path(target), pathlib.Path(rest[0]) if rest else None)
    else:
        (ROOT / "docs" / "conformance.md").write_text(page(pathlib.Path(target)))
