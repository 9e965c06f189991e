"""The lower bounds of pyproject.toml and the versions that `tests/lowest-versions.txt` pins are the same."""

import pathlib
import tomllib

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = pathlib.Path(__file__).parents[1]


def bounds() -> dict[str, Version]:
    """Lower bounds of the dependencies and of the extra `test`, by distribution."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = {}
    for requirement in map(Requirement, [*project["dependencies"], *project["optional-dependencies"]["test"]]):
        (specifier,) = requirement.specifier
        assert specifier.operator == ">=", f"{requirement} has no plain lower bound"
        found[canonicalize_name(requirement.name)] = Version(specifier.version)
    return found


def pins() -> dict[str, Version]:
    lines = (ROOT / "tests" / "lowest-versions.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): Version(version) for name, version in pairs}


def test_every_lower_bound_is_pinned():
    assert pins() == bounds()
