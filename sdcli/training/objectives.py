"""The losses that the parts of a model learn by: tensors in, numbers out. B batch, C channels, T training timesteps."""

import torch
from torch import Tensor, nn

from sdcli.components.schedule import signal_to_noise_ratio
from sdcli.components.vae import DiagonalGaussian

COARSE_PX = 8  # side of the squares whose mean colour counts on its own


def vae_loss(
    reconstruction: Tensor, pixel_values: Tensor, posterior: DiagonalGaussian, kl_weight: float
) -> dict[str, Tensor]:
    """What a VAE loses: reconstruction + beta * KL, both summed over an image and divided by its pixels.

    Args:
        reconstruction: the decoder's picture of latents drawn from the posterior, (B, 3, H, W).
        pixel_values: what it should be, (B, 3, H, W).
        posterior: the encoder's distribution of latents.
        kl_weight: beta.

    Returns:
        "loss", and its terms "reconstruction" (see below, mean per number) and "kl" (nats per image).

    Reference: Kingma & Welling 2013 (arXiv:1312.6114), eq. 3; beta from Higgins et al. 2017 (openreview Sy2fzU9gl). The
    absolute error keeps edges sharp (Rombach et al. 2021, arXiv:2112.10752). The squared error, and the absolute one of
    the picture at an eighth of its size, make wrong colours count more than lost texture: without them a small VAE
    learns edges first and hues last.
    """
    difference = reconstruction - pixel_values
    coarse = nn.functional.avg_pool2d(difference, COARSE_PX)
    error = difference.abs().mean() + difference.square().mean() + coarse.abs().mean()
    kl = posterior.kl().mean()
    numbers = pixel_values[0].numel()
    return {"loss": error + kl_weight * kl / numbers, "reconstruction": error.detach(), "kl": kl.detach()}


def denoising_loss(model_output: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """L_simple: the mean squared error of what the UNet predicts, each image at its own timestep.

    Args:
        model_output: (B, C, h, w).
        target: the noise, the velocity or the clean latents, whatever the prediction type asks for, (B, C, h, w).
        weights: one per image, (B,).

    Reference: Ho et al. 2020 (arXiv:2006.11239), eq. 14.
    """
    per_image = (model_output.float() - target.float()).square().mean(dim=(1, 2, 3))  # (B,)
    return (weights * per_image).mean()


def min_snr_weights(alphas_cumprod: Tensor, timesteps: Tensor, gamma: float | None, prediction_type: str) -> Tensor:
    """How much each image's loss counts, so that the nearly clean timesteps do not rule the others.

    Args:
        alphas_cumprod: signal variance left after each timestep, (T,).
        timesteps: one per image, (B,).
        gamma: the signal-to-noise ratio above which the weight is capped; None weighs all alike.
        prediction_type: what the target is; the paper's weight of the clean-latents loss is translated for the others.

    Returns:
        (B,). At zero signal the weight of the noise loss is its limit, 1, not 0/0.

    Reference: Hang et al. 2023 (arXiv:2303.09556), eq. 8 and section 3.4.
    """
    if gamma is None:
        return torch.ones(timesteps.shape, device=timesteps.device)
    snr = signal_to_noise_ratio(alphas_cumprod).to(timesteps.device)[timesteps]  # (B,)
    capped = snr.clamp(max=gamma)
    if prediction_type == "sample":
        return capped
    if prediction_type == "v_prediction":
        return capped / (snr + 1)
    return torch.where(snr > 0, capped / snr.clamp(min=torch.finfo(snr.dtype).tiny), torch.ones_like(snr))
