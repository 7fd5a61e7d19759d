"""Where files may be that are known by their SHA-256 only: the user's models, files used before, folders to search."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from sdcli.checkpoints.fingerprints import digest_remembered, files_of, places_remembered
from sdcli.errors import SdcliError
from sdcli.images import PICTURES
from sdcli.keys import weights_of_vae
from sdcli.model_config import INDEX
from sdcli.pickles import SUFFIXES as PICKLES
from sdcli.registry import ADAPTER, ModelSpec, load_registry, model_folder, spec_of_path

WEIGHTS = (".safetensors", *PICKLES)


@dataclass(frozen=True)
class Places:
    """Places in the order in which they are searched.

    Args:
        models_file: comes before the other models.toml files.
        near: folders that are looked into, but not into those within, unless these are models or components.
        below: folders that are searched with all that is below them.

    Raises:
        SdcliError: a folder to search is none.
    """

    models_file: Path | None = None
    near: tuple[Path, ...] = ()
    below: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        for folder in self.below:
            if not folder.is_dir():
                raise SdcliError(f"--search {folder} is no folder", hint="name a folder that is there")

    def __str__(self) -> str:
        folders = dict.fromkeys(str(folder) for folder in (*self.near, *self.below))
        return ", ".join(["models.toml", "the files used before", *folders])

    def file(self, digest: str, suffixes: Sequence[str], name: str, of_models: bool = False) -> Path | None:
        """A file of some content; None where there is none.

        Args:
            digest: its SHA-256.
            suffixes: that it may have.
            name: of the file when it was seen last; others of that name are tried first.
            of_models: whether it may be the VAE of a model of models.toml.
        """
        vaes = self.vaes() if of_models else ()
        for place in (places_remembered({digest}), vaes, self.files_near(), self.files_below):
            files = [file for file in place if file.suffix.lower() in suffixes]
            for file in sorted(files, key=lambda file: file.name != name):
                if digest_here(file) == digest:
                    return Path(os.path.abspath(file))
        return None

    def models(self, digests: Collection[str], single: bool) -> Iterator[ModelSpec]:
        """Models that may be the one whose files have some digests, the likely ones first.

        Args:
            digests: SHA-256 of the files.
            single: whether one file may be all of it.
        """
        yield from specs(root_of(path) for path in places_remembered(digests))
        yield from self.named_models
        for folder in self.near:
            yield from specs(path for path in (folder, *sorted(folder.glob("*"))) if is_model(path))
        yield from specs(path for path in self.folders_below if is_model(path))
        if single:
            files = [*self.files_near(), *self.files_below]
            yield from specs(file for file in files if file.suffix == ".safetensors" and digest_here(file) in digests)

    @cached_property
    def named_models(self) -> list[ModelSpec]:
        """The models of models.toml that are on disk."""
        return [spec for spec in load_registry(self.models_file).models.values() if spec.on_disk]

    def vaes(self) -> Iterator[Path]:
        """The weights of their VAEs."""
        for spec in self.named_models:
            with contextlib.suppress(SdcliError):
                yield weights_of_vae(str(spec.path))

    def files_near(self) -> Iterator[Path]:
        """Files in the folders near, and weights in components there."""
        for folder in self.near:
            inside = [*folder.glob("*"), *folder.glob("*/*.safetensors")]
            yield from sorted(path for path in inside if path.is_file())

    @cached_property
    def folders_below(self) -> list[Path]:
        """Every folder of those to search."""
        return [Path(folder) for root in self.below for folder, _, _ in os.walk(root)]

    @cached_property
    def files_below(self) -> list[Path]:
        """Every picture and every file of weights in them."""
        files = [path for folder in self.folders_below for path in sorted(folder.glob("*"))]
        return [path for path in files if path.suffix.lower() in (*PICTURES, *WEIGHTS) and path.is_file()]


def digest_here(path: Path) -> str | None:
    """SHA-256 of a file; None where it cannot be read."""
    with contextlib.suppress(SdcliError):
        return digest_remembered(path)
    return None


def is_model(path: Path) -> bool:
    """Whether a folder is a model, or a training run that has one."""
    folder = model_folder(path)
    return any((folder / mark).is_file() for mark in (INDEX, ADAPTER))


def root_of(file: Path) -> Path:
    """The model that a file of weights belongs to: a folder, or the file itself."""
    folder = file.parent.parent
    return folder if (folder / INDEX).is_file() else file


def specs(paths: Iterable[Path]) -> Iterator[ModelSpec]:
    """Models in folders or single files, under their full paths; what cannot be read is left out."""
    for path in paths:
        full = Path(os.path.abspath(path))
        with contextlib.suppress(SdcliError):
            yield spec_of_path(str(full), full)


def holds(spec: ModelSpec, components: Collection[str], wanted: Collection[str], beside: Collection[str]) -> bool:
    """Whether the weights of a model are those that are wanted. Small files are read first, to see soon that not.

    Args:
        spec: of a model on disk.
        components: whose files count.
        wanted: SHA-256 of each file.
        beside: of files that go with the model, and may be among its own.
    """
    found = set()
    try:
        for file in sorted(files_of(spec.path, components, spec.adapter), key=lambda file: file.stat().st_size):
            digest = digest_remembered(file)
            if digest not in wanted and digest not in beside:
                return False
            found.add(digest)
    except (OSError, SdcliError):
        return False
    return found.issuperset(wanted)
