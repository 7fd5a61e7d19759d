"""UniPC: a multistep predictor, and a corrector that uses each new prediction to mend the step that led to it.

Samples are (B, C, H, W) of unit variance. A level is named by its sigma (noise over signal, a number), with
lambda = -log(sigma). Of the paper's two forms this is the one that predicts x_0.

Reference: Zhao et al. 2023 (arXiv:2302.04867).
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from sdcli.components.samplers.dpm_solver import half_log_snr
from sdcli.components.samplers.moment import Moment, Plan
from sdcli.components.samplers.plans import preserving_plan


def unipc_weights(ratios: Sequence[float], length: float, solver_type: str) -> np.ndarray:
    """Weights of the differences to the newest prediction, so that the step is exact for polynomials.

    Args:
        ratios: (lambda_i - lambda_0) / h of the points that give differences; the corrector's new one is 1.
        length: h, the step in lambda, finite and not 0.
        solver_type: "bh1" (B(h) = h) or "bh2" (B(h) = e^h - 1).

    Returns:
        One weight per ratio, B(h) included.

    Reference: Zhao et al. 2023 (arXiv:2302.04867), eq. 7 and appendix A, with -h for h because x_0 is predicted.
    """
    step = -length
    scale = step if solver_type == "bh1" else math.expm1(step)
    phi = math.expm1(step) / step - 1  # h phi_{k+1}(h), k = 1
    moments, factorial = [], 1
    for k in range(1, len(ratios) + 1):
        moments.append(phi * factorial / scale)
        factorial *= k + 1
        phi = phi / step - 1 / factorial
    if len(ratios) == 1:
        return np.array([0.5 * scale])  # the paper's choice where one weight is left: section 3.3, UniP-2 and UniC-1
    powers = np.vander(np.asarray(ratios), increasing=True).T
    return np.linalg.solve(powers, np.asarray(moments)) * scale


def unipc_step(
    sample: Tensor,
    originals: Sequence[Tensor],
    sigmas: Sequence[float],
    sigma_next: float,
    solver_type: str,
    original_next: Tensor | None = None,
) -> Tensor:
    """From sigmas[0] to sigma_next: the predictor, or with the prediction made at the far end the corrector.

    Args:
        sample: at sigmas[0].
        originals: predictions of x_0, the newest first; as many as the order.
        sigmas: where they were made.
        sigma_next: where the step ends; 0 is clean, and then the order must be 1.
        solver_type: "bh1" or "bh2".
        original_next: the prediction of x_0 at sigma_next, for the corrector.

    Reference: Zhao et al. 2023 (arXiv:2302.04867), eq. 3 and 8, appendix E.
    """
    start = half_log_snr(sigmas[0])
    length = half_log_snr(sigma_next) - start
    if length == 0:
        return sample.clone()
    alpha, alpha_next = 1 / math.hypot(1, sigmas[0]), 1 / math.hypot(1, sigma_next)
    kept = sigma_next * alpha_next / (sigmas[0] * alpha)
    moved = kept * sample - alpha_next * math.expm1(-length) * originals[0]

    ratios = [(half_log_snr(sigma) - start) / length for sigma in sigmas[1:]]
    others = list(originals[1:])
    if original_next is not None:
        ratios, others = [*ratios, 1.0], [*others, original_next]
    if not others:
        return moved
    for weight, ratio, other in zip(unipc_weights(ratios, length, solver_type), ratios, others, strict=True):
        moved = moved - alpha_next * float(weight) / ratio * (other - originals[0])
    return moved


def plan_unipc(alphas_cumprod: Tensor, num_inference_steps: int, config: Any) -> Plan:
    """As `preserving_plan`, to 0 or to the smallest sigma."""
    final = {"zero": "zero", "sigma_min": "repeat"}[config.final_sigmas_type]
    return preserving_plan(alphas_cumprod, num_inference_steps, config, final_sigma=final)


def take_unipc_step(moment: Moment) -> tuple[Tensor, tuple]:
    """Correct the step before, then predict the next; the memory is (predictions, corrected sample, order)."""
    config, plan, index = moment.config, moment.plan, moment.index
    originals, previous, order = moment.memory or ((), None, 0)
    sample = moment.sample
    if previous is not None and index - 1 not in config.disable_corrector:
        visited = [plan.sigmas[index - 1 - back] for back in range(order)]
        sample = unipc_step(
            previous,
            originals[:order],
            visited,
            plan.sigmas[index],
            config.solver_type,
            original_next=moment.pred_original_sample,
        )
    originals = (moment.pred_original_sample, *originals)[: config.solver_order]
    order = len(originals)
    if config.lower_order_final:
        order = min(order, plan.calls - index)
    visited = [plan.sigmas[index - back] for back in range(order)]
    predicted = unipc_step(sample, originals[:order], visited, plan.sigmas[index + 1], config.solver_type)
    return predicted, (originals, sample, order)
