"""The flags that `sdcli generate` alone has, with their help. Imports no torch."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from sdcli.run_settings import OFFLOADS, ON_ERROR
from sdcli.settings import PREDICTION_TYPES, SAMPLER_NAMES, SCHEDULE_NAMES, STRENGTH, TIMESTEP_SPACINGS

OnErrorChoice = StrEnum("OnErrorChoice", list(ON_ERROR))
OffloadChoice = StrEnum("OffloadChoice", list(OFFLOADS))

OWN = "(default: the model's own)"


Prompts = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[PROMPT]...",
        help="What to show; several make several. {a|b} is one of them by the seed, {{a|b}} is each of them.",
    ),
]
PromptsFile = Annotated[
    str | None,
    typer.Option("--prompts", metavar="FILE|-", help="A prompt a line; lines that begin with # are comments."),
]
JobsFile = Annotated[
    str | None,
    typer.Option(
        "--jobs",
        metavar="FILE|-",
        help="A job a line, as JSON; its keys are settings, such as prompt, seed, steps, and id, num_images, output.",
    ),
]
FromFile = Annotated[
    str | None,
    typer.Option("--from", metavar="FILE", help="Settings of a picture, or of a JSON or TOML file; flags go first."),
]
NegativePrompt = Annotated[
    str | None, typer.Option("-N", "--negative-prompt", metavar="TEXT", help="What to steer away from.")
]
NumImages = Annotated[int, typer.Option("-n", "--num-images", metavar="N", help="Pictures per prompt.")]
Steps = Annotated[int | None, typer.Option("--steps", metavar="N", help=f"Denoising steps {OWN}.")]
GuidanceScale = Annotated[
    float | None,
    typer.Option("-g", "--guidance-scale", metavar="X", help=f"How closely to follow the prompt; 1 is off {OWN}."),
]
Width = Annotated[int | None, typer.Option("-W", "--width", metavar="PX", help=f"A multiple of 8 {OWN}.")]
Height = Annotated[int | None, typer.Option("-H", "--height", metavar="PX", help=f"A multiple of 8 {OWN}.")]
Sampler = Annotated[str | None, typer.Option("--sampler", metavar="NAME", help=f"{', '.join(SAMPLER_NAMES)} {OWN}.")]
Schedule = Annotated[str | None, typer.Option("--schedule", metavar="NAME", help=f"{', '.join(SCHEDULE_NAMES)} {OWN}.")]
PredictionType = Annotated[
    str | None,
    typer.Option("--prediction-type", metavar="NAME", help=f"{', '.join(PREDICTION_TYPES)} {OWN}."),
]
TimestepSpacing = Annotated[
    str | None,
    typer.Option("--timestep-spacing", metavar="NAME", help=f"{', '.join(TIMESTEP_SPACINGS)} {OWN}."),
]
Eta = Annotated[
    float | None, typer.Option("--eta", metavar="X", help=f"Noise of the steps of ddim and tcd, 0 to 1 {OWN}.")
]
GuidanceRescale = Annotated[
    float | None,
    typer.Option(
        "--guidance-rescale", metavar="X", help="Against overexposure by strong guidance, 0 to 1 (default: 0)."
    ),
]
ClipSkip = Annotated[
    int | None,
    typer.Option("--clip-skip", metavar="N", help="Last text layers to leave out; 1 is what A1111 calls 2."),
]
InitImage = Annotated[
    str | None,
    typer.Option(
        "--init-image",
        metavar="FILE",
        help="A picture to begin from; its size is the result's. A pattern in quotes is each file that matches it.",
    ),
]
Strength = Annotated[
    float | None,
    typer.Option(
        "--strength",
        metavar="X",
        help=f"How much of it is made anew, up to 1 (default: {STRENGTH}; with a mask 1).",
    ),
]
Mask = Annotated[
    str | None, typer.Option("--mask", metavar="FILE", help="White where the picture is to be painted anew.")
]
Lora = Annotated[
    list[str] | None, typer.Option("--lora", metavar="FILE[:WEIGHT]", help="Put a LoRA onto the model; repeatable.")
]
Embedding = Annotated[
    list[str] | None, typer.Option("--embedding", metavar="FILE", help="Teach it a learned word; repeatable.")
]
Vae = Annotated[str | None, typer.Option("--vae", metavar="NAME|FILE", help="Another VAE than the model's own.")]
ControlNet = Annotated[
    list[str] | None,
    typer.Option("--controlnet", metavar="FOLDER|HUB_ID", help="A ControlNet that has a say; repeatable."),
]
ControlImage = Annotated[
    list[str] | None,
    typer.Option("--control-image", metavar="FILE", help="What it is shown, of the result's size; one for each."),
]
ControlScale = Annotated[
    list[float] | None, typer.Option("--control-scale", metavar="X", help="How much it counts (default: 1).")
]
ControlStart = Annotated[
    float | None,
    typer.Option(
        "--control-start", metavar="X", help="Share of the steps after which it begins to count (default: 0)."
    ),
]
ControlEnd = Annotated[
    float | None,
    typer.Option("--control-end", metavar="X", help="Share of the steps after which it counts no more (default: 1)."),
]
HiresScale = Annotated[
    float | None,
    typer.Option(
        "--hires-scale", metavar="X", help="Enlarge the picture and go over it again, without ControlNets (default: 1)."
    ),
]
HiresStrength = Annotated[
    float | None,
    typer.Option("--hires-strength", metavar="X", help="How much is made anew in that second pass (default: 0.5)."),
]
Output = Annotated[
    str | None,
    typer.Option(
        "-o",
        "--output",
        metavar="PATH|FOLDER/|TEMPLATE|-",
        help="Where to; templates know {index} {id} {seed} {prompt} {model} {date}; - is stdout "
        "(default: outputs/, by time).",
    ),
]
SaveSteps = Annotated[
    str | None,
    typer.Option(
        "--save-steps", metavar="FILE.png|.gif", help="What the model saw in the noise, as a strip or an animation."
    ),
]
PreviewFile = Annotated[
    str | None,
    typer.Option("--preview", metavar="FILE.png", help="Rewritten every few steps with what the picture is becoming."),
]
PreviewVae = Annotated[
    str | None,
    typer.Option("--preview-vae", metavar="FOLDER", help="A TAESD decoder for it (default: a linear projection)."),
]
SaveLatents = Annotated[
    bool, typer.Option("--save-latents", help="Keep the latents of each picture beside it, as .safetensors.")
]
Grid = Annotated[
    str | None, typer.Option("--grid", metavar="FILE", help="All pictures on one sheet, with what sets them apart.")
]
BatchSize = Annotated[
    str,
    typer.Option(
        "--batch-size",
        metavar="N|auto",
        help="Pictures computed at once on a GPU. A CPU takes one at a time, so that each is the same to the bit.",
    ),
]
Strict = Annotated[
    bool,
    typer.Option("--strict", help="Fill up batches on a GPU to one size, so that no picture depends on the others."),
]
ShardOf = Annotated[
    str | None, typer.Option("--shard", metavar="I/N", help="Make the I-th of N parts only, as in a job array.")
]
OnError = Annotated[
    OnErrorChoice,
    typer.Option("--on-error", help="Stop at the first failure, or write it into failed.jsonl and go on."),
]
AllowOutside = Annotated[bool, typer.Option("--allow-outside", help="Let jobs name files outside the output folder.")]
Lenient = Annotated[
    bool, typer.Option("--lenient", help="Take what fits of a LoRA that does not fit in every layer, with a warning.")
]
Compile = Annotated[bool, typer.Option("--compile", help="Compile the UNet, which takes a minute and pays later.")]
Offload = Annotated[
    OffloadChoice,
    typer.Option("--offload", help="Keep on the GPU only the model, or the group of layers, that is at work."),
]
TileVae = Annotated[bool, typer.Option("--tile-vae", help="Decode in tiles, which takes less memory.")]
Socket = Annotated[
    str | None,
    typer.Option("--socket", metavar="PATH", help="Have a server do it, see sdcli serve (default: $SDCLI_SOCKET)."),
]
