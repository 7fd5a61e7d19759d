"""Many settings to many picture files with one model load. Tells what happens by events, prints nothing.

A picture depends on its own settings and seed alone: all its noise comes from its own CPU generator, and on the CPU
each picture goes through the networks alone, so that it is the same, bit for bit, whatever else the run makes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice
from pathlib import Path

import torch

from sdcli.checkpoints import load_component
from sdcli.checkpoints.fingerprints import Fingerprints
from sdcli.checkpoints.folder import scheduler_changes
from sdcli.components.foreign_scheduler import ForeignScheduler, make_scheduler
from sdcli.components.scheduler import Scheduler
from sdcli.device import Placement, explain_out_of_memory
from sdcli.drawing import Easel, ForeignEasel
from sdcli.errors import SdcliError
from sdcli.foreign import check_settings
from sdcli.images import SUFFIXES, encode_animation, encode_image, make_strip, to_image
from sdcli.metadata import Provenance, text_blocks
from sdcli.output import Picture, write_result
from sdcli.pipeline import SdPipeline
from sdcli.preview import Preview
from sdcli.registry import ModelSpec, inpaints
from sdcli.settings import GenerateSettings
from sdcli.workbench import Workbench

GROUP_PIXELS = 4 * 512 * 512  # computed together on a GPU: four pictures of Stable Diffusion 1's size
LARGEST_GROUP = 16
ETA_SAMPLERS = ("ddim", "tcd")
STRIP_LENGTH = 10  # pictures in a strip of steps; an animation shows all of them


@dataclass(frozen=True)
class Loaded:
    """The model is ready."""

    model: str
    device: str
    precision: str
    elapsed_s: float


@dataclass(frozen=True)
class Stepped:
    """One denoising step is done, of `pictures` pictures at once; `step` counts from 1."""

    index: int
    pictures: int
    step: int
    steps: int


@dataclass(frozen=True)
class Made:
    """A picture is on disk, at a path that may have got a number; its settings are the resolved ones."""

    picture: Picture
    elapsed_s: float


@dataclass(frozen=True)
class Warned:
    """Something that the user should know."""

    message: str


Event = Loaded | Stepped | Made | Warned
Report = Callable[[Event], None]


def run(
    pictures: Sequence[Picture],
    model: ModelSpec,
    placement: Placement,
    report: Report,
    if_exists: str = "error",
    lenient: bool = False,
    preview: tuple[str, str | None] | None = None,
) -> None:
    """Make pictures and write each as soon as it is done.

    Args:
        pictures: what to make.
        model: with what.
        placement: where.
        report: told of every event, in this thread.
        if_exists: what to do if a file has appeared since names were chosen.
        lenient: take what fits of a LoRA that does not fit the model in every layer, and warn.
        preview: file to rewrite while a picture is made, and perhaps the folder of a small VAE for it.

    Raises:
        SdcliError: the model does not load or does not take the settings, memory or disk run out, or the networks give
            values that are no numbers. Pictures that were made before are on disk.
    """
    started_at = time.monotonic()
    bench, first = Workbench(model, placement, model.allow_pickle, lenient), True
    if bench.is_foreign:
        schedulers = {}
        check_foreign(pictures, model, preview is not None)
    else:
        schedulers = check_schedulers(pictures, model)
        if inpaints(model.path, model.allow_pickle) and any(picture.settings.mask is None for picture in pictures):
            hint = "add --init-image FILE --mask FILE, or take the plain model of the family"
            raise SdcliError(f"{model.name} is for inpainting, and needs a picture and a mask", hint=hint)
    show = None if preview is None else Preview(Path(preview[0]), preview[1], placement)
    for settings, alike in groupby(pictures, but_for_text_and_seed):
        with explain_out_of_memory(f"while loading {model.name}", "try --precision fp16 or bf16, or a smaller model"):
            easel = bench.easel(settings)
        for message in bench.warnings():
            report(Warned(message))
        fingerprints = bench.fingerprints(settings)
        if first:
            report(Loaded(model.name, str(placement.device), placement.precision, time.monotonic() - started_at))
        first = False
        if schedulers:
            easel.pipeline.scheduler = schedulers[scheduler_choice(settings)]
        for group in portions(alike, easel, placement):
            for made, contents in make(group, easel, fingerprints, placement, Watch(report, show)):
                paths = {path: write_result(content, path, if_exists) for path, content in contents.items()}
                steps_path = made.picture.steps_path and paths[made.picture.steps_path]
                path = paths[made.picture.path]
                report(replace(made, picture=replace(made.picture, path=path, steps_path=steps_path)))


def check_foreign(pictures: Sequence[Picture], model: ModelSpec, preview: bool) -> None:
    """Refuse what a model of another family does not take, before it is loaded.

    Raises:
        SdcliError: a setting or a file has no counterpart there.
    """
    for flag, asked in (("save-steps", any(each.steps_path for each in pictures)), ("preview", preview)):
        if asked:
            raise SdcliError(f"--{flag} does not go with {model.name}", hint="leave it out")
    for picture in pictures:
        check_settings(picture.settings, model)


Choice = tuple[tuple[str, str], ...]  # what settings change in the scheduler's configuration


def scheduler_choice(settings: GenerateSettings) -> Choice:
    """What decides the scheduler."""
    return tuple(sorted(scheduler_changes(settings).items()))


def check_schedulers(pictures: Sequence[Picture], model: ModelSpec) -> dict[Choice, Scheduler | ForeignScheduler]:
    """The scheduler of every choice of sampler and schedule, before any weights are read.

    Raises:
        SdcliError: a sampler does not take the schedule, the number of steps, eta, or this model.
    """
    config = load_component(model.path, "scheduler", allow_pickle=model.allow_pickle).config
    schedulers: dict[Choice, Scheduler | ForeignScheduler] = {}
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


def but_for_text_and_seed(picture: Picture) -> GenerateSettings:
    """What pictures have in common that can go through the networks together."""
    return replace(picture.settings, prompt="", negative_prompt="", seed=0)


def portions(alike: Iterable[Picture], easel: Easel | ForeignEasel, placement: Placement) -> Iterator[list[Picture]]:
    """Pictures that go through the networks together: one on the CPU, elsewhere those that fit.

    Prompts of a portion have as many chunks, so that none is filled up because of another.
    """
    for _, equal in groupby(alike, lambda picture: easel.count_chunks(picture.settings)):
        equal = iter(equal)
        while first := next(equal, None):
            settings = first.settings
            room = max(1, min(LARGEST_GROUP, GROUP_PIXELS // (settings.width * settings.height)))
            size = 1 if placement.device.type == "cpu" else room
            yield [first, *islice(equal, size - 1)]


@dataclass(frozen=True)
class Watch:
    """Who is told of each step."""

    report: Report
    preview: Preview | None = None


def make(
    group: list[Picture],
    easel: Easel | ForeignEasel,
    fingerprints: Fingerprints,
    placement: Placement,
    watch: Watch,
) -> Iterator[tuple[Made, dict[Path, bytes]]]:
    """Make a group of pictures of equal settings but for text and seed.

    Returns:
        For each picture its event and the content of its files; the settings are those that were really used.
    """
    started_at = time.monotonic()
    settings = group[0].settings
    size = f"{settings.width}x{settings.height}"
    steps: list[torch.Tensor] = []

    def on_step(step: int, total: int, latents: torch.Tensor, pred_original_sample: torch.Tensor | None) -> None:
        seen = latents if pred_original_sample is None else pred_original_sample
        if group[0].steps_path is not None:
            steps.append(seen)
        if watch.preview is not None:
            watch.preview(easel.pipeline, step, seen[0])
        watch.report(Stepped(group[0].index, len(group), step, total))

    with explain_out_of_memory(f"at {size}", "try a smaller --width and --height, or --precision fp16 or bf16"):
        pixel_values = easel.draw([picture.settings for picture in group], on_step)
    for place, picture in enumerate(group):
        settings = easel.resolved(picture.settings)
        made = replace(picture, settings=settings)
        provenance = Provenance(
            model_name=Path(settings.model).name,
            device=str(placement.device),
            precision=placement.precision,
            weights=fingerprints.get(),
            training=fingerprints.training,
        )
        blocks = text_blocks(settings, provenance)
        file_format = SUFFIXES[picture.path.suffix.lower()]
        contents = {picture.path: encode_image(to_image(pixel_values[place]), file_format, blocks)}
        if picture.steps_path is not None:
            contents[picture.steps_path] = draw_steps(
                [step[place] for step in steps], easel.pipeline, picture.steps_path, blocks
            )
        yield Made(made, (time.monotonic() - started_at) / len(group)), contents


def draw_steps(steps: list[torch.Tensor], pipeline: SdPipeline, path: Path, blocks: dict[str, str]) -> bytes:
    """What the model saw in the noise, step by step, (C, h, w) each, as the content of a strip or an animation.

    Some steps of a strip are left out, evenly, so that `STRIP_LENGTH` remain, the last among them.
    """
    animated = path.suffix.lower() == ".gif"
    if not animated and len(steps) > STRIP_LENGTH:
        last = len(steps) - 1
        steps = [steps[round(place * last / (STRIP_LENGTH - 1))] for place in range(STRIP_LENGTH)]
    images = [to_image(pipeline.decode(step[None])) for step in steps]
    return encode_animation(images) if animated else encode_image(make_strip(images), "png", blocks)
