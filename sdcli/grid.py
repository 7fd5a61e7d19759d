"""A sheet of the pictures of a run, each with what sets it apart from the others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields

from sdcli.images import encode_image, load_image
from sdcli.output import Picture
from sdcli.settings import GenerateSettings
from sdcli.sheets import make_grid

NAMES = tuple(each.name for each in fields(GenerateSettings))
OBVIOUS = ("width", "height", "prediction_type", "timestep_spacing")  # they are seen, or follow from another


def grid_of(pictures: Sequence[Picture], file_format: str) -> bytes:
    """The content of a sheet of pictures that are on disk, in the order in which they were asked for.

    Where exactly two settings differ, and every combination is there, one of them goes to the right.
    """
    varying = varying_names(pictures)
    columns = math.ceil(math.sqrt(len(pictures)))
    if len(varying) == 2:
        values = [len({getattr(each.settings, name) for each in pictures}) for name in varying]
        if math.prod(values) == len(pictures):
            inner = getattr(pictures[0].settings, varying[1]) != getattr(pictures[1].settings, varying[1])
            columns = values[1] if inner else values[0]
    labels = [label(each, varying) for each in pictures]
    return encode_image(make_grid((load_image(each.path) for each in pictures), columns, labels), file_format)


def varying_names(pictures: Sequence[Picture]) -> list[str]:
    """The settings in which pictures differ."""
    first = pictures[0].settings
    differing = [
        name for name in NAMES if any(getattr(each.settings, name) != getattr(first, name) for each in pictures)
    ]
    return [name for name in differing if name not in OBVIOUS]


def label(picture: Picture, varying: Sequence[str]) -> str:
    """What sets a picture apart, in a line."""
    values = {name: getattr(picture.settings, name) for name in varying}
    said = [str(values[name]) if name == "prompt" else f"{name} {short(values[name])}" for name in varying]
    return ", ".join(said)


def short(value: object) -> str:
    """A value as a label has it."""
    if isinstance(value, tuple):
        return " ".join(map(short, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
