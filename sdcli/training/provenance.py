"""Where weights come from, written into each of their files: settings, data, versions, parents."""

import importlib.metadata
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from sdcli import __version__
from sdcli.checkpoints import sha256_of, weight_files
from sdcli.checkpoints.weights import TRAINING
from sdcli.registry import find_model
from sdcli.training.assembly import Model
from sdcli.training.settings import TrainSettings

if TYPE_CHECKING:
    from sdcli.training.material import Material

LIBRARIES = ("torch", "diffusers", "transformers", "accelerate")
OWN = ("data", "output", "cache", "device")  # settings that say something of a machine, and nothing of the weights


def provenance(settings: TrainSettings, material: "Material", model: Model) -> dict[str, str]:
    """The metadata of a weights file.

    Args:
        settings: of the run.
        material: what it learns from.
        model: what it trains.
    """
    told = {name: value for name, value in asdict(settings).items() if name not in OWN and value not in (None, ())}
    about = {
        "sdcli": __version__,
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "settings": told,
        "data_sha256": material.sha256,
        "images": material.images,
        "parents": parents(settings),
    }
    return {TRAINING: json.dumps(about, sort_keys=True)}


def parents(settings: TrainSettings) -> dict[str, str]:
    """SHA-256 of the weight files of the model that a run starts from, by their names."""
    if settings.model is None:
        return {}
    folder = find_model(settings.model).path
    if folder is not None and folder.is_file():
        return {folder.name: sha256_of(folder)}
    if folder is None or not folder.is_dir():
        return {}
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in weight_files(folder)}
