"""DDPM and DDIM: one step of the reverse process, between training timesteps.

Samples are (B, C, H, W) of unit variance; alpha_bar is the signal variance left, a number in (0, 1].
"""

import math
from typing import Any

from torch import Tensor

from sdcli.components.samplers.moment import Moment, Plan
from sdcli.components.samplers.plans import timestep_plan, whole_timesteps
from sdcli.components.schedule import posterior_mean, posterior_variances

VARIANCE_TYPES = ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned", "learned_range")
# Keeps the logarithm finite where the posterior variance is 0.
SMALLEST_VARIANCE = 1e-20


def ddpm_step(
    sample: Tensor,
    pred_original_sample: Tensor,
    alpha_bar: float,
    alpha_bar_next: float,
    variance: Tensor | float,
    noise: Tensor | None,
) -> Tensor:
    """Draw the less noisy sample from p(x_next given x_t): the posterior mean plus fresh noise.

    Args:
        sample: x_t.
        pred_original_sample: what the model takes for x_0.
        alpha_bar: signal variance left in the sample.
        alpha_bar_next: the same at the next level; 1 means clean.
        variance: of the fresh noise, a number or one per element.
        noise: standard normal; None for none.

    Reference: Ho et al. 2020 (arXiv:2006.11239), algorithm 2 and eq. 7.
    """
    mean = posterior_mean(sample, pred_original_sample, alpha_bar, alpha_bar_next)
    return mean if noise is None else mean + variance**0.5 * noise


def reverse_variance(
    variance_type: str, alpha_bar: float, alpha_bar_next: float, predicted: Tensor | None
) -> Tensor | float:
    """Variance of a reverse step.

    Args:
        variance_type: "fixed_large" is beta_t, "fixed_small" is beta-tilde_t (with "_log" the same numbers);
            "learned" is the model's own; "learned_range" lies between the two, in logarithms, where the model says.
        alpha_bar: signal variance left in the sample.
        alpha_bar_next: the same at the next level.
        predicted: the model's variance channels, (B, C, H, W); for "learned_range" -1 is the small end and 1 the large.

    Raises:
        ValueError: an unknown type, or a learned one without variance channels.

    Reference: Ho et al. 2020 (arXiv:2006.11239), section 3.2; Nichol & Dhariwal 2021 (arXiv:2102.09672), eq. 15.
    """
    large, small = posterior_variances(alpha_bar, alpha_bar_next)
    small = max(small, SMALLEST_VARIANCE)
    if variance_type.startswith("fixed_small"):
        return small
    if variance_type.startswith("fixed_large"):
        return large
    if predicted is None:
        raise ValueError(f"variance_type {variance_type!r} needs a model with variance channels")
    if variance_type == "learned":
        return predicted
    share = (predicted + 1) / 2
    return (share * math.log(large) + (1 - share) * math.log(small)).exp()


def ddim_step(
    pred_original_sample: Tensor,
    pred_noise: Tensor,
    alpha_bar_next: float,
    deviation: float = 0.0,
    noise: Tensor | None = None,
) -> Tensor:
    """Noise the predicted clean sample again, to the next level, with the predicted noise and maybe some fresh.

    Args:
        pred_original_sample: what the model takes for x_0.
        pred_noise: what it takes for the noise in the sample.
        alpha_bar_next: signal variance at the next level; 1 means clean.
        deviation: standard deviation of the fresh noise (`ddim_deviation`).
        noise: standard normal; None where the deviation is 0.

    Reference: Song et al. 2020 (arXiv:2010.02502), eq. 12.
    """
    direction = math.sqrt(max(1 - alpha_bar_next - deviation**2, 0.0))
    moved = alpha_bar_next**0.5 * pred_original_sample + direction * pred_noise
    return moved if noise is None else moved + deviation * noise


def ddim_deviation(eta: float, alpha_bar: float, alpha_bar_next: float) -> float:
    """Standard deviation of DDIM's fresh noise: 0 at eta 0, DDPM's small one at eta 1.

    Reference: Song et al. 2020 (arXiv:2010.02502), eq. 16.
    """
    return eta * math.sqrt(posterior_variances(alpha_bar, alpha_bar_next)[1])


def plan_ddpm(alphas_cumprod: Tensor, num_inference_steps: int, config: Any) -> Plan:
    """Every call leads to the timestep of the next; the last one to clean."""
    timesteps = whole_timesteps(num_inference_steps, config)
    return timestep_plan(timesteps, list(zip(timesteps, [*timesteps[1:], -1], strict=True)), alphas_cumprod)


def plan_ddim(alphas_cumprod: Tensor, num_inference_steps: int, config: Any) -> Plan:
    """Every call leads T // n timesteps down, and past 0 to the final level.

    With linspace and trailing spacing that is not quite the timestep of the next call; diffusers has it so.
    """
    timesteps = whole_timesteps(num_inference_steps, config)
    stride = config.num_train_timesteps // num_inference_steps
    final = 1.0 if config.set_alpha_to_one else float(alphas_cumprod[0])
    return timestep_plan(timesteps, [(t, max(t - stride, -1)) for t in timesteps], alphas_cumprod, final)


def ddpm_takes_noise(index: int, plan: Plan, eta: float) -> bool:
    """All calls but one at timestep 0."""
    return plan.timesteps[index] > 0


def ddim_takes_noise(index: int, plan: Plan, eta: float) -> bool:
    """All calls, if eta asks for noise."""
    return eta > 0


def take_ddpm_step(moment: Moment) -> tuple[Tensor, tuple]:
    """`ddpm_step` for the scheduler."""
    alpha_bar, alpha_bar_next = moment.plan.move(moment.index)
    variance = 0.0
    if moment.noise is not None:
        variance = reverse_variance(moment.config.variance_type, alpha_bar, alpha_bar_next, moment.predicted_variance)
    original = moment.pred_original_sample
    return ddpm_step(moment.sample, original, alpha_bar, alpha_bar_next, variance, moment.noise), ()


def take_ddim_step(moment: Moment) -> tuple[Tensor, tuple]:
    """`ddim_step` for the scheduler."""
    alpha_bar, alpha_bar_next = moment.plan.move(moment.index)
    deviation = ddim_deviation(moment.eta, alpha_bar, alpha_bar_next)
    return ddim_step(moment.pred_original_sample, moment.pred_noise, alpha_bar_next, deviation, moment.noise), ()
