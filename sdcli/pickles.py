"""Weights in pickles, as torch.save writes them: refused unless allowed, and read without running what is in them."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

from sdcli.errors import SdcliError

SUFFIXES = (".bin", ".ckpt", ".pt", ".pth")
STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
LARGEST_HEADER = 100 * 2**20  # bytes, of a safetensors file; the format's own limit
ALLOW = "`sdcli generate` and `sdcli models convert` read it with --allow-pickle, without running what is in it"
# Files of Stable Diffusion 1's authors have this class as a key of what Lightning kept of the training.
OF_TRAINING = ("pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",)


class Inert:
    """Stands for the classes of a training framework that a file names; holds nothing and does nothing."""


def begins_as_pickle(start: bytes, size: int) -> bool:
    """Whether a file is a pickle by its first eight bytes, which some lengths of a safetensors header resemble."""
    plausible = len(start) == 8 and int.from_bytes(start, "little") <= min(size - 8, LARGEST_HEADER)
    return not plausible and start.startswith(STARTS)


def is_pickle(path: Path) -> bool:
    """Whether a file is a pickle, whatever it is called; False where it cannot be read."""
    try:
        with path.open("rb") as file:
            return begins_as_pickle(file.read(8), path.stat().st_size)
    except OSError:
        return False


def read_pickle(path: Path, allowed: bool) -> dict[str, Any]:
    """What a pickle holds, by name; the weights of a training's checkpoint, without what else it kept.

    Tensors stay in the file until they are used, where torch's own format of today allows that.

    Args:
        path: of the file.
        allowed: whether the user wants pickles to be read.

    Raises:
        SdcliError: it is not allowed, the file is bad, holds something else, or would run code.
    """
    named_otherwise = path.suffix == ".safetensors"  # torch goes by the name
    if not allowed or named_otherwise:
        hint = f"once it is called {path.stem}.ckpt, {ALLOW}" if named_otherwise else ALLOW
        raise SdcliError(f"{path} is a pickle, not safetensors", hint=hint)
    import torch  # here, because headers are read without it

    try:
        with path.open("rb") as file:
            mapped = file.read(4) == STARTS[0]
        with torch.serialization.safe_globals([(Inert, name) for name in OF_TRAINING]):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as error:
        raise SdcliError(f"{path} cannot be read: {reason_of(error)}", hint="fetch it as safetensors") from error
    if not isinstance(content, dict):
        raise SdcliError(f"{path} holds no weights but a {type(content).__name__}", hint="fetch it as safetensors")
    inner = content.get("state_dict", content)
    return inner if isinstance(inner, dict) else content


def read_tensors(path: Path, allowed: bool) -> dict[str, Any]:
    """The tensors among what a pickle holds; errors as for `read_pickle`."""
    content = read_pickle(path, allowed)
    from torch import Tensor

    return {str(name): each for name, each in content.items() if isinstance(each, Tensor)}


def reason_of(error: Exception) -> str:
    """Why torch does not read a file, in a few words."""
    text = str(error)
    if found := re.search(r"GLOBAL ([\w.]+)", text):
        return f"it asks for {found[1]}, which is code and no weight"
    if isinstance(error, pickle.UnpicklingError) and "Weights only" in text:
        return "it holds more than weights"
    return text.splitlines()[0].split(". ")[0] if text else type(error).__name__
