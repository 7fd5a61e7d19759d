"""What is asked for, flag by flag or line by line, as requests: the complete settings of every picture.

A line says more than a flag, a flag more than models.toml. Every mistake is told with its file and line, before
anything is loaded. Loads no torch.
"""

from __future__ import annotations

import glob
import itertools
import json
import os
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from sdcli.contest import Contest
from sdcli.errors import SdcliError
from sdcli.images import read_size
from sdcli.output import Picture, Request
from sdcli.registry import ModelSpec, find_loadable
from sdcli.setting_types import ALIASES, KINDS, check_type, shown
from sdcli.settings import LARGEST_SEED, GenerateSettings, check_range, check_size, did_you_mean
from sdcli.untrusted_json import parse_json
from sdcli.wildcards import choose, combinations, escaped

OF_JOBS = {
    "id": str | int,
    "num_images": int,
    "output": str,
    "error": str,
}  # what is no setting; the error of an earlier run
MOST_IMAGES = 100_000
EXAMPLE = 'a job a line, at least {"prompt": "a cute kitten"}'


@dataclass(frozen=True, kw_only=True)
class Asker:
    """Turns jobs into requests.

    Args:
        flags: settings that the user chose for all jobs, by the names of GenerateSettings.
        seed: of jobs that say none.
        num_images: of jobs that say none.
        best_of: how many are made of each prompt, of which `num_images` are kept; None keeps all.
        models_file: where models are looked up first.
        allow_pickle: read models that are no safetensors.
        found: models that were looked up already, with what they choose where nobody says.
    """

    flags: Mapping[str, Any]
    seed: int
    num_images: int = 1
    best_of: int | None = None
    models_file: Path | None = None
    allow_pickle: bool = False
    found: dict[str | None, tuple[ModelSpec, dict[str, Any]]] = field(default_factory=dict, repr=False)
    contests: Iterator[int] = field(default_factory=itertools.count, repr=False)

    def requests(self, job: Mapping[str, Any], name: str, where: str = "") -> Iterator[Request]:
        """The pictures of a job: of each picture to begin from, of each combination of its prompt, `num_images`.

        Args:
            job: from `read_job`.
            name: its id, if it says none.
            where: its file and line, for messages.

        Raises:
            SdcliError: a value that no model can take.
        """
        values = {**self.flags, **{name: value for name, value in job.items() if name not in OF_JOBS}}
        if "clip_guidance" not in values and values.pop("clip_model", None) is not None and self.best_of is None:
            raise SdcliError("--clip-model needs --clip-guidance or --best-of", hint="such as --clip-guidance 2")
        kept = job.get("num_images", self.num_images)
        if not 1 <= kept <= MOST_IMAGES:
            raise SdcliError(f"--num-images must be from 1 to {MOST_IMAGES}, got {kept}", hint="try --num-images 1")
        count = self.candidates(kept)
        first_seed = values.pop("seed", self.seed)
        hint = "leave --seed out and one is drawn and reported; picture i has N + i"
        check_range("--seed", first_seed, 0, LARGEST_SEED + 1 - count, hint=hint)
        name, output = str(job.get("id", name)), job.get("output")
        prompt, negative_prompt = values.pop("prompt", None), values.pop("negative_prompt", "")
        if prompt is None:
            raise SdcliError("there is no prompt", hint=EXAMPLE)
        beginnings = files_of(values.pop("init_image", None))
        for place, init_image in enumerate(beginnings):
            complete = {**self.defaults(values.get("model"), init_image, values), "init_image": init_image}
            job_id = name if len(beginnings) == 1 else f"{name}-{place:05d}"
            for text in combinations(prompt):
                contest = None if self.best_of is None else Contest(next(self.contests), count, kept, first_seed)
                for seed in range(first_seed, first_seed + count):
                    texts = {"prompt": choose(text, seed), "negative_prompt": choose(negative_prompt, seed)}
                    yield Request(GenerateSettings(**texts, seed=seed, **complete), job_id, output, where, contest)

    def candidates(self, kept: int) -> int:
        """How many pictures of a prompt are made, so that some are kept.

        Raises:
            SdcliError: that is fewer, or too many.
        """
        if self.best_of is None:
            return kept
        if not 1 <= self.best_of <= MOST_IMAGES:
            raise SdcliError(f"--best-of must be from 1 to {MOST_IMAGES}, got {self.best_of}", hint="4 to 16 suit most")
        if self.best_of < kept:
            message = f"--best-of {self.best_of} is fewer than the {kept} pictures that are to be kept"
            raise SdcliError(message, hint=f"make more, such as --best-of {4 * kept}, or keep fewer by --num-images")
        return self.best_of

    def defaults(self, model: str | None, init_image: str | None, values: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of a job, with those of its picture to begin from and of its model where it is silent."""
        if model not in self.found:
            spec = find_loadable(model, self.models_file, self.allow_pickle)
            self.found[model] = spec, {**asdict(spec.defaults), "model": spec.name}
        spec, complete = self.found[model][0], dict(self.found[model][1])
        if values.get("sampler") not in (None, spec.defaults.sampler):
            complete |= {"schedule": None, "eta": 0.0}  # chosen for the model's sampler; another does not inherit them
        if init_image is not None:
            size = zip(("width", "height"), read_size(Path(init_image).expanduser()), strict=True)
            for name, side in size:
                if values.get(name) is None:
                    check_size(f"--init-image {init_image}: its {name}", side)
                complete[name] = side
        return {**complete, **values, "model": spec.name}

    @property
    def models(self) -> dict[str, ModelSpec]:
        """The models of all requests so far, by the name in their settings."""
        return {spec.name: spec for spec, _ in self.found.values()}


def files_of(pattern: str | None) -> list[str | None]:
    """The files that a name or a pattern stands for, in order; a file that is there is no pattern.

    Raises:
        SdcliError: nothing matches.
    """
    if pattern is None or not glob.has_magic(pattern) or os.path.exists(os.path.expanduser(pattern)):
        return [pattern]
    found = sorted(glob.glob(os.path.expanduser(pattern), recursive=True))
    if not found:
        raise SdcliError(f"no file matches --init-image {pattern}", hint="quote the pattern, and check the folder")
    return found


def read_job(line: str, where: str) -> dict[str, Any]:
    """A job from its JSON, settings by the names of their fields.

    Raises:
        SdcliError: it is no JSON, has an unknown key, or a value of another type; the message begins with `where`.
    """
    try:
        content = parse_json(line)
    except ValueError as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise SdcliError(f"{where} is no JSON: {reason}", hint=EXAMPLE) from error
    if not isinstance(content, dict):
        raise SdcliError(f"{where}: a job is a JSON object", hint=EXAMPLE)
    if "\\u0000" in line:
        raise SdcliError(f"{where} holds a zero byte", hint="no text has one, and no name of a file")
    job: dict[str, Any] = {}
    for key, value in content.items():
        name = ALIASES.get(key, key)
        if name in job:
            raise SdcliError(f"{where}: {key} and {name} are the same", hint="leave one of them out")
        job[name] = check_key(name, value, f"{where}: {key}")
    return job


def check_key(name: str, value: Any, called: str) -> Any:
    """The value of a key of a job, as it is used.

    Raises:
        SdcliError: there is no such key, or it takes another type.
    """
    if name in KINDS:
        value = check_type(name, value, called)
    elif name not in OF_JOBS:
        known = sorted({*OF_JOBS, *ALIASES, *KINDS} - set(ALIASES.values()))
        where, _, key = called.rpartition(": ")
        raise SdcliError(f"{where}: unknown key {shown(key)}", hint=did_you_mean(key[:60], known))
    elif not isinstance(value, OF_JOBS[name]) or isinstance(value, bool):
        wanted = "a whole number" if OF_JOBS[name] is int else "a text"
        raise SdcliError(f"{called} must be {wanted}, got {shown(value)}", hint=EXAMPLE)
    return value


def jobs_of_file(content: bytes, name: str) -> Iterator[tuple[dict[str, Any], str]]:
    """The jobs of a JSONL file, each with its file and line; empty lines are none.

    Raises:
        SdcliError: a line is no JSON, or no job.
    """
    for where, line in lines_of(content, name):
        if line.startswith("#"):
            raise SdcliError(f"{where}: JSON has no comments", hint="--prompts takes a prompt a line, with # comments")
        yield read_job(line, where), where


def jobs_of_prompts(content: bytes, name: str) -> Iterator[tuple[dict[str, Any], str]]:
    """A job for each line of a file of prompts; empty lines and those that begin with # are none.

    Raises:
        SdcliError: the file is not UTF-8.
    """
    return (({"prompt": line}, where) for where, line in lines_of(content, name) if not line.startswith("#"))


def lines_of(content: bytes, name: str) -> Iterator[tuple[str, str]]:
    """File and line number, and text, of every line that has one.

    Raises:
        SdcliError: a line is not UTF-8.
    """
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        where = f"{name} line {number}"
        try:
            text = line.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise SdcliError(f"{where} is not UTF-8", hint="save the file as UTF-8") from error
        if text:
            yield where, text


def requests_of(asker: Asker, jobs: Iterator[tuple[dict[str, Any], str]]) -> list[Request]:
    """The pictures of all jobs; the id of a job that says none is its number, from 00000.

    Raises:
        SdcliError: a value that no model can take, with file and line.
    """
    read = deque(jobs)  # all are read before the first model is looked for
    requests: list[Request] = []
    for number in range(len(read)):
        job, where = read.popleft()
        try:
            requests += asker.requests(job, f"{number:05d}", where)
        except SdcliError as error:
            if not where:
                raise
            raise SdcliError(f"{where}: {error}", hint=error.hint, exit_code=error.exit_code) from error
    return requests


def job_of(picture: Picture, folder: Path) -> dict[str, Any]:
    """A job that makes a picture: what of its settings is no default, its id, and its file below the output folder."""
    settings = picture.settings
    job: dict[str, Any] = {"id": picture.id}
    short = {setting: key for key, setting in ALIASES.items()}
    for each in fields(GenerateSettings):
        value = getattr(settings, each.name)
        if each.default is MISSING or value != each.default:
            job[short.get(each.name, each.name)] = list(value) if isinstance(value, tuple) else value
    job |= {name: escaped(job[name]) for name in ("prompt", "negative_prompt") if name in job}  # it has been chosen
    if picture.contest is not None:  # all of it is to be held again, and its files are named by its winners
        return {**job, "seed": picture.contest.first_seed, "num_images": picture.contest.kept}
    path = os.path.relpath(picture.path, folder)
    return {**job, "output": path.replace("{", "{{").replace("}", "}}")}
