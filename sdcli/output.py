"""Where results go: templates for names, clashes between names, files that are already there. Loads no torch."""

from __future__ import annotations

import contextlib
import os
import re
import string
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sdcli.errors import SdcliError
from sdcli.files import make_folder, write_whole
from sdcli.images import SUFFIXES
from sdcli.settings import GenerateSettings, did_you_mean

DEFAULT_FOLDER = "outputs"
NAME_IN_FOLDER = "{index:05d}-{seed}-{prompt}"  # the same in every run of a command, so that it can be resumed
NAME_BY_TIME = "{date:%Y%m%d-%H%M%S}-{index:02d}-{seed}-{prompt}"  # where no output is named: no two runs meet
LONGEST_TEXT_IN_NAME = 80  # bytes
LONGEST_NAME = 255  # bytes, on the usual file systems


class Day(datetime):
    """A moment that a template writes as its day, or by any strftime pattern: {date}, {date:%H%M%S}."""

    def __format__(self, pattern: str) -> str:
        return self.strftime(pattern or "%Y-%m-%d")


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture to make, and the files that it goes to.

    Args:
        settings: what it is made from.
        index: its place in the run, from 0.
        path: the suffix decides the format.
        steps_path: for a strip (.png) or an animation (.gif) of its steps.
    """

    settings: GenerateSettings
    index: int
    path: Path
    steps_path: Path | None = None


@dataclass(frozen=True, kw_only=True)
class OutputSettings:
    """Where pictures are to go, as the user says it.

    Args:
        output: a path, a folder (ending in a slash, or there already) or a template; None is `DEFAULT_FOLDER`.
        file_format: png, jpg or webp; None is what `output` says, else png.
        save_steps: a path or template for strips or animations of steps.
        if_exists: error, skip, overwrite or number.
    """

    output: str | None = None
    file_format: str | None = None
    save_steps: str | None = None
    if_exists: str = "error"


def plan_pictures(
    requests: Sequence[tuple[str, GenerateSettings]], where: OutputSettings
) -> tuple[list[Picture], list[Picture]]:
    """Give every picture its files, before anything is loaded.

    Args:
        requests: for each picture the id of its prompt, and its settings.
        where: the user's wishes.

    Returns:
        Pictures to make, and pictures that are skipped because they are there.

    Raises:
        SdcliError: a name is wrong, taken, used twice or cannot be written.
    """
    if where.output is None and where.if_exists == "skip":
        hint = "name the folder or file: -o outputs/"
        raise SdcliError("--if-exists skip needs --output: names by time are never there already", hint=hint)
    now = Day.now()
    fields = [
        {
            "index": index,
            "id": name,
            "seed": settings.seed,
            "prompt": settings.prompt,
            "model": Path(settings.model).name,
            "date": now,
        }
        for index, (name, settings) in enumerate(requests)
    ]
    if where.output is None:
        template = picture_template(f"{DEFAULT_FOLDER}/", NAME_BY_TIME, where.file_format)
    else:
        template = picture_template(where.output, NAME_IN_FOLDER, where.file_format)
    paths = name_files("--output", template, fields)
    steps_paths: list[Path] | list[None] = [None] * len(paths)
    if where.save_steps is not None:
        steps_paths = name_steps(where.save_steps, fields)
    if both := set(paths).intersection(steps_paths):
        raise SdcliError(f"--output and --save-steps would both be {both.pop()}", hint="try --save-steps steps.gif")
    done = already_there(paths, where.if_exists)
    already_there([path for path, skip in zip(steps_paths, done, strict=True) if path and not skip], where.if_exists)
    check_writable([path for path in (*paths, *steps_paths) if path])
    pictures = [
        Picture(settings=settings, index=index, path=paths[index], steps_path=steps_paths[index])
        for index, (_, settings) in enumerate(requests)
    ]
    to_make = [picture for picture in pictures if not done[picture.index]]
    return to_make, [picture for picture in pictures if done[picture.index]]


def name_steps(template: str, fields: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Paths of strips or animations.

    Raises:
        SdcliError: the name is wrong or used twice.
    """
    if os.path.splitext(template)[1].lower() not in (".png", ".gif"):
        raise SdcliError(f"--save-steps {template} must end in .png or .gif", hint="try steps.gif")
    return name_files("--save-steps", template, fields)


def picture_template(output: str, name_in_folder: str, file_format: str | None = None) -> str:
    """The template, with a suffix, that `--output` and `--format` stand for.

    Args:
        output: a path or template, or a folder (ending in a slash, or there already).
        name_in_folder: template of names in a folder, without a suffix.
        file_format: png, jpg or webp; None is what `output` says, else png.

    Raises:
        SdcliError: the suffix is none of ours, or contradicts the format.
    """
    if output.endswith(("/", os.sep)) or os.path.isdir(os.path.expanduser(output)):
        return os.path.join(output, f"{name_in_folder}.{file_format or 'png'}")
    suffix = os.path.splitext(output)[1].lower()
    if suffix not in SUFFIXES:
        what = f"{suffix} is no picture format of ours" if suffix else "the name has no suffix"
        hint = f"write {output}.png for a file, or {output}/ for a folder of pictures"
        raise SdcliError(f"--output {output}: {what}", hint=hint)
    if file_format and SUFFIXES[suffix] != file_format:
        raise SdcliError(f"--output {output} contradicts --format {file_format}", hint="leave --format out")
    return output


def name_files(flag: str, template: str, fields: Sequence[Mapping[str, Any]]) -> list[Path]:
    """One path for each result, all different.

    Args:
        flag: where the template comes from, for messages.
        template: with fields in braces.
        fields: for each result, the values of all fields that are known; texts become safe parts of a file name.

    Raises:
        SdcliError: an unknown field, braces that do not match, or two results of one name.
    """
    known = tuple(fields[0])
    try:
        for _, name, _, conversion in string.Formatter().parse(template):
            if name is not None and (name not in known or conversion):
                listing = did_you_mean(name, known) + "; {{ writes a brace"
                raise SdcliError(f"{flag} knows no field {{{name}{'!' if conversion else ''}}}", hint=listing)
        paths = [Path(template.format(**safe_values(values))).expanduser() for values in fields]
    except (ValueError, KeyError, IndexError) as error:
        raise SdcliError(f"{flag} {template}: {error}", hint="for example {index:05d}; {{ writes a brace") from error
    if len(set(paths)) < len(paths):
        double = next(path for path in paths if paths.count(path) > 1)
        hint = f"put {{{known[0]}}} into the name, or name a folder: {double.with_suffix('')}/"
        raise SdcliError(f"{flag}: {paths.count(double)} files would all be {double}", hint=hint)
    return paths


def safe_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a template's fields, none of which can lead to another folder."""
    return {name: slug(value) if isinstance(value, str) else value for name, value in values.items()}


def slug(text: str) -> str:
    """A text as a part of a file name: words joined by hyphens, in any script, cut at a word's end."""
    words = re.sub(r"\W+", "-", text).strip("-_")
    if len(words.encode()) > LONGEST_TEXT_IN_NAME:
        cut = words.encode()[:LONGEST_TEXT_IN_NAME].decode(errors="ignore")
        words = cut.rpartition("-")[0] or cut
    return words or "untitled"


def already_there(paths: Sequence[Path], if_exists: str) -> list[bool]:
    """Which results need not be made because `--if-exists skip` says so.

    Args:
        paths: of all results.
        if_exists: error, skip, overwrite or number; with `number`, a free name is found when a file is written.

    Raises:
        SdcliError: a file is there and `if_exists` is error, or a folder has the name of a result.
    """
    done = []
    for path in paths:
        there = os.path.lexists(path)
        if os.path.isdir(path):
            raise SdcliError(f"{path} is a folder", hint=f"write {path}/ to put results into it")
        if there and if_exists == "error":
            hint = "add --if-exists number, skip or overwrite, or choose another --output"
            raise SdcliError(f"{path} is already there", hint=hint)
        done.append(there and if_exists == "skip")
    return done


def check_writable(paths: Sequence[Path]) -> None:
    """See that files can be made where they will go, before anything is loaded. New folders are not left behind.

    Raises:
        SdcliError: a folder cannot be made or not be written, or a name is too long.
    """
    for path in paths:
        if len(os.fsencode(path.name)) > LONGEST_NAME:
            raise SdcliError(f"the file name {path.name} is too long", hint="choose a shorter one with --output")
    for folder in dict.fromkeys(path.parent for path in paths):
        new = [each for each in (folder, *folder.parents) if not os.path.exists(each)]
        make_folder(folder)
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            hint = "choose another with --output"
            raise SdcliError(f"cannot write to the folder {folder}: {error.strerror}", hint=hint) from error
        finally:
            with contextlib.suppress(OSError):  # another process may be using it already
                for each in new:
                    each.rmdir()


def write_result(content: bytes, path: Path, if_exists: str) -> Path:
    """Write a file whole or not at all, and give the path that it got.

    Args:
        content: of the file.
        path: where it is to go.
        if_exists: what to do if a file has appeared there meanwhile; with `skip`, that one stays.

    Raises:
        SdcliError: it cannot be written, or a file has appeared there and that is an error.
    """
    if if_exists == "overwrite":
        write_whole(content, path)
        return path
    free = free_path(path) if if_exists == "number" else path
    while True:
        try:
            write_whole(content, free, replace=False)
            return free
        except FileExistsError as error:
            if if_exists == "skip":
                return path
            if if_exists != "number":
                raise SdcliError(f"{path} has appeared meanwhile", hint="add --if-exists number") from error
            free = free_path(path)


def free_path(path: Path) -> Path:
    """The path itself, or with the first number that makes it free: kitten.png, kitten-1.png and so on."""
    number, free = 0, path
    while os.path.lexists(free):
        number += 1
        free = path.with_stem(f"{path.stem}-{number}")
    return free
