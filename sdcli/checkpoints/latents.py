"""Latents files: safetensors with one tensor `latents` and what decodes it; ComfyUI's `.latent` files are read too."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from sdcli.checkpoints.weights import cannot_read
from sdcli.checkpoints.writing import cannot_write, write_tensors
from sdcli.errors import SdcliError
from sdcli.headers import FETCH_AGAIN, check_start

REQUIRED = ("model", "scaling_factor", "vae_sha256", "width", "height")
ENCODE_AGAIN = "encode the picture again with `sdcli encode`"
# ComfyUI's tensor, and an empty one whose presence says that it is not scaled; files from before that one are scaled.
COMFY_TENSOR, COMFY_UNSCALED = "latent_tensor", "latent_format_version_0"
COMFY_SCALING_FACTOR = 0.18215  # Stable Diffusion 1 and 2, the only models of the scaled files


def save_latents(target: Path | BinaryIO, latents: Tensor, metadata: Mapping[str, str]) -> None:
    """Write latents; a file appears whole or not at all.

    Args:
        target: a path, or a binary stream to write to.
        latents: scaled, (N, C, h, w), finite.
        metadata: at least model, scaling_factor, vae_sha256, width and height; timestep and seed of noised ones.

    Raises:
        SdcliError: it cannot be written.
        ValueError: shape or metadata are not as above.
    """
    absent = [key for key in REQUIRED if key not in metadata]
    if absent:
        raise ValueError(f"the metadata of latents must have {', '.join(absent)}")
    if latents.ndim != 4 or not latents.isfinite().all():
        raise ValueError(f"latents must be (N, C, h, w) and finite, got {tuple(latents.shape)}")
    tensors = {"latents": latents.detach().cpu().contiguous()}
    if isinstance(target, str | Path):
        write_tensors(Path(target), tensors, metadata)
        return
    try:
        target.write(safetensors.torch.save(tensors, metadata={"format": "pt", **metadata}))
        target.flush()
    except OSError as error:
        raise cannot_write(Path(getattr(target, "name", "the stream")), error) from error


def load_latents(source: Path | BinaryIO) -> tuple[Tensor, dict[str, str]]:
    """Read latents, our own or ComfyUI's.

    Args:
        source: a path, or a binary stream to read from.

    Returns:
        Latents scaled by the metadata's `scaling_factor`, (N, C, h, w) float32, and the metadata. Of ComfyUI's files
        that is the only key; a model with another factor divides by it and multiplies by its own.

    Raises:
        SdcliError: the file is missing, empty, damaged, no latents, or holds values that are no numbers.
    """
    name = str(source) if isinstance(source, str | Path) else getattr(source, "name", "the stream")
    tensors, metadata = _parse(_read(source, name), name)
    if COMFY_TENSOR in tensors:
        scale = COMFY_SCALING_FACTOR if COMFY_UNSCALED in tensors else 1.0
        latents, metadata = tensors[COMFY_TENSOR].float() * scale, {"scaling_factor": str(COMFY_SCALING_FACTOR)}
    elif "latents" in tensors:
        latents = tensors["latents"].float()
    else:
        hint = "`sdcli encode` makes latents files; this may be a file of weights"
        raise SdcliError(f"{name} has no tensor named latents or {COMFY_TENSOR}", hint=hint)
    if "scaling_factor" not in metadata:
        raise SdcliError(f"{name} does not say its scaling_factor", hint=ENCODE_AGAIN)
    if latents.ndim != 4 or 0 in latents.shape:
        raise SdcliError(f"{name}: latents must be (N, C, h, w), got {tuple(latents.shape)}", hint=ENCODE_AGAIN)
    if not latents.isfinite().all():
        raise SdcliError(f"{name} holds values that are not numbers", hint=ENCODE_AGAIN)
    return latents, metadata


def _read(source: Path | BinaryIO, name: str) -> bytes:
    try:
        return Path(source).read_bytes() if isinstance(source, str | Path) else source.read()
    except FileNotFoundError as error:
        raise SdcliError(f"there is no file {name}", hint="check the path") from error
    except OSError as error:
        raise cannot_read(name, error) from error


def _parse(content: bytes, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a whole safetensors file; safetensors itself gives no metadata of bytes."""
    check_start(content[:8], len(content), name)
    try:
        tensors = safetensors.torch.load(content)
    except SafetensorError as error:
        raise SdcliError(f"{name} is damaged: {error}", hint=FETCH_AGAIN) from error
    length = int.from_bytes(content[:8], "little")
    return tensors, json.loads(content[8 : 8 + length]).get("__metadata__") or {}
