"""What `sdcli generate` is asked for: from flags and files to the pictures of this process. Imports no torch."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import typer

from sdcli.batch.manifest import seed_in
from sdcli.cli.files import PIPE, check_pipe, input_name, read_input
from sdcli.cli.options import warn
from sdcli.errors import SdcliError
from sdcli.jobs import Asker, jobs_of_file, jobs_of_prompts, requests_of
from sdcli.output import OutputSettings, Picture, plan_pictures
from sdcli.recall import recall
from sdcli.registry import ModelSpec
from sdcli.run_settings import Shard
from sdcli.setting_types import shown
from sdcli.wildcards import escaped


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What to make, as the user says it.

    Args:
        prompts: arguments.
        prompts_file: a prompt a line; `-` is stdin.
        jobs_file: a job a line.
        settings: that were chosen by flags or come from a file, by the names of GenerateSettings.
        num_images: of each prompt.
        best_of: how many are made of each prompt, of which these are kept; None keeps all.
        models_file: where models are looked up first.
        allow_pickle: read models that are no safetensors.
    """

    prompts: tuple[str, ...]
    prompts_file: str | None
    jobs_file: str | None
    settings: Mapping[str, Any]
    num_images: int
    best_of: int | None
    models_file: Path | None
    allow_pickle: bool = False

    def __post_init__(self) -> None:
        sources = (bool(self.prompts), self.prompts_file is not None, self.jobs_file is not None)
        if not any(sources) and "prompt" not in self.settings:
            raise typer.BadParameter("Missing argument 'PROMPT': what is to be shown?")
        if sum(sources) > 1:
            hint = "put the prompts into the file"
            raise SdcliError("PROMPT, --prompts and --jobs do not go together", hint=hint)

    @property
    def of_jobs(self) -> bool:
        """Whether a file says what to make."""
        return self.prompts_file is not None or self.jobs_file is not None

    @cached_property
    def stdin(self) -> bytes:
        """What is piped in, which can be read once."""
        return read_input(PIPE)

    def jobs(self) -> Iterator[tuple[dict[str, Any], str]]:
        """Every job with its file and line, which arguments have not.

        Raises:
            SdcliError: a line is no job.
        """
        if not self.of_jobs:
            return iter([({"prompt": prompt}, "") for prompt in self.prompts] or [({}, "")])
        file = self.jobs_file or self.prompts_file
        read = jobs_of_file if self.jobs_file else jobs_of_prompts
        return read(self.stdin if file == PIPE else read_input(file), input_name(file))


@dataclass(frozen=True)
class Plan:
    """The pictures that this process is to make.

    Args:
        asked: by the user.
        where: their files go.
        shard: which of all pictures are ours.
        seed: of jobs that say none.
        seed_drawn: whether nobody has chosen it.
        pictures: ours.
        models: by the names in their settings.
    """

    asked: Asked
    where: OutputSettings
    shard: Shard
    seed: int
    seed_drawn: bool
    pictures: list[Picture]
    models: dict[str, ModelSpec]

    @classmethod
    def of(cls, asked: Asked, where: OutputSettings, shard: Shard, device: str) -> Plan:
        """Plan from the start.

        Raises:
            SdcliError: something is wrong with what is asked for, or where it is to go.
        """
        seed = asked.settings.get("seed")
        rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        moment = (secrets.randbits(32), time.time())
        if world > 1:
            moment = agreed(moment, device)
            shard = shard.within(rank, world)
        if where.output == PIPE:
            check_pipe()
        where = replace(where, started_at=moment[1])
        seeds = (seed, seed_in(where.folder) if seed is None and asked.of_jobs else None, moment[0])
        first = next(each for each in seeds if each is not None)
        return cls(asked, where, shard, first, seed is None, [], {}).with_seed(first)

    @property
    def count(self) -> int:
        """How many pictures there will be: all, or of each contest those that are kept."""
        return sum(each.contest is None or each.candidate < each.contest.kept for each in self.pictures)

    def with_seed(self, seed: int) -> Plan:
        """The same, with a seed for jobs that say none.

        Raises:
            SdcliError: as for `of`.
        """
        settings = {name: value for name, value in self.asked.settings.items() if name != "seed"}
        asked = self.asked
        asker = Asker(
            flags=settings,
            seed=seed,
            num_images=asked.num_images,
            best_of=asked.best_of,
            models_file=asked.models_file,
            allow_pickle=asked.allow_pickle,
        )
        requests = requests_of(asker, self.asked.jobs())
        if not requests:
            name = input_name(self.asked.jobs_file or self.asked.prompts_file)
            raise SdcliError(f"{name} asks for nothing", hint="it has no line that is a job")
        pictures = plan_pictures(requests, self.where, self.shard)
        return replace(self, seed=seed, pictures=pictures, models=asker.models)


def with_recalled(flags: Mapping[str, Any], file: str | None) -> dict[str, Any]:
    """Settings from a file, and from flags, which go before it; what the file says and cannot be used is told.

    Raises:
        SdcliError: the file names no settings.
    """
    if file is None:
        return dict(flags)
    recalled = recall(Path(file).expanduser())
    settings = {name: value for name, value in recalled.settings.items() if value is not None}
    left_out = dict(recalled.left_out)
    if "sampler" in flags and "schedule" not in flags:
        settings.pop("schedule", None)  # it was chosen for another sampler
    if "strength" in settings and "init_image" not in {**settings, **flags}:
        left_out["strength"] = settings.pop("strength")
    if Path(file).suffix.lower() not in (".json", ".toml"):  # the prompts of a picture have been chosen
        settings |= {name: escaped(settings[name]) for name in ("prompt", "negative_prompt") if name in settings}
    for name, value in left_out.items():
        warn(f"{file}: {name} is not taken over: {shown(value)}")
    return {**settings, **flags}


def agreed(moment: tuple[int, float], device: str) -> tuple[int, float]:
    """What the first of several processes has drawn, told to all of them over accelerate.

    `torchrun` and `accelerate launch` leave each process one thread, unless told otherwise. On a CPU the number of
    threads decides how sums are split, and so the last bits of a picture: each gets as many as a process alone.
    """
    if os.environ.get("OMP_NUM_THREADS") == "1":
        del os.environ["OMP_NUM_THREADS"]  # before torch is imported, which reads it
    # More threads than cores: one that waits for another must not keep it from its core.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    import torch
    from accelerate.utils import broadcast_object_list

    from sdcli.device import choose_device

    threads = torch.get_num_threads()
    choose_device(device)  # joins the other processes, and takes threads away
    torch.set_num_threads(threads)
    return tuple(broadcast_object_list(list(moment)))
