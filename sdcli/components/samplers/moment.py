"""What passes between the scheduler and a sampler: the plan of a trajectory, and one moment of it.

A call is one evaluation of the model followed by one `step`. Most samplers need one call to get from one noise level to
the next; those of order 2 need two, and the levels in between are part of the plan.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor

from sdcli.components.schedule import to_noise


@dataclass(frozen=True)
class Plan:
    """The noise levels of one trajectory. All numbers are Python's, so that planning costs no device anything.

    Attributes:
        timesteps: what the model is told, one per call, falling; whole numbers where `whole` is set.
        sigmas: noise over signal of the sample at each call, and after the last: one more than calls. The first may be
            infinite.
        whole: the timesteps are indices into the training schedule, int64.
        moves: for samplers on training timesteps, the pair (from, to) of each call; -1 is beyond the cleanest.
        alphas_cumprod: for the same samplers, signal variance left after each training timestep, and last (index -1)
            that of the final level.
    """

    timesteps: tuple[float, ...]
    sigmas: tuple[float, ...]
    whole: bool
    moves: tuple[tuple[int, int], ...] = ()
    alphas_cumprod: tuple[float, ...] = ()

    @property
    def calls(self) -> int:
        """How many times the model is evaluated."""
        return len(self.timesteps)

    @cached_property
    def alpha_bars(self) -> tuple[float, ...]:
        """Signal variance left in the sample at each call, and after the last."""
        return tuple(1 / (1 + sigma**2) for sigma in self.sigmas)

    def move(self, index: int) -> tuple[float, float]:
        """The signal variances (from, to) of a call, for samplers on training timesteps."""
        start, end = self.moves[index]
        return self.alphas_cumprod[start], self.alphas_cumprod[end]


@dataclass(frozen=True)
class Moment:
    """One call of `step`, as a sampler sees it. Shapes are (B, C, H, W).

    Attributes:
        index: which call this is; 0 is the noisiest.
        sample: the sample that the model was shown (before `scale_model_input`).
        model_output: what it answered, variance channels cut off.
        pred_original_sample: the clean latents that the answer stands for, clipped where the configuration says so.
        plan: the trajectory.
        config: the scheduler's configuration.
        memory: what this sampler kept from the calls before; empty at the start.
        noise: standard normal, where the sampler asked for it.
        eta: share of fresh noise, for the samplers that have a choice.
        predicted_variance: the variance channels, where the model has them.
    """

    index: int
    sample: Tensor
    model_output: Tensor
    pred_original_sample: Tensor
    plan: Plan
    config: Any
    memory: tuple = ()
    noise: Tensor | None = None
    eta: float = 0.0
    predicted_variance: Tensor | None = None

    @property
    def is_last(self) -> bool:
        """No call follows."""
        return self.index == self.plan.calls - 1

    @property
    def pred_noise(self) -> Tensor:
        """The noise that the model's answer stands for, for samplers of unit-variance samples."""
        alpha_bar = self.plan.alpha_bars[self.index]
        return to_noise(self.model_output, self.sample, alpha_bar, self.config.prediction_type)


def never_noisy(index: int, plan: Plan, eta: float) -> bool:
    """For samplers that are deterministic."""
    return False


def always_noisy(index: int, plan: Plan, eta: float) -> bool:
    """For samplers that add noise at every call."""
    return True


def noisy_until_last(index: int, plan: Plan, eta: float) -> bool:
    """For samplers that add noise at every call but the last."""
    return index < plan.calls - 1


def noisy_until_clean(index: int, plan: Plan, eta: float) -> bool:
    """For samplers that add noise at every call but one that ends clean."""
    return plan.sigmas[index + 1] > 0


@dataclass(frozen=True)
class Sampler:
    """How one sampler works.

    Attributes:
        stock_class: its counterpart in diffusers; of one that has none, the nearest.
        make_plan: (alphas_cumprod (T,), number of steps, configuration) to the plan of a trajectory.
        step: a moment to (next sample, memory for the next call). A pure function.
        takes_noise: (index, plan, eta) to whether that call needs fresh noise.
        exploding: samples are clean latents plus sigma times noise (variance exploding), and the model must be shown
            them scaled; otherwise they keep unit variance.
        on_timesteps: its levels are training timesteps, not sigmas.
        order: evaluations of the model per step.
        sigma_schedules: whether sigmas can be placed by karras, exponential and beta.
        clips: honours clip_sample.
        thresholds: honours thresholding.
        without_counterpart: diffusers has no such sampler. What is saved names the nearest class, and ours beside it.
        solver_orders: allowed, the default first; empty where there is no choice.
        solver_types: allowed, the default first.
    """

    stock_class: str
    make_plan: Callable[[Tensor, int, Any], Plan]
    step: Callable[[Moment], tuple[Tensor, tuple]]
    takes_noise: Callable[[int, Plan, float], bool] = never_noisy
    exploding: bool = False
    on_timesteps: bool = False
    order: int = 1
    sigma_schedules: bool = False
    clips: bool = False
    thresholds: bool = False
    without_counterpart: bool = False
    solver_orders: tuple[int, ...] = field(default=())
    solver_types: tuple[str, ...] = field(default=())


def sigma_of(alpha_bar: float) -> float:
    """Noise over signal of a signal variance; infinite where no signal is left."""
    return math.sqrt((1 - alpha_bar) / alpha_bar) if alpha_bar > 0 else math.inf
