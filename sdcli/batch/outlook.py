"""What a run would do, without doing it."""

from __future__ import annotations

from dataclasses import dataclass, field

from sdcli.batch.contests import contests_of, winners_of
from sdcli.batch.done import OnDisk, look_for
from sdcli.batch.part import Part
from sdcli.output import Picture
from sdcli.run_settings import RunSettings


@dataclass(frozen=True)
class Outlook:
    """The pictures of a part by what would become of them.

    Args:
        to_make: not on disk, or not whole.
        there: on disk already.
        in_the_way: another picture is on disk, where one of these would go.
    """

    to_make: list[Picture] = field(default_factory=list)
    there: list[Picture] = field(default_factory=list)
    in_the_way: list[Picture] = field(default_factory=list)


def look_ahead(part: Part, how: RunSettings) -> Outlook:
    """What would become of the pictures of a part; of a contest that is to be held, all candidates are to be made."""
    outlook = Outlook()
    for contest in contests_of(part.pictures):
        if contest[0].contest is not None:
            winners = winners_of(part, contest, how) if how.if_exists == "skip" else None
            (outlook.to_make if winners is None else outlook.there).extend(winners or contest)
            continue
        (picture,) = contest
        found = OnDisk.NOTHING
        if how.if_exists == "skip" and not picture.to_pipe and picture.path.exists():
            found = look_for(picture.path, part.key(picture))
        places = {OnDisk.THE_PICTURE: outlook.there, OnDisk.ANOTHER: outlook.in_the_way}
        places.get(found, outlook.to_make).append(picture)
    return outlook
