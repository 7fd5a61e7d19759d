"""What a model's image tower, CLIP's, makes of picture files."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from sdcli.checkpoints import load_component
from sdcli.clip_models import TOWER
from sdcli.device import Placement
from sdcli.evaluation.denoising import OnProgress, nothing
from sdcli.evaluation.retrieval import load_for_clip
from sdcli.pipeline import require_finite
from sdcli.registry import ModelSpec


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
