"""JSON that somebody else wrote: read whole or refused, never a surprise further on."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

MOST_DEPTH = 64  # of lists and objects in each other; a graph of ComfyUI has about ten


def parse_json(text: str) -> Any:
    """What a JSON text says; NaN and infinity, which are not JSON but occur, as their names.

    Raises:
        ValueError: it is no JSON, nested deeper than anybody means it, has a key twice, or a text that is no Unicode.
            As json.JSONDecodeError it knows the line.
    """
    try:
        content = json.loads(text, parse_constant=str, object_pairs_hook=once_each)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    if "\\u" in text or text.count("[") + text.count("{") > MOST_DEPTH:
        check_depth(content)
    return content


def once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, none of whose keys is given twice."""
    content = dict(pairs)
    if len(content) < len(pairs):
        (twice, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{twice[:60]!r} is given twice")
    return content


def check_depth(content: Any) -> None:
    """Refuse what a recursive function or an encoder would stumble over later."""
    layer = [content]
    for _ in range(MOST_DEPTH):
        for each in layer:
            if isinstance(each, str):
                each.encode("utf-8")  # JSON can hold half a surrogate pair, no file of text can
        lists = [each for each in layer if isinstance(each, list)]
        objects = [each for each in layer if isinstance(each, dict)]
        layer = [item for each in lists for item in each]
        layer += [item for each in objects for pair in each.items() for item in pair]
        if not layer:
            return
    raise ValueError("it is nested too deep")


def object_in(text: str | None) -> dict[str, Any] | None:
    """The object that a text is, or None where it is none."""
    try:
        content = parse_json(text) if text and text.lstrip().startswith("{") else None
    except ValueError:
        return None
    return content if isinstance(content, dict) else None
