"""Whether a picture is made already: its file opens, and carries its key."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Any

from sdcli.errors import SdcliError
from sdcli.files import read_bytes
from sdcli.images import open_image, read_text

PNG_END = b"IEND\xaeB`\x82"


class OnDisk(Enum):
    """What is to be found where a picture goes."""

    NOTHING = "nothing"
    THE_PICTURE = "the picture"
    ANOTHER = "another picture"
    DAMAGED = "a file that does not open"


def look_for(path: Path, key: str) -> OnDisk:
    """What is there of a picture."""
    if not path.exists():
        return OnDisk.NOTHING
    if not is_whole(read_bytes(path)):
        return OnDisk.DAMAGED
    return OnDisk.THE_PICTURE if key_in(path) == key else OnDisk.ANOTHER


def in_the_way(path: Path) -> SdcliError:
    """The error of a job whose picture cannot go where another one is."""
    hint = "--if-exists overwrite replaces it, number keeps both"
    return SdcliError(f"{path} is there, and was made from something else", hint=hint)


def is_whole(content: bytes) -> bool:
    """Whether a picture decodes, and ends as its format does: a PNG decodes without its last bytes too."""
    try:
        image = open_image(content, "the picture")
    except SdcliError:
        return False
    return image.format != "PNG" or content.endswith(PNG_END)


def key_in(path: Path) -> str | None:
    """The key that a picture carries; None of a picture that this program has not made."""
    return block_in(path).get("key")


def ranking_in(path: Path) -> dict[str, Any]:
    """Why a picture was kept that was one of several; empty where it was not."""
    ranking = block_in(path).get("ranking")
    return ranking if isinstance(ranking, dict) else {}


def block_in(path: Path) -> dict[str, Any]:
    """What this program has written into a picture; empty where that is nothing, or damaged."""
    try:
        text, _, _ = read_text(path)
        content = json.loads(text["sdcli"])
    except (SdcliError, KeyError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
