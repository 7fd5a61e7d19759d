"""DPM-Solver++ multistep, of the ODE and of the SDE, up to third order.

Samples are (B, C, H, W) of unit variance. A level is named by its sigma (noise over signal, a number); with
alpha = 1 / sqrt(1 + sigma^2) the sample is alpha (x_0 + sigma noise), and lambda = -log(sigma) is half the log SNR.
"""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from sdcli.components.samplers.moment import Moment, Plan
from sdcli.components.samplers.plans import preserving_plan


def half_log_snr(sigma: float) -> float:
    """Half the log SNR, lambda = log(alpha / sigma); infinite where there is no noise."""
    return -math.log(sigma) if sigma > 0 else math.inf


def dpmpp_step(
    sample: Tensor,
    originals: Sequence[Tensor],
    sigmas: Sequence[float],
    sigma_next: float,
    noise: Tensor | None = None,
    solver_type: str = "midpoint",
) -> Tensor:
    """From sigmas[0] to sigma_next by integrating the polynomial through the latest predictions of x_0.

    With noise it solves the reverse SDE, without it the ODE; for the SDE the exponential decays twice as fast.

    Args:
        sample: at sigmas[0].
        originals: predictions of x_0, the newest first; as many as the order, 1 to 3.
        sigmas: where they were made.
        sigma_next: where the step ends; 0 is clean, and then the order must be 1.
        noise: standard normal, or None for the ODE.
        solver_type: how the second order weighs its difference: "midpoint" or "heun".

    Reference: Lu et al. 2022 (arXiv:2211.01095), algorithm 2, eq. 8, and appendix A and B.
    """
    lambdas = [half_log_snr(sigma) for sigma in sigmas]
    length = half_log_snr(sigma_next) - lambdas[0]
    if length == 0:
        return sample.clone()
    decay = length if noise is None else 2 * length
    alpha, alpha_next = 1 / math.hypot(1, sigmas[0]), 1 / math.hypot(1, sigma_next)
    gain = -math.expm1(-decay)  # 1 - exp(-h), or 1 - exp(-2h)

    # sigma_next alpha_next / (sigma alpha) is the ratio of the noise deviations; the SDE forgets by exp(-h) more.
    kept = sigma_next * alpha_next / (sigmas[0] * alpha) * (1.0 if noise is None else math.exp(-length))
    moved = kept * sample + alpha_next * gain * originals[0]
    if noise is not None:
        moved = moved + sigma_next * alpha_next * math.sqrt(gain) * noise
    if len(originals) == 1:
        return moved

    first_ratio = (lambdas[0] - lambdas[1]) / length
    first = (originals[0] - originals[1]) / first_ratio
    bend = gain / 2 if solver_type == "midpoint" else 1 - gain / decay
    if len(originals) == 2:
        return moved + alpha_next * bend * first

    second_ratio = (lambdas[1] - lambdas[2]) / length
    older = (originals[1] - originals[2]) / second_ratio
    curvature = (first - older) / (first_ratio + second_ratio)
    tangent = first + first_ratio * curvature
    return moved + alpha_next * (1 - gain / decay) * tangent + alpha_next * curvature_weight(decay) * curvature


def curvature_weight(decay: float) -> float:
    """Weight of the second difference in the third order: 1/2 - (d - 1 + e^-d) / d^2, which vanishes with the step.

    diffusers 0.42 has -1/2 for the SDE: a weight of -1 however short the step, and a result less accurate than that of
    the second order. The sampler of this name in k-diffusion has it as here.

    Args:
        decay: h for the ODE, 2h for the SDE.

    Reference: Lu et al. 2022 (arXiv:2211.01095), appendix A, phi_3.
    """
    return 0.5 - (decay + math.expm1(-decay)) / decay**2


def order_at(index: int, plan: Plan, config: Any, known: int) -> int:
    """Order of a step: no more than the predictions known, and lower at the end where the configuration says so.

    Args:
        index: of the call.
        plan: the trajectory.
        config: the scheduler's configuration.
        known: predictions of x_0 that there are, this one included.
    """
    left = plan.calls - index
    few = config.lower_order_final and plan.calls < 15
    if left == 1 and (config.euler_at_final or few or config.final_sigmas_type == "zero"):
        return 1
    return min(known, config.solver_order, 2 if left == 2 and few else 3)


def plan_dpmpp(alphas_cumprod: Tensor, num_inference_steps: int, config: Any) -> Plan:
    """As `preserving_plan`, to 0 or to the sigma of timestep 0."""
    final = {"zero": "zero", "sigma_min": "smallest"}[config.final_sigmas_type]
    return preserving_plan(alphas_cumprod, num_inference_steps, config, final_sigma=final, keep_cosine_fractions=True)


def take_dpmpp_step(moment: Moment) -> tuple[Tensor, tuple]:
    """`dpmpp_step` for the scheduler, of the SDE if it drew noise; the memory is the predictions of x_0."""
    originals = (moment.pred_original_sample, *moment.memory)
    originals = originals[: moment.config.solver_order]
    order = order_at(moment.index, moment.plan, moment.config, len(originals))
    sigmas = [moment.plan.sigmas[moment.index - back] for back in range(order)]
    sigma_next = moment.plan.sigmas[moment.index + 1]
    solver_type = moment.config.solver_type
    return dpmpp_step(moment.sample, originals[:order], sigmas, sigma_next, moment.noise, solver_type), originals
