"""Pictures made again from what is written in them: where, with what, what is not as it was, and how far it comes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sdcli.batch.events import Report
from sdcli.batch.run import Run
from sdcli.device import Placement, choose_placement
from sdcli.errors import SdcliError
from sdcli.images import encode_image, open_image
from sdcli.inputs import bad_inputs
from sdcli.locate import Difference, Found
from sdcli.metadata import library_versions
from sdcli.output import PIPE, Picture
from sdcli.record import Record
from sdcli.run_settings import COMPUTED, RunSettings
from sdcli.workbench import Benches


@dataclass(frozen=True)
class Again:
    """A picture that is to be made again.

    Args:
        record: what it says of itself.
        found: what it is made from.
        placement: where it is made.
        how: it is computed.
    """

    record: Record
    found: Found
    placement: Placement
    how: RunSettings = field(default_factory=RunSettings)

    @property
    def differences(self) -> list[Difference]:
        """What is not as it was when the picture was made."""
        then = self.record.provenance
        recorded = {**then.versions, "device": then.device, "precision": then.precision, **as_texts(then.computed)}
        placed = {"device": str(self.placement.device), "precision": self.placement.precision}
        here = {**library_versions(), **placed, **as_texts(self.how.computed)}
        names = [name for name in {**recorded, **here} if recorded.get(name) != here.get(name)]
        return [*self.found.changed, *(Difference(name, recorded.get(name), here.get(name)) for name in names)]


def as_texts(values: Mapping[str, Any]) -> dict[str, str]:
    """Values for a message."""
    return {name: str(value) for name, value in values.items()}


def placement_for(record: Record, device: str | None, precision: str | None) -> Placement:
    """Where to make a picture again: where it was made, or as the user says; else whatever there is.

    Args:
        record: of the picture.
        device: that is asked for; None is that of the picture.
        precision: that is asked for; None is that of the picture.

    Raises:
        SdcliError: what is asked for is not to be had.
    """
    recorded = record.provenance
    devices = [recorded.device, recorded.device.partition(":")[0], "auto"] if device is None else [device]
    precisions = [recorded.precision, "auto"] if precision is None else [precision]
    *others, last = [(each, kind) for each in devices for kind in precisions]
    for choice in others:
        try:
            return choose_placement(*choice)
        except SdcliError:
            continue
    return choose_placement(*last)


def computed_as(record: Record, allow_pickle: bool) -> RunSettings:
    """How to compute a picture as it was computed."""
    computed = {name: record.provenance.computed.get(name) is True for name in COMPUTED}
    return RunSettings(allow_pickle=allow_pickle, **computed)


def make_again(plans: Sequence[Again], report: Report) -> None:
    """Make pictures again, models in the order of need, and report each as a PNG with its content.

    Args:
        plans: of the pictures; an event tells the place of its picture among them.
        report: is told of every event.

    Raises:
        SdcliError: something is wrong with what a picture is made from, or memory runs out.
    """
    pictures = [
        Picture(settings=plan.found.settings, index=index, file=f"{PIPE}.png") for index, plan in enumerate(plans)
    ]
    for error in bad_inputs(pictures).values():
        raise error
    models = {plan.found.settings.model: plan.found.model for plan in plans}
    benches: dict[Placement, Benches] = {}
    runs: dict[tuple[Placement, RunSettings], list[Picture]] = {}
    for plan, picture in zip(plans, pictures, strict=True):
        runs.setdefault((plan.placement, plan.how), []).append(picture)
    made = [(Run(models, benches.setdefault(at, Benches(at)), how, report), each) for (at, how), each in runs.items()]
    for run, parts in [(run, run.check(each)) for run, each in made]:  # all are checked before the first is made
        run(parts)


def in_format(content: bytes, file_format: str) -> bytes:
    """The content of a PNG of ours as a file of another format, with the same texts."""
    if file_format == "png":
        return content
    image = open_image(content, "the picture that was made")
    return encode_image(image, file_format, dict(image.text))
