"""Which pictures are made one after the other, and which together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from itertools import groupby, islice

from sdcli.device import Placement
from sdcli.drawing import Easel, ForeignEasel
from sdcli.output import Picture
from sdcli.settings import GenerateSettings

GROUP_PIXELS = 4 * 512 * 512  # computed together on a GPU: four pictures of Stable Diffusion 1's size
CPU_GROUP_PIXELS = 8 * 128 * 128  # on a CPU, which has enough to do with one picture of more
LARGEST_GROUP = 16
OF_ONE_PICTURE = ("prompt", "negative_prompt", "seed")
SHARED = tuple(each.name for each in fields(GenerateSettings) if each.name not in OF_ONE_PICTURE)


def kind_of(settings: GenerateSettings) -> tuple:
    """What pictures have in common that can go through the networks together: all but text and seed."""
    return tuple(getattr(settings, name) for name in SHARED)


def by_kind(pictures: Iterable[Picture]) -> list[list[Picture]]:
    """Pictures of one model by what they have in common, in the order in which the first of each is asked for."""
    kinds: dict[tuple, list[Picture]] = {}
    for picture in pictures:
        kinds.setdefault(kind_of(picture.settings), []).append(picture)
    return list(kinds.values())


def by_model(pictures: Iterable[Picture]) -> dict[str, list[Picture]]:
    """Pictures by the name of their model, in the order in which the first of each is asked for."""
    models: dict[str, list[Picture]] = {}
    for picture in pictures:
        models.setdefault(picture.settings.model, []).append(picture)
    return models


def group_size(settings: GenerateSettings, placement: Placement, batch_size: int | None) -> int:
    """How many pictures go through the networks together; on a CPU only where `Agreement` has nothing against it.

    There, what more is computed than text to latents is computed for one picture at a time.
    """
    on_cpu = placement.device.type == "cpu"
    more = settings.init_image or settings.controlnet or settings.hires_scale > 1 or settings.clip_guidance
    if on_cpu and more:
        return 1
    together = CPU_GROUP_PIXELS if on_cpu else GROUP_PIXELS
    return batch_size or max(1, min(LARGEST_GROUP, together // (settings.width * settings.height)))


def portions(alike: Sequence[Picture], easel: Easel | ForeignEasel, size: int) -> Iterator[list[Picture]]:
    """Pictures that go through the networks together, at most `size`.

    Prompts of a portion have as many chunks, so that none is filled up because of another.
    """
    if size == 1:
        yield from ([picture] for picture in alike)
        return
    for _, equal in groupby(alike, lambda picture: easel.count_chunks(picture.settings)):
        equal = iter(equal)
        while portion := list(islice(equal, size)):
            yield portion
