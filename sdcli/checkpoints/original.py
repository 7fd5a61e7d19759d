"""Keys of the original layout, as Stable Diffusion's authors saved it, for each key of a stock component.

The one table for reading single files and for writing them.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdcli.errors import SdcliError

Config = Mapping[str, Any]

UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "class_embedding": "label_emb",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE_PARTS = {
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0": "mid.attn_1",
    "conv_norm_out": "norm_out",
    "conv_shortcut": "nin_shortcut",
    "downsamplers.0": "downsample",
    "upsamplers.0": "upsample",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
OPENCLIP_ENDS = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "text_projection.weight": "text_projection",
}
OPENCLIP_PARTS = {
    "final_layer_norm": "ln_final",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
STACKED = ("q_proj", "k_proj", "v_proj")  # which OpenCLIP keeps one below the other


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in the original layout.

    Args:
        key: of the tensor there.
        third: which third of its rows, of three that are kept one below the other.
        transposed: whether rows and columns are exchanged.
        convolution: whether a matrix is kept as a convolution of one pixel.
    """

    key: str
    third: int | None = None
    transposed: bool = False
    convolution: bool = False

    def read(self, tensor: Tensor) -> Tensor:
        """The stock component's tensor; a view where that is possible."""
        if self.third is not None:
            tensor = tensor.chunk(3)[self.third]
        if self.convolution and tensor.ndim == 4:
            tensor = tensor[:, :, 0, 0]
        return tensor.T.contiguous() if self.transposed else tensor


def unet_place(key: str, config: Config) -> Place | None:
    """Where a UNet has a key, below its prefix; None for what came after the original layout."""
    per_level = config["layers_per_block"]
    begin, _, rest = key.rpartition(".")  # the rest is weight or bias
    for ours, theirs in UNET_ENDS.items():
        if begin == ours or begin.startswith(f"{ours}."):
            return Place(f"{theirs}{inside(begin.removeprefix(ours))}.{rest}")
    if not (found := re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)(.*)", begin)):
        return None
    way, level, kind, place, inner = found[1], int(found[2]), found[3], int(found[4]), found[5]
    if way == "down":
        if kind == "downsamplers":
            return Place(f"input_blocks.{(level + 1) * (per_level + 1)}.0.op.{rest}")
        block = f"input_blocks.{1 + level * (per_level + 1) + place}"
    else:
        if kind == "upsamplers":
            attended = config["up_block_types"][level].startswith("CrossAttn")
            last = level * (per_level + 1) + per_level
            return Place(f"output_blocks.{last}.{2 if attended else 1}.conv.{rest}")
        block = f"output_blocks.{level * (per_level + 1) + place}"
    return Place(f"{block}.{0 if kind == 'resnets' else 1}{inside(inner)}.{rest}")


def inside(inner: str) -> str:
    """The part of a key within a block; attention has the same names in both layouts."""
    name = inner.removeprefix(".")
    return f".{RESNET[name]}" if name in RESNET else inner


def vae_place(key: str, config: Config) -> Place:
    """Where a VAE has a key, below its prefix."""
    last = len(config["block_out_channels"]) - 1
    key = re.sub(r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2", key)
    key = re.sub(r"down_blocks\.(\d+)\.", r"down.\1.", key)
    key = re.sub(
        r"up_blocks\.(\d+)\.(resnets\.)?",
        lambda found: f"up.{last - int(found[1])}.{'block.' if found[2] else ''}",
        key,
    )
    attention = "mid_block.attentions.0." in key
    for ours, theirs in VAE_PARTS.items():
        key = re.sub(rf"(^|\.){re.escape(ours)}(?=\.)", rf"\g<1>{theirs}", key)
    return Place(key, convolution=attention and key.endswith(".weight") and ".norm." not in key)


def clip_place(key: str, config: Config) -> Place:
    """Where a text encoder in transformers' layout has a key, below its prefix: nothing is renamed."""
    return Place(key)


def openclip_place(key: str, config: Config) -> Place:
    """Where a text encoder in OpenCLIP's layout has a key, below its prefix."""
    key = key.removeprefix("text_model.")
    if key in OPENCLIP_ENDS:
        return Place(OPENCLIP_ENDS[key], transposed=key.startswith("text_projection"))
    key = key.replace("encoder.layers.", "transformer.resblocks.")
    for third, name in enumerate(STACKED):
        if f".self_attn.{name}." in key:
            block, rest = key.split(f".self_attn.{name}.")
            return Place(f"{block}.attn.in_proj_{rest}", third=third)
    for ours, theirs in OPENCLIP_PARTS.items():
        key = re.sub(rf"(^|\.){re.escape(ours)}\.", rf"\g<1>{theirs}.", key)
    return Place(key)


PlaceOf = Callable[[str, Config], Place | None]


def from_original(
    keys: list[str], tensors: Mapping[str, Tensor], prefix: str, place_of: PlaceOf, config: Config
) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors of a stock component out of a single file.

    Args:
        keys: that the component has.
        tensors: of the file.
        prefix: of the component's keys there.
        place_of: the component's table.
        config: of the component.

    Returns:
        Those that are there, by the component's keys, and which keys below the prefix have no use.
    """
    found, used = {}, set()
    for key in keys:
        place = place_of(key, config)
        if place is not None and prefix + place.key in tensors:
            found[key] = place.read(tensors[prefix + place.key])
            used.add(prefix + place.key)
    return found, sorted(key for key in tensors if key.startswith(prefix) and key not in used)


def to_original(tensors: Mapping[str, Tensor], prefix: str, place_of: PlaceOf, config: Config) -> dict[str, Tensor]:
    """Tensors of a stock component as a single file has them: the inverse of `from_original`.

    Raises:
        SdcliError: it has what that layout does not know.
    """
    written: dict[str, Any] = {}
    for key, tensor in tensors.items():
        place = place_of(key, config)
        if place is None:
            raise SdcliError(f"the original layout has no place for {key}", hint="keep the model as a folder")
        tensor = tensor.T.contiguous() if place.transposed else tensor
        tensor = tensor[:, :, None, None] if place.convolution else tensor
        if place.third is None:
            written[prefix + place.key] = tensor
        else:
            written.setdefault(prefix + place.key, [None] * 3)[place.third] = tensor
    return {key: torch.cat(value) if isinstance(value, list) else value for key, value in written.items()}
