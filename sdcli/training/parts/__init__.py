"""What each part of a model learns, and from what: its weights, its batches, its losses, a picture of its progress."""

import importlib.util

from sdcli.data.pictures import Pictures
from sdcli.data.store import Store
from sdcli.errors import SdcliError
from sdcli.training.assembly import Model
from sdcli.training.parts.base import Part
from sdcli.training.settings import TrainSettings

__all__ = ["Part", "make_part"]


def make_part(model: Model, data: Pictures, settings: TrainSettings, store: Store) -> Part:
    """The part that --part names, over the components of a model."""
    # Optional, because diffusers imports it wherever it is installed: half a second of every command.
    if settings.part == "lora" and importlib.util.find_spec("peft") is None:
        raise SdcliError("--part lora needs peft, which is not installed", hint="pip install '.[lora]', or peft alone")
    from sdcli.training.parts.clip import ClipPart
    from sdcli.training.parts.embedding import EmbeddingPart
    from sdcli.training.parts.lora import LoraPart
    from sdcli.training.parts.unet import UnetPart
    from sdcli.training.parts.vae import VaePart

    if settings.part == "vae":
        return VaePart(model, data, settings)
    if settings.part == "clip":
        return ClipPart(model, data, settings)
    kinds = {"unet": UnetPart, "lora": LoraPart, "embedding": EmbeddingPart}
    return kinds[settings.part](model, data, settings, store)
