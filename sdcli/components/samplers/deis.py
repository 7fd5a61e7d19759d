"""DEIS in log-rho: integrate the polynomial in log rho through the latest noise predictions.

rho is noise over signal (the sigma of this package); in y = x / alpha the ODE is dy/drho = noise(y), so a step is the
integral of a polynomial in log rho over rho. Samples x are (B, C, H, W) of unit variance.

Reference: Zhang & Chen 2023 (arXiv:2204.13902), eq. 15 and appendix H.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from sdcli.components.samplers.moment import Moment, Plan
from sdcli.components.samplers.plans import preserving_plan


def log_rho_weights(rhos: Sequence[float], rho_next: float) -> list[float]:
    """Integrals over rho in [rhos[0], rho_next] of the Lagrange polynomials in log rho through the given rhos.

    Args:
        rhos: where noise predictions are known, the newest first; all different and positive.
        rho_next: where the step ends, positive.
    """
    logs = [math.log(rho / rhos[0]) for rho in rhos]
    end = math.log(rho_next / rhos[0])
    weights = []
    for chosen in logs:
        others = [log for log in logs if log != chosen]
        basis = np.poly1d(others, r=True) / math.prod(chosen - log for log in others)
        weights.append(rhos[0] * float(exponential_integral(basis, end)))
    return weights


def exponential_integral(polynomial: np.poly1d, end: float) -> float:
    """Integral of polynomial(u) e^u over u in [0, end], by parts: e^u times the alternating sum of derivatives."""
    primitive, derivative, sign = np.poly1d([0.0]), polynomial, 1
    while True:
        primitive = primitive + sign * derivative
        if derivative.order == 0:
            break
        derivative, sign = derivative.deriv(), -sign
    return math.exp(end) * primitive(end) - primitive(0.0)


def deis_step(sample: Tensor, noises: Sequence[Tensor], rhos: Sequence[float], rho_next: float) -> Tensor:
    """From rhos[0] to rho_next along the latest noise predictions.

    Args:
        sample: at rhos[0].
        noises: predictions of the noise, the newest first; as many as the order.
        rhos: where they were made.
        rho_next: where the step ends, positive.
    """
    alpha, alpha_next = 1 / math.hypot(1, rhos[0]), 1 / math.hypot(1, rho_next)
    weights = log_rho_weights(rhos, rho_next)
    drift = sum(weight * alpha_next * noise for weight, noise in zip(weights, noises, strict=True))
    return alpha_next / alpha * sample + drift


def plan_deis(alphas_cumprod: Tensor, num_inference_steps: int, config: Any) -> Plan:
    """As `preserving_plan`; never to 0, where log rho ends."""
    return preserving_plan(alphas_cumprod, num_inference_steps, config, final_sigma="repeat")


def take_deis_step(moment: Moment) -> tuple[Tensor, tuple]:
    """`deis_step` for the scheduler; the memory is the latest noise predictions, newest first."""
    rhos, index = moment.plan.sigmas, moment.index
    alpha = 1 / math.hypot(1, rhos[index])
    # From the prediction of x_0, because that is what thresholding changes.
    noise = (moment.sample - alpha * moment.pred_original_sample) / (rhos[index] * alpha)
    noises = (noise, *moment.memory)[: moment.config.solver_order]
    left = moment.plan.calls - index
    few = moment.config.lower_order_final and moment.plan.calls < 15
    order = min(len(noises), left if few else len(noises))
    visited = [rhos[index - back] for back in range(order)]
    return deis_step(moment.sample, noises[:order], visited, rhos[index + 1]), noises
