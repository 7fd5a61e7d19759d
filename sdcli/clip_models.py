"""Which models have CLIP's image tower, and loading it. Finding one loads no network."""

from __future__ import annotations

from pathlib import Path

from sdcli.checkpoints import load_clip, load_component
from sdcli.checkpoints.folder import CLIP_HEAD
from sdcli.checkpoints.weights import weight_files
from sdcli.comparer import Comparer
from sdcli.device import Placement
from sdcli.errors import SdcliError
from sdcli.model_config import INDEX, read_json
from sdcli.registry import ModelSpec, find_loadable, load_registry

TOWER = "image_encoder"  # folder of a model
OWN_PARTS = (TOWER, CLIP_HEAD)  # what a CLIP has beside the text encoder that a model is prompted by


def has_tower(model: ModelSpec, with_head: bool) -> bool:
    """Whether a model has an image tower, and the head that compares it with its text tower."""
    if model.path is None or not model.path.is_dir():
        return False
    named = read_json(model.path / INDEX).get(TOWER, [None])[0] is not None
    return named and (model.path / TOWER).is_dir() and (not with_head or (model.path / CLIP_HEAD).is_dir())


def find_with_tower(name: str | None, models_file: Path | None = None, with_head: bool = True) -> ModelSpec:
    """Find a model that has CLIP's image tower.

    Args:
        name: see `find_loadable`.
        models_file: see `find_loadable`.
        with_head: whether pictures are to be compared with texts.

    Raises:
        SdcliError: there is no such model, or it has none; the hint says which have one.
    """
    return require_tower(find_loadable(name, models_file), models_file, with_head)


def require_tower(model: ModelSpec, models_file: Path | None = None, with_head: bool = True) -> ModelSpec:
    """The model, if it has what `find_with_tower` asks for; else an error as there."""
    if has_tower(model, with_head):
        return model
    known = [each for each, spec in sorted(load_registry(models_file).models.items()) if has_tower(spec, with_head)]
    lacks = "CLIP image tower" if not has_tower(model, False) else "clip_head, which compares pictures with texts"
    hint = f"models that have one: {', '.join(known) or 'none of models.toml'}; `sdcli train --part clip` makes one"
    raise SdcliError(f"model {model.name} has no {lacks}", hint=hint)


def load_comparer(model: ModelSpec, placement: Placement, truncate: bool = False) -> Comparer:
    """A model's CLIP with its tokenizer.

    Raises:
        SdcliError: a file of it is bad.
    """
    return Comparer(load_clip(model.path, placement), load_component(model.path, "tokenizer"), truncate)


def clip_files(model: ModelSpec) -> dict[str, Path]:
    """The weight files of a model's CLIP, by the component that each is of."""
    files = {path.relative_to(model.path).parts[0]: path for path in weight_files(model.path)}
    return {name: files[name] for name in ("text_encoder", *OWN_PARTS) if name in files}
