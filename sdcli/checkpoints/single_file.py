"""A single file in the original layout, read as if it were a model folder: the weights stay in it until they are used.

Its configurations are told from keys and shapes; its tokenizer, which no such file has, comes with the program.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sdcli import families
from sdcli.checkpoints import stock
from sdcli.checkpoints.original import (
    PlaceOf,
    clip_place,
    from_original,
    openclip_place,
    to_original,
    unet_place,
    vae_place,
)
from sdcli.checkpoints.quantized import restored
from sdcli.checkpoints.tokenizers import clip_tokenizer
from sdcli.checkpoints.weights import assign, read_tensors, some
from sdcli.components.scheduler import Scheduler
from sdcli.device import Placement
from sdcli.errors import SdcliError
from sdcli.families import Family, TextPart
from sdcli.headers import Shapes, read_header

PREDICTION = "modelspec.prediction_type"  # entry of the metadata: github.com/Stability-AI/ModelSpec
PREDICTIONS = {"epsilon": "epsilon", "v": "v_prediction"}
TOWER = "text_model."  # in front of the keys of a text encoder with a projection


class SingleFile:
    """A model in one file.

    Args:
        path: of the file.
        allow_pickle: whether it may be a pickle.

    Raises:
        SdcliError: the file is bad, or holds something else.
    """

    def __init__(self, path: Path, allow_pickle: bool = False):
        self.path, self.allow_pickle = path, allow_pickle
        header = read_header(path, allow_pickle)
        self.shapes: Shapes = header.shapes
        self.metadata = header.metadata
        self.family: Family = families.family_of(self.shapes, path)

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors, mapped from the disk and not yet read."""
        return read_tensors(self.path, self.allow_pickle)

    def index(self) -> dict[str, Any]:
        """What a model_index.json would say."""
        index: dict[str, Any] = {"_class_name": self.family.pipeline, "scheduler": ["diffusers", self.scheduler_class]}
        index["force_zeros_for_empty_prompt"] = self.family.zeros_for_empty
        index["unet"] = ["diffusers", "UNet2DConditionModel"]
        index["vae"] = ["diffusers", "AutoencoderKL"] if families.has_any(self.shapes, families.VAE) else [None, None]
        for name, part in self.texts.items():
            number = name.removeprefix("text_encoder")
            there = families.has_any(self.shapes, part.prefix)
            kind = "CLIPTextModelWithProjection" if self._projected(name) else "CLIPTextModel"
            index[name] = ["transformers", kind] if there else [None, None]
            index[f"tokenizer{number}"] = ["transformers", "CLIPTokenizer"] if there else [None, None]
        return index

    @property
    def scheduler_class(self) -> str:
        """Stock's name of the scheduler's class."""
        return self.family.scheduler["_class_name"]

    @cached_property
    def texts(self) -> dict[str, TextPart]:
        """Text encoders by name, where they really lie: the oldest files have no text_model in their keys."""
        texts = dict(self.family.texts)
        for name, part in texts.items():
            shorter = part.prefix.removesuffix("text_model.")
            if f"{shorter}embeddings.token_embedding.weight" in self.shapes:
                texts[name] = replace(part, prefix=shorter)
        return texts

    def _projected(self, name: str) -> bool:
        """Whether a text encoder has a projection: the second of SDXL."""
        return name == "text_encoder_2"

    def config(self, name: str) -> dict[str, Any]:
        """The configuration of a component. Raises SdcliError where weights that tell of it are missing or odd."""
        with families.understood(self.path):
            return self._config(name)

    def _config(self, name: str) -> dict[str, Any]:
        if name == "unet":
            return families.unet_config(self.shapes, self.family)
        if name == "vae":
            return families.vae_config(self.shapes, self.family)
        if name == "scheduler":
            return self.family.scheduler | self._told()
        return families.text_config(self.shapes, self.texts[name])

    def _told(self) -> dict[str, Any]:
        """What metadata, and keys without weights, say of the noise schedule, as some trainers write them."""
        told: dict[str, Any] = {}
        if self.metadata.get(PREDICTION) in PREDICTIONS:
            told["prediction_type"] = PREDICTIONS[self.metadata[PREDICTION]]
        if "v_pred" in self.shapes:
            told["prediction_type"] = "v_prediction"
        if "ztsnr" in self.shapes:
            told |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        return told

    def load(self, name: str, placement: Placement) -> Any:
        """A component: a network, the scheduler or a tokenizer.

        Raises:
            SdcliError: keys are missing, have no place or another shape.
        """
        if name == "scheduler":
            return Scheduler.from_config(self.config(name))
        if name.startswith("tokenizer"):
            part = self.texts[name.replace("tokenizer", "text_encoder")]
            return clip_tokenizer(part.pad, self.config(name.replace("tokenizer", "text_encoder")))
        kind = stock.named(*self.index()[name], str(self.path))
        prefix, place_of, dropped = self._layout(name)
        component = stock.build(kind, self.config(name), self.path)
        keys = {key.removeprefix(TOWER): key for key in component.state_dict()}
        own = {key: tensor for key, tensor in self.tensors.items() if key.startswith(prefix)}
        own = restored(own, self.path, placement.dtype)
        found, unused = from_original(list(keys), own, prefix, place_of, component.config)
        unused = [key for key in unused if not key.startswith(dropped) and not key.endswith(families.IGNORED_ENDS)]
        unused = [key for key in unused if not key.startswith(families.IGNORED) and not is_bookkeeping(key, kind)]
        if unused:
            hint = f"it looks like a {self.family.name}, and was perhaps changed by another tool"
            raise SdcliError(f"{self.path} does not fit its {name}: no place for {some(unused)}", hint=hint)
        assign(component, {keys[key]: tensor for key, tensor in found.items()}, self.path, placement)
        return component.eval()

    def _layout(self, name: str) -> tuple[str, PlaceOf, tuple[str, ...]]:
        """Where a component lies: the prefix of its keys, the table of its names, and what of it is not used."""
        if name == "unet":
            return families.UNET, unet_place, ()
        if name == "vae":
            return families.VAE, vae_place, ()
        part = self.texts[name]
        if not part.openclip:
            return part.prefix, clip_place, ()
        layers = self.config(name)["num_hidden_layers"]
        dropped = [f"{part.prefix}transformer.resblocks.{layers + extra}." for extra in range(part.dropped)]
        return part.prefix, openclip_place, tuple(dropped)


@lru_cache(maxsize=1)
def opened(path: Path, state: tuple[int, int], allow_pickle: bool) -> SingleFile:
    """A file that was opened before, unless it has changed since."""
    return SingleFile(path, allow_pickle)


def open_file(path: Path, allow_pickle: bool = False) -> SingleFile:
    """A model in one file; the last one stays open, so that its header is not read for each component.

    Raises:
        SdcliError: as for `SingleFile`.
    """
    about = path.stat()
    return opened(path, (about.st_size, about.st_mtime_ns), allow_pickle)


def read_vae(path: Path, placement: Placement, scaling_factor: float, allow_pickle: bool = False) -> nn.Module:
    """A VAE in a file by itself, in the original layout or diffusers', with or without a prefix.

    Args:
        path: of the file.
        placement: of the network.
        scaling_factor: of latents; no such file says it.
        allow_pickle: whether it may be a pickle.

    Raises:
        SdcliError: the file is bad, or holds something else.
    """
    shapes, kind = read_header(path, allow_pickle).shapes, stock.named("diffusers", "AutoencoderKL", path)
    tensors = restored(read_tensors(path, allow_pickle), path, placement.dtype)
    if "decoder.up_blocks.0.resnets.0.conv1.weight" in shapes:
        with families.understood(path):
            config = families.stock_vae_config(shapes) | {"scaling_factor": scaling_factor}
        component = stock.build(kind, config, path)
        assign(component, stock.to_our_keys(kind, tensors), path, placement)
        return component.eval()
    prefix = families.VAE if families.has_any(shapes, families.VAE) else ""
    if f"{prefix}decoder.conv_in.weight" not in shapes:
        raise SdcliError(f"{path} is no VAE: it has no decoder.conv_in.weight", hint="name a VAE's own file or folder")
    with families.understood(path):
        config = families.vae_config(shapes, prefix=prefix) | {"scaling_factor": scaling_factor}
    component = stock.build(kind, config, path)
    found, unused = from_original(list(component.state_dict()), tensors, prefix, vae_place, config)
    unused = [key for key in unused if not key.startswith(("loss.", *families.IGNORED, families.UNET))]
    if unused and prefix == "":
        raise SdcliError(f"{path} does not fit a VAE: no place for {some(unused)}", hint="name a VAE's own file")
    assign(component, found, path, placement)
    return component.eval()


def is_bookkeeping(key: str, kind: stock.StockClass) -> bool:
    """Whether a key of a text encoder is not used on purpose: a projection that the pipeline does not read."""
    return key.endswith(".text_projection") and not kind.arguments.get("with_projection", True)


def original_tensors(components: Mapping[str, nn.Module], family: Family) -> dict[str, Tensor]:
    """Networks as a single file has them.

    Args:
        components: vae, unet and text encoders, by name.
        family: of the model.
    """
    layouts: dict[str, tuple[str, PlaceOf]] = {"unet": (families.UNET, unet_place), "vae": (families.VAE, vae_place)}
    for name, part in family.texts.items():
        layouts[name] = (part.prefix, openclip_place if part.openclip else clip_place)
    written: dict[str, Tensor] = {}
    for name, (prefix, place_of) in layouts.items():
        component = components[name]
        tensors = {key.removeprefix(TOWER): tensor for key, tensor in component.state_dict().items()}
        written |= to_original(tensors, prefix, place_of, component.config)
        for extra in range(family.texts[name].dropped if name in family.texts else 0):
            written |= last_layer_again(written, prefix, component.config.num_hidden_layers + extra)
    return written


def last_layer_again(tensors: Mapping[str, Tensor], prefix: str, number: int) -> dict[str, Tensor]:
    """The layer before `number` as that one, which a reader of the file leaves out."""
    blocks = f"{prefix}transformer.resblocks."
    before = f"{blocks}{number - 1}."
    ours = {key: each for key, each in tensors.items() if key.startswith(before)}
    return {key.replace(before, f"{blocks}{number}."): each.clone() for key, each in ours.items()}
