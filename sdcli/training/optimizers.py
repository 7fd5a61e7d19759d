"""Optimizers and learning-rate schedules by name. Those that are not PyTorch's or transformers' are optional."""

import importlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from transformers import Adafactor, get_scheduler

from sdcli.errors import SdcliError
from sdcli.training.settings import TrainSettings

Parameters = Iterable[nn.Parameter] | Iterable[dict[str, Any]]  # or groups of them, with settings of their own


def adamw(parameters: Parameters, settings: TrainSettings) -> torch.optim.Optimizer:
    """In one kernel a step, on a CPU too. Loshchilov and Hutter 2017 (arXiv:1711.05101)."""
    return torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True)


def adamw8bit(parameters: Parameters, settings: TrainSettings) -> torch.optim.Optimizer:
    """AdamW with its state in eight bits. Dettmers et al. 2021 (arXiv:2110.02861)."""
    module = optional("bitsandbytes", settings.optimizer)
    return module.optim.AdamW8bit(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)


def adafactor(parameters: Parameters, settings: TrainSettings) -> torch.optim.Optimizer:
    """With the learning rate as given. Shazeer and Stern 2018 (arXiv:1804.04235)."""
    fixed_rate = {"scale_parameter": False, "relative_step": False, "warmup_init": False}
    return Adafactor(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, **fixed_rate)


def prodigy(parameters: Parameters, settings: TrainSettings) -> torch.optim.Optimizer:
    """It finds its own rate, which the given one multiplies, 1 by rule. Mishchenko, Defazio 2023 (arXiv:2306.06101)."""
    module = optional("prodigyopt", settings.optimizer)
    return module.Prodigy(
        parameters,
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        use_bias_correction=True,
        safeguard_warmup=True,
    )


def schedulefree(parameters: Parameters, settings: TrainSettings) -> torch.optim.Optimizer:
    """AdamW that averages as it goes, best with --lr-schedule constant. Defazio et al. 2024 (arXiv:2405.15682)."""
    module = optional("schedulefree", settings.optimizer)
    return module.AdamWScheduleFree(
        parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, warmup_steps=settings.warmup
    )


MAKERS: dict[str, Callable[[Parameters, TrainSettings], torch.optim.Optimizer]] = {
    "adamw": adamw,
    "adamw8bit": adamw8bit,
    "adafactor": adafactor,
    "prodigy": prodigy,
    "schedulefree": schedulefree,
}


def make_optimizer(parameters: Parameters, settings: TrainSettings) -> torch.optim.Optimizer:
    """The optimizer that the settings name.

    Raises:
        SdcliError: its library is not installed.
    """
    return MAKERS[settings.optimizer](list(parameters), settings)


def make_schedule(optimizer: torch.optim.Optimizer, settings: TrainSettings) -> torch.optim.lr_scheduler.LRScheduler:
    """How the learning rate rises and falls, one step per update."""
    return get_scheduler(
        settings.lr_schedule, optimizer, num_warmup_steps=settings.warmup, num_training_steps=settings.steps
    )


def optional(module: str, optimizer: str):
    """A library that few need.

    Raises:
        SdcliError: it is not there.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise SdcliError(
            f"--optimizer {optimizer} needs {module}, which is not installed", hint=f"pip install {module}"
        ) from error
