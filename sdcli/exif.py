"""What the fields of EXIF say that hold a text. Knows the numbers of fields, no files and no PIL."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

EXIF_IFD, USER_COMMENT, IMAGE_DESCRIPTION = 0x8769, 0x9286, 0x010E
NAMES = {
    IMAGE_DESCRIPTION: "ImageDescription",
    0x010F: "Make",
    0x0110: "Model",
    0x0131: "Software",
    0x013B: "Artist",
    0x8298: "Copyright",
}
# EXIF 2.3, table 9: the character code of eight bytes that opens a user comment
UNICODE_COMMENT = b"UNICODE\0"
OTHER_COMMENTS = (b"ASCII\0\0\0", b"\0" * 8)
NAMED_JSON = re.compile(r"([A-Za-z]\w{0,40}):(?=\s*[{\[])")


def encode_comment(text: str) -> bytes:
    """A user comment that holds letters of any script."""
    return UNICODE_COMMENT + text.encode("utf-16-be")


def decode_comment(comment: bytes) -> str:
    """The text of a user comment, whichever way it is written; some programs leave the character code out."""
    if comment.startswith(UNICODE_COMMENT):
        content = comment.removeprefix(UNICODE_COMMENT)
        # The standard does not give the byte order. In the text of A1111 or JSON most letters are ASCII.
        little = content.startswith(b"\xff\xfe") or content[1::2].count(0) > content[::2].count(0)
        text = content.decode("utf-16-le" if little else "utf-16-be", errors="replace").lstrip("\ufeff")
    else:
        for code in OTHER_COMMENTS:
            comment = comment.removeprefix(code)
        text = decode_bytes(comment)
    return text.rstrip("\0")


def decode_bytes(content: bytes) -> str:
    """A text as UTF-8, or as Latin-1 where it is none."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def texts_of(fields: Mapping[int, Any], comment: Any) -> dict[str, str]:
    """The texts in EXIF by name, as the programs that make pictures mean them.

    Args:
        fields: of the main directory, by their numbers.
        comment: the user comment, as bytes or text; None where there is none.

    Returns:
        Texts by name. ComfyUI writes `name:{…}` into any field; the name then is the text's own. A user comment is
        `parameters`, as in A1111's files, unless it is JSON.
    """
    texts = {}
    for number, value in fields.items():
        if isinstance(value, bytes):
            value = decode_bytes(value)
        if not isinstance(value, str):
            continue
        value = value.rstrip("\0")
        if named := NAMED_JSON.match(value):
            texts[named[1]] = value[named.end() :]
        elif number == IMAGE_DESCRIPTION and value.startswith("{"):
            texts["sdcli"] = value
        elif number in NAMES and value:
            texts[NAMES[number]] = value
    if comment:
        text = decode_comment(comment) if isinstance(comment, bytes) else str(comment)
        texts["UserComment" if text.lstrip().startswith("{") else "parameters"] = text
    return texts
