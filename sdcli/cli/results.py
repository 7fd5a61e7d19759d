"""What becomes of the events of a run: progress on stderr, finished pictures on stdout. Imports no torch."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sdcli.cli import options
from sdcli.cli.progress import Reporter

if TYPE_CHECKING:
    from sdcli.batch.events import Event, Made
    from sdcli.output import Picture


class ResultPrinter:
    """Passes events on to the progress report, and prints each finished picture to stdout.

    Args:
        reporter: tells of progress.
        as_json: a JSON object for each picture instead of its path.
        drawn_seed: to be reported as soon as nothing can be wrong with the settings any more.
    """

    def __init__(self, reporter: Reporter, as_json: bool, drawn_seed: int | None = None):
        self.reporter = reporter
        self.as_json = as_json
        self.drawn_seed = drawn_seed
        self.on_disk: list[Picture] = []

    def __call__(self, event: Event) -> None:
        """Take one event of a run."""
        self.reporter(event)
        kind = type(event).__name__
        if kind == "Loaded":
            self.report_seed()
        if kind in ("Made", "There"):
            self.on_disk.append(event.picture)
        if kind == "Made":
            self.print_picture(event)

    def report_seed(self) -> None:
        """Tell which seed was drawn, once."""
        if self.drawn_seed is not None:
            self.reporter.seed(self.drawn_seed)
            self.drawn_seed = None

    def print_picture(self, event: Made) -> None:
        """Print a finished picture, or its content where it goes to stdout."""
        with self.reporter.paused():
            if event.content is not None:
                options.print_bytes(event.content)
            else:
                about = about_picture(event.picture) | {"elapsed_s": round(event.elapsed_s, 3)}
                about |= {"ranking": event.ranking} if event.ranking else {}
                options.print_path(event.picture.path, self.as_json, **about)

    def print_planned(self, picture: Picture, there: bool) -> None:
        """Print a picture that would be made; as JSON also those that are there already."""
        with self.reporter.paused():
            if self.as_json or not there:
                options.print_path(picture.path, self.as_json, **about_picture(picture), there=there)


def about_picture(picture: Picture) -> dict[str, Any]:
    """What `--json` says of a picture."""
    steps_path = picture.steps_path and str(picture.steps_path)
    return {"index": picture.index, "id": picture.id, **asdict(picture.settings), "steps_path": steps_path}
