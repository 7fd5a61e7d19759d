"""What InvokeAI writes into PNG: `invokeai_metadata`, and before version 3 `sd-metadata`, JSON both."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sdcli.foreign_metadata.translation import ForeignMetadata, Translation
from sdcli.untrusted_json import object_in

MAKER = "InvokeAI"
NAMES = {
    "positive_prompt": "prompt",
    "negative_prompt": "negative_prompt",
    "seed": "seed",
    "width": "width",
    "height": "height",
    "steps": "num_inference_steps",
    "cfg_scale": "guidance_scale",
    "cfg_rescale_multiplier": "guidance_rescale",
    "clip_skip": "clip_skip",  # counted as here
    "strength": "strength",
}
LEGACY_NAMES = {
    "seed": "seed",
    "width": "width",
    "height": "height",
    "steps": "num_inference_steps",
    "cfg_scale": "guidance_scale",
    "strength": "strength",
}
UNWANTED = re.compile(r"\[([^\[\]]*)\]")  # words of a legacy prompt that are the negative one


def read(texts: Mapping[str, str]) -> ForeignMetadata | None:
    """Settings of a picture by InvokeAI 3 or later; None where it is by another program."""
    content = object_in(texts.get("invokeai_metadata"))
    if not content:
        return None
    translation = Translation()
    translation.take_all(NAMES, content)
    translation.take_sampler(content.get("scheduler"), None, ("scheduler", "schedule"))
    for theirs in ("model", "vae"):
        if content.get(theirs):
            name = name_of(content[theirs])
            translation.take(theirs, name, theirs, content[theirs])
    known = [*NAMES, "scheduler", "model", "vae"]
    if isinstance(loras := content.get("loras"), list) and loras:
        known.append("loras")
        take_loras(translation, loras)
    translation.keep_rest(content, tuple(known))
    return translation.finish(MAKER)


def name_of(model: Any) -> Any:
    """What a model is called, in each of the forms that versions have for it."""
    if not isinstance(model, dict):
        return model
    return model.get("name") or model.get("model_name")


def take_loras(translation: Translation, loras: list[Any]) -> None:
    """Take LoRAs and their weights, all of them or none."""
    named = []
    for each in loras:
        model = each.get("model") or each.get("lora") if isinstance(each, dict) else None
        name = name_of(model)
        if not isinstance(name, str):
            translation.keep("loras", loras)
            return
        named.append(f"{name}:{each.get('weight', 1)}")
    translation.take("lora", named, "loras", loras)


def read_legacy(texts: Mapping[str, str]) -> ForeignMetadata | None:
    """Settings of a picture by InvokeAI 1 or 2; None where it is by another program."""
    content = object_in(texts.get("sd-metadata"))
    image = content.get("image") if content else None
    if not isinstance(image, dict):
        return None
    translation = Translation()
    translation.take_all(LEGACY_NAMES, image)
    take_legacy_prompt(translation, image.get("prompt"))
    translation.take_sampler(image.get("sampler"), None, ("sampler", "schedule"))
    if content.get("model_weights") is not None:
        translation.take("model", content["model_weights"], "model_weights")
    translation.keep_rest(image, (*LEGACY_NAMES, "prompt", "sampler"))
    translation.keep_rest(content, ("image", "model_weights"))
    return translation.finish(MAKER)


def take_legacy_prompt(translation: Translation, prompt: Any) -> None:
    """Take a prompt, a text or a list of one; of several that are blended nothing is like them here."""
    said = prompt
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], dict):
        said = prompt[0].get("prompt")
    if not isinstance(said, str):
        translation.keep("prompt", prompt)
        return
    if unwanted := UNWANTED.findall(said):
        translation.take("negative_prompt", " ".join(unwanted), "negative prompt")
        said = UNWANTED.sub("", said).strip()
    translation.take("prompt", said, "prompt", prompt)
