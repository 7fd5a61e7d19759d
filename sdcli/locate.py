"""What a picture was made from, as it is on this machine: by the names in it, or where those have moved by SHA-256.

Nothing is fetched because a picture names it; only what a models.toml of the user names is.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from sdcli.checkpoints.fingerprints import digest_remembered, files_of
from sdcli.clip_models import clip_files, find_with_tower
from sdcli.errors import SdcliError
from sdcli.hub import HubModel, cached_config
from sdcli.images import PICTURES
from sdcli.keys import parts_of, weights_in, weights_of_tower, weights_of_vae
from sdcli.places import WEIGHTS, Places, holds, root_of
from sdcli.record import Record
from sdcli.registry import ModelSpec, find_loadable, find_model, load_registry
from sdcli.settings import GenerateSettings, lora_of

DENOISERS = ("unet/", "transformer/")
SHOWN_DIGITS = 12  # of a SHA-256, in a message
FOLDERS = ("vae", "controlnet")  # named by a folder with a configuration beside the weights
SINGLE = ("init_image", "mask", "vae", "clip_model")
LISTS = ("control_image", "embedding", "controlnet")
SEEN = ("init_image", "mask", "control_image")


@dataclass(frozen=True)
class Difference:
    """Something that is not as it was when a picture was made.

    Args:
        what: in words, or the name of a file.
        recorded: in the picture; None where it says nothing of it.
        here: now; None where there is no such thing.
    """

    what: str
    recorded: str | None
    here: str | None

    def __str__(self) -> str:
        return f"{self.what} was {short(self.recorded)}, here it is {short(self.here)}"


@dataclass(frozen=True)
class Found:
    """What a picture is made from, as it is on this machine.

    Args:
        settings: that name every file where it is.
        model: on disk.
        moved: what has another name now, by its name in the picture.
        changed: files whose content is another one.
    """

    settings: GenerateSettings
    model: ModelSpec
    moved: dict[str, str] = field(default_factory=dict)
    changed: list[Difference] = field(default_factory=list)


def locate(record: Record, places: Places, lenient: bool = False) -> Found:
    """Find everything that a picture was made from.

    Args:
        record: what the picture says of it.
        places: to look at, where something is not where the picture says.
        lenient: take a file of the right name and other content where nothing better is found.

    Raises:
        SdcliError: something is not to be found, or has changed and that is not to be taken.
    """
    moved: dict[str, str] = {}
    changed: list[Difference] = []
    beside: set[str | None] = set()  # SHA-256 of weights that are not the model's own
    for kind, name in named_files(record.settings):
        digest, here = record.provenance.inputs.get(name), file_here(kind, name)
        found_digest = None if here is None else digest_remembered(here)
        if kind not in SEEN:
            beside.add(digest or found_digest)
        if kind == "clip_model":
            beside |= digests_of_clip(name)
        if here is not None and digest in (None, found_digest):
            continue
        suffixes = PICTURES if kind in SEEN else WEIGHTS
        where = None if digest is None else places.file(digest, suffixes, os.path.basename(name), kind == "vae")
        if where is not None:
            moved[name] = name_of_file(kind, where)
            if kind == "clip_model":
                beside |= digests_of_clip(moved[name])
        elif lenient and here is not None:
            changed.append(Difference(name, digest, found_digest))
        else:
            raise missing(record, name, Difference(kind, digest, found_digest), places)
    model, differing = locate_model(record, beside, places, lenient)
    if model.name != record.settings.model:
        moved[record.settings.model] = model.name
    return Found(renamed(record.settings, moved, model.name), model, moved, [*differing, *changed])


def locate_model(
    record: Record, beside: Collection[str | None], places: Places, lenient: bool
) -> tuple[ModelSpec, list[Difference]]:
    """The model of a picture, and what of it has another content.

    Args:
        record: what the picture says of it.
        beside: SHA-256 of weights that go with it.
        places: as for `locate`.
        lenient: as for `locate`.

    Raises:
        SdcliError: as for `locate`.
    """
    name, recorded = record.settings.model, record.provenance.weights
    wanted = {path: digest for path, digest in recorded.items() if digest not in beside}
    parts = parts_of(record.settings)
    for spec in candidates(name, wanted, places):
        if holds(spec, parts, set(wanted.values()), beside):
            return spec, []
    named = model_here(name, places)
    if named is None:
        path = min(wanted, key=lambda path: not path.startswith(DENOISERS), default="model")
        raise missing(record, name, Difference(path, wanted.get(path), None), places)
    here = {path: digest_remembered(file) for file, path in files_of(named.path, parts, named.adapter).items()}
    paths = sorted({**wanted, **here}, key=lambda path: not path.startswith(DENOISERS))
    differing = [Difference(path, wanted.get(path), here.get(path)) for path in paths]
    differing = [each for each in differing if each.recorded != each.here]
    if differing and not lenient:
        raise missing(record, name, differing[0], places)
    return named, differing


def candidates(name: str, wanted: Mapping[str, str], places: Places) -> Iterator[ModelSpec]:
    """Models that may be the one of a picture: that of its name, others, and what the user's models.toml can fetch."""
    named = model_here(name, places)
    if named is not None:
        yield named
    yield from places.models(set(wanted.values()), single=not any("/" in path for path in wanted))
    if named is None and name in load_registry(places.models_file).models:
        yield find_loadable(name, places.models_file)


def model_here(name: str, places: Places) -> ModelSpec | None:
    """The model that goes by a name; None where it is not on disk."""
    with contextlib.suppress(SdcliError):
        spec = find_model(name, places.models_file)
        return spec if spec.on_disk else None
    return None


def missing(record: Record, name: str, what: Difference, places: Places) -> SdcliError:
    """The error for something that is not here, or has another content.

    Args:
        record: of the picture that needs it.
        name: of the model or the file, in the picture.
        what: of it is needed, and what is here instead.
        places: that were searched.
    """
    wanted = f"its {what.what} is to have SHA-256 {short(what.recorded)}"
    if what.recorded is None:
        wanted = f"the picture does not say what its {what.what} was"
    if what.here is None:
        said, more = f"{name} is not here", ""
    else:
        said, more = f"{name} has changed", "; or --check makes it with what is here, and compares"
        wanted += f", and has {short(what.here)}"
    hint = f"--search FOLDER looks for it elsewhere than in {places}{more}"
    return SdcliError(f"{record.path}: {said}: {wanted}", hint=hint)


def short(value: str | None) -> str:
    """A value for a message; of a SHA-256 the first digits."""
    if value is None:
        return "not there"
    return value[:SHOWN_DIGITS] if len(value) == 64 else value


def named_files(settings: GenerateSettings) -> Iterator[tuple[str, str]]:
    """What settings name beside the model, each with its setting."""
    yield from (("lora", lora_of(each)[0]) for each in settings.lora)
    for kind in LISTS:
        yield from ((kind, each) for each in getattr(settings, kind))
    yield from ((kind, getattr(settings, kind)) for kind in SINGLE if getattr(settings, kind) is not None)


def file_here(kind: str, name: str) -> Path | None:
    """The file that a setting means by a name, of a folder its weights; None where there is none."""
    path = Path(name).expanduser()
    with contextlib.suppress(SdcliError):
        if kind == "vae":
            return weights_of_vae(name)
        if kind == "clip_model":
            return weights_of_tower(name)
        if kind == "controlnet":
            hub = HubModel.parse(name)
            folder = path if path.is_dir() or hub is None else cached_config(hub)
            return weights_in(folder) if folder is not None and folder.is_dir() else None
        return path if path.is_file() else None
    return None


def digests_of_clip(name: str) -> set[str]:
    """SHA-256 of every file of the CLIP of a model; none where there is no such model."""
    with contextlib.suppress(SdcliError):
        return {digest_remembered(file) for file in clip_files(find_with_tower(name)).values()}
    return set()


def name_of_file(kind: str, file: Path) -> str:
    """What a setting is to say to mean a file: its folder, where that is a component; of a CLIP that of its model."""
    if kind == "clip_model":
        return str(root_of(file))
    return str(file.parent if kind in FOLDERS and (file.parent / "config.json").is_file() else file)


def renamed(settings: GenerateSettings, moved: Mapping[str, str], model: str) -> GenerateSettings:
    """Settings that name what has moved where it is."""
    changes = {name: tuple(moved.get(each, each) for each in getattr(settings, name)) for name in LISTS}
    changes |= {name: moved.get(getattr(settings, name), getattr(settings, name)) for name in SINGLE}
    loras = [(each, lora_of(each)[0]) for each in settings.lora]
    lora = tuple(moved.get(file, file) + each.removeprefix(file) for each, file in loras)
    return replace(settings, **changes, lora=lora, model=model)
