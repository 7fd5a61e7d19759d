"""Files of results: whether they may be written, and what becomes of those that are already there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from sdcli.errors import SdcliError
from sdcli.files import write_whole

LONGEST_NAME = 255  # bytes, on the usual file systems


def already_there(paths: Iterable[str | Path], if_exists: str) -> list[bool]:
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
        if there and os.path.isdir(path):
            raise SdcliError(f"{path} is a folder", hint=f"write {path}/ to put results into it")
        if there and if_exists == "error":
            hint = "add --if-exists number, skip or overwrite, or choose another --output"
            raise SdcliError(f"{path} is already there", hint=hint)
        done.append(there and if_exists == "skip")
    return done


def check_writable(paths: Iterable[str | Path]) -> None:
    """See that files can be made where they will go, before anything is loaded. Folders are not made yet.

    Raises:
        SdcliError: a folder cannot be made or not be written, or a name is too long.
    """
    split = [os.path.split(path) for path in paths]
    for _, name in split:
        if len(os.fsencode(name)) > LONGEST_NAME:
            raise SdcliError(f"the file name {name} is too long", hint="choose a shorter one with --output")
    for folder in map(Path, dict.fromkeys(folder for folder, _ in split)):
        there = next(each for each in (folder, *folder.parents) if os.path.exists(each))
        if not there.is_dir():
            hint = "choose another with --output"
            raise SdcliError(f"cannot make the folder {folder}: {there} is a file", hint=hint)
        try:
            with tempfile.TemporaryFile(dir=there):
                pass
        except OSError as error:
            hint = "choose another with --output"
            raise SdcliError(f"cannot write to the folder {folder}: {error.strerror}", hint=hint) from error


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
