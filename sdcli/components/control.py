"""ControlNets beside the UNet: what a sketch, a pose or a depth map adds to its stages.

B pictures, C channels, h w rows and columns of latents, H W of pixels.

Reference: Zhang et al. 2023 (arXiv:2302.05543).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sdcli.components.conditioning import Conditioning


@dataclass(frozen=True)
class Control:
    """A network and the picture that it is shown.

    Args:
        network: diffusers' ControlNetModel, or one that is called alike.
        pixel_values: (B or 1, 3, H, W) in [0, 1], not [-1, 1].
        scale: how much it counts.
        begin: share of the steps after which it begins to count.
        end: share of the steps after which it does not any more.
    """

    network: nn.Module
    pixel_values: Tensor
    scale: float = 1.0
    begin: float = 0.0
    end: float = 1.0

    def counts(self, step: int, total: int) -> bool:
        """Whether it has a say at a step, counted from 0."""
        return step / total >= self.begin and (step + 1) / total <= self.end


def residuals(
    controls: Sequence[Control],
    model_input: Tensor,
    timestep: Tensor,
    conditioning: Conditioning,
    progress: tuple[int, int],
) -> dict[str, object]:
    """What is added to the UNet's stages, as arguments of its `forward`; nothing where no control counts.

    Args:
        controls: their contributions are summed.
        model_input: noisy latents, (B, C, h, w).
        timestep: of all of them.
        conditioning: of all of them; ControlNets read the text too.
        progress: which step this is, counted from 0, and how many there are.
    """
    down: list[Tensor] | None = None
    mid: Tensor | None = None
    for control in controls:
        if not control.counts(*progress):
            continue
        dtype = control.network.dtype
        image = control.pixel_values.to(model_input.device, dtype)
        image = torch.cat([image] * (len(model_input) // len(image)))
        added, mid_added = control.network(
            model_input.to(dtype),
            timestep,
            encoder_hidden_states=conditioning.prompt_embeds.to(dtype),
            controlnet_cond=image,
            conditioning_scale=control.scale,
            added_cond_kwargs=conditioning.added(dtype),
            return_dict=False,
        )
        down = list(added) if down is None else [one + other for one, other in zip(down, added, strict=True)]
        mid = mid_added if mid is None else mid + mid_added
    if down is None:
        return {}
    return {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
