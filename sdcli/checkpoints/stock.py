"""The one table between our classes and the stock classes whose names, settings and keys stand in saved files."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from torch import Tensor, nn
from transformers.initialization import no_init_weights

from sdcli.components.clip import ImageEncoder, TextEncoder
from sdcli.components.towers import known_arguments
from sdcli.components.unet import UNet
from sdcli.components.vae import VAE
from sdcli.errors import SdcliError

PIPELINES = (
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
    "StableDiffusionControlNetPipeline",
    "LatentConsistencyModelPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusionXLImg2ImgPipeline",
    "StableDiffusionXLInpaintPipeline",
    "StableDiffusionXLControlNetPipeline",
)
COMPONENTS = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")  # without one of these there is no picture
OF_SDXL = ("vae", "text_encoder_2", "tokenizer_2", "unet", "scheduler")  # of SDXL; its base has the first two as well
EVERY_COMPONENT = ("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "unet", "scheduler")
FLAGS = ("force_zeros_for_empty_prompt", "requires_aesthetics_score", "requires_safety_checker", "add_watermarker")
NOT_LOADED = ("safety_checker", "feature_extractor", "controlnet", *FLAGS)


@dataclass(frozen=True)
class StockClass:
    """A network class of diffusers or transformers, and what stands in for it here.

    Args:
        library: diffusers or transformers.
        name: of the stock class.
        component: our class.
        arguments: what our class is told besides the stock settings, where it stands for two stock classes.
        model_type: transformers' own name of the settings' class; empty for diffusers.
        prefix: in front of every key on disk but not in memory, as transformers 4 and so all files on the hub have it;
            transformers 5 reads both forms.
    """

    library: str
    name: str
    component: type[nn.Module]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    model_type: str = ""
    prefix: str = ""

    @property
    def weights_name(self) -> str:
        """The file that the weights are written to."""
        return "diffusion_pytorch_model.safetensors" if self.library == "diffusers" else "model.safetensors"


NETWORKS = (
    StockClass("diffusers", "AutoencoderKL", VAE),
    StockClass("diffusers", "UNet2DConditionModel", UNet),
    StockClass(
        "transformers",
        "CLIPTextModel",
        TextEncoder,
        arguments={"with_projection": False},
        model_type="clip_text_model",
        prefix="text_model.",
    ),
    StockClass(
        "transformers",
        "CLIPTextModelWithProjection",
        TextEncoder,
        arguments={"with_projection": True},
        model_type="clip_text_model",
    ),
    StockClass("transformers", "CLIPVisionModelWithProjection", ImageEncoder, model_type="clip_vision_model"),
)
TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")

# What the attention of a VAE was called before diffusers 0.15; Stable Diffusion 1's files on the hub still say so.
OLD_KEYS = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


def named(library: str, name: str, where: object) -> StockClass:
    """The table's row for a stock class.

    Raises:
        SdcliError: we have none for it.
    """
    for stock in NETWORKS:
        if (stock.library, stock.name) == (library, name):
            return stock
    known = ", ".join(stock.name for stock in NETWORKS)
    raise SdcliError(f"{where} is a {name} of {library}, which sdcli does not know", hint=f"known: {known}")


def stock_of(component: nn.Module) -> StockClass:
    """The table's row for one of our networks."""
    for stock in NETWORKS:
        if isinstance(component, stock.component) and stock.arguments.items() <= dict(component.config).items():
            return stock
    raise ValueError(f"no stock class stands for {type(component).__name__}")


def build(stock: StockClass, config: Mapping[str, Any], source: Path) -> nn.Module:
    """A network for stock settings, without memory for its weights.

    Args:
        stock: its class.
        config: content of config.json.
        source: that file, for messages.

    Raises:
        SdcliError: the settings are not of a network that we have.
    """
    arguments = known_arguments(stock.component, config) | stock.arguments
    try:
        with torch.device("meta"), no_init_weights():
            return stock.component(**arguments)
    except (ValueError, TypeError) as error:
        raise SdcliError(f"{source}: {error}", hint=f"it must be the config.json of a {stock.name}") from error


def stock_config(component: nn.Module) -> dict[str, Any]:
    """What config.json says of one of our networks."""
    stock = stock_of(component)
    settings = {
        key: value
        for key, value in dict(component.config).items()
        if not key.startswith("_") and key not in stock.arguments
    }
    if stock.library == "diffusers":
        return {"_class_name": stock.name, "_diffusers_version": diffusers.__version__, **settings}
    # `dtype` is what transformers loads in when it is not told, whatever the file holds: the same as diffusers' own
    # default, or a half-precision folder would load in stock as a float32 UNet that is shown float16 text.
    about = {"architectures": [stock.name], "model_type": stock.model_type, "dtype": "float32"}
    return {**about, "transformers_version": transformers.__version__, **settings}


def to_our_keys(stock: StockClass, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A stock state dict, old spellings included, under the keys that our network has in memory."""
    ours = {}
    for key, tensor in tensors.items():
        if key.endswith(".position_ids"):  # a constant that transformers before 4.31 saved
            continue
        if stock.component is VAE and ".attentions." in key:
            for old, new in OLD_KEYS.items():
                key = key.replace(old, new)
        ours[key.removeprefix(stock.prefix)] = tensor
    return ours


def to_stock_keys(stock: StockClass, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict under the keys of stock files."""
    return {stock.prefix + key: tensor for key, tensor in tensors.items()}
