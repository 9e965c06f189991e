"""Which epoch of a run is best."""

import dataclasses
import math
from collections.abc import Mapping, Sequence


@dataclasses.dataclass(frozen=True)
class Monitor:
    """A column of the history that decides.

    **Arguments:**

    - `column`: such as `"val_accuracy"`.
    - `larger_is_better`: whether its larger values are.
    """

    column: str
    larger_is_better: bool = True

    def score(self, row: Mapping[str, float]) -> float:
        """How good an epoch is, the larger the better; what is no number is worst."""
        value = row[self.column]
        return -math.inf if math.isnan(value) else value if self.larger_is_better else -value

    def best(self, rows: Sequence[Mapping[str, float]]) -> Mapping[str, float]:
        """The row of the best epoch; of equal ones the first."""
        return max(rows, key=self.score)
