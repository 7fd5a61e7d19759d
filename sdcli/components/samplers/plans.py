"""The plans of trajectories: from a noise schedule and a number of steps to the levels that the calls visit.

n inference steps, T training steps. `config` is the scheduler's configuration.
"""

from typing import Any

import numpy as np
from torch import Tensor

from sdcli.components.samplers.moment import Plan, sigma_of
from sdcli.components.samplers.spacing import scheduled_sigmas, spaced_timesteps, timesteps_of
from sdcli.components.schedule import noise_to_signal

# The signal left at the last step of a zero-SNR schedule, for samplers that need a finite sigma (here 4096).
SMALLEST_SIGNAL = 2.0**-24


def with_some_signal(alphas_cumprod: Tensor) -> Tensor:
    """The same noise schedule, (T,), with a little signal where it has none."""
    return alphas_cumprod.masked_fill(alphas_cumprod == 0, SMALLEST_SIGNAL)


def training_sigmas(alphas_cumprod: Tensor) -> np.ndarray:
    """Noise over signal at every training timestep, (T,), rising and finite."""
    return noise_to_signal(with_some_signal(alphas_cumprod)).numpy()


def whole_timesteps(num_inference_steps: int, config: Any) -> list[int]:
    """Spaced timesteps as indices into the training schedule."""
    timesteps = spaced_timesteps(
        config.timestep_spacing, num_inference_steps, config.num_train_timesteps, config.steps_offset
    )
    return [int(timestep) for timestep in np.round(timesteps)]


def timestep_plan(
    timesteps: list[int], moves: list[tuple[int, int]], alphas_cumprod: Tensor, final_alpha_bar: float = 1.0
) -> Plan:
    """The plan of a sampler that lives on training timesteps.

    Args:
        timesteps: of the sample at each call.
        moves: pair (from, to) of each call; -1 stands for the final level.
        alphas_cumprod: (T,).
        final_alpha_bar: signal variance at the final level.
    """
    table = (*alphas_cumprod.tolist(), final_alpha_bar)
    sigmas = [sigma_of(table[timestep]) for timestep in (*timesteps, moves[-1][1])]
    return Plan(tuple(timesteps), tuple(sigmas), whole=True, moves=tuple(moves), alphas_cumprod=table)


def exploding_levels(
    alphas_cumprod: Tensor, num_inference_steps: int, config: Any, *, round_karras: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Levels for the samplers that follow Karras et al. 2022 (arXiv:2206.00364).

    Args:
        alphas_cumprod: (T,).
        num_inference_steps: n.
        config: the scheduler's configuration.
        round_karras: with the karras schedule, tell the model whole timesteps.

    Returns:
        timesteps (n,), sigmas (n + 1,) that end at 0, and all training sigmas (T,).
    """
    training = training_sigmas(alphas_cumprod)
    timesteps = spaced_timesteps(
        config.timestep_spacing, num_inference_steps, config.num_train_timesteps, config.steps_offset
    )
    sigmas = np.interp(timesteps, np.arange(len(training)), training)
    if config.sigma_schedule != "normal":
        lowest = sigmas[-1] if config.sigma_min is None else config.sigma_min
        highest = sigmas[0] if config.sigma_max is None else config.sigma_max
        sigmas = scheduled_sigmas(config.sigma_schedule, lowest, highest, num_inference_steps)
        timesteps = timesteps_of(sigmas, training)
        if round_karras and config.sigma_schedule == "karras":
            timesteps = timesteps.round()
    # float32, as diffusers keeps them.
    return timesteps, np.append(sigmas, 0.0).astype(np.float32).astype(np.float64), training


def exploding_plan(alphas_cumprod: Tensor, num_inference_steps: int, config: Any) -> Plan:
    """One call per step, from each sigma to the next."""
    timesteps, sigmas, _ = exploding_levels(alphas_cumprod, num_inference_steps, config)
    return Plan(tuple(timesteps.tolist()), tuple(sigmas.tolist()), whole=False)


def preserving_plan(
    alphas_cumprod: Tensor,
    num_inference_steps: int,
    config: Any,
    *,
    final_sigma: str,
    keep_cosine_fractions: bool = False,
) -> Plan:
    """One call per step for the samplers that follow Lu et al. 2022 (arXiv:2211.01095).

    Args:
        alphas_cumprod: (T,).
        num_inference_steps: n.
        config: the scheduler's configuration.
        final_sigma: "zero", "smallest" (that of timestep 0) or "repeat" (as "smallest" for the normal schedule, else
            the last one again).
        keep_cosine_fractions: with the cosine noise schedule cut karras timesteps down, instead of rounding them.
    """
    training = training_sigmas(alphas_cumprod)
    noisiest = len(training) - int((-np.log(training) < config.lambda_min_clipped).sum())
    timesteps = spaced_timesteps(
        config.timestep_spacing,
        num_inference_steps,
        config.num_train_timesteps,
        config.steps_offset,
        clean_end=False,
        noisiest=noisiest,
    ).round()
    if config.sigma_schedule == "normal":
        sigmas = np.interp(timesteps, np.arange(len(training)), training)
    else:
        lowest = training[0] if config.sigma_min is None else config.sigma_min
        highest = training[-1] if config.sigma_max is None else config.sigma_max
        sigmas = scheduled_sigmas(config.sigma_schedule, float(lowest), float(highest), num_inference_steps)
        timesteps = timesteps_of(sigmas, training)
        cosine = config.beta_schedule == "squaredcos_cap_v2" and keep_cosine_fractions
        if config.sigma_schedule == "karras" and not cosine:
            timesteps = timesteps.round()
    last = {"zero": 0.0, "smallest": float(training[0]), "repeat": float(sigmas[-1])}[final_sigma]
    if final_sigma == "repeat" and config.sigma_schedule == "normal":
        last = float(training[0])
    sigmas = np.append(sigmas, last).astype(np.float32).astype(np.float64)
    # diffusers cuts the fractions of exponential and beta timesteps off; the model is told what it would be told there.
    return Plan(tuple(timesteps.astype(np.int64).tolist()), tuple(sigmas.tolist()), whole=True)
