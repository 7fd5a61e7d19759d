"""A model folder in the diffusers layout to our components and pipeline."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdcli.checkpoints import stock
from sdcli.checkpoints.adapters import apply_adapters, put_lora
from sdcli.checkpoints.parts import CLASSES, check_fit, class_names, has, needed_components, require_component
from sdcli.checkpoints.quantized import restored
from sdcli.checkpoints.single_file import open_file, read_vae
from sdcli.checkpoints.tokenizers import load_tokenizer
from sdcli.checkpoints.weights import assign, read_json, read_tensors, read_weights
from sdcli.components.foreign_scheduler import make_scheduler
from sdcli.components.scheduler import Scheduler
from sdcli.device import Placement
from sdcli.errors import SdcliError
from sdcli.headers import FETCH_AGAIN
from sdcli.model_config import INDEX
from sdcli.pipeline import SdPipeline
from sdcli.registry import ModelSpec
from sdcli.settings import GenerateSettings, GenerationDefaults

CLIP_HEAD = "clip_head"  # not stock: with text_encoder and image_encoder a whole CLIP; stock readers pass it over
ON_CPU = Placement(torch.device("cpu"), torch.float32, "no")


def load_pipeline(model: ModelSpec, placement: Placement) -> SdPipeline:
    """A model from models.toml, a folder or a single file, ready to make pictures.

    Args:
        model: where it lies and what its defaults are.
        placement: device and dtype of the networks.

    Raises:
        SdcliError: it is no text-to-image model, lacks a component, or a file of it is bad.
    """
    index = read_index(model.path, model.allow_pickle)
    kind = index.get("_class_name")
    if kind not in stock.PIPELINES:
        raise SdcliError(
            f"{model.path} is a {kind}, which sdcli does not run", hint=f"it runs {', '.join(stock.PIPELINES)}"
        )
    names = needed_components(index, model.path)
    if model.vae is not None:
        if "vae" not in names:
            raise SdcliError(f"--vae does not go with {model.path}, which has none", hint="leave it out")
        names.remove("vae")
    for name in names:
        require_component(index, model.path, name)
    components = dict.fromkeys(stock.EVERY_COMPONENT)
    placements = dict.fromkeys(names, placement)
    placements["vae"] = replace(placement, dtype=vae_dtype(placement.dtype, "tokenizer_2" in names))
    for name in names:
        components[name] = load_component(model.path, name, placements[name], model.allow_pickle)
    if model.vae is not None:
        components["vae"] = load_vae(model.vae, placements["vae"], model)
    check_fit(components, model.path)
    components["scheduler"] = load_scheduler(model.path, scheduler_changes(model.defaults), model.allow_pickle)
    zeros = bool(index.get("force_zeros_for_empty_prompt", "tokenizer_2" in names))
    pipeline = SdPipeline(**components, force_zeros_for_empty_prompt=zeros and "tokenizer_2" in names)
    pipeline.defaults = model.defaults
    pipeline.class_names = class_names(index)
    if model.lora is not None:
        put_lora(pipeline, model.lora, allow_pickle=model.allow_pickle)
    if model.adapter is not None:
        apply_adapters(pipeline, model.adapter)
    return pipeline


def vae_dtype(dtype: torch.dtype | None, sdxl: bool) -> torch.dtype | None:
    """The number format of the VAE, where that of the other networks is `dtype`: SDXL's overflows in fp16.

    Stock computes it in fp32 too.
    """
    return torch.float32 if sdxl and dtype == torch.float16 else dtype


def scheduler_changes(settings: GenerationDefaults | GenerateSettings) -> dict[str, str]:
    """What of a scheduler's configuration settings change."""
    named = {
        "sampler": settings.sampler,
        "sigma_schedule": settings.schedule,
        "prediction_type": settings.prediction_type,
        "timestep_spacing": settings.timestep_spacing,
    }
    return {name: value for name, value in named.items() if value is not None}


def load_components(folder: Path, placement: Placement = ON_CPU, allow_pickle: bool = False) -> dict[str, Any]:
    """Every component that a model folder has, by name, `image_encoder` and `clip_head` included.

    Raises:
        SdcliError: it is no model folder, or a file of it is bad.
    """
    folder = Path(folder)
    index = read_index(folder, allow_pickle)
    names = [name for name in (*stock.EVERY_COMPONENT, "image_encoder") if has(index, name)]
    components = {name: load_component(folder, name, placement, allow_pickle) for name in names}
    if (folder / CLIP_HEAD).is_dir():
        components[CLIP_HEAD] = load_clip_head(folder, placement)
    return components


def load_component(folder: Path, name: str, placement: Placement = ON_CPU, allow_pickle: bool = False) -> Any:
    """One component of a model folder: a network of ours, in evaluation mode, or its scheduler or tokenizer.

    Networks are built without memory and given their weights from the file: those that stay on the CPU in the dtype
    that they are saved in are read when they are first used.

    Args:
        folder: holds model_index.json; or a single file.
        name: of the component: vae, text_encoder, tokenizer, unet, scheduler, image_encoder …
        placement: device and dtype of a network; the CPU in fp32 if not given.
        allow_pickle: read weights that are no safetensors, by `weights_only`.

    Raises:
        SdcliError: it is no model folder, has no such component, or a file of it is bad.
    """
    folder = Path(folder)
    if folder.is_file():
        file = open_file(folder, allow_pickle)
        require_component(file.index(), folder, name)
        return file.load(name, placement)
    index = read_index(folder)
    require_component(index, folder, name)
    library, class_name = index[name]
    if name == "scheduler":
        return load_scheduler(folder)
    if class_name in stock.TOKENIZERS:
        return load_tokenizer(folder / name)
    kind = stock.named(library, class_name, f"{folder / INDEX}: {name}")
    return load_network(folder / name, kind, placement, allow_pickle)


def load_network(
    folder: Path, kind: stock.StockClass, placement: Placement = ON_CPU, allow_pickle: bool = False
) -> nn.Module:
    """A network from its own folder, which holds config.json and the weights.

    Raises:
        SdcliError: a file is missing or bad, or they do not belong together.
    """
    component = stock.build(kind, read_json(folder / "config.json"), folder / "config.json")
    tensors, source = read_weights(folder, allow_pickle)
    tensors = restored(tensors, source, placement.dtype)
    assign(component, stock.to_our_keys(kind, tensors), source, placement)
    return component.eval()


def load_scheduler(model: Path, changes: Mapping[str, str] | None = None, allow_pickle: bool = False) -> Scheduler:
    """The scheduler of a model folder, from its stock scheduler_config.json, or of a single file.

    Args:
        model: folder or file.
        changes: arguments of `Scheduler.from_config` to use instead of the file's; see `scheduler_changes`.
        allow_pickle: whether the single file may be one.

    Raises:
        SdcliError: the file is missing or bad, of a class that we have no sampler for, or does not go with the choices.
    """
    path = Path(model)
    if path.is_file():
        config = open_file(path, allow_pickle).config("scheduler")
    else:
        path = path / "scheduler" / "scheduler_config.json"
        config = read_json(path)
    try:
        return make_scheduler(config, changes)
    except (ValueError, TypeError) as error:
        hint = "it must be the scheduler_config.json of a stock scheduler"
        raise SdcliError(f"{path}: {error}", hint=hint) from error


def load_vae(path: Path, placement: Placement, model: ModelSpec) -> nn.Module:
    """A VAE by itself: a folder with its config.json, a model, or a file in either layout.

    Args:
        path: of the folder or file.
        placement: of the network.
        model: what it is used with; whose scaling factor counts where the file says none, and whose permission.

    Raises:
        SdcliError: there is none, or it is bad.
    """
    if path.is_dir():
        if (path / INDEX).is_file():
            return load_component(path, "vae", placement, model.allow_pickle)
        return load_network(path, stock.named("diffusers", "AutoencoderKL", path), placement, model.allow_pickle)
    return read_vae(path, placement, load_scaling_factor(model), model.allow_pickle)


def load_scaling_factor(model: ModelSpec) -> float:
    """What a model multiplies latents by."""
    if model.path.is_file():
        return open_file(model.path, model.allow_pickle).family.scaling_factor
    return float(read_json(model.path / "vae" / "config.json").get("scaling_factor", 0.18215))


def load_clip_head(folder: Path, placement: Placement = ON_CPU) -> dict[str, Tensor]:
    """`logit_scale`, and `text_projection.weight` unless the text encoder has it, from a model folder.

    Raises:
        SdcliError: there is no head, or its file is bad.
    """
    path = folder / CLIP_HEAD / "model.safetensors"
    tensors = read_tensors(path)
    if "logit_scale" not in tensors:
        raise SdcliError(
            f"{path} lacks logit_scale", hint="it is no head of CLIP as `sdcli train --part clip` writes it"
        )
    return {key: tensor.to(placement.device, placement.dtype) for key, tensor in tensors.items()}


def read_index(folder: Path, allow_pickle: bool = False) -> dict[str, Any]:
    """The model_index.json of a folder.

    Raises:
        SdcliError: there is no such folder or file, or it is damaged.
    """
    folder = Path(folder)
    if folder.is_file():
        return open_file(folder, allow_pickle).index()
    if not folder.is_dir():
        raise SdcliError(f"there is no folder {folder}", hint="a model is a folder with model_index.json in it")
    if not (folder / INDEX).is_file():
        raise SdcliError(f"{folder} is no model: it has no {INDEX}", hint="name a folder in the diffusers layout")
    index = read_json(folder / INDEX)
    for name, entry in index.items():
        if name == CLASSES and not (isinstance(entry, dict) and entry.keys() == {str(n) for n in range(len(entry))}):
            raise SdcliError(f"{folder / INDEX}: {CLASSES} must name classes 0, 1, 2 …", hint=FETCH_AGAIN)
        known = name.startswith("_") or name in (*stock.NOT_LOADED, CLASSES)
        if not known and not (isinstance(entry, list) and len(entry) == 2):
            must = f"{name} must be [library, class name], got {entry!r}"
            raise SdcliError(f"{folder / INDEX}: {must}", hint=FETCH_AGAIN)
    return index
