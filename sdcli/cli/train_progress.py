"""What a training run tells while it works, on stderr: a bar, plain lines, JSON events or nothing. Imports no torch."""

import dataclasses
import json
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import typer

from sdcli.cli.options import ProgressChoice

LINE_EVERY_S = 5.0


class Silent:
    """Tells nothing."""

    def __enter__(self) -> "Silent":
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def __call__(self, event: Any) -> None:
        """Take one event of a run."""


class JsonLines(Silent):
    """An event a line, as JSON."""

    def __call__(self, event: Any) -> None:
        """Write the event."""
        fields = event.row() if hasattr(event, "row") else dataclasses.asdict(event)
        plain = {name: str(value) if isinstance(value, Path) else value for name, value in fields.items()}
        typer.echo(json.dumps({"event": name_of(event), **plain}), err=True)


class PlainLines(Silent):
    """A line every few seconds, for logs."""

    def __init__(self) -> None:
        self.last_line_at = 0.0

    def __call__(self, event: Any) -> None:
        """Write a line, unless it is about an update so soon after another line."""
        if name_of(event) in ("stepped", "preparing", "checking"):
            if time.monotonic() - self.last_line_at < LINE_EVERY_S:
                return
            self.last_line_at = time.monotonic()
        typer.echo(LINES[name_of(event)](event), err=True)


class Bar(Silent):
    """A bar on the terminal, with the lines that are worth keeping above it."""

    def __enter__(self) -> "Bar":
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
        )
        self.bar = Progress(*columns, console=Console(stderr=True), redirect_stdout=False, redirect_stderr=False)
        self.task = self.bar.add_task("loading", total=None)
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def __call__(self, event: Any) -> None:
        """Move the bar, or write a line above it."""
        if name_of(event) in DOING:
            doing = DOING[name_of(event)]
            self.bar.update(self.task, description=doing, completed=event.done, total=event.total)
        elif name_of(event) == "stepped":
            text = f"{losses_text(event)}  {event.images_per_s:.1f} pictures/s"
            self.bar.update(self.task, description=text, completed=event.global_step, total=event.steps)
        else:
            self.bar.console.print(LINES[name_of(event)](event), markup=False, highlight=False)


def name_of(event: Any) -> str:
    """What kind of event it is, in one small word."""
    return type(event).__name__.lower()


def losses_text(event: Any) -> str:
    """The loss and its terms."""
    return "  ".join(f"{name} {value:.4f}" for name, value in event.losses.items())


DOING = {"checking": "looking at pictures", "preparing": "encoding pictures"}
LINES = {
    "started": lambda event: (
        f"training {event.part}: {event.parameters / 1e6:.3g} million weights, "
        f"{'a stream of' if event.images is None else event.images} pictures, "
        f"{event.held_out} held out, updates {event.global_step} to {event.steps}, on {event.device}"
        + (f" in {event.processes} processes" if event.processes > 1 else "")
    ),
    "checking": lambda event: f"{DOING['checking']} {event.done}/{event.total}",
    "preparing": lambda event: f"{DOING['preparing']} {event.done}/{event.total}",
    "warned": lambda event: f"warning: {event.message}",
    "validated": lambda event: (
        f"validation after {event.global_step}: "
        + "  ".join(f"{name} {loss:.4f}" for name, loss in event.losses.items())
    ),
    "stepped": lambda event: (
        f"{event.global_step}/{event.steps}  {losses_text(event)}  {event.images_per_s:.1f} pictures/s  "
        f"{timedelta(seconds=round(event.eta_s))} left"
    ),
    "sampled": lambda event: f"sample {event.path}",
    "saved": lambda event: f"checkpoint {event.path}",
    "interrupted": lambda event: f"interrupted after {event.global_step} updates; go on with --resume",
}


def training_progress(choice: ProgressChoice) -> Silent:
    """The report that `--progress` asks for; auto is a bar where stderr is a terminal, else plain lines."""
    if choice == ProgressChoice.auto:
        choice = ProgressChoice.bar if sys.stderr.isatty() else ProgressChoice.plain
    kinds = {"bar": Bar, "plain": PlainLines, "json": JsonLines, "none": Silent}
    return kinds[choice]()
