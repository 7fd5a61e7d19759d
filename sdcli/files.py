"""Whole files: read at once, and written so that they appear whole or not at all."""

import contextlib
import errno
import fcntl
import os
import re
import secrets
from pathlib import Path

from sdcli.errors import SdcliError

UNFINISHED = ".tmp"  # how the name of a file ends until it is whole


def read_bytes(path: Path, limit: int = -1) -> bytes:
    """Content of a file, or the first `limit` bytes of it.

    Raises:
        SdcliError: it is missing, a folder, or cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return file.read(limit)
    except FileNotFoundError as error:
        raise SdcliError(f"there is no file {path}", hint="check the path") from error
    except IsADirectoryError as error:
        raise SdcliError(f"{path} is a folder, not a file", hint="name the files in it") from error
    except OSError as error:
        raise SdcliError(f"cannot read {path}: {error.strerror}", hint="check the path and its permissions") from error


def write_whole(content: bytes, path: Path, replace: bool = True) -> None:
    """Write a file whole or not at all: a temporary file in the same folder, fsync, rename.

    Raises:
        FileExistsError: there is a file of that name, and `replace` is off.
        SdcliError: the folder cannot be written, or the disk is full.
    """
    try:
        make_folder(path.parent)
        try:
            _write(content, path, replace)
        except FileNotFoundError:  # another machine has deleted the temporary file: its locks do not reach that far
            _write(content, path, replace)
    except FileExistsError:
        raise
    except OSError as error:
        hint = "free some space" if error.errno == errno.ENOSPC else "choose another place with --output"
        raise SdcliError(f"cannot write {path}: {error.strerror}", hint=hint) from error


def _write(content: bytes, path: Path, replace: bool) -> None:
    """What `write_whole` does. The temporary file is locked, which tells it from one that a killed process left."""
    temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}{UNFINISHED}")
    try:
        with open(temporary, "xb") as file:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            publish(temporary, path, replace)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def delete_unfinished(folder: Path) -> None:
    """Delete what `write_whole` left half-written in a folder because its process was killed."""
    names: list[str] = []
    with contextlib.suppress(OSError):  # there may be no such folder
        names = os.listdir(folder)
    for name in names:
        if re.fullmatch(rf"\..+\.[0-9a-f]{{8}}{re.escape(UNFINISHED)}", name):
            with contextlib.suppress(OSError), open(folder / name, "r+b") as file:  # or it is whole by now, or not ours
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(folder / name)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, where missing.

    Raises:
        SdcliError: that is not possible.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = "there is a file of that name" if isinstance(error, FileExistsError) else error.strerror
        raise SdcliError(f"cannot make the folder {folder}: {why}", hint="choose another with --output") from error


def publish(temporary: Path, path: Path, replace: bool) -> None:
    """Give a finished temporary file its name."""
    if replace:
        os.replace(temporary, path)
        return
    try:
        os.link(temporary, path)  # unlike rename, fails when the name is taken
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        os.replace(temporary, path)


def state_of(path: Path) -> str:
    """What of a file changes whenever its content does; a copy or a touch cannot set ctime."""
    status = path.stat()
    return f"{path.resolve()}|{status.st_ino}|{status.st_size}|{status.st_mtime_ns}|{status.st_ctime_ns}"
