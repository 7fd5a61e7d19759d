"""Guidance by the gradient of CLIP's similarity: a function of pixels whose gradient says how to change them.

B pictures, K cut-outs of each, E width that CLIP compares in, C channels, h w rows and columns of latents, H W of
pixels.

Reference: Nichol et al. 2021 (GLIDE, arXiv:2112.10741), section 2.4, after Dhariwal & Nichol 2021 (arXiv:2105.05233),
algorithm 2. Cut-outs are those of Crowson et al. 2022 (VQGAN-CLIP, arXiv:2204.08583), section 3.3.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sdcli.components.clip import CLIP, normalize_for_clip

CUT_OUTS = 4  # of each picture at each call, the whole picture among them
MARGIN = 1 / 8  # of the shorter side that is put around a picture, so that a cut-out may be smaller or beside it
SMALLEST_SIDE = 0.6  # of a cut-out, as a share of the shorter side with its margins
OTHER_STREAM = 0x636C69702D637574  # what sets the seed of cut-outs apart from the one that noise is drawn by
LEAST_SIGNAL = 1e-3  # where less is left of a picture, there is none that could be like a text


@dataclass(frozen=True)
class ClipGuidance:
    """A text for each picture, and how much it counts.

    Args:
        clip: both towers; only that of pictures is used.
        text_embeds: of the texts, of length 1, (B, E).
        scale: how often the gradient of CLIP's logit (the similarity times its learned scale) is followed; 1 is Bayes'
            rule, were that logit the logarithm of how likely the text is for the picture.
        generators: of the cut-outs, one for each picture, on the CPU; see `generators_beside`.
    """

    clip: CLIP
    text_embeds: Tensor
    scale: float
    generators: Sequence[torch.Generator]

    def logits(self, pixel_values: Tensor) -> Tensor:
        """How like its text each picture is: the mean over its cut-outs, (B,) float32; differentiable.

        Args:
            pixel_values: (B, 3, H, W) in [-1, 1].
        """
        size = self.clip.vision_model.config.image_size
        cuts = [
            normalize_for_clip(cut, size)
            for picture, generator in zip(pixel_values.split(1), self.generators, strict=True)
            for cut in cut_outs(picture, generator)
        ]
        images = torch.cat(cuts).to(self.clip.device, self.clip.dtype)
        embeds = self.clip.embed_images(images).float().unflatten(0, (len(pixel_values), -1))  # (B, K, E)
        cosines = (embeds * self.text_embeds.to(embeds)[:, None]).sum(-1)
        return cosines.mean(1) * self.clip.logit_scale.detach().float().exp()


def cut_outs(picture: Tensor, generator: torch.Generator) -> list[Tensor]:
    """The whole picture, and squares of random size and place, so that no single pixel makes a picture like a text.

    Args:
        picture: (1, 3, H, W).
        generator: on the CPU.

    Returns:
        CUT_OUTS pictures, (1, 3, side, side) but for the first.
    """
    height, width = picture.shape[-2:]
    margin = max(1, round(MARGIN * min(height, width)))
    wide = nn.functional.pad(picture, (margin,) * 4, mode="replicate")
    shorter = min(height, width) + 2 * margin
    cuts = [picture]
    for _ in range(CUT_OUTS - 1):
        size, down, right = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
        side = max(1, round(shorter * (SMALLEST_SIDE + (1 - SMALLEST_SIDE) * size)))
        top = int(down * (height + 2 * margin - side + 1))
        left = int(right * (width + 2 * margin - side + 1))
        cuts.append(wide[..., top : top + side, left : left + side])
    return cuts


def generators_beside(generators: Sequence[torch.Generator]) -> list[torch.Generator]:
    """Generators with seeds of their own, from the seeds of others, which are not drawn from."""
    seeds = [each.initial_seed() ^ OTHER_STREAM for each in generators]
    return [torch.Generator("cpu").manual_seed(seed & (2**64 - 1)) for seed in seeds]
