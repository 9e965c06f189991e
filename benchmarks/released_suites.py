"""The suites of older onnx releases: the only tests of many old versions of operators.

    python benchmarks/released_suites.py fetch FOLDER [VERSION ...]   # FOLDER/VERSION/KIND/CASE/{model.onnx,test_data_set_N}
    python benchmarks/released_suites.py pick FOLDER                  # writes tests/versions/released_cases.zip

`fetch` takes them out of the released wheels. `pick` keeps the smallest case for each version of an operator that the
installed onnx has no case for.
"""

import pathlib
import subprocess
import sys
import tempfile
import zipfile

import onnx

from onnxeqx.conformance import (
    Mode,
    installed_cases,
    operator_versions,
    read_exclusions,
    released_case,
    run_case,
)

# By release: a CPython for which it has a wheel (which is unpacked, never imported).
RELEASES = {
    "1.6.0": "37",
    "1.8.1": "38",
    "1.10.2": "39",
    "1.14.1": "310",
    "1.16.2": "311",
    "1.18.0": "311",
    "1.22.0": "312",
}
PLATFORMS = ("manylinux1", "manylinux2010", "manylinux2014", "manylinux_2_17", "manylinux_2_27", "manylinux_2_28")
DATA = "onnx/backend/test/data/"
TESTS = pathlib.Path(__file__).parents[1] / "tests"


def fetch(version: str, folder: pathlib.Path) -> int:
    """Fetches one release's cases; returns how many."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--dest", scratch, "--python-version", RELEASES[version]]
        command += [word for platform in PLATFORMS for word in ("--platform", f"{platform}_x86_64")]
        subprocess.run([*command, f"onnx=={version}"], check=True)
        (wheel,) = pathlib.Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.startswith(DATA) and name.endswith((".onnx", ".pb"))]
            for name in names:
                target = folder / version / name.removeprefix(DATA)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.read(name))
    return sum(name.endswith("model.onnx") for name in names)


def pick(folder: pathlib.Path) -> int:
    """Writes the archive of picked cases; returns how many."""
    exclusions = read_exclusions(TESTS / "conformance" / "exclusions.txt")
    excluded = {exclusion.case for exclusion in exclusions if exclusion.applies_to(Mode())}
    covered = {
        version
        for case in installed_cases()
        if case.name not in excluded
        for version in operator_versions(case.load()[0])
    }
    smallest: dict[tuple[str, str, int], tuple[int, pathlib.Path]] = {}
    for release in sorted(folder.iterdir()):
        for path in sorted(release.glob("*/*/model.onnx")):
            size = sum(file.stat().st_size for file in path.parent.rglob("*") if file.is_file())
            for version in operator_versions(onnx.load(path)) - covered:
                if size < smallest.get(version, (sys.maxsize,))[0] and _passes(path.parent):
                    smallest[version] = (size, path.parent)
    cases = sorted({path for _, path in smallest.values()})
    with zipfile.ZipFile(TESTS / "versions" / "released_cases.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in cases:
            for file in sorted(path.rglob("*.*")):
                # Dated 1980 by default: equal cases, equal bytes.
                entry = zipfile.ZipInfo(f"{path.parts[-3]}/{path.name}/{file.relative_to(path)}")
                archive.writestr(entry, file.read_bytes(), zipfile.ZIP_DEFLATED)
    return len(cases)


def _passes(folder: pathlib.Path) -> bool:
    return run_case(released_case(folder), Mode()).passed


if __name__ == "__main__":
    command, target, *versions = sys.argv[1:]
    if command == "fetch":
        for version in versions or RELEASES:
            print(f"{version}: {fetch(version, pathlib.Path(target))} cases")
    else:
        print(f"{pick(pathlib.Path(target))} cases")
