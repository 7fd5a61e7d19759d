"""Guidance: the model output moved away from what another prompt gives. B images, C channels, h w rows and columns."""

import math

import torch
from torch import Tensor, nn


def guide(unconditional: Tensor, conditional: Tensor, guidance_scale: float, guidance_rescale: float = 0.0) -> Tensor:
    """The model output moved away from the unconditional one, (B, C, h, w) each.

    Args:
        unconditional: model output for the negative prompt.
        conditional: model output for the prompt.
        guidance_scale: 1 is no guidance.
        guidance_rescale: how far each image's standard deviation goes back to the conditional output's, from 0 to 1;
            against overexposure.

    Reference: Ho and Salimans 2022 (arXiv:2207.12598), eq. 6; Lin et al. 2023 (arXiv:2305.08891), eq. 15 and 16.
    """
    guided = unconditional + guidance_scale * (conditional - unconditional)
    if guidance_rescale == 0:
        return guided
    deviation = conditional.std(dim=(1, 2, 3), keepdim=True) / guided.std(dim=(1, 2, 3), keepdim=True)
    return guidance_rescale * (guided * deviation) + (1 - guidance_rescale) * guided


def follow_gradient(model_output: Tensor, gradient: Tensor, alpha_bar: float, prediction_type: str) -> Tensor:
    """The model output whose noise is moved against a gradient, so that the sampler's next step follows it.

    With pred_noise' = pred_noise - sqrt(1 - alpha_bar) * gradient the score gets the gradient on top, whatever the
    sampler makes of it. The other kinds of output are moved by what that means for them.

    Args:
        model_output: of the kind that `prediction_type` names, (B, C, h, w).
        gradient: of a logarithm of a probability with respect to noisy latents of unit variance, the same shape.
        alpha_bar: signal variance left in them, in (0, 1).
        prediction_type: epsilon, v_prediction or sample.

    Reference: Dhariwal & Nichol 2021 (arXiv:2105.05233), eq. 14 and algorithm 2.
    """
    spread = (1 - alpha_bar) ** 0.5
    factors = {"epsilon": -spread, "v_prediction": -spread / alpha_bar**0.5, "sample": spread**2 / alpha_bar**0.5}
    return model_output + factors[prediction_type] * gradient


def guidance_embedding(guidance_scale: float, width: int) -> Tensor:
    """Sinusoidal embedding of the guidance scale for a distilled UNet, (1, width) float32.

    Reference: Meng et al. 2022 (arXiv:2210.03142), section 3.1; the factor 1000 is that of the time embedding.
    """
    half = width // 2
    frequencies = torch.exp(torch.arange(half) * -(math.log(10000.0) / (half - 1)))
    angles = (guidance_scale - 1) * 1000.0 * frequencies
    embedding = torch.cat([angles.sin(), angles.cos()])
    return nn.functional.pad(embedding, (0, width % 2))[None]  # (1, width)
