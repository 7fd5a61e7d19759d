"""Which configurations a sampler can follow."""

import difflib
from typing import Any

from sdcli.components.samplers import SAMPLERS, Sampler
from sdcli.components.samplers.markov import VARIANCE_TYPES
from sdcli.components.samplers.spacing import SIGMA_SCHEDULES, TIMESTEP_SPACINGS
from sdcli.components.schedule import PREDICTION_TYPES


def sampler_named(name: str) -> Sampler:
    """The table's entry.

    Raises:
        ValueError: no sampler has that name.
    """
    if name in SAMPLERS:
        return SAMPLERS[name]
    near = difflib.get_close_matches(name, SAMPLERS, n=1)
    question = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"unknown sampler {name!r}{question} known: {', '.join(SAMPLERS)}")


def check(config: Any) -> None:
    """Refuse what a sampler cannot follow.

    Args:
        config: of the scheduler, complete.

    Raises:
        ValueError: naming the value, and what is allowed.
    """
    sampler = sampler_named(config.sampler)
    _one_of("sigma_schedule", config.sigma_schedule, SIGMA_SCHEDULES)
    _one_of("timestep_spacing", config.timestep_spacing, TIMESTEP_SPACINGS)
    _one_of("prediction_type", config.prediction_type, PREDICTION_TYPES)
    _one_of("final_sigmas_type", config.final_sigmas_type, ("zero", "sigma_min"))
    _one_of("variance_type", config.variance_type, VARIANCE_TYPES)
    if sampler.solver_orders:
        _one_of(f"solver_order of sampler {config.sampler}", config.solver_order, sampler.solver_orders)
    if sampler.solver_types:
        _one_of(f"solver_type of sampler {config.sampler}", config.solver_type, sampler.solver_types)
    if config.num_train_timesteps < 1:
        raise ValueError(f"num_train_timesteps must be positive, got {config.num_train_timesteps}")
    if config.trained_betas is not None and len(config.trained_betas) != config.num_train_timesteps:
        raise ValueError(
            f"trained_betas must have num_train_timesteps = {config.num_train_timesteps} numbers, "
            f"got {len(config.trained_betas)}"
        )
    if config.sigma_schedule != "normal" and not sampler.sigma_schedules:
        able = ", ".join(name for name, other in SAMPLERS.items() if other.sigma_schedules)
        raise ValueError(
            f"sampler {config.sampler} has no sigma_schedule {config.sigma_schedule!r}; only 'normal'. "
            f"Samplers with others: {able}"
        )
    if config.sampler == "pndm" and config.prediction_type == "sample":
        raise ValueError("sampler pndm combines noise predictions: prediction_type must not be 'sample'")
    abrupt = not config.lower_order_final and config.final_sigmas_type == "zero" and config.solver_order != 1
    if config.sampler == "unipc" and abrupt:
        raise ValueError(
            "sampler unipc cannot reach sigma 0 with lower_order_final = False; it needs final_sigmas_type 'sigma_min'"
        )


def _one_of(name: str, value: Any, allowed: tuple) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(str, allowed))}, got {value!r}")
