"""The model in hand, with what settings put onto it: LoRAs, learned words, another VAE, ControlNets.

Loads and changes as little as the next picture needs.
"""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from sdcli.checkpoints import load_pipeline, stock
from sdcli.checkpoints.adapters import Undo, put_lora, put_word
from sdcli.checkpoints.control import load_controlnet
from sdcli.checkpoints.embeddings import read_word
from sdcli.clip_models import find_with_tower, load_comparer, require_tower
from sdcli.comparer import Comparer
from sdcli.components.control import Control
from sdcli.device import Placement
from sdcli.drawing import Easel, ForeignEasel
from sdcli.errors import SdcliError
from sdcli.files import state_of
from sdcli.foreign import ForeignPipeline, is_foreign
from sdcli.images import load_sized, to_mask, to_pixel_values
from sdcli.keys import files_of, vae_path, weights_beside
from sdcli.pipeline import SdPipeline
from sdcli.registry import ModelSpec
from sdcli.run_settings import RunSettings
from sdcli.settings import GenerateSettings, lora_of


class Workbench:
    """A pipeline, made ready for one picture after the other.

    Args:
        model: that all of them are made with.
        placement: where.
        how: what may be read, how networks are laid out, and whether a LoRA may fit in part; see `warnings`.

    Raises:
        SdcliError: the model is of a family whose LoRAs are not ours to read, and `lenient` is on, or it has one.
    """

    def __init__(self, model: ModelSpec, placement: Placement, how: RunSettings):
        self.model = model
        self.placement = placement
        self.how = how
        self._warnings: dict[str, bool] = {}  # and whether each was told
        self.is_foreign = is_foreign(model, stock.PIPELINES)
        for what, given in (("--lenient", how.lenient), ("lora in models.toml", model.lora)):
            if given and self.is_foreign:
                raise SdcliError(f"{what} does not go with {model.name}", hint="leave it out; there is --lora")
        self.pipeline: SdPipeline | None = None
        self.foreign: ForeignPipeline | None = None
        self._base: tuple | None = None
        self._loras: tuple[str, ...] = ()
        self._undo: list[Undo] = []
        self._controlnets: dict[str, torch.nn.Module] = {}
        self._comparers: dict[str | None, Comparer] = {}  # by what settings call their model
        self._guides = False  # a gradient goes through the networks, which have to stay where they are
        self._tiled = how.tile_vae
        self._offloaded = how.offload
        self._states: dict[Path, str] = {}  # on disk, of every file that was loaded
        self._whole = True  # no change was interrupted

    def easel(self, settings: GenerateSettings) -> Easel | ForeignEasel:
        """Everything that pictures of some settings need.

        Raises:
            SdcliError: something does not load, or does not fit the model.
        """
        self._forget_what_changed(settings)
        self._whole = False
        easel = self._easel(settings)
        self._whole = True
        return easel

    def _forget_what_changed(self, settings: GenerateSettings) -> None:
        """Load all anew where a file is not what it was, or a change was interrupted; servers live long."""
        states = {path: state_of(path) for path in (*files_of(self.model), *weights_beside(settings)) if path.exists()}
        if not self._whole or any(self._states.get(path, state) != state for path, state in states.items()):
            self.pipeline = self.foreign = None
            self._loras, self._controlnets, self._comparers, self._states = (), {}, {}, {}
        self._states |= states

    def _easel(self, settings: GenerateSettings) -> Easel | ForeignEasel:
        if self.is_foreign:
            if self.foreign is None:
                self.foreign = ForeignPipeline(self.model, self.placement)
            if settings.lora != self._loras:
                self.foreign.put_loras(settings.lora)
                self._loras = settings.lora
            return ForeignEasel(self.foreign)
        self._guides = settings.clip_guidance > 0
        if self._guides and self._offloaded != "none":
            hint = "leave it out, or make a smaller picture by itself"
            raise SdcliError("--clip-guidance does not go with networks that leave the GPU", hint=hint)
        comparer = self.comparer(settings.clip_model) if self._guides else None
        return Easel(self.ready(settings), canvas_of(settings), self.controls(settings), comparer)

    def comparer(self, name: str | None) -> Comparer:
        """The CLIP of a model, in fp32: it is small, and gradients of half precision are rough.

        Args:
            name: of the model; None is the one in hand.

        Raises:
            SdcliError: it has none, or does not load.
        """
        if name not in self._comparers:
            model = require_tower(self.model) if name is None else find_with_tower(name)
            placement = replace(self.placement, dtype=torch.float32, mixed_precision="no")
            self._comparers[name] = load_comparer(model, placement, truncate=True)
            self._comparers[name].clip.requires_grad_(False)
        return self._comparers[name]

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
                self._undo.append(put_lora(self.pipeline, path, share, self.how.allow_pickle, self.how.lenient))
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
        offloaded = self._offloaded != "none"
        at_first = replace(self.placement, device=torch.device("cpu")) if offloaded else self.placement
        pipeline = load_pipeline(model, at_first)
        for file in settings.embedding:
            put_word(pipeline, read_word(Path(file).expanduser(), self.how.allow_pickle))
        for network in filter(None, (pipeline.unet, pipeline.vae)):
            network.requires_grad_(False)  # a gradient that is followed is that of pictures
        if self._tiled and pipeline.vae is not None:
            pipeline.vae.enable_tiling()
        if self.how.compile:
            pipeline.unet.compile()
        if offloaded:
            offload(pipeline, self._offloaded, self.placement.device)
        return pipeline

    @property
    def overlaps(self) -> bool:
        """Whether a picture may be decoded while the next one is denoised: not where networks take turns on a GPU."""
        return self._offloaded != "model"

    def tile(self) -> bool:
        """Decode in tiles from now on; False where that is so already, or nothing decodes."""
        if self._tiled or self.pipeline is None or self.pipeline.vae is None:
            return False
        self.pipeline.vae.enable_tiling()
        self._tiled = True
        return True

    def offload(self, kind: str) -> bool:
        """Keep on the GPU only what is at work from now on; False where that is so already, or cannot be."""
        stays = self._guides or self.placement.device.type == "cpu"
        if self._offloaded != "none" or self.pipeline is None or stays:
            return False
        offload(self.pipeline, kind, self.placement.device)
        self._offloaded = kind
        return True

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
                self._controlnets[name] = load_controlnet(
                    name, self.placement, self.pipeline.unet, self.how.allow_pickle
                )
            pixel_values = to_pixel_values(load_sized("--control-image", file, size)) / 2 + 0.5
            span = (settings.control_start, settings.control_end)
            controls.append(Control(self._controlnets[name], pixel_values, scale, *span))
        return controls


class Benches:
    """The model that is in memory, one at a time.

    Args:
        placement: of all models.
    """

    def __init__(self, placement: Placement):
        self.placement = placement
        self._bench: Workbench | None = None

    def of(self, model: ModelSpec, how: RunSettings) -> Workbench:
        """The bench of a model; that of another one is cleared away first."""
        if how.offload != "none" and self.placement.device.type == "cpu":
            raise SdcliError("--offload is for a GPU, and this runs on the CPU", hint="leave it out")
        bench = self._bench
        if bench is None or (bench.model, bench.how.layout) != (model, how.layout):
            self._bench = bench = None
            gc.collect()  # networks are in cycles with their hooks
            if self.placement.device.type == "cuda":
                torch.cuda.empty_cache()
            self._bench = bench = Workbench(model, self.placement, how)
        return bench


def offload(pipeline: SdPipeline, kind: str, device: torch.device) -> None:
    """Keep the networks of a pipeline off a GPU while they are not at work.

    Args:
        pipeline: of ours.
        kind: model, one network at a time; group, one layer at a time, which is slower and takes less.
        device: where they work.
    """
    if kind == "model":
        pipeline.enable_model_cpu_offload(device=device)
    else:
        pipeline.enable_group_offload(onload_device=device, offload_type="leaf_level", use_stream=True)


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
