"""A network that tells pictures from reconstructions, patch by patch, for the adversarial part of a VAE's loss.

B batch, H W rows and columns of pixels.

Reference: Isola et al. 2017 (arXiv:1611.07004), section 3.2.2; Esser et al. 2021 (arXiv:2012.09841), section 3.1.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

SLOPE = 0.2  # of the leaky rectifier for negative values


class PatchDiscriminator(nn.Module):
    """Strided convolutions that give a number for each patch: high for a picture, low for a reconstruction.

    Args:
        channels: of each convolution that halves the sides.
    """

    def __init__(self, channels: Sequence[int] = (32, 64, 128)):
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in zip((3, *channels), channels, strict=False):
            layers.append(nn.Conv2d(before, after, 4, stride=2, padding=1))
            if before != 3:
                layers.append(nn.GroupNorm(8, after))
            layers.append(nn.LeakyReLU(SLOPE))
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels[-1], 1, 3, padding=1))

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, 1, H/8, W/8)."""
        return self.layers(pixel_values)

    def frozen(self, pixel_values: Tensor) -> Tensor:
        """The same, for gradients of the pictures alone."""
        weights = {name: parameter.detach() for name, parameter in self.named_parameters()}
        return torch.func.functional_call(self, weights, (pixel_values,))


def adversarial_loss(told: Tensor) -> Tensor:
    """What the maker of reconstructions loses: the verdict on them, to be raised. Esser et al. 2021, eq. 4."""
    return -told.mean()


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """What the discriminator loses by the hinge. Lim and Ye 2017 (arXiv:1705.02894), eq. 4.

    Args:
        real: verdicts on pictures.
        fake: verdicts on reconstructions.
    """
    return (nn.functional.relu(1 - real).mean() + nn.functional.relu(1 + fake).mean()) / 2
