"""The flags that `sdcli generate` alone has, with their help. Imports no torch."""

from __future__ import annotations

from typing import Annotated

import typer

from sdcli.settings import PREDICTION_TYPES, SAMPLER_NAMES, SCHEDULE_NAMES, STRENGTH, TIMESTEP_SPACINGS

OWN = "(default: the model's own)"


Prompts = Annotated[list[str], typer.Argument(metavar="PROMPT", help="What to show; several make several.")]
NegativePrompt = Annotated[
    str, typer.Option("-N", "--negative-prompt", metavar="TEXT", help="What to steer away from.")
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
    float, typer.Option("--guidance-rescale", metavar="X", help="Against overexposure by strong guidance, 0 to 1.")
]
ClipSkip = Annotated[
    int | None,
    typer.Option("--clip-skip", metavar="N", help="Last text layers to leave out; 1 is what A1111 calls 2."),
]
InitImage = Annotated[
    str | None, typer.Option("--init-image", metavar="FILE", help="A picture to begin from; its size is the result's.")
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
Lenient = Annotated[
    bool, typer.Option("--lenient", help="Take what fits of a LoRA that does not fit in every layer, with a warning.")
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
    float, typer.Option("--control-start", metavar="X", help="Share of the steps after which it begins to count.")
]
ControlEnd = Annotated[
    float, typer.Option("--control-end", metavar="X", help="Share of the steps after which it counts no more.")
]
HiresScale = Annotated[
    float,
    typer.Option("--hires-scale", metavar="X", help="Enlarge the picture and go over it again, without ControlNets."),
]
HiresStrength = Annotated[
    float, typer.Option("--hires-strength", metavar="X", help="How much is made anew in that second pass.")
]
Output = Annotated[
    str | None,
    typer.Option(
        "-o",
        "--output",
        metavar="PATH|FOLDER/|TEMPLATE",
        help="Where to; templates know {index} {id} {seed} {prompt} {model} {date} (default: outputs/, by time).",
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
