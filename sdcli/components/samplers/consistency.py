"""LCM and TCD: a few steps with models distilled to see the clean sample at once.

Samples are (B, C, H, W) of unit variance; alpha_bar is the signal variance left, a number in (0, 1].
"""

from typing import Any

import numpy as np
from torch import Tensor

from sdcli.components.samplers.moment import Moment, Plan
from sdcli.components.samplers.plans import timestep_plan

SIGMA_DATA = 0.5  # Luo et al. 2023 (arXiv:2310.04378), section 4.1, after Song et al. 2023 (arXiv:2303.01469)


def boundary_weights(timestep: float, timestep_scaling: float) -> tuple[float, float]:
    """(c_skip, c_out): how much of the sample and of the prediction make the denoised one; (1, 0) at timestep 0.

    Reference: Song et al. 2023 (arXiv:2303.01469), eq. 5 and appendix C; Luo et al. 2023 (arXiv:2310.04378), eq. 9.
    """
    scaled = timestep * timestep_scaling
    norm = scaled**2 + SIGMA_DATA**2
    return SIGMA_DATA**2 / norm, scaled / norm**0.5


def lcm_step(denoised: Tensor, alpha_bar_next: float, noise: Tensor | None) -> Tensor:
    """Noise the denoised sample to the next level, or return it where there is none.

    Args:
        denoised: (B, C, H, W).
        alpha_bar_next: signal variance at the next level.
        noise: standard normal; None at the last step.

    Reference: Luo et al. 2023 (arXiv:2310.04378), algorithm 3.
    """
    if noise is None:
        return denoised
    return alpha_bar_next**0.5 * denoised + (1 - alpha_bar_next) ** 0.5 * noise


def tcd_step(
    pred_original_sample: Tensor,
    pred_noise: Tensor,
    alpha_bar_between: float,
    alpha_bar_next: float,
    noise: Tensor | None,
) -> Tensor:
    """DDIM to a level cleaner than the next, and fresh noise back up to the next.

    Args:
        pred_original_sample: what the model takes for x_0.
        pred_noise: what it takes for the noise.
        alpha_bar_between: signal variance at the level that DDIM goes to.
        alpha_bar_next: signal variance at the next level, no greater.
        noise: standard normal; None to stay where DDIM went.

    Reference: Zheng et al. 2024 (arXiv:2402.19159), algorithm 4 (strategic stochastic sampling).
    """
    between = alpha_bar_between**0.5 * pred_original_sample + (1 - alpha_bar_between) ** 0.5 * pred_noise
    if noise is None:
        return between
    share = alpha_bar_next / alpha_bar_between
    return share**0.5 * between + (1 - share) ** 0.5 * noise


def plan_consistency(alphas_cumprod: Tensor, num_inference_steps: int, config: Any) -> Plan:
    """A spread over the timesteps that the distillation was made on, from the noisiest.

    Raises:
        ValueError: more steps than the distillation had.
    """
    original_steps = config.original_inference_steps
    if not 1 <= num_inference_steps <= original_steps:
        raise ValueError(
            f"num_inference_steps of {config.sampler} must lie in [1, {original_steps}], its original_inference_steps; "
            f"got {num_inference_steps}"
        )
    stride = config.num_train_timesteps // original_steps
    distilled = np.arange(original_steps, 0, -1) * stride - 1
    # floor(linspace), as diffusers has it, not an exact division.
    chosen = np.linspace(0, original_steps, num_inference_steps, endpoint=False).astype(np.int64)
    timesteps = distilled[chosen].tolist()
    return timestep_plan(timesteps, list(zip(timesteps, [*timesteps[1:], 0], strict=True)), alphas_cumprod)


def tcd_takes_noise(index: int, plan: Plan, eta: float) -> bool:
    """All calls but the last, if eta asks for noise."""
    return eta > 0 and index < plan.calls - 1


def take_lcm_step(moment: Moment) -> tuple[Tensor, tuple]:
    """`lcm_step` for the scheduler."""
    skip, out = boundary_weights(moment.plan.timesteps[moment.index], moment.config.timestep_scaling)
    denoised = out * moment.pred_original_sample + skip * moment.sample
    return lcm_step(denoised, moment.plan.move(moment.index)[1], moment.noise), ()


def take_tcd_step(moment: Moment) -> tuple[Tensor, tuple]:
    """`tcd_step` for the scheduler; eta is the paper's gamma, 0 deterministic, 1 fresh noise at every step."""
    next_timestep = moment.plan.moves[moment.index][1]
    # In float32 like diffusers: 0.7 * 470 is 329 there, and 328.99999999999994 in float64.
    between = int(np.floor(np.float32(1 - moment.eta) * np.float32(next_timestep)))
    alpha_bars = moment.plan.alphas_cumprod
    stepped = tcd_step(
        moment.pred_original_sample, moment.pred_noise, alpha_bars[between], alpha_bars[next_timestep], moment.noise
    )
    return stepped, ()
