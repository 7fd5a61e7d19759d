"""Which models have CLIP's image tower, and loading it. Finding one loads no network."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from sdcli.checkpoints import load_clip, load_component
from sdcli.device import Placement
from sdcli.errors import SdcliError
from sdcli.evaluation.denoising import OnProgress, nothing
from sdcli.evaluation.retrieval import Comparer, load_for_clip
from sdcli.model_config import INDEX, read_json
from sdcli.pipeline import require_finite
from sdcli.registry import ModelSpec, find_loadable, load_registry

TOWER, HEAD = "image_encoder", "clip_head"  # folders of a model


def has_tower(model: ModelSpec, with_head: bool) -> bool:
    """Whether a model has an image tower, and the head that compares it with its text tower."""
    if model.path is None or not model.path.is_dir():
        return False
    named = read_json(model.path / INDEX).get(TOWER, [None])[0] is not None
    return named and (model.path / TOWER).is_dir() and (not with_head or (model.path / HEAD).is_dir())


def find_with_tower(name: str | None, models_file: Path | None, with_head: bool = True) -> ModelSpec:
    """Find a model that has CLIP's image tower.

    Args:
        name: see `find_loadable`.
        models_file: see `find_loadable`.
        with_head: whether pictures are to be compared with texts.

    Raises:
        SdcliError: there is no such model, or it has none; the hint says which have one.
    """
    model = find_loadable(name, models_file)
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


@torch.inference_mode()
def image_features(
    model: ModelSpec, placement: Placement, paths: list[Path], batch_size: int = 32, on_progress: OnProgress = nothing
) -> Tensor:
    """What a model's image tower makes of picture files: its projection, not brought to length 1, (N, D) float32.

    Raises:
        SdcliError: a file is bad, or the tower's output is not a number.
    """
    tower = load_component(model.path, TOWER, placement)
    size = tower.config.image_size
    rows = []
    for start in range(0, len(paths), batch_size):
        some = paths[start : start + batch_size]
        pictures = torch.cat([load_for_clip(path, size) for path in some]).to(tower.device, tower.dtype)
        rows.append(require_finite(tower(pictures).image_embeds.float().cpu(), "CLIP image tower", tower.dtype))
        on_progress(start + len(some), len(paths))
    return torch.cat(rows)
