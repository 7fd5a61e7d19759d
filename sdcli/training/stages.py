"""A whole training: of one part, or of all of them one after the other, each in a run folder within the run folder."""

import contextlib
import dataclasses
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from accelerate import PartialState

from sdcli.data.folder import read_contents
from sdcli.data.shards import is_stream
from sdcli.errors import SdcliError
from sdcli.registry import find_architecture
from sdcli.training import loop
from sdcli.training.assembly import classes_of
from sdcli.training.events import Event, Interrupted
from sdcli.training.processes import join_processes
from sdcli.training.run_folder import RunFolder, finished_steps
from sdcli.training.settings import TrainSettings
from sdcli.training.sharding import asked_split


def train(
    settings: TrainSettings, resume: bool = False, stop: Callable[[], bool] = lambda: False, dry_run: bool = False
) -> Iterator[Event]:
    """Train what the settings name; arguments, events and errors as for `loop.train`."""
    if settings.part != "all":
        yield from loop.train(settings, resume, stop, dry_run)
        return
    folder, stages = RunFolder(Path(settings.output)), stages_of(settings)
    process = join_processes(settings)
    check_classes(settings)
    asked_split(settings)
    if not resume:
        folder.refuse_existing()
        process.wait_for_everyone()
    with contextlib.ExitStack() as held:
        if not dry_run and process.is_main_process:
            if not resume:
                folder.create()
            folder.lock()
            held.callback(folder.unlock)
            folder.write_settings(settings)
        yield from train_stages(stages, folder, settings.model, resume, stop, dry_run)


def train_stages(
    stages: list[TrainSettings],
    folder: RunFolder,
    before: str | None,
    resume: bool,
    stop: Callable[[], bool],
    dry_run: bool,
) -> Iterator[Event]:
    """Train one part after the other; `before` is the model that the first begins from."""
    process = PartialState()
    for number, stage in enumerate(stages, start=1):
        process.wait_for_everyone()
        run, later = RunFolder(Path(stage.output)), [RunFolder(Path(each.output)) for each in stages[number:]]
        begun = resume and run.has_checkpoint()
        # What a later part has been trained on stays as it is; but the image encoder's stage can be made anew.
        anew = [each for each in later if each.path.name == "image_encoder"]
        settled = begun and any(each.has_checkpoint() for each in later if each not in anew)
        if not settled and not (begun and finished_steps(run) >= stage.steps):
            if process.is_main_process and not dry_run:
                # What was killed before its first checkpoint, or is made from what learns on now.
                for each in [*([] if begun else [run]), *anew]:
                    if each.path.exists():
                        shutil.rmtree(each.path)
            process.wait_for_everyone()
            for event in loop.train(dataclasses.replace(stage, model=before), begun, stop, dry_run):
                yield event
                if isinstance(event, Interrupted):
                    return
        if dry_run:
            return
        if process.is_main_process:
            folder.use(run)
        before = stage.output


def stages_of(settings: TrainSettings) -> list[TrainSettings]:
    """The settings of each stage in turn.

    One whose section the architecture leaves out is left out, and the last one where text encoders do not learn.

    Raises:
        SdcliError: the architecture has no section of them.
    """
    sections = STAGES_BY_SECTION if settings.config is None else find_architecture(settings.config)
    names = [name for section, name in STAGES_BY_SECTION.items() if section in sections]
    if not names:
        raise SdcliError(f"{settings.config} has neither a [vae] nor a [text_encoder] nor a [unet]", hint="add one")
    if {"clip", "unet"} <= {*names} and settings.stage("unet").text_encoder_lr:
        names.append("image_encoder")
    return [dataclasses.replace(settings.stage(name), output=str(Path(settings.output) / name)) for name in names]


def check_classes(settings: TrainSettings) -> None:
    """Raise SdcliError now where the UNet's stage would, for the labels of the data: hours may lie before it."""
    architecture = {} if settings.config is None else find_architecture(settings.config)
    room = architecture.get("unet", {}).get("num_class_embeds")
    if room is not None and not is_stream(settings.data):
        examples = read_contents(Path(settings.data), settings.where).examples
        classes_of({example.label for example in examples} - {None}, room)


STAGES_BY_SECTION = {"vae": "vae", "text_encoder": "clip", "unet": "unet"}  # of an architecture
