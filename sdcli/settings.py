"""What one picture is made from: frozen, complete, checked when created. Knows no file, no terminal and no torch."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from dataclasses import dataclass

from sdcli.errors import SdcliError
from sdcli.prompt_syntax import parse_prompt

SAMPLER_NAMES = (
    "ddpm",
    "ddim",
    "pndm",
    "lms",
    "euler",
    "euler_a",
    "heun",
    "dpm2",
    "dpm2_a",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_sde",
    "dpmpp_3m_sde",
    "unipc",
    "deis",
    "lcm",
    "tcd",
    "langevin",
)
SCHEDULE_NAMES = ("normal", "karras", "exponential", "beta")
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
TIMESTEP_SPACINGS = ("leading", "trailing", "linspace")

STRENGTH = 0.8  # how much of a picture to begin from is made anew, where nobody says
SIZE_MULTIPLE = 8  # pixels per side of one latent in every Stable Diffusion VAE
LARGEST_SEED = 2**64 - 1  # what torch.Generator.manual_seed takes
MOST_INFERENCE_STEPS = 1000  # noise levels that the models were trained on


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint that names the nearest known spellings, if any, and then all of them.

    Spellings of other tools are understood: "DPM++ 2M Karras" is near "dpmpp_2m".
    """
    known = list(known)
    plain = name.casefold().replace("++", "pp").replace(" ", "_").replace("-", "_").removeprefix("k_")
    near = difflib.get_close_matches(plain, known, n=3, cutoff=0.6)
    listing = f"known: {', '.join(known)}" if known else "none is known"
    return f"did you mean {' or '.join(near)}? {listing}" if near else listing


def check_choice(flag: str, value: str | None, known: tuple[str, ...]) -> None:
    """Refuse a name that is not in the list; None stands for the model's own choice."""
    if value is not None and value not in known:
        raise SdcliError(f"{flag} knows no {value!r}", hint=did_you_mean(value, known))


def check_text(flag: str, text: str) -> None:
    """Refuse bytes that are no text, which a shell can pass on, and no file of text can hold."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise SdcliError(f"{flag} is not UTF-8: {text!r}", hint="check the encoding of the script or file") from error


def check_sampler(flag: str, name: str | None) -> None:
    """Refuse a sampler that there is not; package.module.Class is looked up later."""
    if name is not None and "." not in name:
        check_choice(flag, name, SAMPLER_NAMES)


def check_size(flag: str, pixels: int) -> None:
    """Refuse a side that the VAE cannot divide; sizes are never rounded."""
    if pixels >= SIZE_MULTIPLE and pixels % SIZE_MULTIPLE == 0:
        return
    lower = max(SIZE_MULTIPLE, pixels // SIZE_MULTIPLE * SIZE_MULTIPLE)
    raise SdcliError(
        f"{flag} must be a positive multiple of {SIZE_MULTIPLE}, got {pixels}",
        hint=f"nearest usable sizes: {lower} or {lower + SIZE_MULTIPLE}",
    )


def check_range(flag: str, value: float, least: float, most: float, hint: str = "") -> None:
    """Refuse a number outside [least, most]; infinity and not-a-number are outside of everything."""
    if not (least <= value <= most and math.isfinite(value)):
        allowed = f"at least {least}" if math.isinf(most) else f"from {least} to {most}"
        raise SdcliError(f"{flag} must be {allowed}, got {value}", hint=hint or f"try {flag} {least}")


def check_steps(flag: str, steps: int) -> None:
    """Refuse a number of denoising steps that no schedule can take."""
    check_range(flag, steps, 1, MOST_INFERENCE_STEPS, hint="20 to 50 steps suit most samplers")


@dataclass(frozen=True, kw_only=True)
class GenerationDefaults:
    """What a model uses for everything that the user leaves open; `sampler` None is the model's own scheduler.

    Lengths are in pixels; guidance_scale 1 switches guidance off; eta is the noise of ddim's and tcd's steps; clip_skip
    counts the text layers left out from the end, as diffusers does (0 none); prediction_type and timestep_spacing None
    are the scheduler's own.
    """

    num_inference_steps: int = 30
    guidance_scale: float = 7.5
    width: int = 512
    height: int = 512
    sampler: str | None = None
    schedule: str | None = None
    eta: float = 0.0
    clip_skip: int = 0
    prediction_type: str | None = None
    timestep_spacing: str | None = None

    def __post_init__(self) -> None:
        check_size("width", self.width)
        check_size("height", self.height)
        check_steps("steps", self.num_inference_steps)
        check_range("guidance_scale", self.guidance_scale, 1, math.inf, hint="1 switches guidance off")
        check_range("eta", self.eta, 0, 1)
        check_range("clip_skip", self.clip_skip, 0, 11)
        check_sampler("sampler", self.sampler)
        check_choice("schedule", self.schedule, SCHEDULE_NAMES)
        check_choice("prediction_type", self.prediction_type, PREDICTION_TYPES)
        check_choice("timestep_spacing", self.timestep_spacing, TIMESTEP_SPACINGS)


@dataclass(frozen=True, kw_only=True)
class DenoiseSettings:
    """What the denoising loop needs to know beside tensors and the scheduler."""

    num_inference_steps: int
    guidance_scale: float
    guidance_rescale: float = 0.0
    eta: float = 0.0
    strength: float = 1.0  # share of the steps that are taken, where there is a picture to begin from


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerateSettings:
    """Everything that decides one picture; `sampler` and `schedule` None are the model's own.

    Raises:
        SdcliError: a value that no model can take; the message names the flag.
    """

    prompt: str
    negative_prompt: str = ""
    model: str
    seed: int
    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    guidance_rescale: float = 0.0
    eta: float = 0.0
    sampler: str | None = None
    schedule: str | None = None
    clip_skip: int = 0
    prediction_type: str | None = None
    timestep_spacing: str | None = None
    # a picture to begin from
    init_image: str | None = None
    strength: float | None = None  # share of it that is made anew; None is all of it under a mask, else STRENGTH
    mask: str | None = None  # white where it is to be painted anew
    # what is put onto the model
    lora: tuple[str, ...] = ()  # FILE or FILE:WEIGHT
    embedding: tuple[str, ...] = ()
    vae: str | None = None
    controlnet: tuple[str, ...] = ()
    control_image: tuple[str, ...] = ()  # for each of them
    control_scale: tuple[float, ...] = ()  # for each of them; () is 1 for all
    control_start: float = 0.0  # share of the steps after which they have a say
    control_end: float = 1.0  # and after which they have none any more
    # a second, larger pass over the picture
    hires_scale: float = 1.0  # 1 makes none
    hires_strength: float = 0.5
    # a gradient to follow
    clip_guidance: float = 0.0  # how much of CLIP's; 0 is none
    clip_model: str | None = None  # whose CLIP; None is the model's own, and all that there is without guidance

    def __post_init__(self) -> None:
        for name in ("lora", "embedding", "controlnet", "control_image", "control_scale"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name, text in (("prompt", self.prompt), ("--negative-prompt", self.negative_prompt)):
            check_text(name, text)
            if "[" in text:  # where editing begins, the one thing that it refuses
                parse_prompt(text)
        check_size("--width", self.width)
        check_size("--height", self.height)
        check_steps("--steps", self.num_inference_steps)
        check_range("--seed", self.seed, 0, LARGEST_SEED, hint="leave --seed out and one is drawn and reported")
        check_range("--guidance-scale", self.guidance_scale, 1, math.inf, hint="1 switches guidance off; 7 is usual")
        check_range("--guidance-rescale", self.guidance_rescale, 0, 1)
        check_range("--eta", self.eta, 0, 1)
        check_range("--clip-skip", self.clip_skip, 0, 11)
        check_sampler("--sampler", self.sampler)
        check_choice("--schedule", self.schedule, SCHEDULE_NAMES)
        check_choice("--prediction-type", self.prediction_type, PREDICTION_TYPES)
        check_choice("--timestep-spacing", self.timestep_spacing, TIMESTEP_SPACINGS)
        check_range("--clip-guidance", self.clip_guidance, 0, math.inf, hint="0 is off; 1 to 5 suit most")
        if self.clip_guidance == 0:
            object.__setattr__(self, "clip_model", None)
        self._check_init_image()
        self._check_controls()
        self._check_hires()
        for each in self.lora:
            lora_of(each)

    def _check_init_image(self) -> None:
        """Refuse what goes with a picture to begin from, where there is none."""
        if self.init_image is None:
            for name in ("mask", "strength"):
                if getattr(self, name) is not None:
                    raise SdcliError(f"--{name} needs a picture to begin from", hint="give one by --init-image FILE")
            return
        if self.strength is None:
            object.__setattr__(self, "strength", STRENGTH if self.mask is None else 1.0)
        check_range("--strength", self.strength, 0, 1)
        if int(self.num_inference_steps * self.strength) < 1:
            message = f"--strength {self.strength:g} of {self.num_inference_steps} steps is not one step"
            raise SdcliError(message, hint=f"try --strength {1 / self.num_inference_steps + 0.005:.2f} or more")

    def _check_controls(self) -> None:
        """Refuse ControlNets without a picture each."""
        count = len(self.controlnet)
        if len(self.control_image) != count:
            message = f"{count} --controlnet and {len(self.control_image)} --control-image"
            raise SdcliError(message, hint="give as many of both, in the same order")
        if self.control_scale and len(self.control_scale) != count:
            message = f"{count} --controlnet and {len(self.control_scale)} --control-scale"
            raise SdcliError(message, hint="give one for each, or none, which is 1")
        for scale in self.control_scale:
            check_range("--control-scale", scale, -math.inf, math.inf)
        check_range("--control-start", self.control_start, 0, 1)
        check_range("--control-end", self.control_end, self.control_start, 1)

    def _check_hires(self) -> None:
        """Refuse a second pass of a size that there is not."""
        check_range("--hires-scale", self.hires_scale, 1, 8, hint="1 makes no second pass; 2 is usual")
        check_range("--hires-strength", self.hires_strength, 0, 1)
        if self.hires_scale > 1 and self.mask is not None:
            raise SdcliError("--hires-scale does not go with --mask: it is for the whole picture", hint="leave it out")
        if self.hires_scale > 1 and int(self.num_inference_steps * self.hires_strength) < 1:
            message = f"--hires-strength {self.hires_strength:g} of {self.num_inference_steps} steps is not one step"
            raise SdcliError(message, hint="0.5 is usual")
        for name, side in (("width", self.width), ("height", self.height)):
            if (side * self.hires_scale) % SIZE_MULTIPLE:
                larger = f"{side} times {self.hires_scale:g} is {side * self.hires_scale:g}"
                message = f"--hires-scale {self.hires_scale:g}: the {name} {larger}, no multiple of {SIZE_MULTIPLE}"
                raise SdcliError(message, hint="1.5 and 2 suit most sizes")

    @property
    def denoise_settings(self) -> DenoiseSettings:
        """The part that the denoising loop takes."""
        return DenoiseSettings(
            num_inference_steps=self.num_inference_steps,
            guidance_scale=self.guidance_scale,
            guidance_rescale=self.guidance_rescale,
            eta=self.eta,
            strength=1.0 if self.strength is None else self.strength,
        )


def lora_of(text: str) -> tuple[str, float]:
    """The file and the weight that FILE or FILE:WEIGHT names.

    Raises:
        SdcliError: the weight is no number.
    """
    file, colon, weight = text.rpartition(":")
    try:
        share = float(weight) if colon else 1.0
    except ValueError:
        file, share = "", 1.0  # a colon of the file's own name
    if not math.isfinite(share):
        raise SdcliError(f"--lora {text}: the weight must be a number", hint=f"such as {file}:0.8")
    return (file or text, share)
