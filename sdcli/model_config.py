"""What a model says of itself in its configuration files, or by the keys and shapes of its single file.

Reads no weights, and loads no torch.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sdcli import families
from sdcli.errors import SdcliError
from sdcli.headers import read_header
from sdcli.settings import GenerationDefaults

INDEX = "model_index.json"  # marks a model folder
DEFAULTS = "_defaults"  # entry of it that is ours: what generation uses; stock passes over what begins with _
KEPT = ("num_inference_steps", "guidance_scale", "sampler", "schedule", "eta", "clip_skip")  # in that entry
BY_PIPELINE = {  # what generation uses, for models that no models.toml names
    "StableDiffusionXLPipeline": {"guidance_scale": 5.0},
    "StableDiffusionXLImg2ImgPipeline": {"guidance_scale": 5.0},
    "StableDiffusionXLInpaintPipeline": {"guidance_scale": 7.5},
    "LatentConsistencyModelPipeline": {"guidance_scale": 8.5, "num_inference_steps": 4},
    "StableDiffusion3Pipeline": {"guidance_scale": 7.0, "num_inference_steps": 28},
    "FluxPipeline": {"guidance_scale": 3.5, "num_inference_steps": 28},
    "QwenImagePipeline": {"guidance_scale": 4.0, "num_inference_steps": 50},
    "ZImagePipeline": {"guidance_scale": 1.0, "num_inference_steps": 9},
    "PixArtAlphaPipeline": {"guidance_scale": 4.5, "num_inference_steps": 20},
    "PixArtSigmaPipeline": {"guidance_scale": 4.5, "num_inference_steps": 20},
    "SanaPipeline": {"guidance_scale": 4.5, "num_inference_steps": 20},
}
UNET_SIDE = 64  # rows and columns of latents of a UNet whose configuration does not say
TRANSFORMER_SIDE = 128  # rows and columns of latents of a transformer whose configuration does not say


def own_defaults(path: Path, allow_pickle: bool = False, **chosen: Any) -> GenerationDefaults:
    """What generation uses for a model that is on disk.

    Args:
        path: of its folder or file.
        allow_pickle: whether the file may be one.
        chosen: what a models.toml says of it.

    Raises:
        SdcliError: a value is out of range, or the model's own configuration cannot be read.
    """
    width, height = native_size(path, allow_pickle)
    usual = BY_PIPELINE.get(pipeline_of(path, allow_pickle), {})
    kept = {} if path.is_file() else kept_defaults(path)
    return GenerationDefaults(**{"width": width, "height": height, **usual, **kept, **chosen})


def kept_defaults(folder: Path) -> dict[str, Any]:
    """What a model folder says itself of how pictures are made with it; see `defaults_to_keep`.

    Raises:
        SdcliError: a value is out of range.
    """
    entry = read_json(folder / INDEX).get(DEFAULTS) or {}
    try:
        kept = {name: entry[name] for name in KEPT if name in entry}
        GenerationDefaults(**kept)
    except (SdcliError, TypeError) as error:
        raise SdcliError(f"{folder / INDEX}: {DEFAULTS}: {error}", hint="correct it, or take it out") from error
    return kept


def defaults_to_keep(defaults: GenerationDefaults) -> dict[str, Any]:
    """What model_index.json has to say under `DEFAULTS`, so that a model is used like the one it was made from."""
    usual = GenerationDefaults()
    return {name: asdict(defaults)[name] for name in KEPT if getattr(defaults, name) != getattr(usual, name)}


def pipeline_of(folder: Path, allow_pickle: bool = False) -> str:
    """The stock class that a model folder or a single file is for; empty where it does not say."""
    if folder.is_file():
        return families.family_of(read_header(folder, allow_pickle).shapes, folder).pipeline
    return str(read_json(folder / INDEX).get("_class_name", ""))


def inpaints(path: Path, allow_pickle: bool = False) -> bool:
    """Whether a model's UNet is shown a mask and the rest of the picture."""
    if path.is_file():
        shapes = read_header(path, allow_pickle).shapes
        with families.understood(path):
            unet = families.unet_config(shapes, families.family_of(shapes, path))
    else:
        unet = read_config(path / "unet")
    return unet.get("in_channels", 0) > max(unet.get("out_channels", 4), 4)


def family_name(path: Path, allow_pickle: bool = False) -> str:
    """What kind of model it is, as far as its files say: sd1, sd2, sdxl …, or stock's class for it."""
    if path.is_file():
        return families.family_of(read_header(path, allow_pickle).shapes, path).name
    kind, unet = pipeline_of(path), read_config(path / "unet")
    if not kind.startswith(("StableDiffusion", "LatentConsistency")) or "3" in kind:
        return kind
    if unet.get("addition_embed_type") == "text_time":
        return "sdxl" if (path / "text_encoder").is_dir() else "sdxl-refiner"
    return "sd2" if unet.get("use_linear_projection") else "sd1"


def native_size(folder: Path, allow_pickle: bool = False) -> tuple[int, int]:
    """Width and height in pixels that the model was trained on, from its configuration files, or its single file.

    A value that is missing there counts as Stable Diffusion 1's: a UNet for 64 by 64 latents, a VAE with stride 8.

    Raises:
        SdcliError: a file cannot be read, or says a size that is none.
    """
    if folder.is_file():
        family = families.family_of(read_header(folder, allow_pickle).shapes, folder)
        return (family.latents_side * vae_stride(folder, allow_pickle),) * 2
    stride = vae_stride(folder)
    name, usual = ("transformer", TRANSFORMER_SIDE) if (folder / "transformer").is_dir() else ("unet", UNET_SIDE)
    sample_size = read_config(folder / name).get("sample_size")
    sample_size = usual if sample_size is None else sample_size
    sides = sample_size if isinstance(sample_size, list) else [sample_size] * 2
    if len(sides) != 2 or any(type(side) is not int or side < 1 for side in sides):
        message = f"{folder / name / 'config.json'}: sample_size must be one or two whole numbers, got {sample_size!r}"
        raise SdcliError(message, hint="copy the model again")
    rows, columns = sides
    return columns * stride, rows * stride


def vae_stride(folder: Path, allow_pickle: bool = False) -> int:
    """Pixels per latent, each way, of a model's VAE, from its configuration file; 8 where that does not say.

    A model without a VAE denoises pixels: 1.
    """
    if folder.is_file():
        shapes = read_header(folder, allow_pickle).shapes
        has_vae = families.has_any(shapes, families.VAE)
        with families.understood(folder):
            return 2 ** (len(families.vae_config(shapes)["block_out_channels"]) - 1) if has_vae else 8
    if read_json(folder / INDEX).get("vae", [""])[0] is None:
        return 1
    channels = read_config(folder / "vae").get("block_out_channels")
    return 2 ** (len(channels) - 1) if isinstance(channels, list) else 8


def read_config(folder: Path) -> dict[str, Any]:
    """A component's config.json; empty when there is none.

    Raises:
        SdcliError: the file is no JSON object.
    """
    return read_json(folder / "config.json")


def read_json(path: Path) -> dict[str, Any]:
    """A small JSON file; empty when there is none.

    Raises:
        SdcliError: the file is no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise SdcliError(f"cannot read {path}: {error}", hint="copy the model again") from error
    if not isinstance(content, dict):
        raise SdcliError(f"{path} is no component's configuration", hint="copy the model again")
    return content
