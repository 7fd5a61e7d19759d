"""The key of a picture: a SHA-256 of everything that decides it, so that a file that carries it need not be made again.

That is the resolved settings, and the content, not the names, of every file: weights, LoRAs, pictures to begin from.
Device and precision are left out: a job that goes on elsewhere is the same job.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from sdcli.checkpoints import fingerprints
from sdcli.checkpoints.control import find_controlnet
from sdcli.checkpoints.fingerprints import Fingerprints
from sdcli.checkpoints.weights import sha256_of, weight_file
from sdcli.clip_models import OWN_PARTS, TOWER, clip_files, find_with_tower
from sdcli.errors import SdcliError
from sdcli.files import state_of
from sdcli.model_config import INDEX
from sdcli.registry import ModelSpec, find_model
from sdcli.settings import GenerateSettings, lora_of

# Components whose files decide a picture.
HASHED = ("vae", "text_encoder", "text_encoder_2", "text_encoder_3", "unet", "transformer")
PICTURES = ("init_image", "mask")
SINGLE, LISTS = ("vae", "clip_model", *PICTURES), ("embedding", "controlnet", "control_image")
NAMED = ("model", "lora", *SINGLE, *LISTS)  # by files: not told by name
OTHERS = tuple(each.name for each in fields(GenerateSettings) if each.name not in NAMED)
LATER = {"clip_guidance": 0.0, "clip_model": None}  # settings that keys say only where they are not this: keys stay


class Keys:
    """Keys of the pictures of one model, and the hashes that they are made from.

    Args:
        model: on disk.
    """

    def __init__(self, model: ModelSpec):
        self.model = model
        self._fingerprints: dict[tuple, Fingerprints] = {}

    def fingerprints(self, settings: GenerateSettings) -> Fingerprints:
        """The hashes of every weight file that decides a picture; they are taken in a thread of their own."""
        others = (*weights_beside(settings), *([] if self.model.lora is None else [self.model.lora]))
        kind = (others, parts_of(settings))
        if kind not in self._fingerprints:
            self._fingerprints[kind] = Fingerprints(self.model.path, parts_of(settings), self.model.adapter, others)
        return self._fingerprints[kind]

    def of(self, settings: GenerateSettings) -> str:
        """The key of a picture.

        Args:
            settings: with what the scheduler really does.

        Raises:
            SdcliError: a file cannot be read.
        """
        values: dict[str, Any] = {name: getattr(settings, name) for name in OTHERS}
        values["weights"] = sorted(self.fingerprints(settings).get().values())
        digests = self.inputs(settings)
        values["lora"] = [(digests[file], share) for file, share in map(lora_of, settings.lora)]
        values |= {name: [digests[file] for file in getattr(settings, name)] for name in LISTS}
        values |= {name: digests.get(getattr(settings, name)) for name in SINGLE}
        return key_of({name: value for name, value in values.items() if name not in LATER or value != LATER[name]})

    def inputs(self, settings: GenerateSettings) -> dict[str, str]:
        """SHA-256 of every file that settings name, but for the model, by its name there; of a folder its weights'.

        Raises:
            SdcliError: a file cannot be read.
        """
        weights = self.fingerprints(settings).of_files()
        beside = {name: weights[path] for name, path in named_weights(settings).items()}
        return beside | {name: digest_of(name) for name in named_pictures(settings)}


def key_of(values: Mapping[str, Any]) -> str:
    """SHA-256 of values of JSON types, whatever their order."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def digest_of(file: str) -> str:
    """SHA-256 of a file as the user names it, taken once until it changes.

    Raises:
        SdcliError: it cannot be read.
    """
    path = Path(file).expanduser()
    try:
        return digest_in_state(path, state_of(path))
    except OSError as error:
        raise SdcliError(f"cannot read {file}: {error.strerror}", hint="check the path") from error


@lru_cache(maxsize=4096)
def digest_in_state(path: Path, state: str) -> str:
    """SHA-256 of a file while it is in a state."""
    return sha256_of(path)


def files_of(model: ModelSpec) -> list[Path]:
    """The weight files of a model."""
    return [
        *fingerprints.files_of(model.path, (*HASHED, *OWN_PARTS), model.adapter),
        *([] if model.lora is None else [model.lora]),
    ]


def parts_of(settings: GenerateSettings) -> tuple[str, ...]:
    """The components of a model whose files decide a picture."""
    parts = tuple(part for part in HASHED if part != "vae" or settings.vae is None)
    own_clip = settings.clip_guidance > 0 and settings.clip_model is None
    return (*parts, *OWN_PARTS) if own_clip else parts


def weights_beside(settings: GenerateSettings) -> list[Path]:
    """Files of weights that are put onto the model, or stand beside it."""
    named = list(named_weights(settings).values())
    clip = [] if settings.clip_model is None else clip_files(find_with_tower(settings.clip_model)).values()
    return list(dict.fromkeys([*named, *clip]))


def named_weights(settings: GenerateSettings) -> dict[str, Path]:
    """Files of weights that are put onto the model, or stand beside it, by what settings call them.

    Of a CLIP it is the file of its image tower.

    Raises:
        SdcliError: a folder is not there, or has no weights.
    """
    named = (*(lora_of(each)[0] for each in settings.lora), *settings.embedding)
    files = {each: Path(each).expanduser() for each in named}
    files |= {each: weights_in(find_controlnet(each)) for each in settings.controlnet}
    if settings.vae is not None:
        files[settings.vae] = weights_of_vae(settings.vae)
    if settings.clip_model is not None:
        files[settings.clip_model] = weights_of_tower(settings.clip_model)
    return files


def weights_of_tower(name: str) -> Path:
    """The file of weights of an image tower, by what settings call its model.

    Raises:
        SdcliError: there is none.
    """
    return clip_files(find_with_tower(name))[TOWER]


def weights_of_vae(name: str) -> Path:
    """The file of weights of a VAE, by what settings call it.

    Raises:
        SdcliError: there is none.
    """
    path = vae_path(name)
    return weights_in(path / "vae" if (path / INDEX).is_file() else path)


def weights_in(path: Path) -> Path:
    """The file of weights that is meant by its folder, or by itself.

    Raises:
        SdcliError: the folder has none.
    """
    return path if path.is_file() else weight_file(path)


def named_pictures(settings: GenerateSettings) -> list[str]:
    """Pictures that a picture is made from, as settings call them."""
    named = [getattr(settings, name) for name in PICTURES]
    return [each for each in (*named, *settings.control_image) if each is not None]


def vae_path(name: str) -> Path:
    """The folder or file of a VAE: a path, or a model whose VAE is meant.

    Raises:
        SdcliError: there is none.
    """
    path = Path(name).expanduser()
    if path.is_file() or (path / "config.json").is_file():
        return path
    model = find_model(name)
    if model.path is None:
        raise SdcliError(f"{name} is not on disk", hint=f"fetch it first: sdcli generate --model {name} …")
    return model.path
