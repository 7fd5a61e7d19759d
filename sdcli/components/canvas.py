"""A picture to begin from, in latents. B pictures, C channels, h w rows and columns of latents."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Canvas:
    """What denoising begins from, beside noise.

    Args:
        latents: clean, scaled, (B, C, h, w).
        mask: 1 where something new is to come, 0 where the picture stays, (B, 1, h, w); None is new everywhere.
        masked_latents: of the picture without what the mask covers, (B, C, h, w); for a UNet that is shown them.
    """

    latents: Tensor
    mask: Tensor | None = None
    masked_latents: Tensor | None = None
