"""The beginning of a safetensors file: names, shapes and what it says of itself, read without its library or torch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from sdcli import pickles
from sdcli.errors import SdcliError

FETCH_AGAIN = "the download or the copy was cut off: fetch the file again"
COPIED_IN_PART = "was the folder copied whole?"
CONVERT = "a pickle can run code when it is read: load it where you trust it and save it as safetensors"

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Header:
    """What a safetensors file holds.

    Args:
        shapes: of each tensor by its name.
        metadata: texts that the file says of itself.
    """

    shapes: dict[str, tuple[int, ...]]
    metadata: dict[str, str]


def read_header(path: Path, allow_pickle: bool = False) -> Header:
    """The header of a safetensors file, or what it would be of a pickle where that is allowed.

    Raises:
        SdcliError: the file is missing, empty, cut off, damaged or a pickle.
    """
    if pickles.is_pickle(path):
        about = path.stat()
        return header_of_pickle(path, (about.st_size, about.st_mtime_ns), allow_pickle)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            check_start(start, size, path)
            content = json.loads(file.read(int.from_bytes(start, "little")))
        return parse_header(content)
    except FileNotFoundError as error:
        raise SdcliError(f"{path} is missing", hint=COPIED_IN_PART) from error
    except OSError as error:
        raise SdcliError(f"cannot read {path}: {error.strerror}", hint="is it a file, and may you read it?") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SdcliError(f"{path} is damaged: its header is no list of tensors", hint=FETCH_AGAIN) from error


@lru_cache(maxsize=4)
def header_of_pickle(path: Path, state: tuple[int, int], allowed: bool) -> Header:
    """Names and shapes in a pickle, which has no header; kept until the file changes, as old ones are read whole."""
    return Header({name: tuple(each.shape) for name, each in pickles.read_tensors(path, allowed).items()}, {})


def parse_header(content: dict[str, Any]) -> Header:
    """What the JSON of a header says."""
    metadata = content.pop("__metadata__", {})
    shapes = {name: tuple(int(side) for side in about["shape"]) for name, about in content.items()}
    return Header(shapes, dict(metadata))


def check_start(start: bytes, size: int, name: object) -> None:
    """See by the first eight bytes whether a file can be safetensors: they give the length of the header.

    Args:
        start: the first eight bytes, fewer of a shorter file.
        size: of the whole file in bytes.
        name: of the file, for the message.

    Raises:
        SdcliError: it cannot.
    """
    if size == 0:
        raise SdcliError(f"{name} is empty (0 bytes)", hint=FETCH_AGAIN)
    if pickles.begins_as_pickle(start, size):
        raise SdcliError(f"{name} is a pickle, not safetensors", hint=CONVERT)
    header = int.from_bytes(start, "little")
    if len(start) < 8 or header > min(size - 8, pickles.LARGEST_HEADER):
        says = f"it says its header has {header} bytes, the whole file has {size}"
        raise SdcliError(f"{name} is no safetensors file, or damaged: {says}", hint=FETCH_AGAIN)
