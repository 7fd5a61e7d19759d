r"""Jobs that differ in some settings: every combination of their values. Loads no torch.

A setting is written `name=value,value`; `\,` is a comma of a value; `1..8` and `0.2..0.8:0.2` are numbers up to and
with the last one.
"""

from __future__ import annotations

import itertools
import math
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import PurePath
from types import NoneType
from typing import Any

from sdcli.errors import SdcliError
from sdcli.jobs import MOST_IMAGES, OF_JOBS
from sdcli.names import slug
from sdcli.setting_types import ALIASES, KINDS, in_words
from sdcli.settings import LARGEST_SEED, MOST_INFERENCE_STEPS, GenerateSettings, check_range, did_you_mean

COMMA = re.compile(r"(?<!\\),")
NUMBER = r"-?\d{1,20}(?:\.\d{1,9})?"
RANGE = re.compile(rf"({NUMBER})\.\.({NUMBER})(?::({NUMBER}))?")
COUNT = "num_images"  # the one key of a job that is no setting and can be swept
KNOWN = sorted({COUNT, *ALIASES, *KINDS} - set(ALIASES.values()))
LONGEST_PART = 24  # letters of a value in an id
FORMS = "name=value,value, or name=1..8, or name=0.2..0.8:0.2"
# What nobody has said yet, such that it makes no value wrong: flags of generate, or the model, will say it.
UNSAID = {"prompt": "", "model": "", "seed": 0, "guidance_scale": 1.0, "num_inference_steps": MOST_INFERENCE_STEPS}
UNSAID |= {"width": 2**16, "height": 2**16}


@dataclass(frozen=True)
class Axis:
    """A setting that is swept.

    Args:
        name: in a job.
        values: that it takes, of JSON types.
    """

    name: str
    values: tuple[Any, ...]

    @classmethod
    def parse(cls, text: str) -> Axis:
        """The setting and the values that `--set` says.

        Raises:
            SdcliError: there is no such setting, or it takes no such value.
        """
        given, equals, values = text.partition("=")
        name = given.strip().replace("-", "_")
        name = {setting: short for short, setting in ALIASES.items()}.get(name, name)
        if not equals:
            raise SdcliError(f"--set {text} has no values", hint=f"write {FORMS}")
        if name not in KNOWN:
            raise SdcliError(f"--set {given}: there is no such setting", hint=did_you_mean(given, KNOWN))
        kind = OF_JOBS[name] if name == COUNT else KINDS[ALIASES.get(name, name)]
        found = [value for each in COMMA.split(values) for value in values_of(each.replace(r"\,", ","), name, kind)]
        for twice in (value for place, value in enumerate(found) if value in found[:place]):
            raise SdcliError(f"--set {name}: {readable(twice)} is given twice", hint="once is enough")
        return cls(name, tuple(found))


def values_of(text: str, name: str, kind: Any) -> list[Any]:
    """The values that a piece between commas stands for.

    Raises:
        SdcliError: the setting takes no such value.
    """
    kinds = typing.get_args(kind) or (kind,)
    if kinds[-1] is Ellipsis:
        return [[value_of(text, name, kinds[:1])] if text else []]
    if (found := RANGE.fullmatch(text)) and {int, float} & set(kinds):
        return [value_of(f"{number.normalize():f}", name, kinds) for number in numbers(found, name)]
    return [value_of(text, name, kinds)]


def value_of(text: str, name: str, kinds: Sequence[type]) -> Any:
    """A value of one of some types.

    Raises:
        SdcliError: it is of none.
    """
    if text == "null" and NoneType in kinds:
        return None
    for kind in kinds:
        if kind is NoneType:
            continue
        try:
            return kind(text)
        except ValueError:
            wanted = in_words(kind)
    raise SdcliError(f"--set {name} must be {wanted}, got {text!r}", hint=f"write {FORMS}")


def numbers(found: re.Match, name: str) -> Iterator[Decimal]:
    """The numbers of a range, its end among them where the steps meet it.

    Raises:
        SdcliError: it is empty or too long, or does not say its steps.
    """
    text = found[0]
    start, end, step = (Decimal(each) for each in (found[1], found[2], found[3] or 1))
    if found[3] is None and (start % 1 or end % 1):
        raise SdcliError(f"--set {name}={text} does not say its steps", hint=f"such as {name}={text}:0.1")
    if step <= 0 or start > end:
        hint = "the smaller number comes first, and steps are positive"
        raise SdcliError(f"--set {name}={text} has no numbers in it", hint=hint)
    count = int((end - start) / step) + 1
    if count > MOST_IMAGES:
        raise SdcliError(f"--set {name}={text} stands for {count} values", hint=f"{MOST_IMAGES} are the most")
    return (start + place * step for place in range(count))


def sweep(prompts: Sequence[str], axes: Sequence[Axis], fixed: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A job for every prompt and every combination of values; the last axis changes fastest, prompts slowest.

    Args:
        prompts: of all jobs; none where an axis says them.
        axes: that are swept.
        fixed: what all jobs have in common.

    Raises:
        SdcliError: a value that no model can take, a setting is given twice, there is no prompt, or too many jobs.
    """
    names = [*(axis.name for axis in axes), *fixed, *(["prompt"] if prompts else [])]
    if twice := next((name for place, name in enumerate(names) if name in names[:place]), None):
        raise SdcliError(f"{twice} is given twice", hint="by one --set, or by its flag")
    if "prompt" not in names:
        raise SdcliError("there is no prompt", hint='sdcli sweep --set steps=10,20 "a cute kitten"')
    every = [Axis("prompt", tuple(prompts)), *axes] if prompts else list(axes)
    count = math.prod(len(axis.values) for axis in every)
    if count > MOST_IMAGES:
        raise SdcliError(f"that makes {count} jobs", hint=f"{MOST_IMAGES} are the most")
    told = [axis for axis in every if len(axis.values) > 1 or axis.name != "prompt"]
    jobs = []
    for values in itertools.product(*(axis.values for axis in every)):
        job = {**dict(zip((axis.name for axis in every), values, strict=True)), **fixed}
        check(job)
        jobs.append({"id": id_of(job, told), **job})
    return numbered(jobs)


def check(job: Mapping[str, Any]) -> None:
    """Refuse a value that no model can take, as far as that can be told before the rest is said.

    Raises:
        SdcliError: there is one.
    """
    count = job.get(COUNT, 1)
    check_range("--num-images", count, 1, MOST_IMAGES, hint="try --num-images 1")
    values = {ALIASES.get(name, name): value for name, value in job.items() if name != COUNT}
    check_range("--seed", values.get("seed", 0), 0, LARGEST_SEED + 1 - count, hint="picture i has N + i")
    if {"strength", "mask"} & values.keys():
        values.setdefault("init_image", "")
    controls = ("controlnet", "control_image", "control_scale")
    many = max(len(values.get(name, ())) for name in controls)
    blank = {"controlnet": ("",) * many, "control_image": ("",) * many}
    GenerateSettings(**{**UNSAID, **(blank if many else {}), **values})


def id_of(job: Mapping[str, Any], axes: Sequence[Axis]) -> str:
    """What sets a job apart, as a part of a file name."""
    return "-".join(f"{axis.name}={readable(job[axis.name])}" for axis in axes) or slug(job["prompt"])


def readable(value: Any) -> str:
    """A value in an id: a number in short, of a file its name, of a text its beginning."""
    if isinstance(value, list):
        return "+".join(map(readable, value)) or "none"
    text = f"{value:g}" if isinstance(value, float) else str("none" if value is None else value)
    return re.sub(r"[^\w.+]+", "_", PurePath(text).name if "/" in text else text)[:LONGEST_PART].strip("_") or "none"


def numbered(jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Jobs whose ids are different as parts of file names too: with a number in front where they are not."""
    if len({slug(job["id"]) for job in jobs}) == len(jobs):
        return jobs
    digits = len(str(len(jobs) - 1))
    return [{**job, "id": f"{place:0{digits}d}-{job['id']}"} for place, job in enumerate(jobs)]
