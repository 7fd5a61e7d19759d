"""Noise schedules by name or of models, and the timesteps that a sampler visits on them. T training timesteps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdcli.checkpoints import load_component
from sdcli.components.schedule import BETA_SCHEDULES, alphas_cumprod, make_betas, rescale_zero_terminal_snr
from sdcli.components.scheduler import Scheduler
from sdcli.errors import SdcliError
from sdcli.registry import find_loadable
from sdcli.settings import did_you_mean

SHORT = {"cosine": "squaredcos_cap_v2"}  # what everybody calls it


@dataclass(frozen=True, kw_only=True)
class Range:
    """What a schedule by name needs beside its name; those of models say it themselves."""

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012

    def __post_init__(self) -> None:
        if not 2 <= self.num_train_timesteps <= 100_000:
            message = f"--num-train-timesteps must be from 2 to 100000, got {self.num_train_timesteps}"
            raise SdcliError(message, hint="1000 is usual")
        if not 0 < self.beta_start <= self.beta_end < 1:
            message = f"--beta-start {self.beta_start} and --beta-end {self.beta_end} do not rise between 0 and 1"
            raise SdcliError(message, hint="Stable Diffusion's are 0.00085 and 0.012, those of DDPM 0.0001 and 0.02")


def betas_of(name: str, about: Range, models_file: Path | None = None) -> Tensor:
    """Noise variance that each step adds, (T,), of a schedule or of a model's scheduler.

    Raises:
        SdcliError: nothing goes by that name.
    """
    kind = SHORT.get(name, name)
    if kind in BETA_SCHEDULES:
        return make_betas(kind, about.num_train_timesteps, about.beta_start, about.beta_end)
    try:
        model = find_loadable(name, models_file)
    except SdcliError as error:
        known = (*BETA_SCHEDULES, *SHORT)
        hint = f"schedules: {did_you_mean(name, known)}; `sdcli models list` shows models"
        raise SdcliError(f"{name!r} is neither a noise schedule nor a model", hint=hint) from error
    return load_component(model.path, "scheduler").betas


def without_signal_at_the_end(betas: Tensor) -> Tensor | None:
    """The schedule shifted and stretched to zero terminal SNR, (T,); None where it is so already."""
    return None if float(alphas_cumprod(betas)[-1]) == 0 else rescale_zero_terminal_snr(betas)


def figures_of(betas: Tensor) -> dict[str, Any]:
    """What is left of the signal at the end, and where there is as much noise as signal, as JSON types."""
    left = alphas_cumprod(betas.double())
    noisier = (left < 0.5).nonzero()
    return {
        "num_train_timesteps": len(betas),
        "last_alpha_bar": float(left[-1]),
        "equal_at": int(noisier[0]) if len(noisier) else None,  # first timestep with more noise than signal
    }


def visited(betas: Tensor, steps: int, sampler: str, schedule: str | None, spacing: str | None) -> list[float]:
    """The timesteps that a sampler calls the model at, from noisy to clean.

    Args:
        betas: (T,).
        steps: of the sampler, in [1, T].
        sampler: a name of ours.
        schedule: of its sigmas; None places them as the timesteps are.
        spacing: of the timesteps; None is leading.

    Raises:
        SdcliError: the number of steps or the combination does not fit.
    """
    if not 1 <= steps <= len(betas):
        raise SdcliError(f"--steps {steps} does not fit a schedule of {len(betas)}", hint=f"from 1 to {len(betas)}")
    try:
        scheduler = Scheduler(
            num_train_timesteps=len(betas),
            trained_betas=torch.as_tensor(betas).tolist(),
            prediction_type="v_prediction",  # the one that can begin where no signal is left
            sampler=sampler,
            sigma_schedule=schedule or "normal",
            timestep_spacing=spacing or "leading",
        )
        scheduler.set_timesteps(steps)
    except ValueError as error:
        raise SdcliError(f"{sampler}: {error}", hint="try another --sampler, --schedule or --spacing") from error
    return scheduler.timesteps.tolist()
