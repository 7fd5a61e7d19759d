"""The files that pictures are made from, seen before anything is loaded. Loads no torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from sdcli.errors import SdcliError
from sdcli.images import load_sized
from sdcli.output import Picture
from sdcli.settings import GenerateSettings, lora_of


def bad_inputs(pictures: Iterable[Picture]) -> dict[int, SdcliError]:
    """What is wrong with the files of each picture, by its index; each file is read once for each size."""
    seen: dict[tuple, SdcliError | None] = {}
    bad = {}
    for picture in pictures:
        settings = picture.settings
        files = (settings.init_image, settings.mask, settings.control_image, settings.lora, settings.embedding)
        if not any(files):
            continue
        kind = (*files, settings.width, settings.height)
        if kind not in seen:
            seen[kind] = None
            try:
                check_inputs(settings)
            except SdcliError as error:
                seen[kind] = error
        if error := seen[kind]:
            bad[picture.index] = error
    return bad


def check_inputs(settings: GenerateSettings) -> None:
    """See that every file that a picture is made from is there and every picture has its size.

    Raises:
        SdcliError: one is not, or has not.
    """
    size = (settings.width, settings.height)
    pictures = [("--init-image", settings.init_image), ("--mask", settings.mask)]
    for flag, file in [*pictures, *(("--control-image", each) for each in settings.control_image)]:
        if file is not None:
            load_sized(flag, file, size)
    files = [("--lora", lora_of(each)[0]) for each in settings.lora]
    for flag, file in [*files, *(("--embedding", each) for each in settings.embedding)]:
        if not Path(file).expanduser().is_file():
            raise SdcliError(f"{flag}: there is no file {file}", hint="name a .safetensors file")
