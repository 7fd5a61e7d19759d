"""A whole training: of one part, or of all of them one after the other, each in a run folder within the run folder."""

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from sdcli.errors import SdcliError
from sdcli.registry import find_architecture
from sdcli.training import loop
from sdcli.training.events import Event, Interrupted
from sdcli.training.run_folder import RunFolder, finished_steps
from sdcli.training.settings import STAGES, TrainSettings


def train(
    settings: TrainSettings, resume: bool = False, stop: Callable[[], bool] = lambda: False, dry_run: bool = False
) -> Iterator[Event]:
    """Train what the settings name; arguments, events and errors as for `loop.train`."""
    if settings.part != "all":
        yield from loop.train(settings, resume, stop, dry_run)
        return
    folder = RunFolder(Path(settings.output))
    if not resume:
        folder.refuse_existing()
    if not dry_run and not resume:
        folder.create()
        folder.write_settings(settings)
    before = settings.model
    for stage in stages_of(settings):
        stage = dataclasses.replace(stage, model=before)
        own = RunFolder(Path(stage.output))
        going_on = resume and own.has_checkpoint()
        if not going_on and own.path.exists():
            shutil.rmtree(own.path)  # killed before its first checkpoint
        if not going_on or finished_steps(own) < stage.steps:
            for event in loop.train(stage, going_on, stop, dry_run):
                yield event
                if isinstance(event, Interrupted):
                    return
        if dry_run:
            return
        folder.use(own)
        before = stage.output


def stages_of(settings: TrainSettings) -> list[TrainSettings]:
    """The settings of each part in turn; a part that the architecture leaves out is left out.

    Raises:
        SdcliError: the architecture has none of them.
    """
    sections = STAGES_BY_SECTION if settings.config is None else find_architecture(settings.config)
    parts = [part for section, part in STAGES_BY_SECTION.items() if section in sections]
    if not parts:
        raise SdcliError(f"{settings.config} has neither a [vae] nor a [text_encoder] nor a [unet]", hint="add one")
    return [dataclasses.replace(settings.stage(part), output=str(Path(settings.output) / part)) for part in parts]


STAGES_BY_SECTION = dict(zip(("vae", "text_encoder", "unet"), STAGES, strict=True))
