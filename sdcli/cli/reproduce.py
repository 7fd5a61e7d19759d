"""`sdcli reproduce`: a picture made again from what is written in it, and compared."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdcli.cli import options
from sdcli.cli.files import PIPE, check_pipe
from sdcli.cli.options import IfExistsChoice, ProgressChoice
from sdcli.cli.progress import Reporter, reporter_for
from sdcli.errors import EXIT_DIFFERS, SdcliError

if TYPE_CHECKING:
    from sdcli.batch.events import Event
    from sdcli.comparison import Comparison
    from sdcli.record import Record
    from sdcli.reproduction import Again

AS_RECORDED = "(default: as the picture says, where this machine has that)"
AGAIN = "again"  # what tells the new file from the old one
FIELDS = ("index", "name", "seed", "model")


def reproduce(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="Pictures that sdcli has made.")],
    check: Annotated[
        bool,
        typer.Option("--check", help="Compare, and write nothing without --output; exit code 6 where one differs."),
    ] = False,
    output: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            metavar="PATH|FOLDER/|TEMPLATE|-",
            help="Where to; templates know {index} {name} {seed} {model}; - is stdout (default: outputs/{name}-again).",
        ),
    ] = None,
    search: Annotated[
        list[Path] | None,
        typer.Option(
            "--search",
            metavar="FOLDER",
            help="Look for weights and pictures that have moved in all of it too, by their SHA-256; repeatable.",
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            "--device", metavar="NAME", help=f"Where to compute: auto, cpu, cuda, cuda:N or mps {AS_RECORDED}."
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option("--precision", metavar="NAME", help=f"Number format: auto, fp32, fp16 or bf16 {AS_RECORDED}."),
    ] = None,
    models_file: options.ModelsFile = None,
    if_exists: options.IfExists = IfExistsChoice.error,
    allow_pickle: options.AllowPickle = False,
    offline: options.Offline = False,
    as_json: options.Json = False,
    progress: options.Progress = ProgressChoice.auto,
) -> None:
    """Make pictures again from what is written in them, and tell what is not as it was.

    sdcli reproduce kitten.png
    sdcli reproduce kitten.png --check
    sdcli reproduce pictures/*.png --check --json
    sdcli reproduce kitten.png --search /models -o again.png

    Weights and pictures that are no longer where they were are found by their SHA-256: among the models of models.toml,
    the files used before, what lies beside the picture and in the working folder, and in every --search.
    """
    from sdcli.record import read_record

    options.go_offline(offline)
    records = [read_record(path) for path in images]
    targets = targets_of(records, output, if_exists, check)
    wanted = [place for place, target in enumerate(targets) if check or target is not None]
    records, targets = [records[place] for place in wanted], [targets[place] for place in wanted]
    with options.heavy_imports():  # here, so that --help and a user's mistake are answered at once
        from sdcli.locate import locate
        from sdcli.places import Places
        from sdcli.reproduction import Again, computed_as, make_again, placement_for

    near = dict.fromkeys([*(record.path.parent for record in records), Path()])
    places = Places(models_file, tuple(near), tuple(folder.expanduser() for folder in search or ()))
    with reporter_for(progress, len(records)) as reporter:
        plans = []
        for record in records:
            found = locate(record, places, lenient=check)
            placement = placement_for(record, device, precision)
            plans.append(Again(record, found, placement, computed_as(record, allow_pickle)))
        told = sum(tell(each, reporter) for each in plans)
        printer = Printer(reporter, plans, targets, Printing(check, as_json, if_exists))
        make_again(plans, printer)
    if printer.differing:
        hint = "the warnings say what is not as it was" if told else "it was altered, or made on other hardware"
        message = f"{printer.differing} of {len(plans)} pictures differ from what is made now"
        raise SdcliError(message, hint=hint, exit_code=EXIT_DIFFERS)


def targets_of(records: list[Record], output: str | None, if_exists: str, check: bool) -> list[Path | None]:
    """Where each picture goes; None where it is only compared, or is there and to be left alone.

    Raises:
        SdcliError: a name is wrong, taken, used twice or cannot be written.
    """
    from sdcli.names import Names, check_different, picture_template
    from sdcli.output import DEFAULT_FOLDER
    from sdcli.results import already_there, check_writable

    if output is None and check:
        return [None] * len(records)
    if output == PIPE:
        if check or len(records) > 1:
            raise SdcliError("-o - is for one picture, and not for --check", hint="name a file, or a folder/")
        check_pipe()
        return [Path(PIPE)]
    paths = []
    for index, record in enumerate(records):
        stem = record.path.stem.replace("{", "{{").replace("}", "}}")
        in_folder = output is None or output.endswith("/") or Path(output).expanduser().is_dir()
        file_format = record.file_format if in_folder else None
        template = picture_template(output or f"{DEFAULT_FOLDER}/", f"{stem}-{AGAIN}", file_format)
        settings = record.settings
        values = {"index": index, "name": record.path.stem, "seed": settings.seed, "model": Path(settings.model).name}
        paths.append(Names("--output", template, FIELDS).name(values))
    check_different("--output", paths, FIELDS[0])
    there = already_there(paths, if_exists)
    check_writable([path for path, skip in zip(paths, there, strict=True) if not skip])
    return [None if skip else Path(path) for path, skip in zip(paths, there, strict=True)]


def tell(plan: Again, reporter: Reporter) -> int:
    """Say what has moved, and what is not as it was when a picture was made, and how many things that are."""
    for name, where in plan.found.moved.items():
        reporter.warn(f"{plan.record.path}: {name} was found as {where}, by its SHA-256")
    for difference in plan.differences:
        reporter.warn(f"{plan.record.path}: {difference}")
    return len(plan.differences)


@dataclass(frozen=True)
class Printing:
    """What becomes of pictures.

    Args:
        check: each is compared with the one that is there.
        as_json: a JSON object for each.
        if_exists: error, skip, overwrite or number.
    """

    check: bool
    as_json: bool
    if_exists: str


class Printer:
    """Passes events on to the progress report; compares and writes each picture, and prints what came of it.

    Args:
        reporter: tells of progress.
        plans: of all pictures.
        targets: their files; None where none is written.
        printing: what is wanted.
    """

    def __init__(self, reporter: Reporter, plans: list[Again], targets: list[Path | None], printing: Printing):
        self.reporter, self.plans, self.targets, self.printing = reporter, plans, targets, printing
        self.differing = 0

    def __call__(self, event: Event) -> None:
        """Take one event of a run."""
        if type(event).__name__ != "Made":
            self.reporter(event)
            return
        place = event.picture.index
        plan, target = self.plans[place], self.targets[place]
        compared = self.compare(plan, event.content) if self.printing.check else None
        written = self.write(target, event.content)
        self.reporter(replace(event, picture=replace(event.picture, file=str(written or plan.record.path))))
        with self.reporter.paused():
            if target == Path(PIPE):
                options.print_bytes(event.content)
            elif self.printing.as_json:
                self.print_json(plan, written, compared)
            elif compared is not None:
                options.print_result(f"{plan.record.path}: {compared}")
            elif written is not None:
                options.print_path(written, as_json=False)

    def compare(self, plan: Again, content: bytes) -> Comparison:
        """How far a picture is from the one that it was made from, in the format of that one."""
        from sdcli.comparison import compare
        from sdcli.files import read_bytes
        from sdcli.reproduction import in_format

        record = plan.record
        compared = compare(read_bytes(record.path), in_format(content, record.file_format), str(record.path))
        self.differing += not compared.equal
        return compared

    def write(self, target: Path | None, content: bytes) -> Path | None:
        """Write a picture where it goes, and give the path that it got; None where it is no file."""
        from sdcli.images import SUFFIXES
        from sdcli.reproduction import in_format
        from sdcli.results import write_result

        if target in (None, Path(PIPE)):
            return None
        return write_result(in_format(content, SUFFIXES[target.suffix.lower()]), target, self.printing.if_exists)

    def print_json(self, plan: Again, target: Path | None, compared: Comparison | None) -> None:
        """Print a picture as one line of JSON: where it is, how far it comes, and what is not as it was."""
        about: dict[str, Any] = {"image": str(plan.record.path), "path": target and str(target)}
        if compared is not None:
            about |= {
                "equal": compared.equal,
                "psnr_db": compared.psnr_db,
                "largest_difference": compared.largest_difference,
                "differing_share": compared.share,
            }
        environment = {each.what: {"recorded": each.recorded, "here": each.here} for each in plan.differences}
        options.print_json({**about, "moved": plan.found.moved, "environment": environment})
