"""A whole CLIP in a model folder: text_encoder, image_encoder and the head that compares what they say."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdcli.checkpoints.folder import CLIP_HEAD, ON_CPU, load_clip_head, load_component
from sdcli.checkpoints.saving import save_components
from sdcli.components.clip import CLIP
from sdcli.device import Placement
from sdcli.errors import SdcliError


def load_clip(folder: Path, placement: Placement = ON_CPU) -> CLIP:
    """The CLIP whose text encoder a model uses.

    Raises:
        SdcliError: a part of it is missing or bad.
    """
    folder = Path(folder)
    head = load_clip_head(folder, placement)
    text_encoder = load_component(folder, "text_encoder", placement)
    image_encoder = load_component(folder, "image_encoder", placement)
    try:
        clip = CLIP.from_towers(text_encoder, image_encoder, head.get("text_projection.weight"), head["logit_scale"])
    except ValueError as error:
        raise SdcliError(f"{folder / CLIP_HEAD} does not fit the encoders beside it: {error}") from error
    return clip.eval()


def clip_parts(clip: CLIP) -> dict[str, Any]:
    """A CLIP as components of a model folder, which share its parameters: text_encoder, image_encoder, clip_head."""
    text_encoder, image_encoder = clip.towers()
    head: dict[str, Tensor] = {"text_projection.weight": clip.text_projection.weight, "logit_scale": clip.logit_scale}
    return {"text_encoder": text_encoder, "image_encoder": image_encoder, CLIP_HEAD: head}


def save_clip(
    clip: CLIP,
    folder: Path,
    tokenizer: Any = None,
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a CLIP as a model folder that has no VAE and no UNet yet; arguments as for `save_components`."""
    save_components({**clip_parts(clip), "tokenizer": tokenizer}, folder, dtype, metadata)
