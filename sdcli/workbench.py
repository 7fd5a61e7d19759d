"""The model in hand, with what settings put onto it: LoRAs, learned words, another VAE, ControlNets.

Loads and changes as little as the next picture needs.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from sdcli.checkpoints import load_pipeline, stock
from sdcli.checkpoints.adapters import Undo, put_lora, put_word
from sdcli.checkpoints.control import find_controlnet, load_controlnet
from sdcli.checkpoints.embeddings import read_word
from sdcli.checkpoints.fingerprints import Fingerprints
from sdcli.checkpoints.weights import weight_file
from sdcli.components.control import Control
from sdcli.device import Placement
from sdcli.drawing import Easel, ForeignEasel
from sdcli.errors import SdcliError
from sdcli.foreign import ForeignPipeline, is_foreign
from sdcli.images import load_sized, to_mask, to_pixel_values
from sdcli.pipeline import SdPipeline
from sdcli.registry import INDEX, ModelSpec, find_model
from sdcli.settings import GenerateSettings, lora_of

# Components whose files decide a picture.
HASHED = ("vae", "text_encoder", "text_encoder_2", "text_encoder_3", "unet", "transformer")


class Workbench:
    """A pipeline, made ready for one picture after the other.

    Args:
        model: that all of them are made with.
        placement: where.
        allow_pickle: read LoRAs and words that are no safetensors; the model itself says so of its own files.
        lenient: take what fits of a LoRA that does not fit the model in every layer; `warnings` tell of the rest.

    Raises:
        SdcliError: the model is of a family whose LoRAs are not ours to read, and `lenient` is on, or it has one.
    """

    def __init__(self, model: ModelSpec, placement: Placement, allow_pickle: bool = False, lenient: bool = False):
        self.model = model
        self.placement = placement
        self.allow_pickle, self.lenient = allow_pickle, lenient
        self._warnings: dict[str, bool] = {}  # and whether each was told
        self.is_foreign = is_foreign(model, stock.PIPELINES)
        for what, given in (("--lenient", lenient), ("lora in models.toml", model.lora)):
            if given and self.is_foreign:
                raise SdcliError(f"{what} does not go with {model.name}", hint="leave it out; there is --lora")
        self.pipeline: SdPipeline | None = None
        self.foreign: ForeignPipeline | None = None
        self._base: tuple | None = None
        self._loras: tuple[str, ...] = ()
        self._undo: list[Undo] = []
        self._controlnets: dict[str, torch.nn.Module] = {}
        self._fingerprints: dict[tuple, Fingerprints] = {}

    def easel(self, settings: GenerateSettings) -> Easel | ForeignEasel:
        """Everything that pictures of some settings need.

        Raises:
            SdcliError: something does not load, or does not fit the model.
        """
        if self.is_foreign:
            if self.foreign is None:
                self.foreign = ForeignPipeline(self.model, self.placement)
            if settings.lora != self._loras:
                self.foreign.put_loras(settings.lora)
                self._loras = settings.lora
            return ForeignEasel(self.foreign)
        return Easel(self.ready(settings), canvas_of(settings), self.controls(settings))

    def ready(self, settings: GenerateSettings) -> SdPipeline:
        """The pipeline with everything on it that the settings name; errors as for `easel`."""
        base = (settings.vae, settings.embedding)
        if self.pipeline is None or base != self._base:
            self.pipeline = self._load(settings)
            self._base, self._loras, self._undo = base, (), []
        if settings.lora != self._loras:
            while self._undo:
                self._undo.pop()()
            self._loras = ()
            for each in settings.lora:
                file, share = lora_of(each)
                path = Path(file).expanduser()
                self._undo.append(put_lora(self.pipeline, path, share, self.allow_pickle, self.lenient))
                if left_out := self._undo[-1].left_out:
                    self._warnings.setdefault(left_out, False)
            self._loras = settings.lora
        return self.pipeline

    def warnings(self) -> list[str]:
        """What the user should know of the things that were put onto the model and was not told yet."""
        new = [message for message, told in self._warnings.items() if not told]
        self._warnings |= dict.fromkeys(new, True)
        return new

    def _load(self, settings: GenerateSettings) -> SdPipeline:
        """The model with the VAE and the words that the settings name."""
        model = self.model
        if settings.vae is not None:
            model = replace(model, vae=vae_path(settings.vae))
        pipeline = load_pipeline(model, self.placement)
        for file in settings.embedding:
            put_word(pipeline, read_word(Path(file).expanduser(), self.allow_pickle))
        return pipeline

    def controls(self, settings: GenerateSettings) -> list[Control]:
        """The ControlNets that the settings name, with their pictures.

        Raises:
            SdcliError: one does not load or does not fit the model, or a picture has another size.
        """
        size = (settings.width, settings.height)
        scales = settings.control_scale or (1.0,) * len(settings.controlnet)
        controls = []
        for name, file, scale in zip(settings.controlnet, settings.control_image, scales, strict=True):
            if name not in self._controlnets:
                self._controlnets[name] = load_controlnet(name, self.placement, self.pipeline.unet, self.allow_pickle)
            pixel_values = to_pixel_values(load_sized("--control-image", file, size)) / 2 + 0.5
            span = (settings.control_start, settings.control_end)
            controls.append(Control(self._controlnets[name], pixel_values, scale, *span))
        return controls

    def fingerprints(self, settings: GenerateSettings) -> Fingerprints:
        """The hashes of every weight file that decides a picture."""
        others = (*weights_beside(settings), *([] if self.model.lora is None else [self.model.lora]))
        if others not in self._fingerprints:
            parts = [part for part in HASHED if part != "vae" or settings.vae is None]
            self._fingerprints[others] = Fingerprints(self.model.path, parts, self.model.adapter, others)
        return self._fingerprints[others]


def weights_beside(settings: GenerateSettings) -> list[Path]:
    """Files of weights that are put onto the model, or stand beside it."""
    named = [*(lora_of(each)[0] for each in settings.lora), *settings.embedding]
    files = [Path(each).expanduser() for each in named]
    folders = [find_controlnet(each) for each in settings.controlnet]
    if settings.vae is not None:
        vae = vae_path(settings.vae)
        folders.append(vae / "vae" if (vae / INDEX).is_file() else vae)
    return [*files, *(each if each.is_file() else weight_file(each) for each in folders)]


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


def canvas_of(settings: GenerateSettings) -> tuple[Tensor, Tensor | None] | None:
    """The picture to begin from, (1, 3, H, W) in [-1, 1], and its mask, (1, 1, H, W); None where there is none.

    Raises:
        SdcliError: a file is bad, or of another size.
    """
    if settings.init_image is None:
        return None
    size = (settings.width, settings.height)
    pixel_values = to_pixel_values(load_sized("--init-image", settings.init_image, size))
    mask = None if settings.mask is None else to_mask(load_sized("--mask", settings.mask, size))
    return pixel_values, mask
