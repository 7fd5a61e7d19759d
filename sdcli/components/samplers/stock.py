"""Between our scheduler's configuration and the scheduler_config.json of diffusers' classes.

Knows which keys each stock class has, what they are when a file leaves them out, and which values we do not implement.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import __version__
from torch import Tensor

from sdcli.components.samplers import SAMPLERS
from sdcli.components.samplers.plans import with_some_signal

CLASS_NAME = "Scheduler"
NO_LIMIT = -math.inf

# Keys of every stock class here.
_NOISE = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
    "timestep_spacing",
    "steps_offset",
)
_SIGMAS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
_THRESHOLD = ("thresholding", "dynamic_thresholding_ratio", "sample_max_value")
_CLIP = ("clip_sample", "clip_sample_range")
_SOLVER = ("solver_order", "solver_type", "lower_order_final", *_SIGMAS, *_THRESHOLD)
_CONSISTENCY = ("original_inference_steps", "set_alpha_to_one", "timestep_scaling", "rescale_betas_zero_snr")

STOCK_KEYS: dict[str, tuple[str, ...]] = {
    "ddpm": (*_NOISE, *_CLIP, *_THRESHOLD, "variance_type", "rescale_betas_zero_snr"),
    "ddim": (*_NOISE, *_CLIP, *_THRESHOLD, "set_alpha_to_one", "rescale_betas_zero_snr"),
    "pndm": (*_NOISE, "skip_prk_steps", "set_alpha_to_one"),
    "lms": (*_NOISE, *_SIGMAS),
    "euler": (*_NOISE, *_SIGMAS, "sigma_min", "sigma_max", "final_sigmas_type", "rescale_betas_zero_snr"),
    "euler_a": (*_NOISE, "rescale_betas_zero_snr"),
    "heun": (*_NOISE, *_SIGMAS, *_CLIP),
    "dpm2": (*_NOISE, *_SIGMAS),
    "dpm2_a": (*_NOISE, *_SIGMAS),
    "dpmpp_sde": (*_NOISE, *_SIGMAS),
    "dpmpp": (
        *_NOISE,
        *_SOLVER,
        "algorithm_type",
        "euler_at_final",
        "final_sigmas_type",
        "lambda_min_clipped",
        "variance_type",
        "rescale_betas_zero_snr",
    ),
    "unipc": (
        *_NOISE,
        *_SOLVER,
        "disable_corrector",
        "final_sigmas_type",
        "rescale_betas_zero_snr",
        "sigma_min",
        "sigma_max",
    ),
    "deis": (*_NOISE, *_SOLVER, "algorithm_type"),
    "lcm": (*_NOISE, *_CLIP, *_THRESHOLD, *_CONSISTENCY),
    "tcd": (*_NOISE, *_CLIP, *_THRESHOLD, *_CONSISTENCY),
    # Those of its nearest class, which samples as that does, and our name, by which we know it again.
    "langevin": (*_NOISE, *_CLIP, *_THRESHOLD, "variance_type", "rescale_betas_zero_snr", "sampler"),
}

# Keys that we implement at one value only.
_FLOW = {"use_flow_sigmas": False, "use_dynamic_shifting": False}
ONLY_VALUE: dict[str, dict[str, Any]] = {
    "euler": {"interpolation_type": "linear", "timestep_type": "discrete"},
    "dpmpp_sde": {"noise_sampler_seed": None},
    "dpmpp": {**_FLOW, "use_lu_lambdas": False},
    "unipc": {**_FLOW, "predict_x0": True, "solver_p": None, "shift_terminal": None},
    "deis": _FLOW,
}
# Keys without effect while those above have their one value.
_IDLE_FLOW = {"flow_shift": 1.0, "time_shift_type": "exponential"}
IDLE: dict[str, dict[str, Any]] = {"dpmpp": _IDLE_FLOW, "unipc": _IDLE_FLOW, "deis": _IDLE_FLOW}

# What our constructor takes, at the value that stock classes use where a file leaves the key out.
_DEFAULTS: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "rescale_betas_zero_snr": False,
    "prediction_type": "epsilon",
    "timestep_spacing": "linspace",
    "steps_offset": 0,
    "sigma_min": None,
    "sigma_max": None,
    "final_sigmas_type": "zero",
    "lambda_min_clipped": NO_LIMIT,
    "solver_order": None,
    "solver_type": None,
    "lower_order_final": True,
    "euler_at_final": False,
    "disable_corrector": None,
    "variance_type": None,
    "clip_sample": False,
    "clip_sample_range": 1.0,
    "thresholding": False,
    "dynamic_thresholding_ratio": 0.995,
    "sample_max_value": 1.0,
    "set_alpha_to_one": True,
    "skip_prk_steps": False,
    "original_inference_steps": 50,
    "timestep_scaling": 10.0,
}
_STABLE_DIFFUSION_BETAS = {"beta_start": 0.00085, "beta_end": 0.012}
_CONSISTENCY_DEFAULTS = {**_STABLE_DIFFUSION_BETAS, "beta_schedule": "scaled_linear", "timestep_spacing": "leading"}
_OWN_DEFAULTS: dict[str, dict[str, Any]] = {
    "ddpm": {"timestep_spacing": "leading", "clip_sample": True, "variance_type": "fixed_small"},
    "ddim": {"timestep_spacing": "leading", "clip_sample": True},
    "pndm": {"timestep_spacing": "leading", "set_alpha_to_one": False},
    "heun": _STABLE_DIFFUSION_BETAS,
    "dpm2": _STABLE_DIFFUSION_BETAS,
    "dpm2_a": _STABLE_DIFFUSION_BETAS,
    "dpmpp_sde": _STABLE_DIFFUSION_BETAS,
    "lcm": _CONSISTENCY_DEFAULTS,
    "tcd": _CONSISTENCY_DEFAULTS,
}

# Stock classes with the same noise schedules whose way of sampling we do not have.
OTHER_CLASSES = ("DPMSolverSinglestepScheduler",)
_SIGMA_FLAGS = {"karras": "use_karras_sigmas", "exponential": "use_exponential_sigmas", "beta": "use_beta_sigmas"}
_ALGORITHM_OF = {"dpmpp_2m": "dpmsolver++", "dpmpp_2m_sde": "sde-dpmsolver++", "dpmpp_3m_sde": "sde-dpmsolver++"}
_ALL_SOLVER_TYPES = {name for sampler in SAMPLERS.values() for name in sampler.solver_types}


def family(sampler: str) -> str:
    """The key of a sampler in the tables above: the three of DPMSolverMultistepScheduler share one."""
    return "dpmpp" if sampler in _ALGORITHM_OF else sampler


def sampler_of(class_name: str, config: Mapping[str, Any]) -> str:
    """Our name for what a stock class would do with a configuration.

    Raises:
        ValueError: a class, or an algorithm of DPMSolverMultistepScheduler, that we do not have.
    """
    counterparts = {name: sampler for name, sampler in SAMPLERS.items() if not sampler.without_counterpart}
    names = [name for name, sampler in counterparts.items() if sampler.stock_class == class_name]
    if not names:
        known = ", ".join(sorted({sampler.stock_class for sampler in counterparts.values()}))
        hint = "; give a sampler to use its noise schedule with" if class_name in OTHER_CLASSES else ""
        raise ValueError(f"no sampler for scheduler class {class_name!r}{hint}; known: {known}")
    if len(names) == 1:
        return names[0]
    algorithm = config.get("algorithm_type", "dpmsolver++")
    if algorithm in ("dpmsolver++", "deis"):  # diffusers too takes deis, from that class's file, for dpmsolver++
        return "dpmpp_2m"
    if algorithm == "sde-dpmsolver++":
        return "dpmpp_3m_sde" if config.get("solver_order") == 3 else "dpmpp_2m_sde"
    raise ValueError(f"algorithm_type must be dpmsolver++ or sde-dpmsolver++, got {algorithm!r}")


def refuse_unknown_values(sampler: str, config: Mapping[str, Any]) -> None:
    """Refuse what would change the result in the stock class and is not implemented here.

    Raises:
        ValueError: naming the key and its value.
    """
    for key, value in {**_FLOW, **ONLY_VALUE.get(family(sampler), {})}.items():
        if config.get(key, value) != value:
            raise ValueError(f"{key} = {config[key]!r} is not supported with sampler {sampler}; only {value!r} is")


def sigma_schedule_of(config: Mapping[str, Any]) -> str:
    """Our name for the sigma schedule that a stock configuration asks for.

    Raises:
        ValueError: it asks for more than one.
    """
    asked = [name for name, flag in _SIGMA_FLAGS.items() if config.get(flag)]
    if len(asked) > 1:
        raise ValueError(f"only one sigma schedule can be used, got {', '.join(_SIGMA_FLAGS[name] for name in asked)}")
    return asked[0] if asked else "normal"


def constructor_arguments(
    config: Mapping[str, Any], sampler: str | None, sigma_schedule: str | None
) -> tuple[dict[str, Any], list[str]]:
    """Turn a configuration, of a stock class or ours, into arguments of our constructor.

    Args:
        config: what a scheduler_config.json says, or `scheduler.config`.
        sampler: our name of the sampler to use instead of the configuration's, or None.
        sigma_schedule: the sigma schedule to use instead, or None.

    Returns:
        The arguments, and the names of those that the configuration left to their default.

    Raises:
        ValueError: an unknown class or sampler, or a value that changes the result and is not implemented.
    """
    # diffusers leaves the defaults of one class behind when it makes another from its configuration.
    left_to_default = set(config.get("_use_default_values") or ())
    given = {key: value for key, value in config.items() if key not in left_to_default and not key.startswith("_")}
    class_name = config.get("_class_name")
    ours = class_name == CLASS_NAME or "sampler" in given
    if ours:
        own_sampler = given["sampler"]
    elif sampler is not None and (class_name is None or class_name in OTHER_CLASSES):
        own_sampler = sampler
    else:
        own_sampler = sampler_of(str(class_name), given)
    name = sampler or own_sampler
    if name not in SAMPLERS:
        raise ValueError(f"unknown sampler {name!r}; known: {', '.join(SAMPLERS)}")
    refuse_unknown_values(name, given)

    defaults = {**_DEFAULTS, **_OWN_DEFAULTS.get(name, {})}
    arguments = {key: given.get(key, default) for key, default in defaults.items()}
    arguments["sampler"] = name
    asked = given.get("sigma_schedule", "normal") if ours else sigma_schedule_of(given)
    # A stock class that has no sigma schedules ignores the keys; one that is asked for by name is never ignored.
    arguments["sigma_schedule"] = sigma_schedule or (asked if SAMPLERS[name].sigma_schedules else "normal")
    if sampler in _ALGORITHM_OF:
        arguments["solver_order"] = None  # the name that was asked for says the order
    if arguments["solver_type"] not in SAMPLERS[name].solver_types and arguments["solver_type"] in _ALL_SOLVER_TYPES:
        arguments["solver_type"] = None  # that of another family, which diffusers also replaces
    return arguments, sorted(set(defaults) - set(given))


def finite_betas(alphas_cumprod: Tensor) -> list[float]:
    """Betas of a noise schedule, leaving a little signal at its end where it leaves none."""
    signal = with_some_signal(alphas_cumprod).double()
    return (1 - torch.cat([signal[:1], signal[1:] / signal[:-1]])).tolist()


def stock_config(config: Mapping[str, Any], alphas_cumprod: Tensor) -> dict[str, Any]:
    """What a scheduler_config.json of the stock class would say to sample like a scheduler of ours.

    Args:
        config: ours, complete.
        alphas_cumprod: the noise schedule, which is written out where the stock class has no name for it.
    """
    sampler = config["sampler"]
    key = family(sampler)
    translated: dict[str, Any] = {
        **{flag: config["sigma_schedule"] == name for name, flag in _SIGMA_FLAGS.items()},
        "algorithm_type": _ALGORITHM_OF.get(sampler, "deis"),
        "solver_order": config["solver_order"] or 2,
        "disable_corrector": list(config["disable_corrector"] or ()),
    }
    if key == "dpmpp" and not str(config["variance_type"]).startswith("learned"):
        translated["variance_type"] = None
    if key == "ddpm":
        translated["variance_type"] = config["variance_type"] or "fixed_small"
    nameless_betas = config["beta_schedule"] == "sigmoid" and sampler != "ddpm"
    nameless_rescale = config["rescale_betas_zero_snr"] and "rescale_betas_zero_snr" not in STOCK_KEYS[key]
    if nameless_betas or nameless_rescale:
        translated |= {
            "trained_betas": finite_betas(alphas_cumprod),
            "beta_schedule": "linear",
            "rescale_betas_zero_snr": False,
        }
    values = {name: translated.get(name, config.get(name)) for name in STOCK_KEYS[key]}
    return {
        "_class_name": SAMPLERS[sampler].stock_class,
        "_diffusers_version": __version__,
        **values,
        **ONLY_VALUE.get(key, {}),
        **IDLE.get(key, {}),
    }
