"""failed.jsonl: the jobs that could not be done, in the form of a job file, to be given to `--jobs` again."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from sdcli.errors import SdcliError
from sdcli.files import make_folder
from sdcli.jobs import job_of
from sdcli.output import Picture
from sdcli.run_settings import Shard


class FailureList:
    """The file of a run; what an earlier run left there is gone, for this one tries it again.

    Args:
        folder: where pictures go.
        shard: of the run, which has a file of its own.
    """

    def __init__(self, folder: Path, shard: Shard):
        self.folder = folder
        self.path = folder / name_of_list(shard)
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()

    def add(self, picture: Picture, error: SdcliError) -> None:
        """Write down a picture that could not be made.

        Raises:
            SdcliError: that cannot be written either.
        """
        line = json.dumps({**job_of(picture, self.folder), "error": str(error)})
        make_folder(self.folder)
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(line + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as cause:
            hint = "free some space, or choose another --output"
            raise SdcliError(f"cannot write {self.path}: {cause.strerror}", hint=hint) from cause


def name_of_list(shard: Shard) -> str:
    """The name of the file of a shard."""
    return "failed.jsonl" if shard.count == 1 else f"failed-{shard.index + 1}-of-{shard.count}.jsonl"
