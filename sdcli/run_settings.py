"""How a run of many pictures goes: what decides no picture, but how, where and in which order they are made."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sdcli.errors import SdcliError
from sdcli.settings import check_choice

LARGEST_BATCH = 1024
ON_ERROR = ("stop", "skip")
OFFLOADS = ("none", "model", "group")
COMPUTED = ("compile", "tile_vae", "lenient")  # switches that a picture tells of


@dataclass(frozen=True)
class Shard:
    """One of several equal parts of a run, such as a job array has.

    Args:
        index: from 0.
        count: of parts.
    """

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Shard 3/8 is the third of eight.

        Raises:
            SdcliError: it is none.
        """
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise SdcliError(f"--shard {text} is none", hint="the third of eight is 3/8; the first is 1/8")
        return cls(int(found[1]) - 1, int(found[2]))

    def within(self, index: int, count: int) -> Shard:
        """One of `count` parts of this part."""
        return Shard(self.index * count + index, self.count * count)


WHOLE = Shard()


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """How pictures are made.

    Args:
        batch_size: pictures that go through the networks together on a GPU; None is as many as suit their size.
        strict: fill up every batch to one size, so that a picture does not depend on how many are made with it.
        on_error: stop or skip.
        if_exists: error, skip, overwrite or number.
        allow_pickle: read weights that are no safetensors.
        lenient: put LoRAs on as far as they fit.
        preview: file to rewrite while a picture is made.
        preview_vae: folder of a small VAE for it.
        save_latents: keep latents beside each picture.
        compile: compile the UNet.
        offload: keep on the GPU only what is at work: none, model or group.
        tile_vae: decode in tiles, which takes less memory.
        clip_model: whose CLIP says which candidates of a contest are kept; None is that of the settings.

    Raises:
        SdcliError: a value that there is not.
    """

    batch_size: int | None = None
    strict: bool = False
    on_error: str = "stop"
    if_exists: str = "error"
    allow_pickle: bool = False
    lenient: bool = False
    preview: str | None = None
    preview_vae: str | None = None
    save_latents: bool = False
    compile: bool = False
    offload: str = "none"
    tile_vae: bool = False
    clip_model: str | None = None

    def __post_init__(self) -> None:
        check_choice("--on-error", self.on_error, ON_ERROR)
        check_choice("--offload", self.offload, OFFLOADS)
        if self.preview_vae is not None and self.preview is None:
            raise SdcliError("--preview-vae needs a file to show it in", hint="give one by --preview FILE.png")
        if self.preview is not None and not self.preview.lower().endswith(".png"):
            raise SdcliError(f"--preview {self.preview} must end in .png", hint="try --preview preview.png")

    @property
    def computed(self) -> dict[str, bool]:
        """What of it a picture needs to be made again to the bit, where it is not as usual."""
        return {name: True for name in COMPUTED if getattr(self, name)}

    @property
    def layout(self) -> tuple:
        """What of it is settled when a model is loaded."""
        return (self.allow_pickle, self.lenient, self.compile, self.offload, self.tile_vae)


def parse_batch_size(text: str) -> int | None:
    """A number of pictures, or auto.

    Raises:
        SdcliError: it is neither.
    """
    if text == "auto":
        return None
    if not re.fullmatch(r"\d{1,6}", text) or not 1 <= int(text) <= LARGEST_BATCH:
        raise SdcliError(f"--batch-size must be from 1 to {LARGEST_BATCH} or auto, got {text}", hint="auto suits most")
    return int(text)
