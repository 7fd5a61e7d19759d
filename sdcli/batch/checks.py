"""What can be wrong with pictures and is seen before any weights are read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from sdcli.checkpoints import load_component, stock
from sdcli.checkpoints.folder import scheduler_changes
from sdcli.clip_models import find_with_tower, require_tower
from sdcli.components.foreign_scheduler import ForeignScheduler, make_scheduler
from sdcli.components.scheduler import Scheduler
from sdcli.errors import SdcliError
from sdcli.foreign import check_settings, is_foreign
from sdcli.model_config import inpaints
from sdcli.output import Picture
from sdcli.registry import ModelSpec
from sdcli.run_settings import RunSettings
from sdcli.settings import GenerateSettings

ETA_SAMPLERS = ("ddim", "tcd")
Choice = tuple[tuple[str, str], ...]  # what settings change in the scheduler's configuration
Schedulers = dict[Choice, Scheduler | ForeignScheduler]


def check_pictures(pictures: Sequence[Picture], model: ModelSpec, how: RunSettings) -> Schedulers:
    """See that a model takes what its pictures ask for.

    Returns:
        The scheduler of every choice of sampler and schedule; none for a model of another family.

    Raises:
        SdcliError: it does not.
    """
    if is_foreign(model, stock.PIPELINES):
        check_foreign(pictures, model, how)
        check_contests(pictures, model, how)
        return {}
    schedulers = check_schedulers(pictures, model)
    check_clip_guidance(pictures, model, how, schedulers)
    check_contests(pictures, model, how)
    if inpaints(model.path, model.allow_pickle) and any(picture.settings.mask is None for picture in pictures):
        hint = "add --init-image FILE --mask FILE, or take the plain model of the family"
        raise SdcliError(f"{model.name} is for inpainting, and needs a picture and a mask", hint=hint)
    return schedulers


def check_foreign(pictures: Sequence[Picture], model: ModelSpec, how: RunSettings) -> None:
    """Refuse what a model of another family does not take.

    Raises:
        SdcliError: a setting or a flag has no counterpart there.
    """
    asked = {
        "save-steps": any(each.steps_path for each in pictures),
        "save-latents": how.save_latents,
        "preview": how.preview,
        "compile": how.compile,
        "tile-vae": how.tile_vae,
        "offload": how.offload != "none",
    }
    for flag, value in asked.items():
        if value:
            raise SdcliError(f"--{flag} does not go with {model.name}", hint="leave it out")
    for picture in pictures:
        check_settings(picture.settings, model)


def check_clip_guidance(
    pictures: Sequence[Picture], model: ModelSpec, how: RunSettings, schedulers: Schedulers
) -> None:
    """Refuse a gradient to follow where nothing has one.

    Raises:
        SdcliError: a model has no CLIP, networks are to leave the GPU, or a scheduler's noise is not known.
    """
    guided = [picture.settings for picture in pictures if picture.settings.clip_guidance > 0]
    if guided and how.offload != "none":
        raise SdcliError("--offload does not go with --clip-guidance", hint="leave one of them out")
    for name in dict.fromkeys(each.clip_model for each in guided):
        find_clip(name, model)
    for choice in dict.fromkeys(map(scheduler_choice, guided)):
        scheduler = schedulers[choice]
        try:
            scheduler.signal_left(scheduler.timesteps[0])
        except ValueError as error:
            raise SdcliError(str(error), hint="try another --sampler") from error


def check_contests(pictures: Sequence[Picture], model: ModelSpec, how: RunSettings) -> None:
    """Refuse to rank pictures where nobody can.

    Raises:
        SdcliError: a model has no CLIP.
    """
    ranked = [picture.settings for picture in pictures if picture.contest is not None]
    for name in dict.fromkeys(how.clip_model or each.clip_model for each in ranked):
        find_clip(name, model)


def find_clip(name: str | None, model: ModelSpec) -> ModelSpec:
    """The model whose CLIP is meant by a name; None is the one in hand.

    Raises:
        SdcliError: it has none; the hint says which have one.
    """
    try:
        return require_tower(model) if name is None else find_with_tower(name)
    except SdcliError as error:
        raise SdcliError(str(error), hint=f"--clip-model names another; {error.hint}") from error


def scheduler_choice(settings: GenerateSettings) -> Choice:
    """What decides the scheduler."""
    return tuple(sorted(scheduler_changes(settings).items()))


def check_schedulers(pictures: Iterable[Picture], model: ModelSpec) -> Schedulers:
    """The scheduler of every choice of sampler and schedule.

    Raises:
        SdcliError: a sampler does not take the schedule, the number of steps, eta, or this model.
    """
    config = load_component(model.path, "scheduler", allow_pickle=model.allow_pickle).config
    schedulers: Schedulers = {}
    every = {
        (scheduler_choice(each.settings), each.settings.num_inference_steps, each.settings.eta) for each in pictures
    }
    for choice, num_inference_steps, eta in every:
        try:
            scheduler = schedulers.get(choice) or make_scheduler(config, dict(choice))
            scheduler.set_timesteps(num_inference_steps)
        except ValueError as error:
            raise SdcliError(str(error), hint="try another --sampler, --schedule or --steps") from error
        if eta and scheduler.sampler not in ETA_SAMPLERS:
            hint = f"leave it out, or take --sampler {' or '.join(ETA_SAMPLERS)}"
            raise SdcliError(f"--eta means nothing to the sampler {scheduler.sampler}", hint=hint)
        schedulers[choice] = scheduler
    return schedulers


def resolved(settings: GenerateSettings, schedulers: Schedulers) -> GenerateSettings:
    """Settings with what the scheduler really does; of another family they stay, for its choices have no names."""
    scheduler = schedulers.get(scheduler_choice(settings))
    if scheduler is None:
        return settings
    return replace(
        settings,
        sampler=scheduler.sampler,
        schedule=scheduler.sigma_schedule,
        prediction_type=scheduler.config.get("prediction_type"),
        timestep_spacing=scheduler.config.get("timestep_spacing"),
    )
