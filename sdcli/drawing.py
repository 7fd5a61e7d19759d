"""From settings to pixel values: everything between a pipeline that is ready and the picture. Knows no file names.

B pictures, C channels, h w rows and columns of latents, H W of pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sdcli.comparer import Comparer
from sdcli.components.clip_guidance import ClipGuidance, generators_beside
from sdcli.components.conditioning import Conditioning
from sdcli.components.control import Control
from sdcli.foreign import ForeignPipeline
from sdcli.images import scale_and_cut, to_image, to_pixel_values
from sdcli.pipeline import SdPipeline
from sdcli.prompt_syntax import plain_text
from sdcli.settings import GenerateSettings

Counted = Callable[[int, int, Tensor, Tensor | None], None]
"""Called after each step with (step from 1, steps of all passes, latents, pred_original_sample)."""


@dataclass(frozen=True)
class Easel:
    """A pipeline with what every picture of some equal settings needs.

    Args:
        pipeline: ready, with its scheduler.
        canvas: picture to begin from, (1, 3, H, W) in [-1, 1], and its mask, (1, 1, H, W) or None; None begins from
            noise.
        controls: ControlNets.
        comparer: the CLIP whose gradient is followed; None follows none.
    """

    pipeline: SdPipeline
    canvas: tuple[Tensor, Tensor | None] | None = None
    controls: Sequence[Control] = ()
    comparer: Comparer | None = None

    def draw(self, group: Sequence[GenerateSettings], on_step: Counted) -> Tensor:
        """Clean latents of pictures of settings that are equal but for text and seed, (B, C, h, w)."""
        return draw(group, self, on_step)

    def develop(self, latents: Tensor) -> Tensor:
        """Pictures of latents (B, C, h, w): (B, 3, H, W) in [-1, 1]."""
        return self.pipeline.decode(latents)

    def warnings(self, group: Sequence[GenerateSettings]) -> list[str]:
        """What the user should know of the texts of a group: those that CLIP does not read to their end."""
        if self.comparer is None:
            return []
        texts = dict.fromkeys(plain_text(each.prompt) for each in group)
        return [
            f"CLIP reads {self.comparer.length} tokens; --clip-guidance leaves out how this ends: {text[:60]} …"
            for text in self.comparer.check(list(texts))
        ]

    def count_chunks(self, settings: GenerateSettings) -> int:
        """How long its text is; pictures with texts of another length do not go through the networks together."""
        return self.pipeline.count_chunks((settings.prompt, settings.negative_prompt))


@dataclass(frozen=True)
class ForeignEasel:
    """A pipeline of another family, which draws by itself."""

    pipeline: ForeignPipeline

    def draw(self, group: Sequence[GenerateSettings], on_step: Counted) -> Tensor:
        """As `Easel.draw`, but pictures already, (B, 3, H, W) in [-1, 1]."""
        return self.pipeline.draw(group, on_step)

    def develop(self, latents: Tensor) -> Tensor:
        """Nothing is left to do."""
        return latents

    def warnings(self, group: Sequence[GenerateSettings]) -> list[str]:
        """None."""
        return []

    def count_chunks(self, settings: GenerateSettings) -> int:
        """All texts have one length."""
        return 1


def draw(group: Sequence[GenerateSettings], easel: Easel, on_step: Counted) -> Tensor:
    """What `Easel.draw` does."""
    settings, pipeline = group[0], easel.pipeline
    generators = [torch.Generator("cpu").manual_seed(each.seed) for each in group]
    first, again = settings.denoise_settings, replace(settings.denoise_settings, strength=settings.hires_strength)
    calls = [pipeline.count_calls(first)]
    if settings.hires_scale > 1:
        calls.append(pipeline.count_calls(again))

    def counted(done: int) -> Counted:
        return lambda step, _, *rest: on_step(done + step, sum(calls), *rest)

    size = (settings.height, settings.width)
    told = tell(group, pipeline, size)
    if easel.canvas is None:
        noise, canvas = pipeline.prepare_latents(generators, *size), None
    else:
        pixel_values, mask = (None if each is None else each.repeat(len(group), 1, 1, 1) for each in easel.canvas)
        noise, canvas = pipeline.prepare_canvas(pixel_values, mask, generators, first.strength)
    guidance = None if easel.comparer is None else clip_guidance(group, easel.comparer, generators)
    latents = pipeline.denoise(noise, *told, first, generators, counted(0), canvas, easel.controls, guidance)
    if settings.hires_scale > 1:
        larger = enlarge(pipeline.decode(latents), settings.hires_scale)
        told = tell(group, pipeline, larger.shape[2:])
        noise, canvas = pipeline.prepare_canvas(larger, None, generators, again.strength)
        latents = pipeline.denoise(noise, *told, again, generators, counted(calls[0]), canvas, (), guidance)
    return latents


def clip_guidance(
    group: Sequence[GenerateSettings], comparer: Comparer, generators: Sequence[torch.Generator]
) -> ClipGuidance:
    """What leads a group to its texts; cut-outs have generators of their own, so that all other noise is as without."""
    text_embeds = comparer.embed_texts([plain_text(each.prompt) for each in group]).clone()
    return ClipGuidance(comparer.clip, text_embeds, group[0].clip_guidance, generators_beside(generators))


def tell(
    group: Sequence[GenerateSettings], pipeline: SdPipeline, size: Sequence[int]
) -> tuple[Conditioning, Conditioning | None]:
    """What the UNet is told of a group, at a size of height and width."""
    prompts, negative_prompts = [each.prompt for each in group], [each.negative_prompt for each in group]
    guided = group[0].guidance_scale > 1
    return pipeline.encode_prompt(prompts, negative_prompts, tuple(size), group[0].clip_skip, guided)


def enlarge(pixel_values: Tensor, scale: float) -> Tensor:
    """Pictures (B, 3, H, W) enlarged as files of 8 bits are, (B, 3, scale * H, scale * W)."""
    images = [to_image(each) for each in pixel_values]
    size = tuple(round(side * scale) for side in images[0].size)
    return torch.cat([to_pixel_values(scale_and_cut(image, size, (0, 0, *image.size))) for image in images])
