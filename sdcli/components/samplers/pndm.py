"""PNDM: pseudo linear multistep, with or without a pseudo Runge-Kutta start.

"Pseudo" because the slopes are the model's outputs, combined as in classical solvers, but the step along the combined
slope is the exact transfer of a constant noise prediction. Samples are (B, C, H, W) of unit variance.

Reference: Liu et al. 2022 (arXiv:2202.09778).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from sdcli.components.samplers.moment import Moment, Plan
from sdcli.components.samplers.plans import timestep_plan, whole_timesteps
from sdcli.components.schedule import to_noise

# Adams-Bashforth, newest slope first, by how many slopes are known: Liu et al. 2022, eq. 12 and appendix F.
MULTISTEP_WEIGHTS = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}
RUNGE_KUTTA_WEIGHTS = (1 / 6, 1 / 3, 1 / 3, 1 / 6)
RUNGE_KUTTA_STEPS = 3


def transfer(sample: Tensor, pred_noise: Tensor, alpha_bar: float, alpha_bar_next: float) -> Tensor:
    """Move a sample to another level as if the predicted noise were all there is.

    Args:
        sample: (B, C, H, W).
        pred_noise: the same.
        alpha_bar: signal variance left in the sample, above 0.
        alpha_bar_next: the same at the level to go to.

    Reference: Liu et al. 2022 (arXiv:2202.09778), eq. 11.
    """
    denominator = alpha_bar * (1 - alpha_bar_next) ** 0.5 + (alpha_bar * (1 - alpha_bar) * alpha_bar_next) ** 0.5
    kept = (alpha_bar_next / alpha_bar) ** 0.5
    return kept * sample - (alpha_bar_next - alpha_bar) / denominator * pred_noise


def combined(weights: Sequence[float], outputs: Sequence[Tensor]) -> Tensor:
    """The weighted sum of model outputs."""
    return sum(weight * output for weight, output in zip(weights, outputs, strict=True))


def plan_pndm(alphas_cumprod: Tensor, num_inference_steps: int, config: Any) -> Plan:
    """Spaced timesteps, with what the start needs in addition: one call, or nine with Runge-Kutta.

    Raises:
        ValueError: too few steps for Runge-Kutta, or a schedule without signal at its first timestep.
    """
    timesteps = whole_timesteps(num_inference_steps, config)
    if alphas_cumprod[timesteps[0]] == 0:
        raise ValueError("pndm cannot start where no signal is left (rescale_betas_zero_snr); use ddim or euler")
    stride = config.num_train_timesteps // num_inference_steps
    final = 1.0 if config.set_alpha_to_one else float(alphas_cumprod[0])
    start: list[tuple[int, int, int]] = []  # (told to the model, from, to)
    if config.skip_prk_steps:
        first = timesteps[0]
        start = [(first, first, first - stride)]
        if num_inference_steps > 1:  # the same step again, with the mean of the slopes at both ends
            start.append((timesteps[1], timesteps[1] + stride, timesteps[1]))
        rest = timesteps[1:]
    else:
        if num_inference_steps <= RUNGE_KUTTA_STEPS:
            raise ValueError(f"pndm with Runge-Kutta steps needs at least 4 steps, got {num_inference_steps}")
        half = stride // 2
        for begin, end in zip(timesteps[:RUNGE_KUTTA_STEPS], timesteps[1:], strict=False):
            middle = end + half
            start += [(begin, begin, begin - half), (middle, begin, middle)]
            start += [(middle, begin, middle - half), (end, begin, end)]
        rest = timesteps[RUNGE_KUTTA_STEPS:]
    calls = start + [(timestep, timestep, timestep - stride) for timestep in rest]
    moves = [(begin, max(end, -1)) for _, begin, end in calls]
    return timestep_plan([told for told, _, _ in calls], moves, alphas_cumprod, final)


def moved(moment: Moment, sample: Tensor, model_output: Tensor) -> Tensor:
    """`transfer` along a (combined) model output, over the move of this call."""
    alpha_bar, alpha_bar_next = moment.plan.move(moment.index)
    pred_noise = to_noise(model_output, sample, alpha_bar, moment.config.prediction_type)
    return transfer(sample, pred_noise, alpha_bar, alpha_bar_next)


def take_pndm_step(moment: Moment) -> tuple[Tensor, tuple]:
    """One call of PNDM; the memory is the latest model outputs, newest first, and (within the start) its sample."""
    if not moment.config.skip_prk_steps and moment.index < 4 * RUNGE_KUTTA_STEPS:
        return take_runge_kutta_call(moment)
    outputs, start_sample = moment.memory or ((), None)
    if start_sample is not None:
        # Again the step of the call before, by the trapezoidal rule; this output stays out of the memory.
        mean = (moment.model_output + outputs[0]) / 2
        again = moment if moment.index == 1 else replace(moment, index=moment.index - 1)
        return moved(again, start_sample, mean), (outputs, None)
    first = moment.config.skip_prk_steps and not outputs
    # A trajectory from a picture may begin anywhere. Stock plans no call for the first step's repetition there, so that
    # the sample is a step behind from then on; its pictures are the reference.
    now = replace(moment, index=2) if first and moment.index == 1 else moment
    outputs = (moment.model_output, *outputs)[:4]
    slope = combined(MULTISTEP_WEIGHTS[len(outputs)], outputs)
    return moved(now, moment.sample, slope), (outputs, moment.sample if first else None)


def take_runge_kutta_call(moment: Moment) -> tuple[Tensor, tuple]:
    """One of the four calls of a pseudo Runge-Kutta step; the memory is (outputs, sample and slopes of this step).

    Reference: Liu et al. 2022 (arXiv:2202.09778), eq. 13.

    Raises:
        ValueError: a trajectory was begun in the middle of a step.
    """
    phase = moment.index % 4
    outputs, begun = moment.memory or ((), None)
    if phase == 0:
        outputs, begun = (moment.model_output, *outputs)[:4], (moment.sample,)
    elif begun is None:
        raise ValueError(f"a trajectory cannot begin in the middle of a Runge-Kutta step, at call {moment.index}")
    sample, *slopes = begun
    slopes.append(moment.model_output)
    if phase < 3:
        return moved(moment, sample, moment.model_output), (outputs, (sample, *slopes))
    return moved(moment, sample, combined(RUNGE_KUTTA_WEIGHTS, slopes)), (outputs, None)
