"""The losses that the parts of a model learn by: tensors in, numbers out. B batch, C channels, T training timesteps."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sdcli.components.schedule import signal_to_noise_ratio
from sdcli.components.vae import DiagonalGaussian

COARSE_PX = 8  # side of the squares whose mean colour counts on its own
HUBER_DELTA = 0.1  # error at which the Huber loss turns from squared to absolute
BINS = 10  # ranges of timesteps whose losses are told apart


def vae_loss(
    reconstruction: Tensor, pixel_values: Tensor, posterior: DiagonalGaussian, kl_weight: float, loss: str | None = None
) -> dict[str, Tensor]:
    """What a VAE loses: reconstruction + beta * KL, both summed over an image and divided by its pixels.

    Args:
        reconstruction: the decoder's picture of latents drawn from the posterior, (B, 3, H, W).
        pixel_values: what it should be, (B, 3, H, W).
        posterior: the encoder's distribution of latents.
        kl_weight: beta.
        loss: of the reconstruction, a name in POINTWISE; None is the sum of three errors.

    Returns:
        "loss", and its terms "reconstruction" (see below, mean per number) and "kl" (nats per image).

    Reference: Kingma & Welling 2013 (arXiv:1312.6114), eq. 3; beta from Higgins et al. 2017 (openreview Sy2fzU9gl). The
    absolute error keeps edges sharp (Rombach et al. 2021, arXiv:2112.10752). The squared error, and the absolute one of
    the picture at an eighth of its size, make wrong colours count more than lost texture: without them a small VAE
    learns edges first and hues last.
    """
    if loss is None:
        difference = reconstruction - pixel_values
        coarse = nn.functional.avg_pool2d(difference, COARSE_PX)
        error = difference.abs().mean() + difference.square().mean() + coarse.abs().mean()
    else:
        error = POINTWISE[loss](reconstruction, pixel_values).mean()
    kl = posterior.kl().mean()
    numbers = pixel_values[0].numel()
    return {"loss": error + kl_weight * kl / numbers, "reconstruction": error.detach(), "kl": kl.detach()}


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """(B,) mean squared error of each image."""
    return (prediction.float() - target.float()).square().flatten(1).mean(dim=1)


def absolute_error(prediction: Tensor, target: Tensor) -> Tensor:
    """(B,) mean absolute error of each image."""
    return (prediction.float() - target.float()).abs().flatten(1).mean(dim=1)


def huber_error(prediction: Tensor, target: Tensor) -> Tensor:
    """(B,) mean of what is squared near zero and absolute beyond HUBER_DELTA, on the squared error's scale.

    Reference: Huber 1964 (doi:10.1214/aoms/1177703732), eq. 3.2, times 2.
    """
    loss = nn.functional.huber_loss(prediction.float(), target.float(), reduction="none", delta=HUBER_DELTA)
    return 2 * loss.flatten(1).mean(dim=1)


POINTWISE = {"mse": squared_error, "l1": absolute_error, "huber": huber_error}


def denoising_loss(model_output: Tensor, target: Tensor, weights: Tensor, loss: str = "mse") -> Tensor:
    """L_simple: the mean squared error of what the UNet predicts, each image at its own timestep.

    Args:
        model_output: (B, C, h, w).
        target: the noise, the velocity or the clean latents, whatever the prediction type asks for, (B, C, h, w).
        weights: one per image, (B,).
        loss: another error in its place, a name in POINTWISE.

    Returns:
        One number per image, (B,); their mean is what is minimised.

    Reference: Ho et al. 2020 (arXiv:2006.11239), eq. 14.
    """
    return weights * POINTWISE[loss](model_output, target)


def perceptual_error(features: Sequence[Tensor], expected: Sequence[Tensor]) -> Tensor:
    """How differently a network sees two pictures.

    Args:
        features: of the layers of a network, (B, L, D) each.
        expected: the same of the picture that it should be.

    Returns:
        (B,): squared distance of features that are brought to length 1, summed over D, mean over places and layers.

    Reference: Zhang et al. 2018 (arXiv:1801.03924), eq. 1, without learned weights.
    """
    unit = nn.functional.normalize
    distances = [
        (unit(ours.float(), dim=-1) - unit(theirs.float(), dim=-1)).square().sum(dim=-1).mean(dim=1)
        for ours, theirs in zip(features, expected, strict=True)
    ]
    return torch.stack(distances).mean(dim=0)


def by_timestep(per_image: Tensor, timesteps: Tensor, num_train_timesteps: int) -> Tensor:
    """Losses told apart by how noisy their images are.

    Args:
        per_image: (B,).
        timesteps: (B,).
        num_train_timesteps: T.

    Returns:
        (2, BINS): the sum of the losses in each tenth of the timesteps, from clean to noisy, and their number.
    """
    bins = (timesteps * BINS // num_train_timesteps).to(per_image.device)
    sums = torch.zeros(2, BINS, device=per_image.device)
    sums[0].index_add_(0, bins, per_image.detach().float())
    sums[1].index_add_(0, bins, torch.ones_like(per_image, dtype=torch.float32))
    return sums


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
