"""Names of samplers and schedules in other programs, and ours for them."""

from __future__ import annotations

import re

# Ours by theirs, in small letters, "++" as pp, with underscores, without the k_ of k-diffusion and the _gpu of
# ComfyUI. What is not here has no counterpart.
SAMPLERS = {
    **{name: name for name in ("ddpm", "ddim", "pndm", "lms", "euler", "euler_a", "heun", "dpm2", "dpm2_a")},
    **{name: name for name in ("dpmpp_2m", "dpmpp_2m_sde", "dpmpp_sde", "dpmpp_3m_sde", "unipc", "deis", "lcm", "tcd")},
    "langevin": "langevin",
    "plms": "pndm",
    "euler_ancestral": "euler_a",
    "dpm_2": "dpm2",
    "dpm_2_a": "dpm2_a",
    "dpm_2_ancestral": "dpm2_a",
    "kdpm_2": "dpm2",
    "kdpm_2_a": "dpm2_a",
    "dpmpp_2": "dpmpp_2m",
    "dpmpp2m": "dpmpp_2m",
    "dpmpp2m_sde": "dpmpp_2m_sde",
    "dpmsolverpp": "dpmpp_2m",
    "uni_pc": "unipc",
    "uni_pc_bh2": "unipc",
    "ddim_trailing": "ddim",
}
SCHEDULES = {
    "normal": "normal",
    "uniform": "normal",
    "discrete": "normal",
    "karras": "karras",
    "exponential": "exponential",
    "beta": "beta",
}
# The schedule is at the end of a sampler's name in A1111 before 1.9, in stable-diffusion.cpp, and as k in InvokeAI.
SUFFIXES = {" karras": "karras", " exponential": "exponential", " discrete": "normal", "_k": "karras"}
# What A1111 1.9 and later mean by Automatic; an empty name leaves it to the sampler.
AUTOMATIC = {
    **dict.fromkeys(("dpmpp_2m", "dpmpp_sde", "dpm2", "dpm2_a"), "karras"),
    **dict.fromkeys(("dpmpp_2m_sde", "dpmpp_3m_sde"), "exponential"),
}
NORMAL_ONLY = ("ddpm", "ddim", "pndm", "euler_a", "lcm", "tcd", "langevin")  # ours that take no other schedule


def plain(name: str) -> str:
    """A name in small letters, with underscores, and free of what programs put around it."""
    name = name.strip().casefold().replace("++", "pp")
    return re.sub(r"^k_|_gpu$", "", re.sub(r"[\s-]+", "_", name))


def translate_sampler(name: str) -> dict[str, str] | None:
    """Our settings for a sampler's name, which may name the schedule as well; None where there is no counterpart."""
    if len(name) > 60:
        return None
    schedule, name = "", name.strip().casefold()
    for suffix, meaning in SUFFIXES.items():
        if name.endswith(suffix):
            schedule, name = meaning, name.removesuffix(suffix)
            break
    sampler = SAMPLERS.get(plain(name))
    if sampler is None or (schedule not in ("", "normal") and sampler in NORMAL_ONLY):
        return None
    found = {"sampler": sampler}
    if schedule:
        found["schedule"] = schedule
    if plain(name) == "ddim_trailing":
        found["timestep_spacing"] = "trailing"
    return found


def translate_schedule(name: str, sampler: str) -> str | None:
    """Our name of a schedule for one of our samplers: empty to leave it open, None where there is no counterpart."""
    if plain(name[:60]) == "automatic":
        return AUTOMATIC.get(sampler, "")
    schedule = SCHEDULES.get(plain(name[:60]))
    return None if schedule not in (None, "normal") and sampler in NORMAL_ONLY else schedule
