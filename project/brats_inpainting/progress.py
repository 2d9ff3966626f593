"""Progress and remaining time of a run: a bar on a terminal, log lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

console = Console(stderr=True, markup=False, highlight=False, soft_wrap=True)  # shared by bar and log
LINE_EVERY = 30.0  # seconds between plain lines


class ProgressBar:
    """Progress over cases × windows × steps, on stderr; the total is extrapolated from the cases opened so far."""

    def __init__(self, cases: int, *, quiet: bool = False) -> None:
        """Prepare for a number of cases; print nothing if ``quiet``."""
        self.cases, self.opened, self.closed = cases, 0, 0
        self.known = self.done = 0
        self.started = self.last_line = time.monotonic()
        self.quiet = quiet
        self.bar: Progress | None = None
        if sys.stderr.isatty() and not quiet:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                TextColumn("{task.fields[left]}"),
            )
            self.bar = Progress(*columns, console=console, transient=True)
            self.task = self.bar.add_task("reading", total=1.0, left="")

    def __enter__(self) -> Self:
        """Show the bar."""
        if self.bar:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the bar."""
        if self.bar:
            self.bar.stop()

    def open(self, passes: int) -> None:
        """Add a case that needs a number of network passes."""
        self.opened += 1
        self.known += passes

    def close(self) -> None:
        """Count a finished or failed case."""
        self.closed += 1
        self.opened = max(self.opened, self.closed)

    def advance(self, passes: int) -> None:
        """Count network passes and update the display."""
        self.done += passes
        total = self.known * self.cases / max(1, self.opened)
        fraction = self.done / max(1, total)
        now = time.monotonic()
        left = (now - self.started) * (1 - fraction) / fraction if fraction else 0.0
        case = f"case {min(self.closed + 1, self.cases)} of {self.cases}"
        if self.bar:
            self.bar.update(self.task, completed=fraction, description=case, left=f"{duration(left)} left")
        elif not self.quiet and now - self.last_line >= LINE_EVERY:
            self.last_line = now
            console.print(f"{case}; all: {fraction:.0%} done, {duration(left)} left")


def duration(seconds: float) -> str:
    """Format a duration: 42 s, 3 min 10 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
