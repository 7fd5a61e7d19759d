"""Weights of eight bits that are kept with a scale for each, as ComfyUI writes them, back to what they stand for."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from sdcli.checkpoints.weights import some
from sdcli.errors import SdcliError

WEIGHT = ".weight"
SCALES = (".scale_weight", ".weight_scale")  # in the spelling of 2024 and that of now
KIND = ".comfy_quant"  # JSON as bytes, which says how a layer's weight is kept
MARKER = "scaled_fp8"  # a tensor without use beside a component's weights, whose dtype is theirs
# Scales of activations, which only matter to kernels that compute in eight bits.
UNUSED = (".scale_input", ".input_scale", f".{MARKER}", KIND)
KINDS = ("float8_e4m3fn", "float8_e5m2")


def restored(tensors: Mapping[str, Tensor], path: Path, dtype: torch.dtype | None) -> Mapping[str, Tensor]:
    """Tensors of a file with every scaled weight multiplied by its scale, without the scales.

    Args:
        tensors: by their names in the file.
        path: of the file, for messages.
        dtype: that scaled weights become, None for that of the product, float32; others stay as they are.

    Raises:
        SdcliError: a weight is kept in another way, or a scale has an odd shape or no weight.
    """
    if not any(key == MARKER or key.endswith((*SCALES, *UNUSED)) for key in tensors):
        return tensors
    kept, used = {}, set()
    for key, tensor in tensors.items():
        if key.endswith(KIND):
            check_kind(key, tensor, path)
        if key == MARKER or key.endswith((*SCALES, *UNUSED)):
            continue
        scales = [key.removesuffix(WEIGHT) + end for end in SCALES if key.endswith(WEIGHT)]
        scale = next((each for each in scales if each in tensors), None)
        kept[key] = tensor if scale is None else scaled(tensor, tensors[scale], f"{path}: {key}", dtype)
        used.add(scale)
    if astray := [key for key in tensors if key.endswith(SCALES) and key not in used]:
        raise SdcliError(f"{path} has a scale without its weight: {some(astray)}", hint="it is of a kind of its own")
    return kept


def scaled(weight: Tensor, scale: Tensor, name: str, dtype: torch.dtype | None) -> Tensor:
    """A weight times its scale, or each row times its own, computed in float32.

    Raises:
        SdcliError: the scale has neither shape.
    """
    rows = len(weight) if weight.ndim else 1
    if scale.numel() not in (1, rows):
        shapes = f"{tuple(weight.shape)} with a scale of {tuple(scale.shape)}"
        raise SdcliError(f"{name} is {shapes}", hint="one scale for all of it, or for each row, can be read")
    shape = [scale.numel(), *[1] * (weight.ndim - 1)][: weight.ndim]
    return (weight.float() * scale.float().reshape(shape)).to(dtype or torch.float32)


def check_kind(key: str, tensor: Tensor, path: Path) -> None:
    """Refuse weights that are kept in another way than as floating numbers of eight bits.

    Raises:
        SdcliError: they are.
    """
    try:
        kind = json.loads(bytes(tensor.tolist())).get("format")
    except (ValueError, AttributeError, TypeError):
        kind = "what it does not say"
    if kind not in KINDS:
        layer = key.removesuffix(KIND)
        raise SdcliError(f"{path}: {layer} is kept as {kind}", hint=f"{' and '.join(KINDS)} can be read")
