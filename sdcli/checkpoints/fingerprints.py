"""SHA-256 of the weight files that a picture is made with, taken beside the work and remembered for large files."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Collection
from functools import cached_property
from pathlib import Path
from typing import Any

from sdcli.checkpoints.weights import cannot_read, sha256_of, training_of, weight_files
from sdcli.checkpoints.writing import write_text
from sdcli.errors import SdcliError
from sdcli.files import state_of

REMEMBERED_BYTES = 64 * 2**20  # smaller files are hashed faster than a picture is made


class Fingerprints(threading.Thread):
    """Hashes weight files while the main thread computes; `get` waits for them.

    Args:
        folder: the model, or its single file.
        components: whose files count, such as unet and vae.
        adapter: folder of what is put onto the model.
        others: more files of weights.
    """

    def __init__(
        self, folder: Path, components: Collection[str], adapter: Path | None = None, others: Collection[Path] = ()
    ):
        super().__init__(daemon=True, name="fingerprints")
        self.names = files_of(folder, components, adapter)
        for path in others:
            names = (path.name, "/".join(path.parts[-3:]), str(path))
            self.names.setdefault(path, next((name for name in names if name not in self.names.values()), str(path)))
        self._digests: dict[str, str] = {}
        self._remembered = read_remembered()
        self._error: SdcliError | None = None
        self.start()

    @cached_property
    def training(self) -> dict[str, Any]:
        """What each file says of its training, by its path within the folder; nothing of those that say nothing."""
        told = {name: training_of(path) for path, name in self.names.items() if path.suffix == ".safetensors"}
        return {name: about for name, about in told.items() if about is not None}

    def run(self) -> None:
        """Hash every file that is not remembered."""
        try:
            for path, name in self.names.items():
                self._digests[name] = self._remembered.get(state_of(path)) or sha256_of(path)
        except SdcliError as error:
            self._error = error

    def get(self) -> dict[str, str]:
        """SHA-256 of each file by its path within the folder.

        Raises:
            SdcliError: a file cannot be read.
        """
        if self.is_alive():
            self.join()
        if self._error is not None:
            raise self._error
        large = [path for path in self.names if path.stat().st_size >= REMEMBERED_BYTES]
        digests = {state_of(path): self._digests[self.names[path]] for path in large}
        if not digests.items() <= self._remembered.items():
            self._remembered |= digests
            remember(self._remembered)
        return dict(self._digests)

    def of_files(self) -> dict[Path, str]:
        """SHA-256 of each file by its path.

        Raises:
            SdcliError: a file cannot be read.
        """
        digests = self.get()
        return {path: digests[name] for path, name in self.names.items()}


def files_of(folder: Path, components: Collection[str], adapter: Path | None = None) -> dict[Path, str]:
    """The weight files of a model that count, each with its path within the model's folder.

    Args:
        folder: the model, or its single file.
        components: whose files count, such as unet and vae.
        adapter: folder of what is put onto the model.
    """
    if folder.is_file():
        names = {folder: folder.name}
    else:
        files = [path for path in weight_files(folder) if path.relative_to(folder).parts[0] in components]
        names = {path: path.relative_to(folder).as_posix() for path in files}
    return names if adapter is None else names | {path: path.name for path in adapter.glob("*.safetensors")}


def digest_remembered(path: Path) -> str:
    """SHA-256 of a file, from the memory where it has that of its present state, and put into it where it is large.

    Raises:
        SdcliError: it cannot be read.
    """
    try:
        state, size = state_of(path), path.stat().st_size
    except OSError as error:
        raise cannot_read(path, error) from error
    remembered = read_remembered() if size >= REMEMBERED_BYTES else {}
    if state not in remembered:
        remembered[state] = sha256_of(path)
        if size >= REMEMBERED_BYTES:
            remember(remembered)
    return remembered[state]


def places_remembered(digests: Collection[str]) -> list[Path]:
    """Files that had one of some digests when they were last used, and are still there."""
    found = [state for state, digest in read_remembered().items() if isinstance(digest, str) and digest in digests]
    return [path for path in (Path(state.partition("|")[0]) for state in found) if path.is_file()]


def memory_file() -> Path:
    """Where digests are kept between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "sdcli" / "sha256.json"


def read_remembered() -> dict[str, str]:
    """Digests by the state of their files; none if there is no such memory or it is damaged."""
    try:
        remembered = json.loads(memory_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return remembered if isinstance(remembered, dict) else {}


def remember(digests: dict[str, str]) -> None:
    """Keep digests for the next run; where that is not possible, it will hash again."""
    with contextlib.suppress(OSError, SdcliError):
        memory_file().parent.mkdir(parents=True, exist_ok=True)
        write_text(memory_file(), json.dumps(digests, indent=0))
