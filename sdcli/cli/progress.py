"""What a run tells while it works, on stderr: a bar, plain lines, JSON events or nothing. Imports no torch."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import typer

from sdcli.cli.options import ProgressChoice

if TYPE_CHECKING:
    from sdcli.batch.events import Dropped, Estimated, Event, Loaded, Made, Stepped, There

LINE_EVERY_S = 3.0


class Reporter:
    """Tells nothing but warnings and a drawn seed; the others tell more.

    Args:
        pictures: how many the run makes.
    """

    def __init__(self, pictures: int):
        self.pictures = pictures
        self.made = self.there = self.failed = 0
        self.dropped = 0  # candidates that others were better than
        self.denoised = 0  # made, or waiting to be decoded and written while others are denoised
        self.started_at = time.monotonic()
        self.loaded_at: float | None = None  # the first model

    def __enter__(self) -> Reporter:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def __call__(self, event: Event) -> None:
        """Take one event of a run."""
        kind = type(event).__name__
        if kind == "Loaded":
            self.loaded_at = self.loaded_at or time.monotonic()
            self.loaded(event)
        elif kind == "Stepped":
            self.stepped(event)
            self.denoised += event.pictures * (event.step == event.steps)
        elif kind == "Warned":
            self.warn(event.message)
        elif kind == "Estimated":
            self.estimated(event)
        elif kind == "Dropped":
            self.dropped += event.made
            self.pictures -= not event.made
            self.beaten(event)
        elif kind == "There":
            self.there += 1
            self.skipped(event)
        elif kind == "Failed":
            self.failed += 1
            self.warn(f"{event.picture.path} failed: {event.error}")
        elif kind == "Made":
            self.made += 1
            self.imaged(event)

    def done(self, event: Stepped | None = None) -> float:
        """Pictures that are made or at least denoised, and the share of those in work.

        Some are denoised twice, where memory did not suffice; more than all is never done.
        """
        in_work = event.pictures * event.step / event.steps if event else 0
        most = self.pictures - self.there - self.failed
        return min(max(self.made + self.dropped, self.denoised) + in_work, most)

    def pace(self, event: Stepped | None = None) -> tuple[float, float]:
        """Pictures per second since the first model was loaded, and seconds until all are made."""
        elapsed_s = max(time.monotonic() - (self.loaded_at or self.started_at), 1e-6)
        done = self.done(event)
        left = self.pictures - self.there - self.failed - done
        return done / elapsed_s, left * elapsed_s / done if done else 0.0

    @property
    def number(self) -> int:
        """Of the picture in work, from 1."""
        return min(self.made + self.dropped + self.there + self.failed + 1, self.pictures)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Keep the terminal free for a line of result."""
        yield

    def warn(self, message: str) -> None:
        """Tell what the user should know."""
        typer.echo(f"warning: {message}", err=True)

    def seed(self, seed: int) -> None:
        """Tell which seed was drawn."""
        typer.echo(f"seed: {seed}", err=True)

    def skipped(self, event: There) -> None:
        """Tell of a picture that was already there."""

    def beaten(self, event: Dropped) -> None:
        """Tell of a candidate that is not kept."""

    def loaded(self, event: Loaded) -> None:
        """Tell that the model is ready."""

    def stepped(self, event: Stepped) -> None:
        """Tell of a step."""

    def imaged(self, event: Made) -> None:
        """Tell of a picture."""

    def estimated(self, event: Estimated) -> None:
        """Tell what a run would take."""


class PlainReporter(Reporter):
    """A line every few seconds, for logs."""

    def __enter__(self) -> Reporter:
        self.last_line_at = self.started_at
        return self

    def __exit__(self, *error: object) -> None:
        if self.there:
            typer.echo(f"{self.there} already there, skipped", err=True)

    def loaded(self, event: Loaded) -> None:
        """Tell that the model is ready, if that took long."""
        if time.monotonic() - self.last_line_at >= LINE_EVERY_S:
            typer.echo(f"loaded {event.model} on {event.device} in {event.precision}", err=True)
        self.last_line_at = time.monotonic()

    def stepped(self, event: Stepped) -> None:
        """Tell where the run is, how fast and how long still."""
        if time.monotonic() - self.last_line_at < LINE_EVERY_S:
            return
        self.last_line_at = time.monotonic()
        rate, left_s = self.pace(event)
        place = f"picture {self.number} of {self.pictures}, step {event.step}/{event.steps}"
        typer.echo(f"{place}, {rate_text(rate)}, {timedelta(seconds=round(left_s))} left", err=True)

    def estimated(self, event: Estimated) -> None:
        """Tell what a run would take."""
        typer.echo(estimate_text(event), err=True)


class JsonReporter(Reporter):
    """An event a line, as JSON."""

    def tell(self, event: str, **values: Any) -> None:
        """Write one event."""
        elapsed_s = round(time.monotonic() - self.started_at, 3)
        typer.echo(json.dumps({"event": event, "elapsed_s": elapsed_s, **values}), err=True)

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            rate, _ = self.pace()
            self.tell("done", images=self.made, skipped=self.there, failed=self.failed, images_per_s=round(rate, 4))

    def warn(self, message: str) -> None:
        """Tell what the user should know."""
        self.tell("warning", message=message)

    def seed(self, seed: int) -> None:
        """Tell which seed was drawn."""
        self.tell("seed", seed=seed)

    def skipped(self, event: There) -> None:
        """Tell of a picture that was already there."""
        self.tell("skip", path=str(event.picture.path), index=event.picture.index)

    def beaten(self, event: Dropped) -> None:
        """Tell of a candidate that is not kept."""
        self.tell("drop", index=event.picture.index, seed=event.picture.settings.seed, made=event.made)

    def loaded(self, event: Loaded) -> None:
        """Tell that the model is ready."""
        self.tell("load", model=event.model, device=event.device, precision=event.precision)

    def stepped(self, event: Stepped) -> None:
        """Tell of a step."""
        rate, left_s = self.pace(event)
        place = {"index": event.index, "images": event.pictures, "step": event.step, "steps": event.steps}
        self.tell("step", **place, images_per_s=round(rate, 4), eta_s=round(left_s, 3))

    def imaged(self, event: Made) -> None:
        """Tell of a picture."""
        picture, (rate, left_s) = event.picture, self.pace()
        place = {"path": str(picture.path), "index": picture.index, "seed": picture.settings.seed}
        self.tell("image", **place, images_per_s=round(rate, 4), eta_s=round(left_s, 3))

    def estimated(self, event: Estimated) -> None:
        """Tell what a run would take."""
        where = {"model": event.model, "device": event.device, "precision": event.precision}
        seconds = None if event.seconds is None else round(event.seconds, 3)
        memory = {"memory_bytes": event.size, "memory_room_bytes": event.room}
        self.tell("estimate", **where, images=event.to_make, there=event.there, seconds=seconds, **memory)


class BarReporter(Reporter):
    """A bar on the terminal, gone when the run ends."""

    def __enter__(self) -> Reporter:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        # Results go to stdout themselves: Rich would send them to the bar's stream.
        quiet = {"transient": True, "redirect_stdout": False, "redirect_stderr": False, "refresh_per_second": 4}
        self.bar = Progress(*columns, console=Console(stderr=True), **quiet)
        self.task = self.bar.add_task("loading", total=None, rate="")
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Keep the terminal free for a line of result."""
        self.bar.stop()
        yield
        if self.made + self.dropped + self.there + self.failed < self.pictures:
            self.bar.start()

    def warn(self, message: str) -> None:
        """Tell what the user should know."""
        with self.paused():
            super().warn(message)

    def estimated(self, event: Estimated) -> None:
        """Tell what a run would take."""
        with self.paused():
            typer.echo(estimate_text(event), err=True)

    def stepped(self, event: Stepped) -> None:
        """Move the bar."""
        rate, _ = self.pace(event)
        place = f"picture {self.number} of {self.pictures}" if self.pictures > 1 else "picture"
        done = self.done(event) + self.there + self.failed
        self.bar.update(self.task, description=place, total=self.pictures, completed=done, rate=rate_text(rate))


def estimate_text(event: Estimated) -> str:
    """What a run would take, as people say it."""
    made = f"{event.model}: {event.to_make} to make, {event.there} already there"
    if event.seconds is None:
        return f"{made}; how long it takes is not known of this family of models"
    each = f"{event.seconds / event.to_make:.1f} s each" if event.to_make else "nothing to do"
    time = f"about {timedelta(seconds=round(event.seconds))} on {event.device} in {event.precision}, {each}"
    return f"{made}; {time}; about {event.size / 2**20:.0f} MiB of memory, of {event.room / 2**20:.0f}"


def rate_text(images_per_s: float) -> str:
    """A rate as people say it: pictures per second, or seconds for each."""
    return f"{images_per_s:.1f} pictures/s" if images_per_s >= 1 else f"{1 / images_per_s:.1f} s/picture"


def reporter_for(choice: ProgressChoice, pictures: int) -> Reporter:
    """The reporter that `--progress` asks for; auto is a bar where stderr is a terminal, else plain lines."""
    if choice == ProgressChoice.auto:
        choice = ProgressChoice.bar if sys.stderr.isatty() else ProgressChoice.plain
    kinds = {"bar": BarReporter, "plain": PlainReporter, "json": JsonReporter, "none": Reporter}
    return kinds[choice](pictures)
