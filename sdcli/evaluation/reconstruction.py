"""What a VAE keeps of pictures, and how far its latents are from the standard normal.

B pictures, C latent channels, H W rows and columns of pixels, h w of latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sdcli.components.divergence import kl_gaussian
from sdcli.data.folder import Example
from sdcli.data.order import Size
from sdcli.errors import SdcliError
from sdcli.evaluation.denoising import OnProgress, nothing
from sdcli.evaluation.pictures import batches
from sdcli.pipeline import SdPipeline, require_finite

WINDOW_PX = (
    11  # side of the window in which SSIM compares, and the deviation of its Gaussian; Wang et al., section III-C
)
WINDOW_DEVIATION = 1.5
K1, K2 = 0.01, 0.03
MOST_DB = 100.0  # PSNR of pictures that are the same


def psnr(pixel_values: Tensor, others: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of pictures (B, 3, H, W) in [-1, 1], (B,); of equals MOST_DB."""
    squared_error = (pixel_values - others).double().square().flatten(1).mean(1)
    return (10 * (4 / squared_error).log10()).clamp(max=MOST_DB).float()


def ssim(pixel_values: Tensor, others: Tensor) -> Tensor:
    """Structural similarity, the mean over all places of the window and all colours.

    Args:
        pixel_values: (B, 3, H, W) in [-1, 1], each side of at least WINDOW_PX pixels.
        others: compared with, the same shape.

    Returns:
        (B,), at most 1.

    Raises:
        ValueError: the pictures are smaller than the window.

    Reference: Wang et al. 2004 (doi:10.1109/TIP.2003.819861), eq. 13. The same number as scikit-image's with
    gaussian_weights, sigma 1.5 and use_sample_covariance off: windows lie within the picture.
    """
    if min(pixel_values.shape[-2:]) < WINDOW_PX:
        raise ValueError(f"pictures must be at least {WINDOW_PX} pixels wide and high, got {pixel_values.shape[-2:]}")
    places = torch.arange(WINDOW_PX, dtype=torch.float64) - WINDOW_PX // 2
    weights = (-(places**2) / (2 * WINDOW_DEVIATION**2)).exp()
    weights = weights / weights.sum()
    channels = pixel_values.shape[1]

    def blurred(values: Tensor) -> Tensor:
        down = weights.view(1, 1, -1, 1).expand(channels, 1, -1, 1)
        along = weights.view(1, 1, 1, -1).expand(channels, 1, 1, -1)
        return nn.functional.conv2d(nn.functional.conv2d(values, down, groups=channels), along, groups=channels)

    ours, theirs = (values.double() / 2 + 0.5 for values in (pixel_values, others))
    mean, other_mean = blurred(ours), blurred(theirs)
    variance = blurred(ours * ours) - mean.square()
    other_variance = blurred(theirs * theirs) - other_mean.square()
    covariance = blurred(ours * theirs) - mean * other_mean
    luminance = (2 * mean * other_mean + K1**2) / (mean.square() + other_mean.square() + K1**2)
    structure = (2 * covariance + K2**2) / (variance + other_variance + K2**2)
    return (luminance * structure).flatten(1).mean(1).float()


@dataclass(frozen=True)
class Rebuilt:
    """A picture, what the VAE makes of it, and how good that is; tensors are (3, H, W)."""

    example: Example
    picture: Tensor
    reconstruction: Tensor
    psnr: float


@dataclass(frozen=True)
class VaeFigures:
    """Everything measured.

    Args:
        psnr: dB, (B,).
        ssim: (B,).
        absolute_error: mean over the numbers of a picture, in [-1, 1], (B,).
        kl: nats per latent number and channel, (B, C).
        mean: of each channel of the latents as the posterior draws them, not scaled, (C,).
        std: the same; the prior has 0 and 1.
        scaling_factor: what the latents are multiplied by before they are noised.
        worst: pictures by PSNR, the worst first.
    """

    psnr: Tensor
    ssim: Tensor
    absolute_error: Tensor
    kl: Tensor
    mean: Tensor
    std: Tensor
    scaling_factor: float
    worst: list[Rebuilt]

    def figures(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "pictures": len(self.psnr),
            "psnr": float(self.psnr.mean()),
            "ssim": float(self.ssim.mean()),
            "l1": float(self.absolute_error.mean()),
            "kl_per_latent": float(self.kl.mean()),
            "scaling_factor": self.scaling_factor,
            "channels": [
                {"mean": mean, "std": std, "scaled_std": std * self.scaling_factor, "kl_per_latent": kl}
                for mean, std, kl in zip(self.mean.tolist(), self.std.tolist(), self.kl.mean(0).tolist(), strict=True)
            ],
            "worst": [{"path": str(each.example.path), "psnr": each.psnr} for each in self.worst],
        }


@torch.inference_mode()
def measure_vae(
    vae_pipeline: SdPipeline,
    examples: Sequence[Example],
    size: Size,
    *,
    batch_size: int = 8,
    worst: int = 8,
    on_progress: OnProgress = nothing,
) -> VaeFigures:
    """How a VAE rebuilds pictures from the mean of their latents.

    Args:
        vae_pipeline: a pipeline that has a VAE at least.
        examples: the pictures.
        size: that they are brought to, width and height.
        batch_size: pictures at a time.
        worst: how many of the worst to keep.
        on_progress: told of pictures done.

    Raises:
        SdcliError: there is no VAE, pictures are too small, or its output is not a number.
    """
    vae = vae_pipeline.vae
    if vae is None:
        raise SdcliError("the model has no VAE: it denoises pixels", hint="there is nothing to rebuild")
    if min(size) < WINDOW_PX:
        hint = f"try --resolution {-(-WINDOW_PX // vae.stride) * vae.stride}"
        raise SdcliError(f"SSIM needs pictures of at least {WINDOW_PX} pixels, got {min(size)}", hint=hint)
    kept: list[Rebuilt] = []
    rows, moments = [], []
    for some, pixel_values in batches(examples, size, batch_size):
        posterior = vae.encode(pixel_values.to(vae.device, vae.dtype))
        mean = require_finite(posterior.mean.float(), "VAE", vae.dtype)
        rebuilt = vae_pipeline.decode(mean * vae.config.scaling_factor).cpu()
        mean, log_variance = mean.double().cpu(), posterior.log_variance.double().cpu()
        quality = psnr(pixel_values, rebuilt)
        error = (pixel_values - rebuilt).abs().flatten(1).mean(1)
        kl = kl_gaussian(mean, log_variance).mean((2, 3))  # (B, C)
        rows.append((quality, ssim(pixel_values, rebuilt), error, kl))
        second = mean.square() + log_variance.exp()  # of latents as they are drawn
        moments.append(torch.stack([mean, second]).mean((3, 4)))  # (2, B, C)
        kept += [Rebuilt(*each) for each in zip(some, pixel_values, rebuilt, quality.tolist(), strict=True)]
        kept = sorted(kept, key=lambda each: each.psnr)[:worst]
        on_progress(sum(len(row[0]) for row in rows), len(examples))
    mean, second = torch.cat(moments, dim=1).mean(1)  # each (C,)
    std = (second - mean.square()).sqrt()
    return VaeFigures(
        *(torch.cat(each) for each in zip(*rows, strict=True)), mean, std, vae.config.scaling_factor, kept
    )
