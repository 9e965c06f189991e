"""Cases that cannot hold, each with a reason that is a property of the case."""

import dataclasses
import pathlib

from .runner import Mode


@dataclasses.dataclass(frozen=True)
class Exclusion:
    """One line of an exclusion file: `CASE  MODES  REASON`.

    **Fields:** `case`; `modes`: `all`, or those of `eager`, `jit`, `32` and `64` that must all apply, joined by `+`; `reason`.
    """

    case: str
    modes: str
    reason: str

    def applies_to(self, mode: Mode) -> bool:
        present = {"all", "jit" if mode.jit else "eager", "64" if mode.x64 else "32"}
        return set(self.modes.split("+")) <= present


def read_exclusions(path: pathlib.Path) -> list[Exclusion]:
    """The lines of the file, in its order; lines that begin with `#` are headings."""
    lines = [line for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
    return [Exclusion(*line.split(None, 2)) for line in lines]
