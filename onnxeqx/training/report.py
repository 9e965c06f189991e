"""What a person sees of a run, and the history that programs read."""

import json
import math
import pathlib
import re
import sys
import time
from collections.abc import Callable, Mapping
from typing import Self

import jax
import rich.console
import rich.progress

from .._weights import write_whole
from .data import Data
from .errors import ConfigError
from .loop import EpochDone, Event, StepDone, ValidationStep
from .state import TrainState

Extra = Callable[[dict[str, float]], dict[str, float]]
"""From a row of the history to more columns for it."""


def _with(row: dict[str, float], extra: Extra | None) -> dict[str, float]:
    return row | (extra(row) if extra else {})


class History:
    """Appends each row of the history to a file of JSON lines; a callback of `fit`.

    **Arguments:**

    - `path`: the file.
    - `extra`: gives more columns for a row, such as the learning rate.
    """

    def __init__(self, path: pathlib.Path, *, extra: Extra | None = None):
        self.path = path
        self.extra = extra

    def __call__(self, event: Event) -> None:
        if isinstance(event, EpochDone):
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_json_line(_with(event.row, self.extra)))

    def rows(self) -> list[dict[str, float]]:
        """The rows so far; none when there is no file."""
        return json_lines(self.path)

    def rewind(self, state: TrainState) -> TrainState:
        """Drops the rows that a run writes again when it goes on from `state`, which is returned.

        Rows are written before checkpoints, so a killed run may have one that its checkpoint does not know.
        """
        epoch = int(state.epoch) if int(state.step) else -1  # before the first step, even the first row comes again
        kept = [_json_line(row) for row in self.rows() if row["epoch"] <= epoch]
        write_whole(self.path, "".join(kept))
        return state


class Timings:
    """Appends a line for each epoch that this process does to a file of JSON lines; a callback of `fit`.

    These numbers differ from run to run, so they do not stand in the history, which does not. An epoch that was done twice, since
    the process was killed, has two lines, of which the later one counts.

    **Arguments:**

    - `path`: the file.
    - `speed`: gives the examples a second.
    """

    def __init__(self, path: pathlib.Path, speed: Callable[[], float]):
        self.path = path
        self.speed = speed
        self._since = time.perf_counter()
        # A killed process may have left half a line.
        write_whole(path, "".join(json.dumps(row) + "\n" for row in json_lines(path)))

    def __call__(self, event: Event) -> None:
        if isinstance(event, EpochDone):
            now = time.perf_counter()
            row = {"epoch": event.epoch, "seconds": now - self._since, "examples_per_second": self.speed()}
            self._since = now
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({name: round(value, 3) for name, value in row.items()}) + "\n")


def json_lines(path: pathlib.Path) -> list[dict[str, float]]:
    """The whole lines of a file of JSON lines, `null` as NaN; none when there is no file."""
    if not path.exists():
        return []
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    return [{name: math.nan if value is None else value for name, value in line.items()} for line in lines]


def _json_line(row: Mapping[str, float]) -> str:
    """JSON has no numbers that are not finite: they are `null`."""
    return json.dumps({name: value if math.isfinite(value) else None for name, value in row.items()}) + "\n"


class Progress:
    """Shows a run: a live bar with loss, metrics, examples a second, memory and time left, and one line for each epoch.

    Where the output is no terminal, there are only the lines. A callback of `fit`, and a context manager.

    **Arguments:**

    - `console`: where to.
    - `data`: what `fit` trains on.
    - `epochs`: of the run.
    - `done`: steps done before this process, when a run is resumed.
    - `unit`: what the speed counts: images, tokens, …
    - `units`: how many of these an example has.
    """

    def __init__(
        self,
        console: rich.console.Console,
        data: Data,
        *,
        epochs: int,
        done: int = 0,
        unit: str = "examples",
        units: int = 1,
    ):
        self.console = console
        self.data = data
        self.unit = unit
        self.units = units
        self.epochs = epochs
        columns = rich.progress
        self._bar = columns.Progress(
            columns.TextColumn("{task.description}"),
            columns.BarColumn(),
            columns.TextColumn("{task.completed:.0f}/{task.total:.0f}  {task.fields[figures]}"),
            columns.TimeElapsedColumn(),
            columns.TextColumn("left"),
            columns.TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._training = self._bar.add_task(
            "training", total=epochs * data.steps, completed=done, figures="compiling …"
        )
        self._started: float | None = None  # after the first step of an epoch, which may have compiled
        self._epoch_steps = 0
        self._speed = 0.0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_):
        self._bar.stop()

    def __call__(self, event: Event) -> None:
        if isinstance(event, StepDone):
            self._step(event)
        elif isinstance(event, ValidationStep):
            self._bar.update(self._training, figures=f"evaluating {event.number}/{self.data.validation_steps}")
        elif isinstance(event, EpochDone):
            self._started = None
            self.console.print(self._line(event.row), highlight=False, soft_wrap=True)

    def examples_per_second(self) -> float:
        """The training speed of the last epoch, without its first step; 0 if it had only one."""
        return self._speed

    def _step(self, event: StepDone) -> None:
        now = time.perf_counter()
        if self._started is None:
            self._started, self._epoch_steps = now, 0
        else:
            self._epoch_steps += 1
            self._speed = self._epoch_steps * self.data.batch_size / (now - self._started)
        figures = f"epoch {event.epoch}/{self.epochs}"
        if examples := event.previous["examples"]:
            means = {name: total / examples for name, total in event.previous.items()}
            shown = ["loss", *(name for name in means if name not in ("loss", "examples", "skipped"))]
            figures += "".join(f"  {name} {means[name]:.3f}" for name in shown)
        figures += self._shown_speed()
        figures += f"  {memory_bytes() / 2**30:.1f} GiB"
        self._bar.update(self._training, completed=event.step, figures=figures)

    def _line(self, row: dict[str, float]) -> str:
        def part(name: str, prefix: str) -> str:
            columns = {key.removeprefix(prefix): value for key, value in row.items() if key.startswith(prefix)}
            return f"  {name} " + " ".join(f"{key} {value:.4f}" for key, value in columns.items()) if columns else ""

        if row["epoch"] == 0:
            return "before training" + part("validation", "val_")
        epoch = f"epoch {row['epoch']}/{self.epochs}"
        return epoch + part("train", "train_") + part("validation", "val_") + self._shown_speed()

    def _shown_speed(self) -> str:
        return f"  {self._speed * self.units:.0f} {self.unit}/s" if self._speed else ""


def memory_bytes() -> int:
    """The most memory that was in use: of the first device where it says so, else of this process."""
    statistics = jax.local_devices()[0].memory_stats()
    if statistics and "peak_bytes_in_use" in statistics:
        return statistics["peak_bytes_in_use"]
    status = pathlib.Path("/proc/self/status")  # on Linux; what `resource` says there includes the parent before exec
    if status.exists() and (found := re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(), re.MULTILINE)):
        return int(found[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows has no such module
        return 0
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024  # macOS counts bytes, Linux kibibytes


class TensorBoard:
    """Writes each row of the history to event files for TensorBoard; a callback of `fit`, and a context manager.

    **Arguments:**

    - `folder`: of the event files.
    - `extra`: as of `History`.

    **Raises:** `ConfigError` if tensorboardX is not installed.
    """

    def __init__(self, folder: pathlib.Path, *, extra: Extra | None = None):
        try:
            import tensorboardX
        except ImportError:
            raise ConfigError("--tensorboard needs tensorboardX: pip install 'onnxeqx[tensorboard]'.") from None
        self.extra = extra
        self._writer = tensorboardX.SummaryWriter(str(folder))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_):
        self._writer.close()

    def __call__(self, event: Event) -> None:
        if isinstance(event, EpochDone):
            for name, value in _with(event.row, self.extra).items():
                if name not in ("epoch", "step"):
                    part, _, metric = name.partition("_")
                    tag = f"{metric}/{part}" if part in ("train", "val") else name
                    self._writer.add_scalar(tag, value, int(event.row["step"]))
            self._writer.flush()
