"""A tiny model that has a whole CLIP: conftest's, with an image tower and a head of seeded weights."""

import json
import shutil
from pathlib import Path

import torch
from conftest import seeded

from sdcli.checkpoints.folder import CLIP_HEAD, INDEX, load_component
from sdcli.checkpoints.saving import save_component
from sdcli.checkpoints.writing import write_tensors
from sdcli.components.clip import ImageEncoder

SEES_PX = 16


def give_sight(tiny: Path, folder: Path, seed: int = 4) -> Path:
    """A copy of a tiny model in another folder, with the towers of a CLIP."""
    shutil.copytree(tiny, folder)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    tower = seeded(ImageEncoder(**sizes, image_size=SEES_PX, patch_size=8, projection_dim=8), seed)
    save_component(tower, folder / "image_encoder")
    width = load_component(folder, "text_encoder").config.hidden_size
    projection = torch.randn(8, width, generator=torch.Generator().manual_seed(seed))
    (folder / CLIP_HEAD).mkdir()
    head = {"text_projection.weight": projection, "logit_scale": torch.tensor(3.0)}
    write_tensors(folder / CLIP_HEAD / "model.safetensors", head, {})
    index = json.loads((folder / INDEX).read_text())
    index["image_encoder"] = ["transformers", "CLIPVisionModelWithProjection"]
    (folder / INDEX).write_text(json.dumps(index))
    return folder
