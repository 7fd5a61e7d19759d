"""Euler, ancestral Euler and linear multistep: one evaluation per step of dx/dsigma = (x - x_0(x)) / sigma.

Samples are (B, C, H, W) and variance exploding: clean latents plus sigma times noise. Sigmas are numbers, falling.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from sdcli.components.samplers.moment import Moment, Plan
from sdcli.components.samplers.plans import exploding_plan, training_sigmas


def slope(sample: Tensor, pred_original_sample: Tensor, sigma: float) -> Tensor:
    """dx/dsigma of the probability-flow ODE: Karras et al. 2022 (arXiv:2206.00364), eq. 1 and 3 with sigma(t) = t."""
    return (sample - pred_original_sample) / sigma


def euler_step(sample: Tensor, pred_original_sample: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """Follow the slope straight to the next sigma: Karras et al. 2022 (arXiv:2206.00364), alg. 1, lines 4 and 5."""
    return sample + slope(sample, pred_original_sample, sigma) * (sigma_next - sigma)


def ancestral_split(sigma: float, sigma_next: float) -> tuple[float, float]:
    """How far to go down by the ODE, and how much fresh noise brings the sample back up to sigma_next.

    Returns:
        (sigma_down, sigma_up) with sigma_down^2 + sigma_up^2 = sigma_next^2; sigma_up^2 is the posterior variance, that
        of Song et al. 2020 (arXiv:2010.02502), eq. 16 with eta = 1, in variance-exploding terms.
    """
    sigma_up = math.sqrt(max(sigma_next**2 * (sigma**2 - sigma_next**2), 0.0)) / sigma
    return math.sqrt(max(sigma_next**2 - sigma_up**2, 0.0)), sigma_up


def euler_ancestral_step(
    sample: Tensor, pred_original_sample: Tensor, sigma: float, sigma_next: float, noise: Tensor | None
) -> Tensor:
    """Go further down than asked, and up again with fresh noise; `noise` may be None where sigma_next is 0.

    Reference: Song et al. 2021 (arXiv:2011.13456), appendix F (ancestral sampling of variance-exploding processes).
    """
    sigma_down, sigma_up = ancestral_split(sigma, sigma_next)
    moved = euler_step(sample, pred_original_sample, sigma, sigma_down)
    return moved if noise is None else moved + sigma_up * noise


def multistep_weights(sigmas: Sequence[float], sigma_next: float) -> list[float]:
    """Integrals over [sigmas[0], sigma_next] of the Lagrange polynomials through the given sigmas.

    Args:
        sigmas: of the slopes that are known, the newest first; one to four of them, all different.
        sigma_next: where the step ends.

    Reference: Hairer, Norsett & Wanner 1993, Solving Ordinary Differential Equations I, section III.5.
    """
    weights = []
    for chosen in sigmas:
        others = [sigma for sigma in sigmas if sigma != chosen]
        # Measured from sigmas[0], where the numbers are small and nothing is lost by subtraction.
        basis = np.poly1d([other - sigmas[0] for other in others], r=True) / math.prod(chosen - s for s in others)
        weights.append(float(basis.integ()(sigma_next - sigmas[0])))
    return weights


def lms_step(sample: Tensor, slopes: Sequence[Tensor], sigmas: Sequence[float], sigma_next: float) -> Tensor:
    """Integrate the polynomial through the latest slopes from sigmas[0] to sigma_next (Adams-Bashforth, uneven steps).

    Args:
        sample: at sigmas[0].
        slopes: dx/dsigma at each of `sigmas`, the newest first.
        sigmas: where the slopes were found.
        sigma_next: where the step ends.
    """
    weights = multistep_weights(sigmas, sigma_next)
    return sample + sum(weight * known for weight, known in zip(weights, slopes, strict=True))


LMS_ORDER = 4


def plan_euler(alphas_cumprod: Tensor, num_inference_steps: int, config: Any) -> Plan:
    """As `exploding_plan`, but it may stop at the sigma of timestep 0."""
    plan = exploding_plan(alphas_cumprod, num_inference_steps, config)
    if config.final_sigmas_type == "zero":
        return plan
    smallest = float(training_sigmas(alphas_cumprod)[0])
    return Plan(plan.timesteps, (*plan.sigmas[:-1], smallest), whole=False)


def take_euler_step(moment: Moment) -> tuple[Tensor, tuple]:
    """`euler_step` for the scheduler."""
    sigma, sigma_next = moment.plan.sigmas[moment.index : moment.index + 2]
    return euler_step(moment.sample, moment.pred_original_sample, sigma, sigma_next), ()


def take_euler_ancestral_step(moment: Moment) -> tuple[Tensor, tuple]:
    """`euler_ancestral_step` for the scheduler."""
    sigma, sigma_next = moment.plan.sigmas[moment.index : moment.index + 2]
    return euler_ancestral_step(moment.sample, moment.pred_original_sample, sigma, sigma_next, moment.noise), ()


def take_lms_step(moment: Moment) -> tuple[Tensor, tuple]:
    """`lms_step` for the scheduler; the memory is the latest slopes, newest first."""
    sigmas = moment.plan.sigmas
    newest = slope(moment.sample, moment.pred_original_sample, sigmas[moment.index])
    slopes = (newest, *moment.memory)[:LMS_ORDER]
    visited = [sigmas[moment.index - back] for back in range(len(slopes))]
    return lms_step(moment.sample, slopes, visited, sigmas[moment.index + 1]), slopes
