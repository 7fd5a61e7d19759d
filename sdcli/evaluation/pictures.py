"""The pictures that a model is measured on: found, thinned out evenly, and brought to its size.

B pictures, H W rows and columns of pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from sdcli.data.folder import LAYOUTS, REPEATED, Example, read_contents
from sdcli.data.order import Size
from sdcli.errors import SdcliError
from sdcli.images import crop_box, load_image, scale_and_cut, to_pixel_values
from sdcli.pipeline import SdPipeline

CENTRE = (0.5, 0.5)


def find_pictures(
    folder: Path, limit: int | None = None, where: Sequence[str] = (), need_captions: bool = False, least: int = 1
) -> list[Example]:
    """The pictures of a folder, in its order. None is opened.

    Args:
        folder: in any layout that training reads.
        limit: take at most so many, evenly from the first to the last; None takes all.
        where: conditions on metadata, see `sdcli.data.folder.Condition`.
        need_captions: refuse a picture without a caption.
        least: pictures that the figures need.

    Raises:
        SdcliError: there are fewer, or one cannot be used.
    """
    if not folder.is_dir():
        raise SdcliError(f"no folder {folder}", hint=f"expected one with {LAYOUTS}")
    contents = read_contents(folder, where)
    for problem in contents.problems:
        raise SdcliError(f"{problem.place} {problem.message}", hint=f"`sdcli data check {folder} --fix` puts it aside")
    examples = contents.examples
    if len(examples) < least:
        found = f"{len(examples)} picture{'s' * (len(examples) != 1)}" if examples else "no pictures"
        hint = f"at least {least} are needed" if least > 1 else f"expected {LAYOUTS}"
        raise SdcliError(f"{folder} has {found}{' with ' + where[0] if where else ''}", hint=hint)
    if limit is not None and limit < least:
        raise SdcliError(f"--num-pictures must be at least {least}, got {limit}", hint=f"try --num-pictures {least}")
    if limit is not None and limit < len(examples):
        examples = [examples[place * len(examples) // limit] for place in range(limit)]
    for example in examples:
        if need_captions and not example.captions:
            raise SdcliError(f"{example.place} has no caption", hint=f"expected {LAYOUTS}")
    return examples


def load_sized(example: Example, size: Size) -> Tensor:
    """A picture scaled, and cut in the middle, to a width and height: (1, 3, H, W) in [-1, 1].

    Raises:
        SdcliError: the file is bad.
    """
    image = load_image(example.path)
    return to_pixel_values(scale_and_cut(image, size, crop_box(image.size, size, CENTRE)))


def batches(examples: Sequence[Example], size: Size, batch_size: int) -> Iterator[tuple[list[Example], Tensor]]:
    """Examples with their pictures, (B, 3, H, W) in [-1, 1], so many at a time."""
    for start in range(0, len(examples), batch_size):
        some = list(examples[start : start + batch_size])
        yield some, torch.cat([load_sized(example, size) for example in some])


def class_of(example: Example, folder: Path) -> str | None:
    """What a picture shows, by its label, or by the folder within `folder` that it lies in; None of one without."""
    if example.label is not None:
        return example.label
    if example.path.parent == folder or example.place != str(example.path):
        return None
    name = example.path.parent.name
    repeated = REPEATED.fullmatch(name)
    return repeated[2] if repeated else name


def fitting_size(pipeline: SdPipeline, resolution: int) -> Size:
    """Width and height of square pictures that the networks of a pipeline can divide.

    Args:
        pipeline: the model, or a part of it.
        resolution: side in pixels.

    Raises:
        SdcliError: they cannot; sizes are never rounded.
    """
    halvings = 0 if pipeline.unet is None else len(pipeline.unet.config.block_out_channels) - 1
    multiple = pipeline.vae_scale_factor * 2**halvings
    if resolution < multiple or resolution % multiple:
        nearest = max(multiple, resolution // multiple * multiple)
        message = f"--resolution must be a positive multiple of {multiple} for this model, got {resolution}"
        raise SdcliError(message, hint=f"nearest usable sizes: {nearest} or {nearest + multiple}")
    return resolution, resolution
