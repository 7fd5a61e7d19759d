"""The `parameters` of stable-diffusion.cpp: A1111's form with names of its own, in later versions with JSON behind."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

from sdcli.foreign_metadata import a1111
from sdcli.foreign_metadata.translation import ForeignMetadata, Translation
from sdcli.untrusted_json import object_in

MAKER = "stable-diffusion.cpp"
TAIL = ", SDCPP: "  # what follows is JSON, to the end of the text
XMP = ("<sdcpp:parameters>", "</sdcpp:parameters>")  # around the same text, in WebP


def read(texts: Mapping[str, str]) -> ForeignMetadata | None:
    """Settings of a picture by stable-diffusion.cpp; None where it is by another program."""
    head, _, tail = parameters_in(texts).rpartition(TAIL)
    parts = a1111.split(head or tail)
    if parts is None or not parts[2].get("Version", "").startswith(MAKER):
        return None
    prompt, negative_prompt, values, rest = parts
    content = object_in(tail) if head else None
    if content:
        said = content.get("prompt")
        if isinstance(said, dict) and isinstance(said.get("positive"), str):
            prompt, negative_prompt = said["positive"], str(said.get("negative") or "")
    translation = a1111.translate(prompt, negative_prompt, values)
    translation.keep("further lines", rest or None)
    if content:
        take_loras(translation, content.get("loras"))
        translation.keep("SDCPP", content)
    elif head:
        translation.keep("SDCPP", tail)
    return translation.finish(MAKER)


def parameters_in(texts: Mapping[str, str]) -> str:
    """The text, wherever it is."""
    _, opened, xmp = texts.get("xmp", "").partition(XMP[0])
    text, closed, _ = xmp.partition(XMP[1])
    return html.unescape(text) if opened and closed else texts.get("parameters", "")


def take_loras(translation: Translation, loras: Any) -> None:
    """Take LoRAs that the JSON lists, where the prompt has named none."""
    named = [each for each in loras if isinstance(each, dict)] if isinstance(loras, list) else []
    if named and "lora" not in translation.settings:
        translation.take("lora", [f"{each.get('name')}:{each.get('multiplier', 1)}" for each in named], "loras")
