"""Models of other families (Stable Diffusion 3, Flux, PixArt, Qwen-Image …), run by diffusers' own pipelines.

The same settings, files and metadata as for our own components; what a family cannot take is refused.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from torch import Tensor
from transformers.utils import logging as transformers_logging

from sdcli import pickles
from sdcli.device import Placement
from sdcli.errors import SdcliError
from sdcli.model_config import INDEX, pipeline_of, read_json
from sdcli.pipeline import require_finite
from sdcli.registry import ModelSpec
from sdcli.settings import GenerateSettings, lora_of

# Settings that such a pipeline is told, and the name that it has for each, where it has one.
TOLD = {
    "negative_prompt": "negative_prompt",
    "clip_skip": "clip_skip",
    "eta": "eta",
    "guidance_rescale": "guidance_rescale",
}
ALWAYS = ("prompt", "model", "seed", "width", "height", "num_inference_steps", "guidance_scale", "lora")
OnStep = Callable[[int, int, Tensor, Tensor | None], None]


@lru_cache(maxsize=1)
def known() -> dict[str, type[DiffusionPipeline]]:
    """Every pipeline of diffusers that makes pictures from text, by its name. Importing them takes a while."""
    from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING

    return {kind.__name__: kind for kind in AUTO_TEXT2IMAGE_PIPELINES_MAPPING.values()}


def is_foreign(model: ModelSpec, ours: Sequence[str]) -> bool:
    """Whether a model folder is for a pipeline of diffusers that we have no components for."""
    name = "" if model.path is None or model.path.is_file() else pipeline_of(model.path)
    return name not in ("", *ours) and name in known()


def check_settings(settings: GenerateSettings, model: ModelSpec) -> None:
    """Refuse what a family of models does not take, before it is loaded.

    Raises:
        SdcliError: a setting has no counterpart there.
    """
    name = pipeline_of(model.path)
    takes = inspect.signature(known()[name].__call__).parameters
    for each in fields(GenerateSettings):
        if each.name in ALWAYS or TOLD.get(each.name) in takes:
            continue
        value = getattr(settings, each.name)
        if value not in (each.default, None, ()):
            flag = "--" + each.name.replace("_", "-")
            raise SdcliError(f"{flag} does not go with {name}", hint="leave it out; this family has no such thing")


@contextlib.contextmanager
def silent_loading() -> Iterator[None]:
    """Without the libraries' own bars, which go to stderr whatever --progress says."""
    shown = [each for each in (diffusers_logging, transformers_logging) if each.is_progress_bar_enabled()]
    for each in shown:
        each.disable_progress_bar()
    try:
        yield
    finally:
        for each in shown:
            each.enable_progress_bar()


class ForeignPipeline:
    """A pipeline of diffusers, with the seeds and settings of ours.

    Args:
        model: a folder in the diffusers layout.
        placement: of all its networks.

    Raises:
        SdcliError: it does not load.
    """

    def __init__(self, model: ModelSpec, placement: Placement):
        self.name, self.allow_pickle = pipeline_of(model.path), model.allow_pickle
        index = read_json(model.path / INDEX)
        named = inspect.signature(known()[self.name].__init__).parameters
        absent = {each: None for each in named if index.get(each, [None])[0] is None and each in index}
        try:
            with silent_loading():
                self.pipeline = DiffusionPipeline.from_pretrained(
                    model.path, torch_dtype=placement.dtype, local_files_only=True, use_safetensors=True, **absent
                ).to(placement.device)
        except (OSError, ValueError, ImportError, RuntimeError, KeyError, TypeError, AttributeError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise SdcliError(f"{model.path} does not load: {reason}", hint="was the folder copied whole?") from error
        self.pipeline.set_progress_bar_config(disable=True)
        self.takes = inspect.signature(self.pipeline.__call__).parameters

    def put_loras(self, loras: Iterable[str]) -> None:
        """Put LoRAs onto the model, in the place of those that are on it.

        Raises:
            SdcliError: one does not fit, or the family takes none.
        """
        loras = list(loras)
        if not hasattr(self.pipeline, "load_lora_weights"):
            if loras:
                raise SdcliError(f"--lora does not go with {self.name}", hint="leave it out")
            return
        names = []
        for file in (Path(lora_of(each)[0]).expanduser() for each in loras):
            if not self.allow_pickle and pickles.is_pickle(file):
                raise SdcliError(f"{file} is a pickle, not safetensors", hint=pickles.ALLOW)
        try:
            self.pipeline.unload_lora_weights()
            for number, (file, _) in enumerate(map(lora_of, loras)):
                names.append(f"lora_{number}")
                self.pipeline.load_lora_weights(Path(file).expanduser(), adapter_name=names[-1])
            if names:
                self.pipeline.set_adapters(names, [lora_of(each)[1] for each in loras])
        except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
            reason = str(error).strip().splitlines()[0]
            raise SdcliError(f"a LoRA does not fit {self.name}: {reason}", hint="is it for this model?") from error

    def draw(self, group: Sequence[GenerateSettings], on_step: OnStep) -> Tensor:
        """Pictures of settings that are equal but for text and seed, (B, 3, H, W) in [-1, 1].

        Raises:
            SdcliError: the family does not take the size or the settings.
        """
        settings = group[0]
        self._check_size(settings.width, settings.height)
        generators = [torch.Generator("cpu").manual_seed(each.seed) for each in group]
        told = {
            "prompt": [each.prompt for each in group],
            "height": settings.height,
            "width": settings.width,
            "num_inference_steps": settings.num_inference_steps,
            "generator": generators,
            "output_type": "np",
            **self._guidance(settings),
        }
        if settings.negative_prompt:
            told["negative_prompt"] = [each.negative_prompt for each in group]
        for ours in ("clip_skip", "eta", "guidance_rescale"):
            if getattr(settings, ours) and ours in self.takes:
                told[ours] = getattr(settings, ours)
        if "use_resolution_binning" in self.takes:
            told["use_resolution_binning"] = False  # sizes are never changed
        if "callback_on_step_end" in self.takes:

            def ended(pipeline: Any, step: int, timestep: Any, about: dict[str, Any]) -> dict[str, Any]:
                on_step(step + 1, settings.num_inference_steps, about["latents"], None)
                return about

            told["callback_on_step_end"] = ended
        try:
            images = self.pipeline(**told).images
        except ValueError as error:
            raise SdcliError(f"{self.name}: {error}", hint="try other settings") from error
        pixel_values = torch.from_numpy(images).permute(0, 3, 1, 2).float() * 2 - 1
        return require_finite(pixel_values, self.name, self.pipeline.dtype)

    def _check_size(self, width: int, height: int) -> None:
        """Refuse a size that the pipeline would change without a word, as those do that take latents in twos."""
        processor = getattr(self.pipeline, "image_processor", None)
        multiple = processor.config.get("vae_scale_factor", 1) if hasattr(processor, "config") else 1
        if width % multiple or height % multiple:
            lower = [max(multiple, side // multiple * multiple) for side in (width, height)]
            message = f"{self.name} takes multiples of {multiple} pixels only, not {width}x{height}"
            raise SdcliError(message, hint=f"try -W {lower[0]} -H {lower[1]}")

    def _guidance(self, settings: GenerateSettings) -> dict[str, float]:
        """How closely to follow the prompt, under the name that means it in this family."""
        given = self.takes.get("guidance_scale")
        if "true_cfg_scale" in self.takes and (given is None or given.default is None):
            return {"true_cfg_scale": settings.guidance_scale}
        return {"guidance_scale": settings.guidance_scale} if given is not None else {}
