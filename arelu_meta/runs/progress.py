"""Progress: a bar with a rate and the current metric on a terminal, plain lines when piped."""

import os
import sys
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import NoReturn, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from arelu_meta.errors import printable

_SECONDS_BETWEEN_LINES = 10.0
_LONG_RUN, _HALF_AN_HOUR = 60.0, 1800.0
T = TypeVar("T")


class _Console(Console):
    def on_broken_pipe(self) -> NoReturn:
        """Leave the exit status to the command line: rich would exit with 1, which stands for a bug."""
        raise BrokenPipeError


def console() -> Console:
    """Make a console for standard output; a table is never narrower than its words when piped."""
    terminal = sys.stdout.isatty()
    return _Console(file=sys.stdout, width=None if terminal else 140, highlight=False, soft_wrap=not terminal)


class ProgressBar:
    """Counts steps; shows rate, time left and the latest metrics.

    Args:
        label: what is going on.
        total: how many units there are.
        unit: what a unit is, for the rate: images, tasks.
    """

    def __init__(self, label: str, total: int, unit: str) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done, self.metrics = 0, ""
        self.started = self.last_line = time.monotonic()
        self.waited = 0.0
        self._bar: Progress | None = None

    def __enter__(self) -> "ProgressBar":
        if sys.stdout.isatty():
            self._bar = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(bar_width=16),
                TextColumn("{task.completed:.0f}/{task.total:.0f}"),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[metrics]}"),
                console=console(),
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task(self.label, total=self.total, rate="", metrics="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def waiting(self, batches: Iterable[T]) -> Iterator[T]:
        """Hand batches on, and measure how long each was waited for; the share of that time is shown.

        Args:
            batches: an iterable, as a data loader.
        """
        batches = iter(batches)
        while True:
            asked = time.monotonic()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self.waited += time.monotonic() - asked
            yield batch

    def _rate(self, now: float) -> str:
        elapsed = max(now - self.started, 1e-9)
        waited = f", {self.waited / elapsed:.0%} waiting for data" if self.waited else ""
        return f"{self.done / elapsed:.1f} {self.unit}/s{waited}"

    def advance(self, count: int, **metrics: float) -> None:
        """Count `count` units as done.

        Args:
            count: units since the last call.
            **metrics: the latest values, shown by name.
        """
        self.done += count
        self.metrics = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        now = time.monotonic()
        rate = self._rate(now)
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, rate=rate, metrics=self.metrics)
        elif now - self.last_line >= _SECONDS_BETWEEN_LINES:
            self.last_line = now
            left = (self.total - self.done) * (now - self.started) / max(self.done, 1)
            counted = f"{self.label}: {self.done}/{self.total} {self.unit}, {rate}, {left:.0f} s left"
            print(f"{counted}, {self.metrics}" if metrics else counted, flush=True)

    def line(self, text: str) -> None:
        """Print a line that stays."""
        text = printable(text, keep="\n")
        if self._bar is not None:
            self._bar.console.print(text, markup=False)
        else:
            print(text, flush=True)


class Forecast:
    """Says once, from one timed step on a real batch, how long the run will take and how much memory it needs.

    Args:
        steps: of the whole run.
        shorter: what would make it short, said above half an hour or half of the memory.
    """

    def __init__(self, steps: int, shorter: str) -> None:
        self.steps, self.shorter = steps, shorter
        self._first: float | None = None
        self._said = False

    def after(self, step: int) -> str | None:
        """Return the line behind the second step of this process (the first also warms up); None before and later.

        Args:
            step: how many are done.
        """
        if self._said:
            return None
        now = time.monotonic()
        if self._first is None:
            self._first = now
            return None
        self._said = True
        seconds = (now - self._first) * max(self.steps - step, 0)
        used, whole = memory()
        heavy = whole > 0 and used > whole / 2
        if seconds < _LONG_RUN and not heavy:
            return None
        span = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
        span = span if seconds < 7200 else f"{seconds / 3600:.1f} h"
        line = f"about {span} of training, {used / 1e9:.1f} of {whole / 1e9:.0f} GB of memory so far"
        return f"{line}; shorter: {self.shorter}" if heavy or seconds > _HALF_AN_HOUR else line


def memory() -> tuple[int, int]:
    """Return the most bytes that this process has held, and how many there are: of the GPU where it is in use."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated(), torch.cuda.mem_get_info()[1]
    try:
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return used, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ImportError, AttributeError, ValueError, OSError):  # Windows
        return 0, 0


@contextmanager
def progress(label: str, total: int, unit: str) -> Iterator[ProgressBar]:
    """Show progress while the block runs.

    Args:
        label: what is going on.
        total: how many units there are.
        unit: what a unit is: images, tasks.
    """
    with ProgressBar(label, total, unit) as bar:
        yield bar


def print_table(title: str, header: list[str], rows: list[list[str]], ruled: Collection[int] = ()) -> None:
    """Print a table; columns of numbers are right-aligned.

    Args:
        title: what stands above it.
        header: the columns' names.
        rows: one text a column.
        ruled: indices of the rows below which a line is drawn.
    """
    table = Table(title=printable(title), title_justify="left", title_style="bold")
    for index, name in enumerate(header):
        numbers = all(row[index][:1].isdigit() or row[index][:1] in "-+" for row in rows)
        table.add_column(printable(name), justify="right" if numbers else "left", overflow="fold")
    for index, row in enumerate(rows):
        table.add_row(*[printable(str(cell)).replace("[", r"\[") for cell in row], end_section=index in ruled)
    console().print(table)
