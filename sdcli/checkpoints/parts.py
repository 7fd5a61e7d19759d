"""Which components a model has, which it needs, and whether they belong together."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdcli.checkpoints import stock
from sdcli.checkpoints.weights import read_json
from sdcli.components.unet_config import PIXEL_CHANNELS
from sdcli.errors import SdcliError
from sdcli.headers import COPIED_IN_PART
from sdcli.model_config import INDEX

WHOLE = "give the model as a folder, or a file that is whole"
CLASSES = "id2label"  # entry of model_index.json: names of classes by their number, as stock DiTPipeline has them


def has(index: Mapping[str, Any], name: str) -> bool:
    """Whether a model_index.json names a class for a component."""
    return index.get(name, [None, None])[0] is not None


def class_names(index: Mapping[str, Any]) -> tuple[str, ...]:
    """What the classes of a class-conditional UNet are called, from number 1 on; 0 is no class."""
    names = index.get(CLASSES) or {}
    return tuple(names[str(number)] for number in range(1, len(names)))


def needed_components(index: Mapping[str, Any], path: Path) -> list[str]:
    """What a picture cannot be made without: a UNet that takes pixels needs no VAE, one that reads no text no CLIP."""
    if index["_class_name"].startswith("StableDiffusionXL"):
        return [name for name in stock.EVERY_COMPONENT if has(index, name) or name in stock.OF_SDXL]
    config = path / "unet" / "config.json"
    unet = read_json(config) if has(index, "unet") and config.is_file() else {}
    optional = set()
    if unet.get("in_channels") in PIXEL_CHANNELS:
        optional.add("vae")
    if "cross_attention_dim" in unet and not any("CrossAttn" in kind for kind in unet.get("down_block_types", [""])):
        optional |= {"text_encoder", "tokenizer"}
    return [name for name in stock.COMPONENTS if has(index, name) or name not in optional]


def require_component(index: Mapping[str, Any], path: Path, name: str) -> None:
    """Refuse a model without a component."""
    if has(index, name) and (path.is_file() or (path / name).is_dir()):
        return
    if path.is_file():
        hint = "give one by --vae" if name == "vae" else WHOLE
        raise SdcliError(f"model {path} has no {name}: none of its keys is of one", hint=hint)
    why = f"{path / name} is missing" if has(index, name) else f"{INDEX} names none"
    part = {"text_encoder": "clip", "tokenizer": "clip"}.get(name, name)
    hint = f"`sdcli train --part {part}` makes one" if part in ("vae", "clip", "unet") else COPIED_IN_PART
    raise SdcliError(f"model {path} has no {name}: {why}", hint=hint)


def check_fit(components: Mapping[str, Any], folder: Path) -> None:
    """Refuse networks that do not fit each other.

    Raises:
        SdcliError: channels of latents or widths of text differ.
    """
    unet, vae = components["unet"].config, components["vae"]
    if vae is not None:
        channels = vae.config.latent_channels
        if unet.in_channels not in (channels, 2 * channels + 1):  # the latter is shown a mask and a picture
            raise SdcliError(
                f"{folder}: the UNet takes {unet.in_channels} channels, the VAE's latents have {channels}",
                hint="do these parts belong together?",
            )
    texts = [components[name] for name in ("text_encoder", "text_encoder_2") if components.get(name) is not None]
    gets, takes = sum(each.config.hidden_size for each in texts), unet.cross_attention_dim
    if texts and takes != gets:
        differ = f"the UNet takes text features {takes} wide, the text encoder's are {gets}"
        if gets < takes and components.get("text_encoder") is None:  # only SDXL's refiner has the second alone
            raise SdcliError(f"model {folder} has no text_encoder: {differ}", hint=WHOLE)
        raise SdcliError(f"{folder}: {differ}", hint="do these parts belong together?")
