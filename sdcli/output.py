"""Where pictures go: the files of each, all different, and none in the way. Loads no torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sdcli.contest import Contest
from sdcli.errors import SdcliError
from sdcli.names import Day, Names, check_different, picture_template
from sdcli.results import already_there, check_writable
from sdcli.run_settings import WHOLE, Shard
from sdcli.settings import GenerateSettings

DEFAULT_FOLDER = "outputs"
NAME_IN_FOLDER = "{index:05d}-{seed}-{prompt}"  # the same in every run of a command, so that it can be resumed
NAME_OF_JOB = "{id}-{seed}-{prompt}"  # the same when lines of the job file move
NAME_BY_TIME = "{date:%Y%m%d-%H%M%S}-{index:02d}-{seed}-{prompt}"  # where no output is named: no two runs meet
FIELDS = ("index", "id", "seed", "prompt", "model", "date")
PIPE = "-"  # stdout, in the place of a path


@dataclass(frozen=True, slots=True)
class Request:
    """One picture that is asked for.

    Args:
        settings: what it is made from.
        id: of its job.
        output: where its job itself says it goes, below the output folder.
        where: file and line that ask for it, for messages.
        contest: that it is a candidate of; None is kept in any case. Candidates of one contest lie together.
    """

    settings: GenerateSettings
    id: str
    output: str | None = None
    where: str = ""
    contest: Contest | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """One picture to make, and the files that it goes to.

    Args:
        settings: what it is made from.
        index: its place in the run, from 0.
        file: its path as a text, which takes less memory; the suffix decides the format; `PIPE` and one is stdout.
        id: of its job.
        steps_file: for a strip (.png) or an animation (.gif) of its steps.
        contest: that it is a candidate of, if it is one.
    """

    settings: GenerateSettings
    index: int
    file: str
    id: str = ""
    steps_file: str | None = None
    contest: Contest | None = None

    @property
    def candidate(self) -> int:
        """Its place in its contest, from 0."""
        return 0 if self.contest is None else self.settings.seed - self.contest.first_seed

    @property
    def path(self) -> Path:
        """Of its file."""
        return Path(self.file)

    @property
    def steps_path(self) -> Path | None:
        """Of the file of its steps, if they are wanted."""
        return self.steps_file and Path(self.steps_file)

    @property
    def to_pipe(self) -> bool:
        """Whether it goes to stdout."""
        return os.path.splitext(self.file)[0] == PIPE

    @property
    def latents_path(self) -> Path:
        """Where its latents go, where they are wanted."""
        return self.path.with_suffix(".safetensors")


@dataclass(frozen=True, kw_only=True)
class OutputSettings:
    """Where pictures are to go, as the user says it.

    Args:
        output: a path, a folder (ending in a slash, or there already), a template, or `PIPE`; None is `DEFAULT_FOLDER`.
        file_format: png, jpg or webp; None is what `output` says, else png.
        save_steps: a path or template for strips or animations of steps.
        save_latents: whether latents are kept beside each picture.
        if_exists: error, skip, overwrite or number.
        of_jobs: whether the pictures are those of a file of jobs or prompts, which is run again until all are there.
        allow_outside: whether a job may write outside the output folder.
        started_at: when the run began, for {date}.
    """

    output: str | None = None
    file_format: str | None = None
    save_steps: str | None = None
    save_latents: bool = False
    if_exists: str = "error"
    of_jobs: bool = False
    allow_outside: bool = False
    started_at: float | None = None

    @property
    def template(self) -> str:
        """The template of the names of all pictures whose jobs do not say more.

        Raises:
            SdcliError: the suffix is none of ours, or contradicts the format.
        """
        if self.output is None and not self.of_jobs:
            return picture_template(f"{DEFAULT_FOLDER}/", NAME_BY_TIME, self.file_format)
        name = NAME_OF_JOB if self.of_jobs else NAME_IN_FOLDER
        return picture_template(self.output or f"{DEFAULT_FOLDER}/", name, self.file_format)

    @property
    def folder(self) -> Path:
        """The folder that all pictures are in or below; jobs name files in it."""
        return Path(DEFAULT_FOLDER if self.output == PIPE else Names("--output", self.template, FIELDS).folder)


def plan_pictures(requests: Sequence[Request], where: OutputSettings, shard: Shard = WHOLE) -> list[Picture]:
    """Give every picture its files, before anything is loaded.

    Returns:
        Those of a shard.

    Raises:
        SdcliError: a name is wrong, taken, used twice or cannot be written.
    """
    if where.output is None and where.if_exists == "skip" and not where.of_jobs:
        hint = "name the folder or file: -o outputs/"
        raise SdcliError("--if-exists skip needs --output: names by time are never there already", hint=hint)
    if where.output == PIPE:
        return to_pipe(requests, where)
    paths, steps_paths = name_pictures(requests, where)
    check_different("--output", of_kept(paths, requests), "index")
    latents_paths = [f"{os.path.splitext(path)[0]}.safetensors" for path in paths if where.save_latents]
    check_different("--save-latents", of_kept(latents_paths, requests), "index")
    check_different("--save-steps", [each for each in of_kept(steps_paths, requests) if each], "index")
    if both := set(paths).intersection(steps_paths):
        raise SdcliError(f"--output and --save-steps would both be {both.pop()}", hint="try --save-steps steps.gif")
    own = own_places(requests, shard)
    there = already_there([paths[index] for index in own], where.if_exists)
    others = [
        path
        for index, skip in zip(own, there, strict=True)
        for path in (steps_paths[index], where.save_latents and latents_paths[index])
        if path and not skip
    ]
    already_there(others, where.if_exists)
    check_writable([*(paths[index] for index in own), *others])
    return [
        Picture(
            settings=requests[index].settings,
            index=index,
            file=paths[index],
            id=requests[index].id,
            steps_file=steps_paths[index],
            contest=requests[index].contest,
        )
        for index in own
    ]


def own_places(requests: Sequence[Request], shard: Shard) -> Sequence[int]:
    """The places of the pictures of a shard; all candidates of a contest are in one."""
    if not requests or requests[0].contest is None:
        return range(shard.index, len(requests), shard.count)
    return [place for place, each in enumerate(requests) if each.contest.number % shard.count == shard.index]


def of_kept(paths: Sequence[str | None], requests: Sequence[Request]) -> list[str | None]:
    """The paths that have to be different: of candidates of which one is kept, those of one name are one file."""
    several = [None if each.contest is None or each.contest.kept > 1 else each.contest.number for each in requests]
    first = {(path, number): path for path, number in zip(paths, several, strict=False) if number is not None}
    return [*first.values(), *(path for path, number in zip(paths, several, strict=False) if number is None)]


def to_pipe(requests: Sequence[Request], where: OutputSettings) -> list[Picture]:
    """The one picture that goes to stdout, or the candidates for it.

    Raises:
        SdcliError: there are more, or something else is to be written.
    """
    contest = requests[0].contest
    if len(requests) > (1 if contest is None or contest.kept > 1 else contest.candidates):
        message = f"{len(requests)} pictures do not fit into one pipe"
        raise SdcliError(message, hint='write files: -o "{index}.png"')
    if where.save_steps or where.save_latents:
        flag = "--save-steps" if where.save_steps else "--save-latents"
        raise SdcliError(f"{flag} does not go with -o -", hint="name a file by --output")
    file = f"{PIPE}.{where.file_format or 'png'}"
    return [
        Picture(settings=each.settings, index=index, file=file, contest=each.contest)
        for index, each in enumerate(requests)
    ]


def name_pictures(requests: Sequence[Request], where: OutputSettings) -> tuple[list[str], list[str | None]]:
    """The paths of pictures, and of strips or animations of their steps.

    Raises:
        SdcliError: a template or a job's own output is wrong.
    """
    names = Names("--output", where.template, FIELDS)
    steps_names = None
    if where.save_steps is not None:
        if os.path.splitext(where.save_steps)[1].lower() not in (".png", ".gif"):
            raise SdcliError(f"--save-steps {where.save_steps} must end in .png or .gif", hint="try steps.gif")
        steps_names = Names("--save-steps", where.save_steps, FIELDS)
    now = Day.now() if where.started_at is None else Day.fromtimestamp(where.started_at)
    folder = names.folder
    paths, steps_paths = [], []
    for index, request in enumerate(requests):
        settings = request.settings
        values = {
            "index": index,
            "id": request.id,
            "seed": settings.seed,
            "prompt": settings.prompt,
            "model": os.path.basename(settings.model.rstrip("/")),
            "date": now,
        }
        if request.output is None:
            paths.append(names.name(values))
        else:
            paths.append(name_of_job(request, where, folder, values))
        steps_paths.append(None if steps_names is None else steps_names.name(values))
    return paths, steps_paths


def name_of_job(request: Request, where: OutputSettings, folder: str, values: dict) -> str:
    """Where the picture of a job goes that says it itself.

    Raises:
        SdcliError: its template is wrong, or leads out of the output folder.
    """
    flag = f"{request.where} output".strip()
    away = os.path.isabs(request.output) or request.output.startswith("~") or ".." in Path(request.output).parts
    if away and not where.allow_outside:
        hint = "--allow-outside allows it"
        raise SdcliError(f"{flag}: {request.output} leads out of the output folder", hint=hint)
    output = os.path.join(folder, os.path.expanduser(request.output))
    template = picture_template(output, NAME_OF_JOB, where.file_format, flag)
    return Names(flag, template, FIELDS).name(values)
