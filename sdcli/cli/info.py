"""`sdcli info`: what a picture, a latents file or a file of weights says of itself."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from sdcli.cli import options
from sdcli.errors import SdcliError

MOST_TENSORS = 8  # to be listed one by one
MOST_LETTERS = 400  # of a value of another program that is shown
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # by which a text of a stranger could steer a terminal
LABELS = {"made_by": "made by", "not_understood": "not understood"}  # in text


def info(
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="Pictures, latents or weights.")],
    as_json: options.Json = False,
) -> None:
    """Tell what a file says of itself.

    sdcli info kitten.png
    sdcli info kitten.png --json
    sdcli info model.safetensors

    That is the settings in a picture, also those of A1111, ComfyUI, InvokeAI, sd-scripts, stable-diffusion.cpp and
    mflux, in the words of this program; and the metadata and shapes of latents and weights.
    """
    for path in files:
        about = about_tensors(path) if is_safetensors(path) else about_picture(path)
        if as_json:
            options.print_json({"path": str(path), **about})
        else:
            options.print_result("\n".join([f"{path}:", *lines_of(about, depth=1)]))


def is_safetensors(path: Path) -> bool:
    """Whether a file is latents or weights, by its name or its first bytes."""
    from sdcli.cli.files import looks_like_safetensors
    from sdcli.files import read_bytes

    return path.suffix.lower() in (".safetensors", ".latent") or looks_like_safetensors(read_bytes(path, 9))


def about_picture(path: Path) -> dict[str, Any]:
    """Size of a picture and the texts inside it, those of other programs in our words.

    Raises:
        SdcliError: it is no picture, or empty.
    """
    from sdcli.files import read_bytes
    from sdcli.foreign_metadata import read_foreign
    from sdcli.images import read_text
    from sdcli.metadata import read_complete_json

    if not read_bytes(path, 1):
        raise SdcliError(f"{path} is empty (0 bytes)", hint="give a picture, a latents file or a file of weights")
    text, (width, height), file_format = read_text(path)
    about: dict[str, Any] = {"kind": "picture", "format": file_format, "width": width, "height": height}
    if "sdcli" in text:
        ours = {name: text.pop(name) for name in ("parameters", "sdcli") if name in text}
        about |= ours | {"sdcli": read_complete_json(ours["sdcli"])}
    elif found := read_foreign(text):
        return about | {"made_by": found.maker, "settings": found.settings, "not_understood": found.others}
    return about | ({"texts": text} if text else {})


def about_tensors(path: Path) -> dict[str, Any]:
    """Metadata and shapes of a safetensors file.

    Raises:
        SdcliError: it is damaged, or none.
    """
    with options.heavy_imports():
        from sdcli.checkpoints.weights import open_weights

    with open_weights(path) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}
        tensors = {name: {"dtype": each.get_dtype(), "shape": each.get_shape()} for name, each in slices.items()}
        metadata = dict(sorted((file.metadata() or {}).items()))
    kind = "latents" if tensors.keys() & {"latents", "latent_tensor"} else "weights"
    count = sum(math.prod(tensor["shape"]) for tensor in tensors.values())
    dtypes = sorted({tensor["dtype"] for tensor in tensors.values()})
    return {"kind": kind, "numbers": count, "dtypes": dtypes, "metadata": metadata, "tensors": tensors}


def lines_of(values: dict[str, Any], depth: int, most_letters: float = math.inf) -> list[str]:
    """Nested values as indented lines; of many tensors only their number, of what is too long only its length."""
    lines = []
    for key, value in values.items():
        label, text = "  " * depth + visible(LABELS.get(key, key)), visible(str(value))
        if key == "tensors" and len(value) > MOST_TENSORS:
            lines.append(f"{label}: {len(value)} (--json lists them)")
        elif key in ("not_understood", "texts") and isinstance(value, dict):
            lines += [f"{label}:", *lines_of(value, depth + 1, MOST_LETTERS)]
        elif len(text) > most_letters:
            lines.append(f"{label}: {len(text)} letters (--json shows them)")
        elif isinstance(value, dict):
            lines += [f"{label}:", *lines_of(value, depth + 1)]
        elif "\n" in text:
            lines += [f"{label}:", *(f"{'  ' * (depth + 1)}{line}" for line in text.splitlines())]
        else:
            lines.append(f"{label}: {text}")
    return lines


def visible(text: str) -> str:
    """A text whose control characters are written out, but for line breaks and tabs."""
    return CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text.replace("\r\n", "\n"))
