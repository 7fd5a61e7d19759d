"""Noise schedules and the forward process: how much noise there is at each timestep, and what that implies.

B batch, T training timesteps; index 0 is the cleanest. beta_t is the noise variance that step t adds, alpha_t is
1 - beta_t, and alphas_cumprod[t] (alpha-bar in the papers) the product of the alphas up to t: the
signal variance left after step t. Knows nothing of samplers, networks or files.
"""

import math

import torch
from torch import Tensor

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid")
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


def make_betas(
    schedule: str, num_train_timesteps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012
) -> Tensor:
    """Noise variance added by each training step.

    Args:
        schedule: "linear" (Ho et al. 2020, arXiv:2006.11239, section 4), "scaled_linear" (linear in the standard
            deviation: Rombach et al. 2022, arXiv:2112.10752), "squaredcos_cap_v2" (the cosine of Nichol & Dhariwal
            2021, arXiv:2102.09672, eq. 17) or "sigmoid" (Xu et al. 2022, arXiv:2203.02923).
        num_train_timesteps: T.
        beta_start: variance added by the first step; the cosine schedule does not use it.
        beta_end: variance added by the last step; the cosine schedule does not use it.

    Returns:
        (T,) float32 in (0, 1).

    Raises:
        ValueError: the schedule is none of these.
    """
    if schedule == "linear":
        return torch.linspace(beta_start, beta_end, num_train_timesteps, dtype=torch.float32)
    if schedule == "scaled_linear":
        return torch.linspace(beta_start**0.5, beta_end**0.5, num_train_timesteps, dtype=torch.float32) ** 2
    if schedule == "squaredcos_cap_v2":
        time = torch.arange(num_train_timesteps + 1, dtype=torch.float64) / num_train_timesteps
        signal_variance = ((time + 0.008) / 1.008 * math.pi / 2).cos() ** 2
        return (1 - signal_variance[1:] / signal_variance[:-1]).clamp(max=0.999).float()
    if schedule == "sigmoid":
        return torch.linspace(-6, 6, num_train_timesteps).sigmoid() * (beta_end - beta_start) + beta_start
    raise ValueError(f"beta_schedule must be one of {', '.join(BETA_SCHEDULES)}, got {schedule!r}")


def rescale_zero_terminal_snr(betas: Tensor) -> Tensor:
    """Shift and stretch a schedule so that no signal at all is left after its last step.

    Args:
        betas: (T,).

    Returns:
        (T,) betas whose alphas_cumprod keeps its first value and ends at exactly 0.

    Reference: Lin et al. 2023 (arXiv:2305.08891), algorithm 1.
    """
    signal = alphas_cumprod(betas).sqrt()
    signal = (signal - signal[-1]) * (signal[0] / (signal[0] - signal[-1]))
    signal_variance = signal**2
    return 1 - torch.cat([signal_variance[:1], signal_variance[1:] / signal_variance[:-1]])


def alphas_cumprod(betas: Tensor) -> Tensor:
    """Signal variance left after each step, (T,), falling: the product of 1 - beta up to that step."""
    return torch.cumprod(1 - betas, dim=0)


def signal_to_noise_ratio(alphas_cumprod: Tensor) -> Tensor:
    """Signal variance over noise variance, same shape, falling with the timestep.

    Reference: Kingma et al. 2021 (arXiv:2107.00630), eq. 2.
    """
    return alphas_cumprod / (1 - alphas_cumprod)


def noise_to_signal(alphas_cumprod: Tensor) -> Tensor:
    """Noise over signal, sqrt((1 - alpha-bar) / alpha-bar): the `sigma` of Karras et al. 2022 (arXiv:2206.00364)."""
    return ((1 - alphas_cumprod) / alphas_cumprod) ** 0.5


def _per_image(values: Tensor, timesteps: Tensor, images: Tensor) -> Tensor:
    """values[timesteps] on the device and in the dtype of images, (B, 1, 1, 1) for images (B, C, H, W)."""
    chosen = values.to(images.device)[timesteps.to(images.device)].to(images.dtype)
    return chosen.reshape(-1, *[1] * (images.dim() - 1))


def _check_shapes(latents: Tensor, noise: Tensor, timesteps: Tensor) -> None:
    if noise.shape != latents.shape:
        raise ValueError(f"noise must have the shape of latents {tuple(latents.shape)}, got {tuple(noise.shape)}")
    if timesteps.shape not in (latents.shape[:1], (1,), ()):
        raise ValueError(f"timesteps must be one per image {tuple(latents.shape[:1])}, got {tuple(timesteps.shape)}")


def add_noise(latents: Tensor, noise: Tensor, timesteps: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """Noise clean latents to the level of each image's own timestep, in one go.

    The reparameterisation: one draw of noise makes the result a differentiable function of the latents.

    Args:
        latents: clean, scaled latents, (B, C, H, W).
        noise: standard normal, same shape as latents.
        timesteps: one index per image, (B,) int64 in [0, T); one for all is allowed.
        alphas_cumprod: signal variance left after each timestep, (T,), falling.

    Returns:
        Noisy latents, (B, C, H, W), in the dtype of `latents`.

    Raises:
        ValueError: a shape differs from the above. (The range is not checked: that would read the device back.)

    Reference: Ho et al. 2020 (arXiv:2006.11239), eq. 4.
    """
    _check_shapes(latents, noise, timesteps)
    signal = _per_image(alphas_cumprod**0.5, timesteps, latents)
    spread = _per_image((1 - alphas_cumprod) ** 0.5, timesteps, latents)
    return signal * latents + spread * noise


def forward_step(latents: Tensor, noise: Tensor, beta: Tensor | float) -> Tensor:
    """Add one training step's noise: a draw from q(x_t given x_{t-1}).

    Args:
        latents: x_{t-1}, (B, C, H, W).
        noise: standard normal, same shape.
        beta: noise variance that step t adds, in (0, 1).

    Returns:
        x_t, (B, C, H, W).

    Reference: Ho et al. 2020 (arXiv:2006.11239), eq. 2.
    """
    return (1 - beta) ** 0.5 * latents + beta**0.5 * noise


def velocity(latents: Tensor, noise: Tensor, timesteps: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """The target of v-prediction: the direction in which noising turns signal into noise.

    Shapes as in `add_noise`.

    Reference: Salimans & Ho 2022 (arXiv:2202.00512), section 4 and appendix D.
    """
    _check_shapes(latents, noise, timesteps)
    signal = _per_image(alphas_cumprod**0.5, timesteps, latents)
    spread = _per_image((1 - alphas_cumprod) ** 0.5, timesteps, latents)
    return signal * noise - spread * latents


def to_original_sample(model_output: Tensor, sample: Tensor, alpha_bar: Tensor | float, prediction_type: str) -> Tensor:
    """The clean latents that a model's output stands for.

    Args:
        model_output: (B, C, H, W), of the kind that `prediction_type` names.
        sample: noisy latents of unit variance that the model was shown, (B, C, H, W).
        alpha_bar: signal variance left in `sample`, in (0, 1]; it may be 0 unless the prediction is "epsilon".
        prediction_type: "epsilon" (the noise), "v_prediction" (the velocity) or "sample" (the clean latents).

    Returns:
        (B, C, H, W).

    Raises:
        ValueError: the prediction type is none of these.

    Reference: Ho et al. 2020 (arXiv:2006.11239), eq. 15; Salimans & Ho 2022 (arXiv:2202.00512), appendix D.
    """
    if prediction_type == "epsilon":
        return (sample - (1 - alpha_bar) ** 0.5 * model_output) / alpha_bar**0.5
    if prediction_type == "v_prediction":
        return alpha_bar**0.5 * sample - (1 - alpha_bar) ** 0.5 * model_output
    if prediction_type == "sample":
        return model_output
    raise ValueError(f"prediction_type must be one of {', '.join(PREDICTION_TYPES)}, got {prediction_type!r}")


def to_noise(model_output: Tensor, sample: Tensor, alpha_bar: Tensor | float, prediction_type: str) -> Tensor:
    """The noise that a model's output stands for; arguments as in `to_original_sample`, alpha_bar below 1."""
    if prediction_type == "epsilon":
        return model_output
    if prediction_type == "v_prediction":
        return alpha_bar**0.5 * model_output + (1 - alpha_bar) ** 0.5 * sample
    if prediction_type == "sample":
        return (sample - alpha_bar**0.5 * model_output) / (1 - alpha_bar) ** 0.5
    raise ValueError(f"prediction_type must be one of {', '.join(PREDICTION_TYPES)}, got {prediction_type!r}")


def score(pred_noise: Tensor, alpha_bar: Tensor | float) -> Tensor:
    """Gradient of log p(x_t) with respect to the noisy sample: which way to change it to make it likelier.

    ∇ log p(x_t) = −E[ε given x_t] / √(1 − ᾱ_t), whatever the data are (Tweedie's formula). A network with the least
    squared error predicts that expectation, so its output is the score up to a factor: it has learned which way noisy
    pictures become likelier, without a probability ever being computed.

    Args:
        pred_noise: ε_θ(x_t, t), (B, C, H, W); see `to_noise` for other kinds of output.
        alpha_bar: signal variance left in x_t, below 1.

    Returns:
        (B, C, H, W).

    Reference: Robbins 1956 and Efron 2011 (doi:10.1198/jasa.2011.tm11181), eq. 1.4; Vincent 2011
    (doi:10.1162/NECO_a_00142); Song et al. 2021 (arXiv:2011.13456); Dhariwal & Nichol 2021 (arXiv:2105.05233), eq. 11.
    """
    return -pred_noise / (1 - alpha_bar) ** 0.5


def posterior_mean(
    sample: Tensor, pred_original_sample: Tensor, alpha_bar: Tensor | float, alpha_bar_next: Tensor | float
) -> Tensor:
    """Mean of q(x_next given x_t and x_0): where a noisy sample came from, if this were its clean original.

    Args:
        sample: x_t, (B, C, H, W).
        pred_original_sample: x_0, (B, C, H, W).
        alpha_bar: signal variance left at t, below 1.
        alpha_bar_next: signal variance left at the cleaner level, which may be several training steps away; 1 is clean.

    Returns:
        (B, C, H, W). With x_0 put in terms of the noise this is (x_t - beta / sqrt(1 - alpha_bar) noise) / sqrt(alpha).

    Reference: Ho et al. 2020 (arXiv:2006.11239), eq. 7 and 11.
    """
    alpha = alpha_bar / alpha_bar_next
    original_weight = alpha_bar_next**0.5 * (1 - alpha) / (1 - alpha_bar)
    sample_weight = alpha**0.5 * (1 - alpha_bar_next) / (1 - alpha_bar)
    return original_weight * pred_original_sample + sample_weight * sample


def posterior_variances(
    alpha_bar: Tensor | float, alpha_bar_next: Tensor | float
) -> tuple[Tensor | float, Tensor | float]:
    """The two fixed variances of a reverse step: (beta_t, beta-tilde_t), largest first.

    beta_t is right for unit-variance data, beta-tilde_t = beta_t (1 - alpha_bar_next) / (1 - alpha_bar) for a point.

    Reference: Ho et al. 2020 (arXiv:2006.11239), section 3.2 and eq. 7.
    """
    beta = 1 - alpha_bar / alpha_bar_next
    return beta, beta * (1 - alpha_bar_next) / (1 - alpha_bar)
