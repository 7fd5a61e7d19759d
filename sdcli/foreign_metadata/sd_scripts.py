"""What gen_img.py of sd-scripts writes into PNG: a text block for each setting. Its model and size are in none."""

from __future__ import annotations

from collections.abc import Mapping

from sdcli.foreign_metadata.translation import ForeignMetadata, Translation

NAMES = {
    "prompt": "prompt",
    "negative-prompt": "negative_prompt",
    "seed": "seed",
    "steps": "num_inference_steps",
    "scale": "guidance_scale",
}
KEYS = (
    *(*NAMES, "sampler", "negative-scale", "clip-prompt", "raw-prompt", "original-height", "original-width"),
    *("original-height-negative", "original-width-negative", "crop-top", "crop-left"),
)


def read(texts: Mapping[str, str]) -> ForeignMetadata | None:
    """Settings of a picture by sd-scripts; None where it is by another program."""
    if not texts.keys() >= {"prompt", "seed", "sampler", "steps", "scale"}:
        return None
    translation = Translation()
    translation.take_all(NAMES, texts)
    translation.take_sampler(texts["sampler"], None, ("sampler", "schedule"))
    translation.keep_rest({name: texts[name] for name in KEYS if name in texts}, (*NAMES, "sampler"))
    return translation.finish("sd-scripts")
