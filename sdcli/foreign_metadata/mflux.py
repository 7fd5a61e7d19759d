"""What mflux writes: one JSON object as the user comment of EXIF, in PNG too."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import zip_longest

from sdcli.foreign_metadata.translation import ForeignMetadata, Translation
from sdcli.untrusted_json import object_in

WORDS = ("prompt", "negative_prompt")
MARKS = re.compile(r"[\\()\[\]]")  # that mean nothing there, and something here
NAMES = {
    "seed": "seed",
    "steps": "num_inference_steps",
    "guidance": "guidance_scale",
    "width": "width",
    "height": "height",
    "model": "model",
}


def read(texts: Mapping[str, str]) -> ForeignMetadata | None:
    """Settings of a picture by mflux; None where it is by another program."""
    content = object_in(texts.get("UserComment"))
    if not content or "mflux_version" not in content:
        return None
    translation = Translation()
    for name in WORDS:
        if isinstance(said := content.get(name), str):
            translation.take(name, MARKS.sub(r"\\\g<0>", said), name, said)
        else:
            translation.keep(name, said)
    translation.take_all(NAMES, content)
    known = [*NAMES, *WORDS]
    paths, scales = content.get("lora_paths"), content.get("lora_scales") or []
    if isinstance(paths, list) and isinstance(scales, list):
        known += ["lora_paths", "lora_scales"]
        translation.take(
            "lora", [f"{path}:{scale}" for path, scale in zip_longest(paths, scales, fillvalue=1.0)], "lora_paths"
        )
    kept = content.get("image_strength")
    if isinstance(kept, int | float):
        known.append("image_strength")
        translation.take("strength", 1 - kept, "image_strength", kept)  # there, how much of the picture stays
    translation.keep_rest(content, tuple(known))
    return translation.finish("mflux")
