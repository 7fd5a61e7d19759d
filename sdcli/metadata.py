"""The text blocks inside a picture: `parameters` in A1111's form, which viewers show, and `sdcli`, complete JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import PurePath
from typing import Any

from sdcli import __version__
from sdcli.errors import SdcliError
from sdcli.settings import GenerateSettings
from sdcli.untrusted_json import parse_json

SCHEMA = "sdcli.image/1"  # the number rises when a key changes its meaning
NOISED_SCHEMA = "sdcli.noised-image/1"

A1111_SAMPLERS = {
    "ddpm": "DDPM",
    "ddim": "DDIM",
    "pndm": "PLMS",
    "lms": "LMS",
    "euler": "Euler",
    "euler_a": "Euler a",
    "heun": "Heun",
    "dpm2": "DPM2",
    "dpm2_a": "DPM2 a",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "dpmpp_sde": "DPM++ SDE",
    "dpmpp_3m_sde": "DPM++ 3M SDE",
    "unipc": "UniPC",
    "deis": "DEIS",
    "lcm": "LCM",
    "tcd": "TCD",
    "langevin": "Langevin",
}
A1111_SCHEDULES = {"normal": "Normal", "karras": "Karras", "exponential": "Exponential", "beta": "Beta"}


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What made a picture, beside its settings.

    Args:
        model_name: the model's name without folders.
        device: as torch spells it.
        precision: fp32, fp16 or bf16.
        weights: SHA-256 of every weight file used, by its path within the model's folder.
        training: what each weight file says of its making, where `sdcli train` has written that into it.
        versions: of this program and of the libraries that decide the bits.
        key: SHA-256 of everything that decides the picture.
        computed: what it needs of the way in which it was computed, to be had again, where that was not as usual.
        inputs: SHA-256 of every file that the settings name, by its name there, so that it is found where it has moved.
        ranking: of a picture that was kept because it was among the best of several, how that came; else empty.
    """

    model_name: str
    device: str
    precision: str
    weights: dict[str, str]
    training: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=lambda: library_versions())
    key: str = ""
    computed: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    ranking: dict[str, Any] = field(default_factory=dict)

    @property
    def model_hash(self) -> str:
        """What A1111 calls the model hash: ten digits of a SHA-256, here of the UNet's first file, or the only one."""
        names = sorted(self.weights, key=lambda path: (not path.startswith("unet/"), path))
        of_unet = [self.weights[path] for path in names if path.startswith("unet/") or "/" not in path]
        return of_unet[0][:10] if of_unet else ""


def library_versions() -> dict[str, str]:
    """Versions of this program, of Python and of the libraries that decide the bits; imports none of them."""
    import importlib.metadata
    import platform

    libraries = {name: importlib.metadata.version(name) for name in ("torch", "diffusers", "transformers")}
    return {"sdcli": __version__, "python": platform.python_version(), **libraries}


def text_blocks(settings: GenerateSettings, provenance: Provenance) -> dict[str, str]:
    """Both blocks by name, to be written into a picture."""
    return {"parameters": a1111_text(settings, provenance), "sdcli": complete_json(settings, provenance)}


def a1111_text(settings: GenerateSettings, provenance: Provenance) -> str:
    """Settings as stable-diffusion-webui writes them, for the viewers and galleries that read its form."""
    values: dict[str, Any] = {
        "Steps": settings.num_inference_steps,
        "Sampler": A1111_SAMPLERS.get(settings.sampler or "", settings.sampler),
        "Schedule type": A1111_SCHEDULES.get(settings.schedule or "", settings.schedule),
        "CFG scale": f"{settings.guidance_scale:g}",
        "Seed": settings.seed,
        "Size": f"{settings.width}x{settings.height}",
        "Model hash": provenance.model_hash,
        "Model": provenance.model_name,
        # A1111 counts the last layer as 1, where diffusers counts the layers left out.
        "Clip skip": settings.clip_skip + 1 if settings.clip_skip else None,
        "Eta": f"{settings.eta:g}" if settings.eta else None,
        "Guidance rescale": f"{settings.guidance_rescale:g}" if settings.guidance_rescale else None,
        "CLIP guidance": f"{settings.clip_guidance:g}" if settings.clip_guidance else None,
        "CLIP model": settings.clip_model and PurePath(settings.clip_model).name,
        "Version": f"sdcli {provenance.versions['sdcli']}",
    }
    last_line = ", ".join(f"{name}: {quote(str(value))}" for name, value in values.items() if value not in (None, ""))
    lines = [settings.prompt]
    if settings.negative_prompt:
        lines.append(f"Negative prompt: {settings.negative_prompt}")
    return "\n".join([*lines, last_line])


def quote(text: str) -> str:
    """A value as A1111 writes it: in JSON quotes where it would otherwise end the value."""
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ',:\n"') else text


def complete_json(settings: GenerateSettings, provenance: Provenance) -> str:
    """Everything that decides the picture, as one line of ASCII JSON."""
    about = asdict(provenance)
    if not about["ranking"]:
        del about["ranking"]
    return json.dumps({"schema": SCHEMA, "settings": asdict(settings), **about})


def read_complete_json(text: str) -> dict[str, Any]:
    """The `sdcli` block of a picture, of whatever schema it says.

    Raises:
        SdcliError: the block is damaged.
    """
    try:
        content = parse_json(text)
        return {"schema": content.pop("schema"), **content}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SdcliError("the picture's sdcli block is damaged", hint="the file was altered; get it again") from error
