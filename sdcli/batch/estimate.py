"""What pictures will take: seconds, and bytes, from the architecture of the networks and a short calibration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sdcli.batch.checks import find_clip, scheduler_choice
from sdcli.batch.groups import by_kind, group_size
from sdcli.batch.part import Part
from sdcli.checkpoints import load_pipeline
from sdcli.checkpoints.control import load_controlnet
from sdcli.checkpoints.folder import vae_dtype
from sdcli.clip_models import load_comparer
from sdcli.components.clip import normalize_for_clip
from sdcli.components.clip_guidance import CUT_OUTS
from sdcli.components.conditioning import Conditioning
from sdcli.components.control import Control, residuals
from sdcli.costs import Cost, Rehearsal, Stopwatch
from sdcli.device import Placement
from sdcli.keys import vae_path
from sdcli.memory import free_on, taken_by
from sdcli.output import Picture
from sdcli.run_settings import RunSettings
from sdcli.settings import GenerateSettings

AS_SAVED = Placement(torch.device("cpu"), None, "no")  # mapped from the disk and never read
TEXT, UNET, VAE = "text", "unet", "vae"
TILES_SEEN = 3  # in a row, where a VAE works in tiles


@dataclass(frozen=True)
class Estimate:
    """What pictures of one model will take.

    Args:
        seconds: to make all of them, after loading.
        size: bytes that this process will have on the device.
        least: the same where memory is short: one picture at once, decoded in tiles, networks in turn on a GPU.
        room: bytes that it may have.
    """

    seconds: float
    size: int
    least: int
    room: int

    @property
    def fits(self) -> bool:
        """Whether there is so much memory, once everything is done that takes less."""
        return self.least <= self.room


def estimate(part: Part, pictures: Sequence[Picture], placement: Placement, how: RunSettings) -> Estimate:
    """What pictures of a part will take; none are made, and no weights are read.

    Raises:
        SdcliError: a file of the model or a ControlNet is bad.
    """
    taken = taken_by(placement.device)
    room = taken + free_on(placement.device)
    stopwatch, studios = Stopwatch(), {}
    seconds, size, least = 0.0, 0, 0
    for alike in by_kind(pictures):
        settings = alike[0].settings
        base = (settings.vae, settings.controlnet, settings.clip_guidance > 0, settings.clip_model)
        if base not in studios:
            studios[base] = Studio(part, settings, placement, stopwatch)
        count = min(len(alike), group_size(settings, placement, how.batch_size))
        usual = studios[base].costs(settings, count, how.tile_vae)
        short = studios[base].costs(settings, 1, tiled=True)
        seconds += sum(cost.seconds for cost in usual.values()) / count * len(alike)
        size = max(size, studios[base].size(usual, how.offload))
        least = max(least, studios[base].size(short, "none" if placement.device.type == "cpu" else "model"))
    return Estimate(seconds, taken + size, taken + least, room)


class Studio:
    """A model without content, which tells what pictures cost.

    Args:
        part: the model, and the schedulers of its pictures.
        settings: they say which VAE and which ControlNets.
        placement: of the networks.
        stopwatch: of the device.

    Raises:
        SdcliError: a file is bad.
    """

    def __init__(self, part: Part, settings: GenerateSettings, placement: Placement, stopwatch: Stopwatch):
        model = replace(part.model, lora=None, adapter=None)  # they change numbers, and no shapes
        if settings.vae is not None:
            model = replace(model, vae=vae_path(settings.vae))
        self.part = part
        self.pipeline = pipeline = load_pipeline(model, AS_SAVED)
        self.controls = [
            load_controlnet(name, AS_SAVED, pipeline.unet, model.allow_pickle) for name in settings.controlnet
        ]
        self.clip = None
        if settings.clip_guidance > 0:
            self.clip = load_comparer(find_clip(settings.clip_model, part.model), AS_SAVED, truncate=True).clip
        self.rehearsal = Rehearsal(placement.device, stopwatch)
        texts = [each.text_encoder for each in pipeline.readers]
        dtypes = {VAE: vae_dtype(placement.dtype, pipeline.tokenizer_2 is not None)}
        networks = {TEXT: texts, UNET: [pipeline.unet, *self.controls], VAE: [pipeline.vae] if pipeline.vae else []}
        self.weights = {
            name: sum(self.rehearsal.hollow(each, dtypes.get(name, placement.dtype)) for each in group)
            for name, group in networks.items()
        }
        if self.clip is not None:
            self.weights[UNET] += self.rehearsal.hollow(self.clip, torch.float32)

    def size(self, costs: dict[str, Cost], offload: str) -> int:
        """Bytes at the moment that takes most: all networks with what the one at work needs, or that one alone.

        Args:
            costs: of each network.
            offload: what is kept on a GPU; single layers are taken for nothing.
        """
        if offload == "none":
            return sum(self.weights.values()) + max(cost.size for cost in costs.values())
        kept = {name: 0 if offload == "group" else size for name, size in self.weights.items()}
        return max(kept[name] + cost.size for name, cost in costs.items())

    def costs(self, settings: GenerateSettings, count: int, tiled: bool) -> dict[str, Cost]:
        """What each network costs for `count` pictures that are made together and decoded one after the other."""
        pipeline, size = self.pipeline, (settings.height, settings.width)
        pipeline.scheduler = self.part.schedulers[scheduler_choice(settings)]
        if pipeline.vae is not None:
            pipeline.vae.tiled = tiled
        first, again = settings.denoise_settings, replace(settings.denoise_settings, strength=settings.hires_strength)
        text, unet = self._denoising(settings, count, size, pipeline.count_calls(first))
        last, vae = size, Cost()
        if settings.init_image is not None:
            vae = self._encoding(count, size).times(2 if pipeline.inpaints else 1)
        if settings.hires_scale > 1:
            last = tuple(round(side * settings.hires_scale) for side in size)
            more_text, more = self._denoising(settings, count, last, pipeline.count_calls(again))
            text, unet = text.then(more_text), unet.then(more)
            vae = vae.then(self._decoding(count, size, tiled)).then(self._encoding(count, last))
        vae = vae.then(self._decoding(1, last, tiled).times(count))
        return {TEXT: text, UNET: unet, VAE: vae}

    def _denoising(
        self, settings: GenerateSettings, count: int, size: tuple[int, int], calls: int
    ) -> tuple[Cost, Cost]:
        """Reading the text, and all steps."""
        pipeline, guided = self.pipeline, settings.guidance_scale > 1
        prompts, negative_prompts = [settings.prompt] * count, [settings.negative_prompt] * count
        chunks = pipeline.count_chunks((settings.prompt, settings.negative_prompt))

        def read() -> tuple[Conditioning, Conditioning | None]:
            return pipeline.encode_prompt(prompts, negative_prompts, size, settings.clip_skip, guided)

        def given() -> tuple:
            told, unwanted = read()
            twice = guided and not told.empty and not pipeline.knows_guidance
            told = unwanted.joined(told) if twice else told
            conditions = told.arguments(pipeline.unet) | pipeline.guidance_condition(count, settings.guidance_scale)
            stride, channels = pipeline.vae_scale_factor, pipeline.unet.config.in_channels
            shape = (count * (1 + twice), channels, *(side // stride for side in size))
            noisy = torch.empty(shape, dtype=pipeline.unet.dtype, device=pipeline.unet.device)
            return noisy, torch.tensor(1, device=noisy.device), told, conditions

        def step(noisy: Tensor, timestep: Tensor, told: Conditioning, conditions: dict[str, Any]) -> None:
            channels = pipeline.latents_shape(1, *size)[1]
            with torch.set_grad_enabled(self.clip is not None):
                noisy.requires_grad_(self.clip is not None)
                added = residuals(controls, noisy[:, :channels], timestep, told, (0, 1))
                model_output = pipeline.unet(noisy, timestep, **conditions, **added)
                if self.clip is not None:
                    self._follow(model_output[:count, :channels], noisy)

        controls = [Control(network, torch.empty(1, 3, *size)) for network in self.controls]
        work = (count, size, chunks, guided, settings.clip_skip)
        text = self.rehearsal.cost((TEXT, *work), read)
        return text, self.rehearsal.cost((UNET, *work), step, given).times(calls)

    def _follow(self, original: Tensor, noisy: Tensor) -> None:
        """The gradient of CLIP's similarity, with whole pictures in the place of cut-outs, which are as many."""
        pixel_values = original if self.pipeline.vae is None else self.pipeline.vae.decode(original)
        seen = normalize_for_clip(pixel_values.float(), self.clip.vision_model.config.image_size)
        embeds = self.clip.embed_images(seen.repeat(CUT_OUTS, 1, 1, 1))
        torch.autograd.grad(embeds.sum(), noisy)

    def _decoding(self, count: int, size: tuple[int, int], tiled: bool) -> Cost:
        """From latents to pictures; of many tiles only some are looked at."""
        vae = self.pipeline.vae
        if vae is None:
            return Cost()
        seen = tuple(min(side, TILES_SEEN * vae.config.sample_size) for side in size) if tiled else size
        cost = self._vae("decode", self.pipeline.latents_shape(count, *seen), tiled)
        share = math.prod(size) / math.prod(seen)
        result = 2 * count * 3 * math.prod(size) * vae.dtype.itemsize  # in rows of tiles, and whole
        return Cost(cost.seconds * share, cost.size + (result if share > 1 else 0))

    def _encoding(self, count: int, size: tuple[int, int]) -> Cost:
        """From pictures to latents."""
        return Cost() if self.pipeline.vae is None else self._vae("encode", (count, 3, *size), False)

    def _vae(self, what: str, shape: tuple[int, ...], tiled: bool) -> Cost:
        vae = self.pipeline.vae

        def given() -> tuple[Tensor]:
            return (torch.empty(shape, dtype=vae.dtype, device=vae.device),)

        return self.rehearsal.cost((what, shape, tiled), getattr(vae, what), given)
