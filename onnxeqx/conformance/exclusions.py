"""Cases that cannot hold, each with a reason that is a property of the case."""

import dataclasses
import pathlib

from .runner import Mode


@dataclasses.dataclass(frozen=True)
class Exclusion:
    """One line of an exclusion file: `CASE  WHERE  REASON`.

    **Fields:** `case`; `reason`; `where`: those of the following that must all apply, joined by `+`. Alternatives are
    separated by `,`.

    - `run` (eagerly or under `jit`), `eager`, `jit`;
    - `traced` (run under `jit`, or lowered for a platform);
    - `32`, `64`;
    - `1.18.0`: the suite of this release of onnx.
    """

    case: str
    where: str
    reason: str

    def applies_to(self, mode: Mode, release: str = "") -> bool:
        """Whether the case is excluded in this mode, in the suite of this release (by default of the installed onnx)."""
        present = {mode.how, "64" if mode.x64 else "32", release}
        present |= {"traced"} if mode.how != "eager" else set()
        present |= set() if mode.platform else {"run"}
        return any(set(alternative.split("+")) <= present for alternative in self.where.split(","))


def read_exclusions(path: pathlib.Path) -> list[Exclusion]:
    """The lines of the file, in its order; lines that begin with `#` are headings."""
    lines = [line for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
    return [Exclusion(*line.split(None, 2)) for line in lines]
