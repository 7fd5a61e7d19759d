"""Our components to a model folder in the diffusers layout, under stock class names."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import nn

from sdcli.checkpoints import stock
from sdcli.checkpoints.folder import CLIP_HEAD, INDEX
from sdcli.checkpoints.parts import CLASSES
from sdcli.checkpoints.writing import to_dtype, whole_folder, write_tensors, write_text
from sdcli.components.scheduler import Scheduler
from sdcli.model_config import DEFAULTS, defaults_to_keep
from sdcli.pipeline import SdPipeline

NAMES = (*stock.EVERY_COMPONENT, "image_encoder")


def save_pipeline(
    pipeline: SdPipeline, folder: Path, dtype: torch.dtype | None = None, metadata: Mapping[str, str] | None = None
) -> None:
    """Write the folder that diffusers' StableDiffusionPipeline loads; arguments as for `save_components`."""
    components = {name: getattr(pipeline, name) for name in NAMES}
    save_components(components, folder, dtype, metadata, pipeline.class_names, defaults_to_keep(pipeline.defaults))


def save_components(
    components: Mapping[str, Any],
    folder: Path,
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
    class_names: Sequence[str] = (),
    defaults: Mapping[str, Any] | None = None,
) -> None:
    """Write a model folder, whole or not at all; a model may lack components yet.

    A model that is there already is replaced; what else lies in its folder (a card, pictures) stays.

    Args:
        components: by name, None or absent for one that there is not; `clip_head` is a mapping of tensors.
        folder: where model_index.json goes.
        dtype: of floating weights on disk; None keeps each one's own.
        metadata: where the weights come from, written into each of their files.
        class_names: of a class-conditional UNet, from number 1 on; 0 is no class.
        defaults: what generation uses for what the user leaves open, see `defaults_to_keep`.

    Raises:
        SdcliError: it cannot be written, or `folder` is something else than a model.
    """
    folder = Path(folder)
    components = {name: component for name, component in components.items() if component is not None}
    with whole_folder(folder, INDEX) as beside:
        for name, component in components.items():
            _write(component, beside / name, dtype, metadata or {})
        about = {"_diffusers_version": diffusers.__version__}
        if class_names:
            about[CLASSES] = {str(number): name for number, name in enumerate(("", *class_names))}
        if defaults:
            about[DEFAULTS] = dict(defaults)
        write_text(beside / INDEX, _to_json(about | index_of(components)))
        _keep_others(folder, beside)


def index_of(components: Mapping[str, Any]) -> dict[str, Any]:
    """What model_index.json says of components: the stock pipeline that they are for, and a class for each."""
    unet, vae = components.get("unet"), components.get("vae")
    inpaints = unet is not None and vae is not None and unet.config.in_channels > vae.config.latent_channels
    if "text_encoder_2" not in components:
        kind = "StableDiffusionInpaintPipeline" if inpaints else "StableDiffusionPipeline"
        names = (*stock.COMPONENTS, "image_encoder", "safety_checker", "feature_extractor")
        flags = {"requires_safety_checker": False}
    else:
        refines = "text_encoder" not in components
        kind = f"StableDiffusionXL{'Img2Img' if refines else 'Inpaint' if inpaints else ''}Pipeline"
        names = (*stock.EVERY_COMPONENT, "image_encoder", "feature_extractor")
        flags = {"force_zeros_for_empty_prompt": not refines}
        if refines:
            flags["requires_aesthetics_score"] = True
    return {"_class_name": kind, **{name: _index_entry(components.get(name)) for name in names}, **flags}


def save_component(
    component: Any, folder: Path, dtype: torch.dtype | None = None, metadata: Mapping[str, str] | None = None
) -> None:
    """Write one component, whole or not at all, as its own folder: config.json and weights lie in `folder` itself.

    Raises:
        SdcliError: it cannot be written, or `folder` is something else than a component.
    """
    is_tokenizer = not isinstance(component, nn.Module | Scheduler)
    mark = "tokenizer_config.json" if is_tokenizer else type(component).config_name
    with whole_folder(Path(folder), mark) as beside:
        _write(component, beside, dtype, metadata or {})


def _write(component: Any, folder: Path, dtype: torch.dtype | None, metadata: Mapping[str, str]) -> None:
    """Write a component's files into a folder that is not in its place yet."""
    folder.mkdir(exist_ok=True)
    if isinstance(component, Scheduler):
        config = {"_diffusers_version": diffusers.__version__, **component.stock_config()}
        write_text(folder / "scheduler_config.json", _to_json(config))
    elif isinstance(component, nn.Module):
        kind = stock.stock_of(component)
        tensors = to_dtype(stock.to_stock_keys(kind, component.state_dict()), dtype, folder.name)
        config = stock.stock_config(component)
        write_text(folder / "config.json", _to_json(config))
        write_tensors(folder / kind.weights_name, tensors, metadata)
    elif isinstance(component, Mapping):
        write_tensors(folder / "model.safetensors", to_dtype(component, dtype, folder.name), metadata)
    else:
        component.save_pretrained(folder)


def _index_entry(component: Any) -> list[str | None]:
    """Library and stock class name, as model_index.json has them."""
    if component is None:
        return [None, None]
    if isinstance(component, Scheduler):
        return ["diffusers", component.stock_config()["_class_name"]]
    if isinstance(component, nn.Module):
        kind = stock.stock_of(component)
        return [kind.library, kind.name]
    return ["transformers", stock.TOKENIZERS[0]]


def _keep_others(before: Path, beside: Path) -> None:
    """Copy what is no component from the folder that is replaced."""
    for path in before.iterdir() if before.is_dir() else ():
        if path.name in (*NAMES, CLIP_HEAD) or (beside / path.name).exists():
            continue
        if path.is_dir():
            shutil.copytree(path, beside / path.name, symlinks=True)
        else:
            shutil.copy2(path, beside / path.name, follow_symlinks=False)


def _to_json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2) + "\n"
