"""Heun, DPM-2 and DPM-Solver++ SDE as Karras et al. have them: two evaluations of the model for each step.

A step from sigma to sigma_next is two calls: one that goes somewhere to look (to sigma_next itself, or to a sigma in
between), and one that goes back and takes the step with what was seen there. The last step, to 0, is one call of Euler.
The calls at even indices begin a step. Samples are (B, C, H, W) and variance exploding; sigmas are numbers, falling.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from sdcli.components.samplers.euler import ancestral_split, euler_step, slope
from sdcli.components.samplers.moment import Moment, Plan
from sdcli.components.samplers.plans import exploding_levels
from sdcli.components.samplers.spacing import timesteps_of


def heun_step(sample: Tensor, first_slope: Tensor, second_slope: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """To sigma_next by the mean of the slopes at both ends: Karras et al. 2022 (arXiv:2206.00364), alg. 1, line 8."""
    return sample + (first_slope + second_slope) / 2 * (sigma_next - sigma)


def geometric_mean(sigma: float, sigma_next: float) -> float:
    """The sigma halfway in log SNR."""
    return math.sqrt(sigma * sigma_next)


def midpoint_step(sample: Tensor, middle_slope: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """From sigma to sigma_next by the slope at their geometric mean: DPM-Solver-2.

    Reference: Lu et al. 2022 (arXiv:2206.00927), algorithm 1; Karras et al. 2022 (arXiv:2206.00364), appendix D.2.
    """
    return sample + middle_slope * (sigma_next - sigma)


def dpmpp_ancestral_step(
    sample: Tensor, pred_original_sample: Tensor, sigma: float, sigma_next: float, noise: Tensor
) -> Tensor:
    """First-order DPM-Solver++ to sigma_down, and fresh noise back up to sigma_next.

    Reference: Lu et al. 2022 (arXiv:2211.01095), eq. 8 and appendix B, with `ancestral_split`.
    """
    sigma_down, sigma_up = ancestral_split(sigma, sigma_next)
    kept = sigma_down / sigma
    return kept * sample + (1 - kept) * pred_original_sample + sigma_up * noise


def brownian_increment(first: Tensor, second: Tensor, sigmas: tuple[float, float, float]) -> Tensor:
    """Unit noise over a whole step, from the unit noises over its two parts, on one Brownian path.

    Args:
        first: standard normal over [sigmas[0], sigmas[1]].
        second: independent standard normal over [sigmas[1], sigmas[2]].
        sigmas: the step's start, middle and end, falling.
    """
    start, middle, end = sigmas
    return first * math.sqrt((start - middle) / (start - end)) + second * math.sqrt((middle - end) / (start - end))


def plan_heun(alphas_cumprod: Tensor, num_inference_steps: int, config: Any) -> Plan:
    """Every level but the first and the last is visited twice: to look, and to step from."""
    timesteps, sigmas, _ = exploding_levels(alphas_cumprod, num_inference_steps, config)
    timesteps = np.append(timesteps[:1], timesteps[1:].repeat(2))
    sigmas = np.concatenate([sigmas[:1], sigmas[1:-1].repeat(2), sigmas[-1:]])
    return Plan(tuple(timesteps.tolist()), tuple(sigmas.tolist()), whole=False)


def plan_with_middles(
    alphas_cumprod: Tensor,
    num_inference_steps: int,
    config: Any,
    *,
    middle: Callable[[float, float], float] = geometric_mean,
    round_karras: bool = False,
) -> Plan:
    """Levels with another one between each two, but none before 0.

    Args:
        alphas_cumprod: (T,).
        num_inference_steps: n.
        config: the scheduler's configuration.
        middle: of two sigmas, where to look.
        round_karras: with the karras schedule, tell the model whole timesteps at the levels themselves.
    """
    timesteps, sigmas, training = exploding_levels(
        alphas_cumprod, num_inference_steps, config, round_karras=round_karras
    )
    middles = np.array([middle(*pair) for pair in zip(sigmas[:-2].tolist(), sigmas[1:-1].tolist(), strict=True)])
    between = timesteps_of(middles, training)
    return Plan(
        tuple(np.insert(timesteps, range(1, num_inference_steps), between).tolist()),
        tuple(np.insert(sigmas, range(1, num_inference_steps), middles).tolist()),
        whole=False,
    )


def ancestral_middle(sigma: float, sigma_next: float) -> float:
    """Halfway in log SNR to where the ODE part of an ancestral step ends."""
    return geometric_mean(sigma, ancestral_split(sigma, sigma_next)[0])


def second_call_takes_noise(index: int, plan: Plan, eta: float) -> bool:
    """Only the call that takes the step."""
    return index % 2 == 1


def both_calls_take_noise(index: int, plan: Plan, eta: float) -> bool:
    """All but the last, to 0."""
    return plan.sigmas[index + 1] > 0


def begins_step(moment: Moment) -> bool:
    """Whether this call looks (even index) or takes the step with what was seen (odd).

    Raises:
        ValueError: a trajectory was begun with the second call of a step.
    """
    if moment.index % 2 == 0:
        return True
    if not moment.memory:
        raise ValueError(f"a trajectory of order 2 cannot begin in the middle of a step, at call {moment.index}")
    return False


def last_step(moment: Moment) -> Tensor:
    """Euler to 0."""
    return euler_step(moment.sample, moment.pred_original_sample, moment.plan.sigmas[moment.index], 0.0)


def take_heun_step(moment: Moment) -> tuple[Tensor, tuple]:
    """Euler to look, then `heun_step`; the memory is (sample, slope) at the start of the step."""
    sigmas, index = moment.plan.sigmas, moment.index
    if moment.is_last:
        return last_step(moment), ()
    seen = slope(moment.sample, moment.pred_original_sample, sigmas[index])
    if begins_step(moment):
        ahead = euler_step(moment.sample, moment.pred_original_sample, sigmas[index], sigmas[index + 1])
        return ahead, (moment.sample, seen)
    sample, first_slope = moment.memory
    return heun_step(sample, first_slope, seen, sigmas[index - 1], sigmas[index]), ()


def take_dpm2_step(moment: Moment) -> tuple[Tensor, tuple]:
    """Euler to the middle, then `midpoint_step`, down to sigma_down where noise is drawn; the memory is (sample,)."""
    sigmas, index = moment.plan.sigmas, moment.index
    if moment.is_last:
        return last_step(moment), ()
    if begins_step(moment):
        middle = euler_step(moment.sample, moment.pred_original_sample, sigmas[index], sigmas[index + 1])
        return middle, (moment.sample,)
    start, end = sigmas[index - 1], sigmas[index + 1]
    seen = slope(moment.sample, moment.pred_original_sample, sigmas[index])
    if moment.noise is None:
        return midpoint_step(moment.memory[0], seen, start, end), ()
    sigma_down, sigma_up = ancestral_split(start, end)
    return midpoint_step(moment.memory[0], seen, start, sigma_down) + sigma_up * moment.noise, ()


def take_dpmpp_sde_step(moment: Moment) -> tuple[Tensor, tuple]:
    """`dpmpp_ancestral_step` to the middle, then the whole way with what was seen there.

    Both ride on one Brownian path, so the noise of the whole step holds that of its first half; the memory is
    (sample, noise) at the start of the step.
    """
    sigmas, index = moment.plan.sigmas, moment.index
    if moment.is_last:
        return last_step(moment), ()
    original = moment.pred_original_sample
    if begins_step(moment):
        middle = dpmpp_ancestral_step(moment.sample, original, sigmas[index], sigmas[index + 1], moment.noise)
        return middle, (moment.sample, moment.noise)
    sample, first_noise = moment.memory
    noise = brownian_increment(first_noise, moment.noise, sigmas[index - 1 : index + 2])
    return dpmpp_ancestral_step(sample, original, sigmas[index - 1], sigmas[index + 1], noise), ()
