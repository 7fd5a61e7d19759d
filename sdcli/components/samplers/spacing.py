"""Which noise levels a trajectory visits: timesteps among the training steps, and sigmas between two extremes.

n inference steps, T training steps. sigma is noise over signal. Everything here is a short numpy array in float64,
noisiest first, made once per trajectory.
"""

import math

import numpy as np

TIMESTEP_SPACINGS = ("leading", "linspace", "trailing")
SIGMA_SCHEDULES = ("normal", "karras", "exponential", "beta")


def spaced_timesteps(
    spacing: str,
    num_inference_steps: int,
    num_train_timesteps: int,
    steps_offset: int = 0,
    *,
    clean_end: bool = True,
    noisiest: int | None = None,
) -> np.ndarray:
    """Spread n inference steps over T training steps.

    Args:
        spacing: "leading" (the first of each of n equal blocks, plus the offset), "trailing" (the last of each) or
            "linspace" (from T - 1 to 0 evenly, in general not whole numbers).
        num_inference_steps: n, in [1, T].
        num_train_timesteps: T.
        steps_offset: added to "leading" timesteps only.
        clean_end: whether the cleanest timestep is visited; if not, "leading" and "linspace" spread n + 1 and drop it.
        noisiest: how many of the training steps may be used, from the clean end; T if not given.

    Returns:
        (n,), falling. "trailing" gives fewer when `noisiest` cuts some off.

    Raises:
        ValueError: an unknown spacing, or a number of steps that this spacing cannot place.

    Reference: Lin et al. 2023 (arXiv:2305.08891), table 2.
    """
    if not 1 <= num_inference_steps <= num_train_timesteps:
        raise ValueError(f"num_inference_steps must lie in [1, {num_train_timesteps}], got {num_inference_steps}")
    usable = num_train_timesteps if noisiest is None else noisiest
    count = num_inference_steps if clean_end else num_inference_steps + 1
    if spacing == "linspace":
        # One step must start from pure noise, not from the clean end where an even spread of one point would put it.
        timesteps = np.linspace(0, usable - 1, count)[::-1] if count > 1 else np.array([usable - 1.0])
    elif spacing == "leading":
        if usable // count < 1:
            raise ValueError(f"leading spacing has room for fewer than {num_inference_steps} of {usable} timesteps")
        timesteps = np.arange(count)[::-1] * float(usable // count) + steps_offset
    elif spacing == "trailing":
        block = num_train_timesteps / num_inference_steps
        # arange yields one element too many for some n (61 of 1000), by rounding.
        return np.round(np.arange(usable, 0, -block))[:num_inference_steps] - 1
    else:
        raise ValueError(f"timestep_spacing must be one of {', '.join(TIMESTEP_SPACINGS)}, got {spacing!r}")
    timesteps = timesteps[:num_inference_steps]
    if timesteps[0] >= num_train_timesteps:
        raise ValueError(
            f"steps_offset {steps_offset} puts a timestep at {timesteps[0]:.0f}, beyond {num_train_timesteps - 1}"
        )
    return timesteps


def karras_sigmas(sigma_min: float, sigma_max: float, count: int) -> np.ndarray:
    """Sigmas dense near the clean end: Karras et al. 2022 (arXiv:2206.00364), eq. 5 with rho = 7."""
    rho = 7.0
    return np.linspace(sigma_max ** (1 / rho), sigma_min ** (1 / rho), count) ** rho


def exponential_sigmas(sigma_min: float, sigma_max: float, count: int) -> np.ndarray:
    """Sigmas evenly spaced in their logarithm."""
    return np.exp(np.linspace(math.log(sigma_max), math.log(sigma_min), count))


def beta_sigmas(sigma_min: float, sigma_max: float, count: int) -> np.ndarray:
    """Sigmas at the quantiles of Beta(0.6, 0.6), dense at both ends: Lee et al. 2024 (arXiv:2407.12173), section 4."""
    return sigma_min + beta_quantiles(np.linspace(1, 0, count)) * (sigma_max - sigma_min)


def beta_quantiles(probabilities: np.ndarray, shape: float = 0.6) -> np.ndarray:
    """Quantiles of Beta(shape, shape) by Newton's method, to about 1e-12.

    The distribution function below one half is the power series x^a sum_k (1 - a)_k / (k! (a + k)) x^k / B(a, a)
    (Abramowitz & Stegun 1964, 26.5.4 with 15.1.1); above it, by symmetry.

    Args:
        probabilities: in [0, 1], any shape.
        shape: a, both parameters of the distribution, in (0, 1).
    """
    k = np.arange(60)
    rising = np.cumprod(np.concatenate([[1.0], (k[:-1] + 1 - shape) / (k[:-1] + 1)]))
    total = math.gamma(shape) ** 2 / math.gamma(2 * shape)
    target = np.minimum(probabilities, 1 - probabilities)[..., None] * total
    # In y = x^a the series is nearly a straight line through 0, so Newton's method has no trouble at the end.
    y = target * shape
    for _ in range(8):
        x = y ** (1 / shape)
        value = (y * rising / (shape + k) * x**k).sum(-1, keepdims=True)
        slope = (rising / shape * x**k).sum(-1, keepdims=True)
        y = np.maximum(y - (value - target) / slope, 0.0)
    x = (y ** (1 / shape))[..., 0]
    return np.where(probabilities <= 0.5, x, 1 - x)


def scheduled_sigmas(schedule: str, sigma_min: float, sigma_max: float, count: int) -> np.ndarray:
    """Sigmas from sigma_max down to sigma_min: (count,).

    Raises:
        ValueError: `schedule` is not "karras", "exponential" or "beta".
    """
    makers = {"karras": karras_sigmas, "exponential": exponential_sigmas, "beta": beta_sigmas}
    if schedule not in makers:
        raise ValueError(f"sigma_schedule must be one of {', '.join(SIGMA_SCHEDULES)}, got {schedule!r}")
    return makers[schedule](sigma_min, sigma_max, count)


def timesteps_of(sigmas: np.ndarray, training_sigmas: np.ndarray) -> np.ndarray:
    """The (fractional) training timesteps that have these sigmas, by interpolation in log sigma; clipped to [0, T - 1].

    Args:
        sigmas: any shape, positive.
        training_sigmas: (T,), rising with the timestep.
    """
    return np.interp(np.log(sigmas), np.log(training_sigmas), np.arange(len(training_sigmas), dtype=np.float64))
