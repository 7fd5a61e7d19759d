"""`sdcli data`: what is wrong with a training folder."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from sdcli.cli import options
from sdcli.cli.options import ExamplesFirst, ExamplesFirstGroup, ProgressChoice
from sdcli.registry import find_loadable
from sdcli.settings import check_size

LINE_EVERY_S = 3.0
LISTED = 20  # notes of one kind that are printed each

data = typer.Typer(
    cls=ExamplesFirstGroup,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Check training data, and put aside what no run can use.\n\n"
    "sdcli data check pictures/\nsdcli data check pictures/ --fix",
)


@data.command("check", cls=ExamplesFirst)
def check_folder(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of pictures with captions.")],
    model: options.Model = None,
    models_file: options.ModelsFile = None,
    resolution: Annotated[
        int | None,
        typer.Option(
            "--resolution", metavar="N", help="Side in pixels that training will have (default: the model's)."
        ),
    ] = None,
    no_captions: Annotated[
        bool, typer.Option("--no-captions", help="Pictures need no captions, as for --part vae.")
    ] = False,
    fix: Annotated[
        bool, typer.Option("--fix", help="Move what no run can use to DIR.rejected/; nothing is deleted.")
    ] = False,
    as_json: options.Json = False,
    progress: options.Progress = ProgressChoice.auto,
) -> None:
    """Find what a training run could not use, and what its owner should know: exit code 1 if a run would be refused.

    Pictures that are damaged, too large, animated or missing, lines that cannot be read, captions that are missing,
    empty or too long, pictures that are turned, converted or scaled up, identical and nearly identical ones; how large
    they are, which bucket they come into, and how long their captions are.

    sdcli data check pictures/
    sdcli data check pictures/ --fix
    sdcli data check pictures/ --json > report.json
    """
    spec = find_loadable(model, models_file)
    resolution = spec.defaults.width if resolution is None else resolution
    check_size("--resolution", resolution)
    with options.heavy_imports():
        from sdcli.checkpoints import load_component
        from sdcli.data.check import Wanted, as_json_line, check, mend
        from sdcli.data.store import Store, default_store

    tokenizer = load_component(spec.path, "tokenizer")
    wanted = Wanted(resolution=resolution, most_tokens=tokenizer.model_max_length, need_captions=not no_captions)
    report = check(
        folder,
        Store(default_store()),
        wanted,
        lambda caption: len(tokenizer(caption, verbose=False).input_ids),
        looking(progress),
    )
    moved = mend(report) if fix else []
    if as_json:
        options.print_result(as_json_line(report))
    else:
        print_report(report)
    if moved:
        options.tell(f"moved {len(moved)} files to {folder.resolve()}.rejected")
    if report.problems and not fix:
        raise typer.Exit(1)


def print_report(report) -> None:
    """Findings a line each, notes of which there are many only counted, then what pictures and captions are like."""
    for problem in report.problems:
        options.print_result(f"error: {problem.place} {problem.message}")
    kinds = Counter(note.kind for note in report.notes)
    for note in report.notes:
        if kinds[note.kind] <= LISTED:
            options.print_result(f"note: {note.place} {note.message}")
    for kind, count in kinds.items():
        if count > LISTED:
            options.print_result(f"note: {count} pictures are {kind} (--json lists them)")
    options.print_result(
        f"{report.images} usable pictures, {report.captions} captions, {len(report.problems)} errors, "
        f"{len(report.notes)} notes"
    )
    for title, counts in (("size", report.sizes), ("bucket", report.buckets), ("tokens", report.tokens)):
        for name, count in counts.items():
            options.print_result(f"{title} {name}: {count}")


def looking(progress: ProgressChoice):
    """A report of how many pictures were looked at, on stderr."""
    last_line_at = time.monotonic()

    def look(done: int, total: int) -> None:
        nonlocal last_line_at
        if progress == ProgressChoice.none or time.monotonic() - last_line_at < LINE_EVERY_S:
            return
        last_line_at = time.monotonic()
        if progress == ProgressChoice.json:
            typer.echo(f'{{"event": "looked", "done": {done}, "total": {total}}}', err=True)
        else:
            typer.echo(f"looked at {done}/{total} pictures", err=True)

    return look
