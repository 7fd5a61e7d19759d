"""A scheduler class of diffusers, or one that is called alike, in the place of ours."""

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdcli.components.scheduler import Generators, Scheduler

TINY = 1e-12  # stands for no signal at all
METHODS = ("set_timesteps", "step", "scale_model_input", "add_noise")


class ForeignScheduler:
    """A scheduler as the pipeline uses it, whatever of that it does not know.

    Args:
        name: package.module.Class.
        scheduler: the instance.
    """

    sigma_schedule = None  # its own

    def __init__(self, name: str, scheduler: Any):
        self.sampler = name
        self.scheduler = scheduler
        self._step_takes = inspect.signature(scheduler.step).parameters

    @property
    def config(self) -> Mapping[str, Any]:
        """Its configuration."""
        return self.scheduler.config

    @property
    def timesteps(self) -> Tensor:
        """What the model has to be told, one per call, falling."""
        return self.scheduler.timesteps

    @property
    def init_noise_sigma(self) -> float:
        """What standard normal noise has to be multiplied by to begin a trajectory."""
        return float(getattr(self.scheduler, "init_noise_sigma", 1.0))

    @property
    def order(self) -> int:
        """Evaluations of the model per step."""
        return getattr(self.scheduler, "order", 1)

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Plan a trajectory."""
        self.scheduler.set_timesteps(num_inference_steps, device=device)

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin at a later call, where it can be told."""
        if hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(begin_index)

    def scale_model_input(self, sample: Tensor, timestep: Tensor) -> Tensor:
        """The sample as the model has to be shown it."""
        return self.scheduler.scale_model_input(sample, timestep)

    def signal_left(self, timestep: Tensor | float) -> float:
        """Signal variance left in the sample that the model is shown at this timestep; alpha-bar.

        Raises:
            ValueError: its noise schedule cannot be told.
        """
        if (table := getattr(self.scheduler, "alphas_cumprod", None)) is None:
            raise ValueError(f"{self.sampler} has no alphas_cumprod, which guidance by a gradient needs")
        signal = np.maximum(table.double().numpy(force=True), TINY)
        noise_to_signal = np.log((1 - signal) / signal)
        return float(1 / (1 + np.exp(np.interp(float(timestep), np.arange(len(signal)), noise_to_signal))))

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Noise clean samples, to begin from an image."""
        return self.scheduler.add_noise(original_samples, noise, timesteps)

    def step(self, model_output: Tensor, timestep: Tensor, sample: Tensor, *, eta: float, generator: Generators) -> Any:
        """Take the sample one call further; eta and generator are told where it takes them."""
        offered = {"eta": eta, "generator": generator}
        return self.scheduler.step(
            model_output, timestep, sample, **{key: offered[key] for key in offered.keys() & self._step_takes.keys()}
        )


def make_scheduler(config: Mapping[str, Any], changes: Mapping[str, str] | None = None) -> Scheduler | ForeignScheduler:
    """The scheduler of a configuration, with changes.

    Args:
        config: what a scheduler_config.json says, or `scheduler.config`.
        changes: arguments of `Scheduler.from_config`; a sampler may be package.module.Class.

    Raises:
        ValueError: there is no such class, or the values do not go together.
    """
    changes = dict(changes or {})
    if "." not in changes.get("sampler", ""):
        return Scheduler.from_config(dict(config), **changes)
    name = changes.pop("sampler")
    if "sigma_schedule" in changes:
        raise ValueError(f"a schedule goes with samplers of our own, and not with {name}")
    module, _, kind = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), kind)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"there is no sampler {name}: {error}") from error
    if not isinstance(found, type) or not all(hasattr(found, method) for method in (*METHODS, "from_config")):
        raise ValueError(f"{name} is no scheduler: it lacks one of {', '.join(METHODS)}")
    stock = Scheduler.from_config(dict(config)).stock_config()
    return ForeignScheduler(name, found.from_config({**stock, **changes}))
