"""How far a command is that goes through many things one by one, on stderr. Imports no torch."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from sdcli.cli import options
from sdcli.cli.options import ProgressChoice

LINE_EVERY_S = 3.0


class Counter:
    """Tells nothing; the others tell more.

    Args:
        what: is counted, in the plural.
    """

    def __init__(self, what: str):
        self.what = what
        self.started_at = self.told_at = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        """Take note of how much is done."""

    def close(self) -> None:
        """Leave the terminal as it was."""

    def pace(self, done: int, total: int) -> tuple[float, float]:
        """Things per second, and seconds until all are done."""
        elapsed_s = max(time.monotonic() - self.started_at, 1e-6)
        return done / elapsed_s, (total - done) * elapsed_s / max(done, 1)

    def due(self) -> bool:
        """Whether it is time for a line."""
        if time.monotonic() - self.told_at < LINE_EVERY_S:
            return False
        self.told_at = time.monotonic()
        return True


class PlainCounter(Counter):
    """A line every few seconds."""

    def __call__(self, done: int, total: int) -> None:
        """Tell how much is done, how fast, and how long it still takes."""
        if self.due():
            rate, left_s = self.pace(done, total)
            options.tell(f"{done}/{total} {self.what}, {rate:.1f}/s, {timedelta(seconds=round(left_s))} left")


class JsonCounter(Counter):
    """An event every few seconds, as JSON."""

    def __call__(self, done: int, total: int) -> None:
        """Tell the same."""
        if self.due():
            rate, left_s = self.pace(done, total)
            event = {"event": "progress", "what": self.what, "done": done, "total": total}
            options.tell(json.dumps({**event, "per_s": round(rate, 3), "eta_s": round(left_s, 1)}))


class BarCounter(Counter):
    """A bar on the terminal, gone at the end."""

    def __init__(self, what: str):
        super().__init__(what)
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        quiet = {"transient": True, "redirect_stdout": False, "redirect_stderr": False, "refresh_per_second": 4}
        self.bar = Progress(*columns, console=Console(stderr=True), **quiet)
        self.task = self.bar.add_task(what, total=None)
        self.bar.start()

    def __call__(self, done: int, total: int) -> None:
        """Move the bar."""
        self.bar.update(self.task, completed=done, total=total)

    def close(self) -> None:
        """Take the bar away."""
        self.bar.stop()


@contextmanager
def counting(choice: ProgressChoice, what: str) -> Iterator[Counter]:
    """The counter that `--progress` asks for; auto is a bar where stderr is a terminal, else plain lines."""
    if choice == ProgressChoice.auto:
        choice = ProgressChoice.bar if sys.stderr.isatty() else ProgressChoice.plain
    counter = {"bar": BarCounter, "plain": PlainCounter, "json": JsonCounter, "none": Counter}[choice](what)
    try:
        yield counter
    finally:
        counter.close()
