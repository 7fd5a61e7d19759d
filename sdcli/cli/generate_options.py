"""The flags that `sdcli generate` alone has, with their help and its sections. Imports no torch."""

from __future__ import annotations

from enum import StrEnum
from functools import partial
from typing import Annotated

import typer

from sdcli.cli.completion import among, model_names
from sdcli.cli.options import MACHINE, MODEL, OUTPUT, PROMPTS
from sdcli.run_settings import OFFLOADS, ON_ERROR
from sdcli.settings import PREDICTION_TYPES, SAMPLER_NAMES, SCHEDULE_NAMES, STRENGTH, TIMESTEP_SPACINGS

OnErrorChoice = StrEnum("OnErrorChoice", list(ON_ERROR))
OffloadChoice = StrEnum("OffloadChoice", list(OFFLOADS))

OWN = "(default: the model's own)"

# Options by the section of the help that they stand in.
asking = partial(typer.Option, rich_help_panel=PROMPTS)
of_model = partial(typer.Option, rich_help_panel=MODEL)
sampling = partial(typer.Option, rich_help_panel="Size and sampling")
beginning = partial(typer.Option, rich_help_panel="A picture to begin from")
control = partial(typer.Option, rich_help_panel="ControlNet")
hires = partial(typer.Option, rich_help_panel="A second, larger pass")
clip = partial(typer.Option, rich_help_panel="CLIP")
output = partial(typer.Option, rich_help_panel=OUTPUT)
many = partial(typer.Option, rich_help_panel="Many pictures")
machine = partial(typer.Option, rich_help_panel=MACHINE)

Prompts = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="PROMPT",
        help="What to show; several make several. {a|b} is one of them by the seed, {{a|b}} is each of them.",
    ),
]
PromptsFile = Annotated[
    str | None,
    asking(
        "--prompts",
        metavar="FILE|-",
        help="A prompt a line, from a file or from stdin; lines that begin with # are comments.",
    ),
]
JobsFile = Annotated[
    str | None,
    asking(
        "--jobs",
        metavar="FILE|-",
        help="A job a line, as JSON; its keys are settings, such as prompt, seed, steps, and id, num_images, output.",
    ),
]
FromFile = Annotated[
    str | None,
    asking("--from", metavar="FILE", help="Settings of a picture, or of a JSON or TOML file; flags go first."),
]
NegativePrompt = Annotated[
    str | None, asking("-N", "--negative-prompt", metavar="TEXT", help="What to steer away from.")
]
NumImages = Annotated[int, asking("-n", "--num-images", metavar="N", help="Pictures per prompt.")]
TWICE = "heun, dpm2, dpm2_a and dpmpp_sde"
Steps = Annotated[
    int | None,
    sampling(
        "--steps", metavar="N", help=f"Denoising steps, of one evaluation of the UNet each; of two with {TWICE} {OWN}."
    ),
]
GuidanceScale = Annotated[
    float | None,
    sampling("-g", "--guidance-scale", metavar="X", help=f"How closely to follow the prompt; 1 is off {OWN}."),
]
Width = Annotated[int | None, sampling("-W", "--width", metavar="PX", help=f"In pixels, a multiple of 8 {OWN}.")]
Height = Annotated[int | None, sampling("-H", "--height", metavar="PX", help=f"In pixels, a multiple of 8 {OWN}.")]
Sampler = Annotated[
    str | None,
    sampling(
        "--sampler",
        metavar="NAME",
        help=f"How steps are taken: {', '.join(SAMPLER_NAMES)}, or a scheduler as package.module.Class; langevin "
        f"wants 50 steps or more {OWN}.",
        autocompletion=among(SAMPLER_NAMES),
    ),
]
Schedule = Annotated[
    str | None,
    sampling(
        "--schedule",
        metavar="NAME",
        help=f"Which noise levels the steps visit: {', '.join(SCHEDULE_NAMES)} {OWN}.",
        autocompletion=among(SCHEDULE_NAMES),
    ),
]
PredictionType = Annotated[
    str | None,
    sampling(
        "--prediction-type",
        metavar="NAME",
        help=f"What the UNet was trained to tell: {', '.join(PREDICTION_TYPES)} {OWN}.",
        autocompletion=among(PREDICTION_TYPES),
    ),
]
TimestepSpacing = Annotated[
    str | None,
    sampling(
        "--timestep-spacing",
        metavar="NAME",
        help=f"How steps are spread over the timesteps: {', '.join(TIMESTEP_SPACINGS)} {OWN}.",
        autocompletion=among(TIMESTEP_SPACINGS),
    ),
]
Eta = Annotated[float | None, sampling("--eta", metavar="X", help=f"Noise of the steps of ddim and tcd, 0 to 1 {OWN}.")]
GuidanceRescale = Annotated[
    float | None,
    sampling("--guidance-rescale", metavar="X", help="Against overexposure by strong guidance, 0 to 1 (default: 0)."),
]
ClipSkip = Annotated[
    int | None,
    sampling("--clip-skip", metavar="N", help=f"Last text layers to leave out; 1 is what A1111 calls 2 {OWN}."),
]
InitImage = Annotated[
    str | None,
    beginning(
        "--init-image",
        metavar="FILE",
        help="A picture to begin from; its size is the result's. A pattern in quotes is each file that matches it.",
    ),
]
Strength = Annotated[
    float | None,
    beginning(
        "--strength", metavar="X", help=f"How much of it is made anew, up to 1 (default: {STRENGTH}; with a mask 1)."
    ),
]
Mask = Annotated[str | None, beginning("--mask", metavar="FILE", help="White where the picture is to be painted anew.")]
Lora = Annotated[
    list[str] | None,
    of_model(
        "--lora", metavar="FILE[:WEIGHT]", help="Put a LoRA onto the model, by default with the weight 1; repeatable."
    ),
]
Embedding = Annotated[
    list[str] | None, of_model("--embedding", metavar="FILE", help="Teach the model a learned word; repeatable.")
]
Vae = Annotated[
    str | None,
    of_model("--vae", metavar="NAME|FILE", help="Another VAE than the model's own.", autocompletion=model_names),
]
ControlNet = Annotated[
    list[str] | None, control("--controlnet", metavar="FOLDER|HUB_ID", help="A ControlNet that has a say; repeatable.")
]
ControlImage = Annotated[
    list[str] | None,
    control("--control-image", metavar="FILE", help="What it is shown, of the result's size; one for each."),
]
ControlScale = Annotated[
    list[float] | None, control("--control-scale", metavar="X", help="How much it counts; one for each (default: 1).")
]
ControlStart = Annotated[
    float | None,
    control(
        "--control-start", metavar="X", help="Share of the steps after which ControlNets begin to count (default: 0)."
    ),
]
ControlEnd = Annotated[
    float | None,
    control("--control-end", metavar="X", help="Share of the steps after which they count no more (default: 1)."),
]
HiresScale = Annotated[
    float | None,
    hires(
        "--hires-scale",
        metavar="X",
        help="Enlarge the picture and go over it again, without ControlNets (default: 1, which is no second pass).",
    ),
]
HiresStrength = Annotated[
    float | None, hires("--hires-strength", metavar="X", help="How much is made anew in that pass (default: 0.5).")
]
ClipGuidance = Annotated[
    float | None,
    clip(
        "--clip-guidance",
        metavar="X",
        help="Follow the gradient of CLIP's similarity with the prompt at every step, which takes four times as long; "
        "1 to 5 suit most (default: 0, which is off).",
    ),
]
BestOf = Annotated[
    int | None,
    clip(
        "--best-of",
        metavar="N",
        help="Make N pictures of each prompt, seeds in a row, and keep the --num-images that CLIP finds most like it.",
    ),
]
ClipModel = Annotated[
    str | None,
    clip(
        "--clip-model",
        metavar="NAME|FOLDER",
        help="Whose CLIP guides and ranks, with an image tower (default: the model's own).",
        autocompletion=model_names,
    ),
]
Output = Annotated[
    str | None,
    output(
        "-o",
        "--output",
        metavar="PATH|FOLDER/|TEMPLATE|-",
        help="Where to; templates know {index} {id} {seed} {prompt} {model} {date}; - is stdout "
        "(default: outputs/, by time).",
    ),
]
SaveSteps = Annotated[
    str | None,
    output(
        "--save-steps",
        metavar="FILE.png|.gif",
        help="What the model saw in the noise at each step, as a strip or an animation.",
    ),
]
PreviewFile = Annotated[
    str | None,
    output("--preview", metavar="FILE.png", help="Rewritten every few steps with what the picture is becoming."),
]
PreviewVae = Annotated[
    str | None,
    output("--preview-vae", metavar="FOLDER", help="A TAESD decoder for --preview (default: a linear projection)."),
]
SaveLatents = Annotated[
    bool, output("--save-latents", help="Keep the latents of each picture beside it, as .safetensors.")
]
Grid = Annotated[
    str | None, output("--grid", metavar="FILE", help="All pictures on one sheet as well, with what sets them apart.")
]
BatchSize = Annotated[
    str,
    many(
        "--batch-size",
        metavar="N|auto",
        help="Pictures computed at once. A CPU takes several only where each is the same, to the bit, as alone.",
    ),
]
Strict = Annotated[
    bool, many("--strict", help="Fill up batches on a GPU to one size, so that no picture depends on the others.")
]
ShardOf = Annotated[
    str | None, many("--shard", metavar="I/N", help="Make the I-th of N parts only, as in a job array.")
]
OnError = Annotated[
    OnErrorChoice,
    many(
        "--on-error", help="Stop at the first failure, or write it into failed.jsonl, go on, and end with exit code 5."
    ),
]
DryRun = Annotated[
    bool,
    many(
        "--dry-run",
        help="Make nothing: say which files would be made, how long that takes and how much memory; exit code 3 if it "
        "cannot fit.",
    ),
]
AllowOutside = Annotated[bool, many("--allow-outside", help="Let jobs name files outside the output folder.")]
Lenient = Annotated[
    bool, of_model("--lenient", help="Take what fits of a LoRA that does not fit in every layer, and warn.")
]
Compile = Annotated[bool, machine("--compile", help="Compile the UNet, which takes a minute and pays later.")]
Offload = Annotated[
    OffloadChoice, machine("--offload", help="Keep on the GPU only the model, or the group of layers, that is at work.")
]
TileVae = Annotated[bool, machine("--tile-vae", help="Decode in tiles, which takes less memory.")]
Socket = Annotated[
    str | None,
    machine("--socket", metavar="PATH", help="Have a server do it, see sdcli serve (default: $SDCLI_SOCKET)."),
]
