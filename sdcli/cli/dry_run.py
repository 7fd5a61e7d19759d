"""`sdcli generate --dry-run`: what a run would make and take. Nothing is written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sdcli.cli import options
from sdcli.errors import EXIT_OUT_OF_MEMORY, SdcliError

if TYPE_CHECKING:
    from sdcli.batch.part import Part
    from sdcli.cli.asking import Plan
    from sdcli.cli.results import ResultPrinter
    from sdcli.device import Placement
    from sdcli.output import Picture
    from sdcli.run_settings import RunSettings


def rehearse(plan: Plan, placed: tuple[str, str], how: RunSettings, printer: ResultPrinter) -> None:
    """Print the files that a run would make, and tell what it would take.

    Raises:
        SdcliError: the run would end with it; or there is not enough memory, whatever is done about it.
    """
    from sdcli.inputs import bad_inputs

    bad = bad_inputs(plan.pictures)
    if bad and how.on_error == "stop":
        raise next(iter(bad.values()))
    with options.heavy_imports():
        from sdcli.batch.events import Failed
        from sdcli.batch.run import Run
        from sdcli.device import choose_placement
        from sdcli.workbench import Benches

    placement = choose_placement(*placed)
    good = [picture for picture in plan.pictures if picture.index not in bad]
    parts = Run(plan.models, Benches(placement), how, printer).check(good)
    printer.report_seed()
    for picture in plan.pictures:
        if picture.index in bad:
            printer(Failed(picture, bad[picture.index]))
    lacking = [rehearse_part(part, plan.where.of_jobs, placement, how, printer) for part in parts]
    for error in filter(None, lacking):
        raise error


def rehearse_part(
    part: Part, of_jobs: bool, placement: Placement, how: RunSettings, printer: ResultPrinter
) -> SdcliError | None:
    """Tell of the pictures of one model.

    Returns:
        What is wrong where they do not fit into memory.

    Raises:
        SdcliError: another picture is in the way of a job, and the run would end with that.
    """
    from sdcli.batch.done import in_the_way
    from sdcli.batch.estimate import estimate
    from sdcli.batch.events import Estimated, Failed, Warned
    from sdcli.batch.memory import what_would_fit
    from sdcli.batch.outlook import look_ahead

    outlook = look_ahead(part, how)
    for picture in outlook.in_the_way:
        error = in_the_way(picture.path)
        if of_jobs and how.on_error == "stop":
            raise error
        printer(Failed(picture, error) if of_jobs else Warned(f"{error}, and stays as it is"))
    for picture in outlook.there:
        printer.print_planned(part.resolved(picture), there=True)
    for picture in one_for_each_file(outlook.to_make):
        printer.print_planned(part.resolved(picture), there=False)
    facts = (part.model.name, str(placement.device), placement.precision, len(outlook.to_make), len(outlook.there))
    if part.is_foreign:
        printer(Estimated(*facts))
        return None
    needs = estimate(part, outlook.to_make, placement, how)
    printer(Estimated(*facts, needs.seconds, needs.size, needs.room))
    if needs.fits:
        if needs.size > needs.room:
            printer(Warned(f"memory is short: {part.model.name} will make fewer pictures at once, and decode in tiles"))
        return None
    width, height = largest(outlook.to_make)
    needed, room = (f"{size / 2**20:.0f} MiB" for size in (needs.least, needs.room))
    message = f"{part.model.name} needs about {needed} at {width}x{height}, and has {room}"
    return SdcliError(message, hint=what_would_fit(width, height), exit_code=EXIT_OUT_OF_MEMORY)


def one_for_each_file(pictures: Sequence[Picture]) -> list[Picture]:
    """Pictures without those candidates that would go to the file of another one."""
    return list({picture.file: picture for picture in reversed(pictures)}.values())[::-1]


def largest(pictures: Sequence[Picture]) -> tuple[int, int]:
    """The size of the largest of several pictures."""
    sizes = [(picture.settings.width, picture.settings.height) for picture in pictures]
    return max(sizes, key=lambda size: size[0] * size[1])
