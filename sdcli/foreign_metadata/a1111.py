"""The `parameters` of stable-diffusion-webui (A1111), which Forge, SD.Next, Fooocus and we ourselves write as well.

The prompt, `Negative prompt: …`, and a line of `name: value, …`, where a value may be a JSON text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from sdcli.foreign_metadata.translation import ForeignMetadata, Translation

MAKERS = {"f": "Forge", "fooocus": "Fooocus", "sdcli": "sdcli", "v": "A1111"}  # by how the version begins
NEGATIVE = "Negative prompt:"
# The length of a name is bounded, so that a line without a colon is not gone through for each of its letters.
PAIR = re.compile(r'(\w[\w \-/]{0,60}):[ \t]*("(?:\\.|[^\\"])*"(?=[ \t]*(?:,|$))|[^,]*)(?:,|$)')
LORA = re.compile(r"<lora:([^<>:]{1,300})((?::[^<>:]{1,40}){0,4})>")
FEWEST_PAIRS = 3  # in A1111's own reader, fewer are a part of the prompt
NAMES = {
    "Steps": "num_inference_steps",
    "CFG scale": "guidance_scale",
    "Seed": "seed",
    "Model": "model",
    "VAE": "vae",
    "Guidance rescale": "guidance_rescale",
    "Hires upscale": "hires_scale",
}
ELSEWHERE = ("Size", "Sampler", "Schedule type", "Clip skip", "Eta", "Eta DDIM", "Denoising strength")


def read(texts: Mapping[str, str]) -> ForeignMetadata | None:
    """Settings of a picture by A1111 or a program that writes the same; None where it is by neither."""
    parts = split(texts.get("parameters", ""))
    if parts is None:
        return None
    prompt, negative_prompt, values, rest = parts
    translation = translate(prompt, negative_prompt, values)
    translation.keep("further lines", rest or None)
    return translation.finish(maker_of(values))


def maker_of(values: Mapping[str, str]) -> str:
    """Which of the programs it was, by its version."""
    if "App" in values:
        return values["App"]
    version = values.get("Version", "").casefold()
    return next((maker for start, maker in MAKERS.items() if re.match(rf"{start}[\d .]", version)), "A1111")


def split(text: str) -> tuple[str, str, dict[str, str], str] | None:
    """Prompt, negative prompt, the values by their names, and what follows them; None where it is no such text."""
    lines = text.strip().split("\n") if len(text) < 2**22 else []
    last = next((place for place in reversed(range(len(lines))) if lines[place].startswith("Steps:")), len(lines) - 1)
    values = pairs(lines[last]) if lines else {}
    if len(values) < FEWEST_PAIRS:
        return None
    before = [line.strip() for line in lines[:last]]
    place = next((number for number, line in enumerate(before) if line.startswith(NEGATIVE)), len(before))
    negative = "\n".join(before[place:]).removeprefix(NEGATIVE).strip()
    return "\n".join(before[:place]), negative, values, "\n".join(lines[last + 1 :])


def pairs(line: str) -> dict[str, str]:
    """The values in a line by their names; what stands between two pairs is a part of the first."""
    found = list(PAIR.finditer(line))
    values: dict[str, str] = {}
    for place, match in enumerate(found):
        end = found[place + 1].start() if place + 1 < len(found) else len(line)
        more = line[match.end() : end].strip(" ,")
        value = unquote(match[2].strip())
        name = match[1] if match[1] not in values else f"{match[1]} (again)"
        values[name] = f"{value}, {more}" if more else value
    return values


def unquote(value: str) -> str:
    """What a JSON text says, or the value itself."""
    if value[:1] == '"':
        try:
            said = json.loads(value)
            said.encode("utf-8")
            return said
        except (ValueError, RecursionError):
            pass
    return value


def translate(prompt: str, negative_prompt: str, values: Mapping[str, str]) -> Translation:
    """The values as settings of ours."""
    translation = Translation()
    take_prompt(translation, prompt)
    translation.take("negative_prompt", negative_prompt, "Negative prompt")
    if "Size" in values:
        translation.take_size(*(values["Size"].split("x") + ["", ""])[:2], "Size", values["Size"])
    translation.take_all(NAMES, values)
    translation.take_sampler(values.get("Sampler"), values.get("Schedule type"), ("Sampler", "Schedule type"))
    take_clip_skip(translation, values.get("Clip skip"))
    for name in ("Eta", "Eta DDIM"):
        take_eta(translation, name, values.get(name))
    if (strength := values.get("Denoising strength")) is not None:
        second_pass = any(name.startswith(("Hires", "First pass")) for name in values)
        translation.take("hires_strength" if second_pass else "strength", strength, "Denoising strength")
    translation.keep_rest(values, (*NAMES, *ELSEWHERE))
    return translation


def take_prompt(translation: Translation, prompt: str) -> None:
    """Take a prompt, and the LoRAs that it names as <lora:NAME:WEIGHT>, which are no words."""
    loras = []
    for name, weights in LORA.findall(prompt):
        weight, *more = weights.split(":")[1:] or ["1"]
        if more:  # of the text encoder and the UNet apart, or of blocks
            translation.keep(f"<lora:{name}>", weights[1:])
        loras.append(f"{name}:{weight}")
    words = LORA.sub("", prompt).strip() if loras else prompt
    translation.take("prompt", words, "Prompt", prompt)
    if loras:
        translation.take("lora", loras, "LoRA")


def take_clip_skip(translation: Translation, theirs: Any) -> None:
    """Take what counts the last layer as 1, where ours counts the layers left out; 0 and -1 are the model's own."""
    try:
        layer = int(theirs) if theirs is not None else 0
    except (ValueError, TypeError, OverflowError):
        layer = -2
    if layer >= 1:
        translation.take("clip_skip", layer - 1, "Clip skip", theirs)
    elif theirs is not None:
        translation.keep("Clip skip", theirs)


def take_eta(translation: Translation, name: str, theirs: Any) -> None:
    """Take the noise of the steps, which here the samplers ddim and tcd alone have."""
    if theirs is not None and translation.settings.get("sampler") in ("ddim", "tcd"):
        translation.take("eta", theirs, name)
    else:
        translation.keep(name, theirs)
