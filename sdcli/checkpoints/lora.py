"""LoRA files in every layout that the field has: kohya, PEFT, diffusers and cloneofsimo, to changes of named layers.

A layer is called by its component and stock's name, such as unet.down_blocks.0.attentions.0.proj_in.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from sdcli.checkpoints.original import Config, unet_place
from sdcli.checkpoints.weights import read_any, some
from sdcli.errors import SdcliError

OTHER_MODEL = "it was trained for another model"
LENIENT = "--lenient takes what fits of it"
TEXT_MODEL = "text_model."
DORA = ".dora_scale"
# What ends a key, and which matrix that is, in kohya's, PEFT's and diffusers' spelling.
ENDS = {
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora_mid.weight": "mid",
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_A.default.weight": "down",
    ".lora_B.default.weight": "up",
    "_lora.down.weight": "down",
    "_lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    ".alpha": "alpha",
    DORA: "dora",
    ".lora_magnitude_vector": "dora",
}
KOHYA = {"lora_unet_": "unet", "lora_te_": "text_encoder", "lora_te1_": "text_encoder", "lora_te2_": "text_encoder_2"}
COMPONENTS = ("unet", "text_encoder", "text_encoder_2")
SIMO_KEY = re.compile(r"(unet|text_encoder):(\d+):(up|down)")
# In which order cloneofsimo's files number the layers of a block: as diffusers had them then, and has them now.
SIMO_ORDERS = (("attn1", "ff", "attn2"), ("attn1", "attn2", "ff"))
SIMO_STAGES = ("down_blocks", "up_blocks", "mid_block")
SIMO_PROJECTIONS = {"unet": ("to_q", "to_k", "to_v", "to_out.0"), "text": ("k_proj", "v_proj", "q_proj", "out_proj")}


@dataclass
class Change:
    """What a LoRA adds to one layer: up @ down * alpha / rank.

    Args:
        down: (rank, D_in), or (rank, C_in, k, k) of a convolution.
        up: (D_out, rank), or (C_out, rank, 1, 1).
        mid: (rank, rank, k, k) between them, of LoCon's decomposed convolutions.
        alpha: None or 0 is the rank, as sd-scripts has it.
        dora: lengths of the columns of the changed weight, (D_out, 1) or so; None leaves them.
    """

    down: Tensor | None = None
    up: Tensor | None = None
    mid: Tensor | None = None
    alpha: float | None = None
    dora: Tensor | None = None

    def difference(self, weight: Tensor) -> Tensor:
        """What is added to a weight, in float32 and in its shape."""
        down, up = self.down.float(), self.up.float()
        if self.mid is not None:
            matrix = torch.einsum("ir,rskl,sj->ijkl", up.flatten(1), self.mid.float(), down.flatten(1))
        else:
            matrix = up.flatten(1) @ down.flatten(1)
        return matrix.reshape(weight.shape) * ((self.alpha or len(down)) / len(down))

    def applied(self, weight: Tensor, share: float) -> Tensor:
        """The changed weight, of which a LoRA's `share` counts, in float32."""
        changed = weight.float() + share * self.difference(weight)
        if self.dora is None:
            return changed
        whole = weight.float() + self.difference(weight)
        lengths = whole.flatten(1).norm(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
        ratio = (self.dora.float().flatten() / lengths).view(-1, *[1] * (weight.ndim - 1))
        return weight.float() + share * (whole * ratio - weight.float())


@dataclass
class Lora:
    """The changes of a file, by layer, and a sentence on what of it was left out; empty where nothing was."""

    path: Path
    changes: dict[str, Change] = field(default_factory=dict)
    left_out: str = ""

    def __len__(self) -> int:
        return len(self.changes)


def read_lora(
    path: Path, layers: Mapping[str, nn.Module], unet: Config, allow_pickle: bool = False, lenient: bool = False
) -> Lora:
    """Read a LoRA for a model.

    Args:
        path: of the file.
        layers: of the model, as `layers_of` gives them.
        unet: its configuration, which tells the names that the original layout has for its layers.
        allow_pickle: read a file that is no safetensors, by `weights_only`.
        lenient: leave out what does not fit, where something does.

    Raises:
        SdcliError: the file is bad, is no LoRA, or does not fit the model; how many of its layers do is told.
    """
    tensors, metadata = read_any(path, allow_pickle)
    if any(SIMO_KEY.fullmatch(key) for key in tensors):
        lora = Lora(path, simo_changes(tensors, layers, path))
    else:
        lora = Lora(path, named_changes(tensors, spellings(layers, unet), path, lenient))
    fill_alphas(lora, metadata)
    return checked(lora, layers, lenient)


def layers_of(networks: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """The layers that a LoRA may change, by stock's names.

    Args:
        networks: unet, text_encoder and text_encoder_2 of the model, as far as it has them.
    """
    layers = {}
    for name, network in networks.items():
        for path, module in network.named_modules():
            if getattr(module, "weight", None) is not None and module.weight.ndim in (2, 4):
                inner = path if name == "unet" or path.startswith(TEXT_MODEL) else TEXT_MODEL + path
                layers[f"{name}.{inner.replace(f'{TEXT_MODEL}text_projection', 'text_projection')}"] = module
    return layers


def named_changes(
    tensors: Mapping[str, Tensor], spelled: Mapping[str, str], path: Path, lenient: bool = False
) -> dict[str, Change]:
    """Changes of a file whose keys name layers; where that is wanted, layers of another kind as empty changes.

    Raises:
        SdcliError: the file is no LoRA, or not throughout.
    """
    changes: dict[str, Change] = {}
    strange = []
    for key, tensor in tensors.items():
        end = next((end for end in ENDS if key.endswith(end)), None)
        if end is None:
            strange.append(key)
            continue
        layer = layer_of(key.removesuffix(end), spelled)
        change = changes.setdefault(layer, Change())
        setattr(change, ENDS[end], float(tensor) if ENDS[end] == "alpha" else tensor)
    if not changes:
        raise SdcliError(
            f"{path} is no LoRA: it has {some(sorted(tensors) or ['nothing'])}", hint="is it the right file?"
        )
    if strange and not lenient:
        hint = f"it is of a kind other than LoRA and LoCon, such as LoHa or LoKr; {LENIENT}"
        raise SdcliError(f"{path} has keys of no LoRA: {some(sorted(strange))}", hint=hint)
    return changes | {layer_of(key.rpartition(".")[0], spelled): Change() for key in strange}


def spellings(layers: Mapping[str, nn.Module], unet: Config) -> dict[str, str]:
    """Every way to write a layer's name, to the name."""
    spelled = {}
    for name in layers:
        component, _, inner = name.partition(".")
        spelled[name] = name
        for prefix, meant in KOHYA.items():
            if meant == component:
                spelled[prefix + inner.replace(".", "_")] = name
        if component == "unet":
            spelled[inner] = name  # diffusers' oldest files have no component in their keys
            place = unet_place(f"{inner}.weight", unet)
            if place is not None:
                spelled.setdefault("lora_unet_" + place.key.removesuffix(".weight").replace(".", "_"), name)
    return spelled


def layer_of(key: str, spelled: Mapping[str, str]) -> str:
    """The layer that a key without its end names; the key itself where it names none."""
    key = key.removeprefix("base_model.model.").replace(".processor.", ".")
    if key in spelled:
        return spelled[key]
    key = re.sub(r"\.to_out$", ".to_out.0", key)  # diffusers' first attention processors had one output layer
    for component in COMPONENTS[1:]:
        inner = key.removeprefix(f"{component}.")
        if inner != key and f"{component}.{TEXT_MODEL}{inner}" in spelled:
            return f"{component}.{TEXT_MODEL}{inner}"
    return spelled.get(key, key)


def simo_changes(tensors: Mapping[str, Tensor], layers: Mapping[str, nn.Module], path: Path) -> dict[str, Change]:
    """Changes of cloneofsimo's files, which number layers and do not name them.

    Raises:
        SdcliError: no order of layers fits the shapes.
    """
    numbered: dict[str, dict[int, Change]] = {}
    for key, tensor in tensors.items():
        if found := SIMO_KEY.fullmatch(key):
            setattr(numbered.setdefault(found[1], {}).setdefault(int(found[2]), Change()), found[3], tensor)
    changes: dict[str, Change] = {}
    for component, by_number in numbered.items():
        orders = [simo_layers(component, layers, order) for order in SIMO_ORDERS]
        fitting = next((order for order in orders if simo_fits(by_number, order, layers)), None)
        if fitting is None:
            counts = f"{len(by_number)} layers of the {component}, the model has {len(orders[0])}"
            raise SdcliError(f"{path} does not fit: it changes {counts}", hint=OTHER_MODEL)
        changes |= {fitting[number]: change for number, change in by_number.items()}
    return changes


def simo_layers(component: str, layers: Mapping[str, nn.Module], order: Sequence[str]) -> list[str]:
    """Names of the layers of a component as such a file numbers them."""
    names = [name for name in layers if name.startswith(f"{component}.")]
    if component == "text_encoder":
        blocks = [name.removesuffix(".k_proj") for name in names if name.endswith(".self_attn.k_proj")]
        return [f"{block}.{projection}" for block in blocks for projection in SIMO_PROJECTIONS["text"]]
    blocks = [name.removesuffix(".attn1.to_q") for name in names if name.endswith(".attn1.to_q")]
    inside = {
        **{each: [f"{each}.{projection}" for projection in SIMO_PROJECTIONS["unet"]] for each in ("attn1", "attn2")},
        "ff": ["ff.net.0.proj"],
    }
    return [
        f"{block}.{layer}"
        for stage in SIMO_STAGES
        for block in blocks
        if block.startswith(f"unet.{stage}")
        for each in order
        for layer in inside[each]
    ]


def simo_fits(by_number: Mapping[int, Change], names: Sequence[str], layers: Mapping[str, nn.Module]) -> bool:
    """Whether the shapes of numbered changes are those of the layers."""
    if max(by_number) >= len(names):
        return False
    return all(fits(change, layers[names[number]].weight) for number, change in by_number.items())


def fits(change: Change, weight: Tensor) -> bool:
    """Whether a change has the shape of a layer's weight."""
    if change.down is None or change.up is None:
        return False
    inner = change.down.shape[1:] if change.mid is None else (change.down.shape[1], *change.mid.shape[2:])
    rows, columns = change.up.shape[0], torch.Size(inner).numel()
    return weight.shape[0] == rows and weight[0].numel() == columns and len(change.down) == change.up.shape[1]


def fill_alphas(lora: Lora, metadata: Mapping[str, str]) -> None:
    """Take alphas that a file of diffusers says in its metadata only."""
    try:
        about = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    except ValueError:
        return
    for name, change in lora.changes.items():
        component = name.partition(".")[0]
        if change.alpha is None and f"{component}.lora_alpha" in about:
            patterns = about.get(f"{component}.alpha_pattern") or {}
            inner = name.partition(".")[2]
            alpha = next((value for part, value in patterns.items() if inner.endswith(part)), None)
            change.alpha = float(about[f"{component}.lora_alpha"] if alpha is None else alpha)


def checked(lora: Lora, layers: Mapping[str, nn.Module], lenient: bool = False) -> Lora:
    """A LoRA of which every change has its layer; those that have none are left out where that is wanted.

    Raises:
        SdcliError: one has none, or another shape, or all have none; how many fit is told.
    """
    known = {name: change for name, change in lora.changes.items() if name in layers}
    fitting = {name: change for name, change in known.items() if fits(change, layers[name].weight)}
    if len(fitting) == len(lora):
        return lora
    first = next(name for name in lora.changes if name not in fitting)
    what = f"{first} has another shape" if first in layers else f"the model has no {first}"
    if lenient and fitting:
        left_out = f"{lora.path}: {len(lora) - len(fitting)} of {len(lora)} layers were left out: {what}"
        return Lora(lora.path, fitting, left_out)
    hint = f"{OTHER_MODEL}; {LENIENT}" if fitting else OTHER_MODEL
    raise SdcliError(f"{lora.path} fits {len(fitting)} of {len(lora)} layers: {what}", hint=hint)
