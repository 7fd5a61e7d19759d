"""manifest.jsonl in an output folder: which pictures are made, and who is making which at this moment.

The first line says the seed of jobs that have none of their own, so that the same command, every shard and every
process agree on it. A line follows for each picture. A process claims a picture by a lock on a byte of the file that
its path stands for; the system gives the lock back however the process ends.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

from sdcli.errors import SdcliError
from sdcli.files import make_folder

NAME = "manifest.jsonl"
SCHEMA = "sdcli.manifest/1"
WRITING = 0  # byte whose lock is held while a line is written
FIRST_CLAIM = 2**40  # bytes from here on stand for pictures; the file is never so long
ASK_EVERY_S = 0.2
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


class Manifest:
    """The manifest of a folder, made if there is none. One process opens it once: its locks end with its first close.

    Args:
        folder: where pictures go.
        seed: of jobs that say none, unless the manifest says another.

    Raises:
        SdcliError: it cannot be written, or is none.
    """

    def __init__(self, folder: Path, seed: int):
        self.folder = folder
        self.path = folder / NAME
        self.keys: dict[str, str] = {}  # of every picture, by its path below the folder
        self._end = 0  # of what has been read
        make_folder(folder)
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise SdcliError(f"cannot write {self.path}: {error.strerror}", hint="choose another --output") from error
        self.locks = self._lock(WRITING, wait=True) is not None
        try:
            self._drop_torn_line()
            if os.fstat(self._file).st_size == 0:
                self._write({"schema": SCHEMA, "seed": seed})
            self.seed = self._first_line()
            self._read_on()
        except BaseException:
            self.close()
            raise
        self._unlock(WRITING)

    def close(self) -> None:
        """Give every claim back."""
        os.close(self._file)

    def __enter__(self) -> Manifest:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def claim(self, path: Path) -> bool:
        """Take a picture for this process; False where another process has it."""
        return self._lock(self._byte_of(path), wait=False) is not False

    def wait_for(self, path: Path) -> None:
        """Take a picture as soon as the process that has it gives it back, or ends."""
        while not self.claim(path):
            time.sleep(ASK_EVERY_S)  # not a lock that waits: a signal has to be heard

    def release(self, path: Path) -> None:
        """Give a picture back."""
        self._unlock(self._byte_of(path))

    def add(self, path: Path, key: str, about: dict[str, Any]) -> None:
        """Write down a picture that is on disk, unless that has been done; the line is on the disk on return.

        Raises:
            SdcliError: the disk is full, or broken.
        """
        name = self._name_of(path)
        self._lock(WRITING, wait=True)
        try:
            self._drop_torn_line()
            self._read_on()
            if self.keys.get(name) != key:
                self._write({**about, "key": key, "path": name})
                self.keys[name] = key
        finally:
            self._unlock(WRITING)

    def _name_of(self, path: Path) -> str:
        return os.path.relpath(path, self.folder)

    def _byte_of(self, path: Path) -> int:
        digest = hashlib.sha256(os.fsencode(self._name_of(path))).digest()
        return FIRST_CLAIM + int.from_bytes(digest[:7], "big")

    def _lock(self, byte: int, wait: bool) -> bool | None:
        """Whether a byte is locked now; None on a file system that has no locks."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, byte)
        except (BlockingIOError, PermissionError):
            return False
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            return None
        return True

    def _unlock(self, byte: int) -> None:
        if self.locks:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, byte)

    def _drop_torn_line(self) -> None:
        """Cut off what a process left that ended while it wrote: a last line without an end."""
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) != b"\n":
            content = os.pread(self._file, size, 0)
            os.ftruncate(self._file, content.rfind(b"\n") + 1)

    def _write(self, line: dict[str, Any]) -> None:
        """Append a line, for good."""
        content = (json.dumps(line) + "\n").encode()
        try:
            os.pwrite(self._file, content, os.fstat(self._file).st_size)
            os.fsync(self._file)
        except OSError as error:
            hint = "free some space" if error.errno == errno.ENOSPC else "choose another --output"
            raise SdcliError(f"cannot write {self.path}: {error.strerror}", hint=hint) from error

    def _first_line(self) -> int:
        """The seed that it says.

        Raises:
            SdcliError: this is no manifest.
        """
        try:
            line = json.loads(os.pread(self._file, 4096, 0).split(b"\n")[0])
            if line["schema"] == SCHEMA and isinstance(line["seed"], int):
                return line["seed"]
        except (ValueError, KeyError, TypeError):
            pass
        hint = "choose another --output, or take the file away"
        raise SdcliError(f"{self.path} is no manifest of this program's", hint=hint)

    def _read_on(self) -> None:
        """Read the lines that this or another process has added."""
        size = os.fstat(self._file).st_size
        lines = os.pread(self._file, size - self._end, self._end).split(b"\n")
        self._end = size
        for line in lines:
            try:
                picture = json.loads(line)
                self.keys[picture["path"]] = picture["key"]
            except (ValueError, KeyError, TypeError):
                continue  # the first line, or one that was damaged


def seed_in(folder: Path) -> int | None:
    """The seed that the manifest of a folder says; None if there is none, or none that can be read."""
    try:
        with open(folder / NAME, "rb") as file:
            line = json.loads(file.readline(4096))
        return line["seed"] if line["schema"] == SCHEMA and isinstance(line["seed"], int) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
