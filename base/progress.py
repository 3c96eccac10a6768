"""Progress of long work: a bar on a terminal, plain lines in a log; both on standard error."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Column
from rich.text import Text

from base.errors import Stopped

_LINE_SECONDS = 10.0


class Progress:
    """Counts units of work and shows rate, time spent, time left and the latest values.

        with Progress("decoder", total=60_000, unit="samples", initial=done) as bar:
            bar.advance(32, loss=0.12)

    `total=None` is for work of unknown length. Elsewhere than on a terminal a plain line appears at
    most every 10 s, and one at the end.
    """

    def __init__(self, name: str, total: int | None, unit: str = "", initial: int = 0) -> None:
        self.name, self.total, self.unit = name, total, unit
        self.initial = self.done = initial
        self._values: dict[str, float | int | str] = {}
        self._start = self._last_line = time.monotonic()
        self._end: float | None = None
        self._console = Console(file=sys.stderr, highlight=False, soft_wrap=True)
        self._bars: Bars | None = None

    @property
    def seconds(self) -> float:
        """Seconds since the work began; fixed when it ends."""
        return (self._end or time.monotonic()) - self._start

    @property
    def rate(self) -> float:
        """Units per second done by this run, what an earlier one did left out."""
        return (self.done - self.initial) / max(self.seconds, 1e-9)

    def __enter__(self) -> "Progress":
        self._start = self._last_line = time.monotonic()
        if self._console.is_terminal:
            width = 30 if self._console.width >= 120 else 10
            self._bars = Bars(
                TextColumn("{task.description}", table_column=_fixed(len(self.name))),
                BarColumn(width, table_column=_fixed(width)),
                TimeElapsedColumn(_fixed(7)),
                _Numbers(self),
                console=self._console,
            )
            self._bars.add_task(self.name, total=self.total, completed=self.initial)
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end = time.monotonic()
        if self._bars is not None:
            self._bars.stop()
        else:
            ending = _ending(error)
            self._print(f"{self.name}: {self.describe()}, {clock(self.seconds)}{ending}")

    def advance(self, count: int = 1, **values: float | int | str) -> None:
        """Counts `count` more units as done; `values` are shown beside them until the next ones."""
        self.done += count
        self._values.update(values)
        if self._bars is not None:
            self._bars.update(self._bars.task_ids[0], completed=self.done)
            return
        now = time.monotonic()
        if now - self._last_line >= _LINE_SECONDS:
            self._last_line = now
            self._print(f"{self.name}: {self.describe()}")

    def skip(self, count: int) -> None:
        """Counts `count` units that an earlier run did."""
        self.initial += count
        self.done += count
        if self._bars is not None:
            self._bars.update(self._bars.task_ids[0], completed=self.done)

    def log(self, text: str) -> None:
        """Prints a line above the bar."""
        self._print(text)

    def describe(self) -> str:
        """Count, rate, time left and the latest values in one line."""
        parts = [f"{self.done:,}" + (f"/{self.total:,}" if self.total is not None else "")]
        if self.unit:
            parts[0] += f" {self.unit}"
        if self.done > self.initial:
            parts.append(f"{_short(self.rate)}/s")
            if self.total is not None and self.done < self.total:
                parts.append(f"{clock((self.total - self.done) / self.rate)} left")
        parts += [f"{key} {_short(value)}" for key, value in self._values.items()]
        return ", ".join(parts)

    def _print(self, text: str) -> None:
        console = self._bars.console if self._bars is not None else self._console
        console.print(text, markup=False)


@contextmanager
def share_of(
    whole: Progress | None, name: str, total: int, unit: str, initial: int = 0
) -> Iterator[Progress]:
    """A bar of its own for one part of some work, or its share of the bar of the `whole`."""
    if whole is None:
        with Progress(name, total, unit, initial) as bar:
            yield bar
    else:
        whole.skip(initial)
        yield whole


class _Numbers(ProgressColumn):
    """The line that `describe` gives, beside the bar."""

    def __init__(self, progress: Progress) -> None:
        super().__init__(table_column=Column(no_wrap=True, overflow="ellipsis"))
        self._progress = progress

    def render(self, task: Task) -> Text:
        return Text(self._progress.describe())


def _fixed(width: int) -> Column:
    """A column that keeps its width on a narrow terminal, where the numbers are cut."""
    return Column(no_wrap=True, min_width=width)


def _ending(error: BaseException | None) -> str:
    """How the work ended: a request to stop is no failure."""
    if error is None:
        return ""
    if isinstance(error, GeneratorExit):  # whoever took the results took no more of them
        return ", ended early"
    return ", interrupted" if isinstance(error, KeyboardInterrupt | Stopped) else ", failed"


def clock(seconds: float) -> str:
    """Seconds as 0:07, 12:34 or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _short(value: float | int | str) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else value
