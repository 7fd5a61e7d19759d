"""Many settings to many picture files, each model loaded once.

A picture depends on its own settings and seed alone: all its noise comes from its own CPU generator, and on the CPU
pictures go through the networks together only where each is the same, bit for bit, as alone.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from sdcli.batch.checks import check_pictures, scheduler_choice
from sdcli.batch.contests import Contests, contests_of, losers_of
from sdcli.batch.denoising import Denoiser, Undrawn
from sdcli.batch.done import OnDisk, in_the_way, look_for
from sdcli.batch.events import Dropped, Failed, Loaded, Made, Report, Stepped, There, Warned
from sdcli.batch.failures import FailureList
from sdcli.batch.finishing import Finish, Finisher
from sdcli.batch.groups import by_kind, by_model, group_size, portions
from sdcli.batch.manifest import Manifest
from sdcli.batch.memory import Ladder
from sdcli.batch.part import Part
from sdcli.device import explain_out_of_memory
from sdcli.drawing import Easel, ForeignEasel
from sdcli.errors import EXIT_OUT_OF_MEMORY, SdcliError
from sdcli.files import delete_unfinished
from sdcli.keys import Keys
from sdcli.output import Picture
from sdcli.preview import Preview
from sdcli.registry import ModelSpec
from sdcli.run_settings import RunSettings
from sdcli.settings import GenerateSettings
from sdcli.workbench import Benches, Workbench

WAITING = 2  # batches that may be denoised and not yet written


class Run:
    """Makes pictures and writes each as soon as it is done.

    Args:
        models: by the names in the settings of pictures.
        benches: the models that are in memory.
        how: everything that decides no picture.
        report: told of every event, in the thread of the run.

    `manifest` is None where no jobs are run, `failures` where they are not written down.
    """

    def __init__(self, models: Mapping[str, ModelSpec], benches: Benches, how: RunSettings, report: Report):
        self.models, self.benches, self.how, self.report = models, benches, how, report
        self.manifest: Manifest | None = None
        self.failures: FailureList | None = None
        self.failed = 0
        self.placement = benches.placement
        self.ladder = Ladder()
        self.contests = Contests(self)
        self.preview = None
        if how.preview is not None:
            self.preview = Preview(Path(how.preview), how.preview_vae, self.placement)
        self.part: Part | None = None
        self.bench: Workbench | None = None
        self.denoise: Denoiser | None = None
        self.finish: Finish | None = None
        self.finisher: Finisher | None = None

    def check(self, pictures: Sequence[Picture]) -> list[Part]:
        """See that every model takes what its pictures ask for, before any weights are read.

        Raises:
            SdcliError: one does not.
        """
        of_models = [(self.models[name], each) for name, each in by_model(pictures).items()]
        return [Part(model, each, check_pictures(each, model, self.how), Keys(model)) for model, each in of_models]

    def __call__(self, parts: Sequence[Part]) -> None:
        """Make pictures that have been checked, one model after the other.

        Raises:
            SdcliError: a model does not load or does not take the settings, memory or disk run out, or the networks
                give values that are no numbers; unless failures are skipped. What was made before is on disk.
        """
        for part in parts:
            self.part = part
            if missing := self.missing(part):
                self.make_part(part, missing)

    def missing(self, part: Part) -> list[Picture]:
        """Pictures that are not on disk, or not whole; the others are reported. Contests are missing as a whole."""
        if self.how.if_exists != "skip":
            return part.pictures
        files = {file for picture in part.pictures for file in (picture.file, picture.steps_file) if file}
        for folder in {os.path.dirname(file) for file in files}:
            delete_unfinished(Path(folder))  # of a run that was killed
        contests = contests_of(part.pictures)
        return [picture for contest in contests if not self.is_there(contest) for picture in contest]

    def is_there(self, contest: list[Picture]) -> bool:
        """Whether a picture, or those of a contest that are kept, need not be made; if so, that is reported.

        Raises:
            SdcliError: in its place is another picture, and this is a run of jobs.
        """
        if contest[0].contest is None:
            return self.picture_is_there(contest[0])
        return self.contests.are_there(contest)

    def picture_is_there(self, picture: Picture) -> bool:
        """What `is_there` says of a picture that is in no contest."""
        if picture.to_pipe or not picture.path.exists():
            return False
        key = self.part.key(picture)
        found = look_for(picture.path, key)
        if found is OnDisk.DAMAGED and self.how.if_exists == "skip":
            self.report(Warned(f"{picture.path} does not open, and is made again"))
            picture.path.unlink()
        if found in (OnDisk.NOTHING, OnDisk.DAMAGED):
            return False
        if found is OnDisk.ANOTHER and self.manifest is not None:
            self.fail([picture], in_the_way(picture.path))
            return True
        if found is OnDisk.ANOTHER:
            self.report(Warned(f"{picture.path} was made from something else, and stays as it is"))
            self.report(There(picture))
        else:
            self.tell_there(picture, key)
        return True

    def tell_there(self, picture: Picture, key: str) -> None:
        """Report a picture that is there, and write it down."""
        if self.manifest is not None:
            self.manifest.add(picture.path, key, {"id": picture.id, "seed": picture.settings.seed})
        self.report(There(picture))

    def drop(self, losers: Sequence[Picture], made: bool) -> None:
        """Report candidates that are not kept."""
        for picture in losers:
            self.report(Dropped(picture, made))

    def make_part(self, part: Part, missing: list[Picture]) -> None:
        """Make the pictures of one model."""
        started_at, told = time.monotonic(), False
        taken: list[list[Picture]] = []  # by another process
        self.bench = self.benches.of(part.model, self.how)
        self.denoise = Denoiser(
            part=part,
            bench=self.bench,
            how=self.how,
            ladder=self.ladder,
            preview=self.preview,
            size_of=self.size_of,
            on_stepped=self.tell_step,
        )
        self.finish = Finish(part, self.bench, self.how, self.ladder)
        self.finisher = Finisher(self.finish, beside=self.placement.device.type != "cpu")
        try:
            for alike in by_kind(missing):
                if (easel := self.prepare(alike)) is None:
                    continue
                if not told:
                    where = (str(self.placement.device), self.placement.precision)
                    self.report(Loaded(part.model.name, *where, time.monotonic() - started_at))
                    told = True
                if alike[0].contest is not None:
                    for contest in contests_of(alike):
                        if self.claim(contest, taken):
                            self.contests.hold(contest, easel)
                    continue
                for group in portions(alike, easel, self.size_of(alike[0].settings)):
                    self.make([picture for picture in group if self.claim([picture], taken)], easel)
            self.collect(waiting=0)
            for contest in taken:
                self.manifest.wait_for(contest[0].path)
                if not self.was_made_meanwhile(contest) and (easel := self.prepare(contest)) is not None:
                    (self.make if contest[0].contest is None else self.contests.hold)(contest, easel)
            self.collect(waiting=0)
        finally:
            self.finisher.close()  # what is denoised is written, whatever has happened
            self.report_good()

    def prepare(self, alike: Sequence[Picture]) -> Easel | ForeignEasel | None:
        """The easel for pictures of equal settings but for text and seed; None where what they need does not load."""
        settings, hint = alike[0].settings, "try --precision fp16 or bf16, or a smaller model"
        try:
            with explain_out_of_memory(f"while loading {self.part.model.name}", hint):
                easel = self.bench.easel(settings)
        except SdcliError as error:
            self.fail(alike, error)
            return None
        for message in (*self.bench.warnings(), *easel.warnings([picture.settings for picture in alike])):
            self.report(Warned(message))
        self.part.keys.fingerprints(settings)  # hashed beside the work
        if not self.part.is_foreign:
            easel.pipeline.scheduler = self.part.schedulers[scheduler_choice(settings)]
        return easel

    def size_of(self, settings: GenerateSettings) -> int:
        """How many pictures of some settings go through the networks together."""
        return self.ladder.size(group_size(settings, self.placement, self.how.batch_size))

    def claim(self, contest: list[Picture], taken: list[list[Picture]]) -> bool:
        """Whether this process is to make a picture or hold a contest; what another has begun is put into `taken`."""
        manifest = self.manifest
        if manifest is None or self.how.if_exists in ("overwrite", "number"):
            return True
        if not manifest.claim(contest[0].path):
            taken.append(contest)
            return False
        return not self.was_made_meanwhile(contest)

    def was_made_meanwhile(self, contest: list[Picture]) -> bool:
        """Whether another process has made it since this one looked; it need not stay claimed then."""
        if not self.is_there(contest):
            return False
        self.manifest.release(contest[0].path)
        return True

    def make(self, group: list[Picture], easel: Easel | ForeignEasel) -> None:
        """Denoise a group of pictures of equal settings but for text and seed, and hand them on."""
        for outcome in self.denoise(group, easel):
            self.pass_warnings_on()
            if isinstance(outcome, Undrawn):
                self.fail(outcome.pictures, outcome.error)
                continue
            for drawn in outcome:
                self.finisher.submit(drawn)
            self.collect(waiting=WAITING * len(outcome) if self.bench.overlaps else 0)

    def tell_step(self, event: Stepped) -> None:
        """Report a step, and what is done meanwhile."""
        self.report(event)
        self.report_good()

    def collect(self, waiting: int) -> None:
        """Report pictures that the finisher is done with, and leave at most `waiting` with it. Nothing is denoised now.

        Raises:
            SdcliError: one failed, and the run is to end.
        """
        for drawn, result in self.finisher.finished(waiting):
            self.pass_warnings_on()
            if not isinstance(result, SdcliError):
                self.tell_made(result)
            elif result.exit_code == EXIT_OUT_OF_MEMORY and self.ladder.offload(self.bench):
                self.finisher.submit(drawn)
            else:
                self.finish.keep_latents(drawn, result)
                self.fail([drawn.picture], result)

    def report_good(self) -> None:
        """Report pictures that are done, up to the first that failed."""
        self.pass_warnings_on()
        for made in self.finisher.good():
            self.tell_made(made)

    def tell_made(self, made: Made) -> None:
        """Write a picture down and report it."""
        manifest = self.manifest
        if manifest is not None:
            picture = made.picture
            about = {"id": picture.id, "seed": picture.settings.seed}
            manifest.add(picture.path, self.part.keys.of(picture.settings), about)
            manifest.release(picture.path)
        self.report(made)

    def pass_warnings_on(self) -> None:
        """Report what the ladder has to tell."""
        while self.ladder.told:
            self.report(self.ladder.told.popleft())

    def fail(self, group: Sequence[Picture], error: SdcliError, dropped: int = 0) -> None:
        """End the run, or write down what failed and go on.

        Args:
            group: of pictures; of a contest as many fail as were to be kept, and it is written down once.
            error: why.
            dropped: candidates of the group that were reported as such already.

        Raises:
            SdcliError: the run is to end.
        """
        if self.how.on_error == "stop":
            raise error
        losers = losers_of(group)
        self.drop(losers[dropped:], made=False)
        group = [picture for picture in group if picture not in losers]
        self.failed += len(group)
        for picture in group:
            if self.failures is not None and picture.candidate == 0:
                self.failures.add(picture, error)
            if self.manifest is not None:
                self.manifest.release(picture.path)
            self.report(Failed(picture, error))
