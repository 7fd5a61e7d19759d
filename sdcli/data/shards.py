"""Data that may be larger than the disk: shards of pictures with captions, read one after the other by `datasets`."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdcli.data.folder import METADATA, as_list, label_of, told_apart
from sdcli.errors import SdcliError
from sdcli.images import PICTURES

ON_HUB = "hf:"
SUFFIXES = {".tar": "webdataset", ".parquet": "parquet"}
NUMBERED = re.compile(r"\{(\d+)\.\.(\d+)\}")  # WebDataset's way to name many files
LABELS = ("label", "cls")
CAPTIONS = ("text", "caption", "captions", "txt", "prompt")
PICTURE_KEYS = {"bytes", "path"}  # of a picture that is not decoded
FORMS = "a folder of .tar or .parquet files, 'NAME-{000..099}.tar', or hf:OWNER/NAME:SPLIT"


@dataclass(frozen=True)
class Row:
    """One picture of a shard, as a file's content, and everything that is said of it."""

    content: bytes
    captions: tuple[str, ...]
    label: str | None  # the class of what it shows
    name: str  # to be told by in messages


def is_stream(data: str) -> bool:
    """Whether `--data` names shards, and not a folder of pictures."""
    if data.startswith(ON_HUB) or Path(data).suffix in SUFFIXES:
        return True
    folder = Path(data)
    return folder.is_dir() and not any((folder / name).exists() for name in METADATA) and bool(shards_in(folder))


def shards_in(folder: Path) -> list[str]:
    """The shards in a folder.

    Raises:
        SdcliError: there are pictures beside them, or shards of another kind.
    """
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in (*SUFFIXES, *PICTURES))
    kinds = {path.suffix.lower() if path.suffix.lower() in SUFFIXES else "pictures" for path in files}
    if kinds == {"pictures"}:
        return []
    if len(kinds) > 1:
        raise SdcliError(f"{folder} holds {' and '.join(sorted(kinds))}", hint="put each kind into a folder of its own")
    return list(map(str, files))


def numbered(name: str) -> list[str]:
    """All names that a name with `{000..099}` in it stands for."""
    found = NUMBERED.search(name)
    if found is None:
        return [name]
    first, last = found.groups()
    numbers = (str(number).zfill(len(first)) for number in range(int(first), int(last) + 1))
    return [each for number in numbers for each in numbered(name[: found.start()] + number + name[found.end() :])]


class Shards:
    """What `--data` names, as a list of shards that can each be read from any row on.

    Args:
        data: a folder of WebDataset's .tar files or of .parquet files, the name of such a file, perhaps with
            `{000..099}` in it, a URL of one, or `hf:OWNER/NAME@REVISION:SPLIT` for a data set of the hub, where
            revision and split may be left out.

    Raises:
        SdcliError: `datasets` is not installed, there is no such data, or it holds no pictures.
    """

    def __init__(self, data: str):
        if importlib.util.find_spec("datasets") is None:
            raise SdcliError(
                "--data names shards, and reading those needs datasets, which is not installed",
                hint="pip install '.[streams]', or datasets alone",
            )
        self.data = data
        self.files: list[str] = []
        with explained(data):
            dataset = self._open()
            if dataset.features is None:
                dataset = dataset._resolve_features()
            self.columns = list(dataset.features)
            self.pictures = find_pictures(dataset, data)
            self.captions = [name for name in (*CAPTIONS, "json") if name in self.columns]
            self.label = next((name for name in LABELS if name in self.columns), None)
            for name in self.pictures:
                dataset = dataset.cast_column(name, self._undecoded())
        self._dataset = dataset

    def __len__(self) -> int:
        return self._dataset.num_shards

    @property
    def sha256(self) -> str:
        """Of what tells these shards from others without reading them: names and sizes, or the name on the hub."""
        told = [(Path(file).name, Path(file).stat().st_size if Path(file).is_file() else None) for file in self.files]
        return hashlib.sha256(json.dumps(told or self.data).encode()).hexdigest()

    def rows(self, shard: int, first: int) -> Iterator[Row]:
        """The rows of a shard from number `first` on.

        Raises:
            SdcliError: it cannot be read.
        """
        with explained(f"shard {shard} of {self.data}"):
            for number, row in enumerate(self._dataset.shard(len(self), shard).skip(first), start=first):
                shard_name = row.get("__url__") or f"shard {shard} of {self.data}"
                name = f"{shard_name}, {row.get('__key__') or f'row {number}'}"
                found = next((row[column] for column in self.pictures if row[column] is not None), None)
                label = self._label_of(row)
                yield Row(content_of(found), self._captions_of(row) or told_apart(as_list(label)), label, name)

    def _captions_of(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        values = []
        for column in self.captions:
            value = row[column]
            values += [value.get(name) for name in CAPTIONS] if isinstance(value, Mapping) else [value]
        return told_apart([text for value in values for text in as_list(value) if isinstance(text, str)])

    def _label_of(self, row: Mapping[str, Any]) -> str | None:
        value = None if self.label is None else row[self.label]
        names = getattr(self._dataset.features.get(self.label), "names", None)
        if names and isinstance(value, int):
            value = names[value] if 0 <= value < len(names) else None
        return label_of(value) if isinstance(value, str | int) else None

    @staticmethod
    def _undecoded():
        """The type of a column of pictures that stay as their files are."""
        from datasets import Image

        return Image(decode=False)

    def _open(self):
        """The data set, as a stream."""
        from datasets import load_dataset

        if self.data.startswith(ON_HUB):
            if self.data == ON_HUB:
                raise SdcliError(f"--data {ON_HUB} names no data set", hint=f"--data takes {FORMS}")
            name, _, split = self.data.removeprefix(ON_HUB).partition(":")
            name, _, revision = name.partition("@")
            return load_dataset(name, revision=revision or None, split=split or "train", streaming=True)
        folder = Path(self.data)
        self.files = shards_in(folder) if folder.is_dir() else numbered(self.data)
        if not self.files:
            raise SdcliError(f"--data {self.data} names no file", hint=f"--data takes {FORMS}")
        for file in self.files:
            if "://" not in file and not Path(file).is_file():
                raise SdcliError(f"there is no shard {file}", hint=f"--data takes {FORMS}")
        kind = SUFFIXES[Path(self.files[0]).suffix]
        return load_dataset(kind, data_files=self.files, split="train", streaming=True)


def find_pictures(dataset, data: str) -> list[str]:
    """The columns that hold pictures.

    Raises:
        SdcliError: none does.
    """
    from datasets import Image

    features = dataset.features
    pictures = [
        name
        for name, kind in features.items()
        if isinstance(kind, Image) or (isinstance(kind, Mapping) and set(kind) == PICTURE_KEYS)
    ]
    if not pictures:
        listed = ", ".join(features)
        raise SdcliError(f"{data} has no column of pictures: it has {listed}", hint="name one such as image or jpg")
    return pictures


def content_of(picture: Mapping[str, Any] | None) -> bytes:
    """The bytes of a picture's file; none where a row has no picture."""
    if picture is None:
        return b""
    if picture["bytes"] is not None:
        return picture["bytes"]
    from datasets.download.streaming_download_manager import xopen

    with xopen(picture["path"], "rb") as file:
        return file.read()


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn what `datasets` and the readers below it raise, which is much, into an SdcliError about `what`."""
    from datasets.exceptions import DatasetsError

    try:
        yield
    except (OSError, EOFError, ValueError, RuntimeError, tarfile.TarError, DatasetsError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SdcliError(f"cannot read {what}: {reason}", hint=f"--data takes {FORMS}") from error
