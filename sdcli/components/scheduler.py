"""The scheduler that a diffusers pipeline holds: a noise schedule and a sampler from the table.

B batch, C channels, H W rows and columns, T training timesteps. The equations are in `sdcli.components.schedule` and
`sdcli.components.samplers`; this file speaks diffusers' scheduler contract.
"""

import json
import math
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from sdcli.components import schedule
from sdcli.components.samplers import Moment, Plan, Sampler, configuration, stock
from sdcli.components.samplers.clipping import pred_original_sample, without_variance
from sdcli.components.samplers.plans import training_sigmas
from sdcli.components.samplers.trajectory import Trajectory

Generators = torch.Generator | list[torch.Generator] | None


@dataclass
class SchedulerOutput(BaseOutput):
    """The next sample, and the clean one that the model had in mind; both (B, C, H, W)."""

    prev_sample: Tensor
    pred_original_sample: Tensor


class Scheduler(SchedulerMixin, ConfigMixin):
    """A noise schedule and a sampler, behind diffusers' scheduler contract.

    The arguments have the names and meanings of diffusers' scheduler_config.json, but for `sampler`, which stands for
    its class, and `sigma_schedule`, which stands for its three use_..._sigmas. The defaults are Stable Diffusion's.
    `from_config` takes what any of the stock classes wrote; `save_pretrained` writes what they read.

    Raises:
        ValueError: an unknown value, or a combination that no sampler can follow.
    """

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        beta_schedule: str = "scaled_linear",
        trained_betas: list[float] | None = None,
        rescale_betas_zero_snr: bool = False,
        prediction_type: str = "epsilon",
        sampler: str = "ddim",
        sigma_schedule: str = "normal",
        timestep_spacing: str = "leading",
        steps_offset: int = 1,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        final_sigmas_type: str = "zero",
        lambda_min_clipped: float = -math.inf,
        solver_order: int | None = None,
        solver_type: str | None = None,
        lower_order_final: bool = True,
        euler_at_final: bool = False,
        disable_corrector: list[int] | None = None,
        variance_type: str | None = None,
        clip_sample: bool = False,
        clip_sample_range: float = 1.0,
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
        set_alpha_to_one: bool = False,
        skip_prk_steps: bool = True,
        original_inference_steps: int = 50,
        timestep_scaling: float = 10.0,
    ):
        how = configuration.sampler_named(sampler)
        self._how: Sampler = how
        self.register_to_config(
            solver_order=next(iter(how.solver_orders), None) if solver_order is None else solver_order,
            solver_type=next(iter(how.solver_types), None) if solver_type is None else solver_type,
            disable_corrector=list(disable_corrector or ()),
            trained_betas=None if trained_betas is None else [float(beta) for beta in trained_betas],
            variance_type="fixed_small" if variance_type is None else variance_type,
            _use_default_values=[],
        )
        configuration.check(self.config)
        if trained_betas is None:
            self.betas = schedule.make_betas(beta_schedule, num_train_timesteps, beta_start, beta_end)
        else:
            self.betas = torch.as_tensor(trained_betas, dtype=torch.float32)
        if rescale_betas_zero_snr:
            self.betas = schedule.rescale_zero_terminal_snr(self.betas)
        self.alphas_cumprod = schedule.alphas_cumprod(self.betas)

        self.num_inference_steps: int | None = None
        self._plan: Plan | None = None
        everything = training_sigmas(self.alphas_cumprod)[::-1].tolist()
        self._trajectory = Trajectory(torch.arange(num_train_timesteps - 1, -1, -1), [*everything, 0.0])

    @classmethod
    def from_config(
        cls,
        config: dict[str, Any],
        return_unused_kwargs: bool = False,
        sampler: str | None = None,
        sigma_schedule: str | None = None,
        **overrides: Any,
    ) -> Any:
        """Make a scheduler from a configuration of any of the stock classes, or of this one.

        Args:
            config: what a scheduler_config.json says, or `scheduler.config`.
            return_unused_kwargs: also return a (here always empty) dict, as diffusers' loader asks.
            sampler: the sampler to use instead of the configuration's, on the same noise schedule.
            sigma_schedule: the sigma schedule to use instead.
            overrides: any other argument of the constructor.

        Raises:
            ValueError: an unknown class, or a value that changes the result and is not implemented.
        """
        arguments, defaulted = stock.constructor_arguments(config, sampler, sigma_schedule)
        scheduler = cls(**{**arguments, **overrides})
        scheduler.register_to_config(_use_default_values=[name for name in defaulted if name not in overrides])
        return (scheduler, {}) if return_unused_kwargs else scheduler

    def stock_config(self) -> dict[str, Any]:
        """What a scheduler_config.json of the stock class would say."""
        return stock.stock_config(self.config, self.alphas_cumprod)

    def to_json_string(self) -> str:
        """The stock scheduler_config.json, which is what `save_pretrained` writes."""
        return json.dumps(self.stock_config(), indent=2, sort_keys=True) + "\n"

    @property
    def sampler(self) -> str:
        """Our name of the sampler."""
        return self.config.sampler

    @property
    def sigma_schedule(self) -> str:
        """How sigmas are placed: "normal" (as the timesteps are), "karras", "exponential" or "beta"."""
        return self.config.sigma_schedule

    @property
    def order(self) -> int:
        """Evaluations of the model per step."""
        return self._how.order

    @property
    def num_train_timesteps(self) -> int:
        """T."""
        return self.config.num_train_timesteps

    def __len__(self) -> int:
        return self.config.num_train_timesteps

    @property
    def timesteps(self) -> Tensor:
        """What the model has to be told, one per call, falling."""
        return self._trajectory.timesteps

    @property
    def sigmas(self) -> Tensor:
        """Noise over signal of the sample at each call and after the last, (calls + 1,) float32 on the CPU."""
        return torch.tensor(self._trajectory.levels, dtype=torch.float32)

    @property
    def init_noise_sigma(self) -> float:
        """What standard normal noise has to be multiplied by to begin a trajectory."""
        if not self._how.exploding:
            return 1.0
        largest = max(self._trajectory.levels)
        return largest if self.config.timestep_spacing in ("linspace", "trailing") else math.hypot(largest, 1)

    @property
    def step_index(self) -> int | None:
        """Which call comes next; None before the first."""
        return self._trajectory.step_index

    @property
    def begin_index(self) -> int | None:
        """The call that a trajectory begins with, if that was set."""
        return self._trajectory.begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin at this call, for a trajectory that starts from a partly noised image."""
        self._trajectory.begin_index = begin_index

    def index_for_timestep(self, timestep: Tensor | float) -> int:
        """The call that begins at a timestep."""
        return self._trajectory.index_for_timestep(timestep)

    def signal_left(self, timestep: Tensor | float) -> float:
        """Signal variance left in the sample at the call that is told this timestep, relative to its size; alpha-bar.

        Raises:
            ValueError: `set_timesteps` was not called, or no call is told that timestep.
        """
        if self._plan is None:
            raise ValueError("call set_timesteps before signal_left")
        return self._plan.alpha_bars[self._trajectory.locate(timestep)]

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Plan a trajectory; `timesteps` then has an entry for every call of the model.

        Args:
            num_inference_steps: in [1, T]; samplers of order 2 make nearly twice as many calls.
            device: where `timesteps` is put. Nothing else is.

        Raises:
            ValueError: a number of steps, or a first timestep, that the sampler cannot use.
        """
        plan = self._how.make_plan(self.alphas_cumprod, num_inference_steps, self.config)
        if math.isinf(plan.sigmas[0]) and self.config.prediction_type == "epsilon":
            raise ValueError(
                "prediction_type epsilon says nothing where no signal is left (rescale_betas_zero_snr); "
                "such a schedule needs v_prediction or sample"
            )
        self.num_inference_steps = num_inference_steps
        self._plan = plan
        timesteps = torch.tensor(plan.timesteps, dtype=torch.int64 if plan.whole else torch.float32)
        self._trajectory = Trajectory(timesteps, list(plan.sigmas), device)

    def scale_model_input(self, sample: Tensor, timestep: Tensor | float | None = None) -> Tensor:
        """The sample as the model has to be shown it: of unit variance."""
        if not self._how.exploding:
            return sample
        return sample * (1 / math.hypot(self._trajectory.levels[self._trajectory.locate(timestep)], 1))

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor | float,
        sample: Tensor,
        *,
        eta: float = 0.0,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor, Tensor]:
        """Take the sample one call further.

        Args:
            model_output: (B, C, H, W), or (B, 2C, H, W) of a model with learned variance.
            timestep: the entry of `timesteps` that the model was told.
            sample: what the model was shown, before `scale_model_input`, (B, C, H, W).
            eta: share of fresh noise in [0, 1], for ddim (Song et al. 2020) and tcd (its gamma).
            generator: of the fresh noise, one or a list with one per image.
            return_dict: return a `SchedulerOutput`, not a tuple.

        Returns:
            (prev_sample, pred_original_sample), in the dtype of `sample`; computed in float32 at least.

        Raises:
            ValueError: `set_timesteps` was not called, the shapes do not fit, or eta lies outside [0, 1].
        """
        if self._plan is None:
            raise ValueError("call set_timesteps before step")
        if not 0 <= eta <= 1:
            raise ValueError(f"eta must lie in [0, 1], got {eta}")
        index = self._trajectory.locate(timestep)
        wide = sample.to(torch.promote_types(sample.dtype, torch.float32))
        output, variance = without_variance(model_output.to(wide.dtype), sample, self.config.variance_type)
        original = pred_original_sample(output, wide, self._plan.alpha_bars[index], self._how, self.config)
        noisy = self._how.takes_noise(index, self._plan, eta)
        moment = Moment(
            index=index,
            sample=wide,
            model_output=output,
            pred_original_sample=original,
            plan=self._plan,
            config=self.config,
            memory=self._trajectory.memory,
            noise=noise_like(wide, generator) if noisy else None,
            eta=eta,
            predicted_variance=variance,
        )
        stepped, memory = self._how.step(moment)
        self._trajectory.advance(index, memory)
        result = (stepped.to(sample.dtype), original.to(sample.dtype))
        return SchedulerOutput(*result) if return_dict else result

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Noise clean samples as this sampler's trajectories have them, to begin one from an image.

        Args:
            original_samples: (B, C, H, W).
            noise: standard normal, the same shape.
            timesteps: (B,), entries of `timesteps`; for ddpm, ddim, pndm, lcm and tcd any in [0, T).

        Returns:
            (B, C, H, W): samples plus sigma times noise where the sampler is variance exploding, else of unit variance.
            (Training uses `sdcli.components.schedule.add_noise`, which is the latter for every timestep.)

        Raises:
            ValueError: a timestep is not in the plan.
        """
        if self._how.on_timesteps:
            return schedule.add_noise(original_samples, noise, timesteps, self.alphas_cumprod)
        sigmas = torch.tensor(self._trajectory.levels_of(timesteps), dtype=torch.float64)
        spread = sigmas.to(original_samples).reshape(-1, *[1] * (original_samples.dim() - 1))
        noisy = original_samples + spread * noise
        return noisy if self._how.exploding else noisy / (spread**2 + 1) ** 0.5

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The target of v-prediction at training timesteps: `sdcli.components.schedule.velocity`."""
        return schedule.velocity(sample, noise, timesteps.long(), self.alphas_cumprod)


def noise_like(sample: Tensor, generator: Generators) -> Tensor:
    """Standard normal noise, float32 whatever the precision, image i from generator i alone.

    Raises:
        ValueError: as many generators as images are needed, or one.
    """
    if isinstance(generator, list) and len(generator) != len(sample):
        raise ValueError(f"one generator per image is needed: {len(generator)} for a batch of {len(sample)}")
    return randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=torch.float32)
