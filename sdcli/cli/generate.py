"""`sdcli generate`: flags to settings, one call, paths to stdout."""

from __future__ import annotations

import secrets
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdcli.cli import options
from sdcli.cli.options import IfExistsChoice, ProgressChoice
from sdcli.cli.progress import Reporter, reporter_for
from sdcli.errors import SdcliError
from sdcli.registry import ModelSpec, find_loadable
from sdcli.settings import PREDICTION_TYPES, SAMPLER_NAMES, SCHEDULE_NAMES, TIMESTEP_SPACINGS, GenerateSettings

if TYPE_CHECKING:
    from sdcli.batch import Event, Made
    from sdcli.output import Picture

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
Eta = Annotated[float, typer.Option("--eta", metavar="X", help="Noise of the steps of ddim and tcd, 0 to 1.")]
GuidanceRescale = Annotated[
    float, typer.Option("--guidance-rescale", metavar="X", help="Against overexposure by strong guidance, 0 to 1.")
]
ClipSkip = Annotated[
    int | None,
    typer.Option("--clip-skip", metavar="N", help="Last text layers to leave out; 1 is what A1111 calls 2."),
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


def generate(
    prompts: Prompts,
    model: options.Model = None,
    negative_prompt: NegativePrompt = GenerateSettings.negative_prompt,
    num_images: NumImages = 1,
    seed: options.Seed = None,
    steps: Steps = None,
    guidance_scale: GuidanceScale = None,
    width: Width = None,
    height: Height = None,
    sampler: Sampler = None,
    schedule: Schedule = None,
    prediction_type: PredictionType = None,
    timestep_spacing: TimestepSpacing = None,
    eta: Eta = GenerateSettings.eta,
    guidance_rescale: GuidanceRescale = GenerateSettings.guidance_rescale,
    clip_skip: ClipSkip = None,
    output: Output = None,
    if_exists: options.IfExists = IfExistsChoice.error,
    file_format: options.Format = None,
    save_steps: SaveSteps = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    models_file: options.ModelsFile = None,
    offline: options.Offline = False,
    as_json: options.Json = False,
    progress: options.Progress = ProgressChoice.auto,
) -> None:
    """Make pictures from prompts. Each path is printed when its file is whole.

    sdcli generate "a cute kitten"
    sdcli generate "a red heart" --seed 1 --steps 30 -o heart.png
    sdcli generate "a rocket" "a slice of pizza" -n 4 -o out/ --if-exists skip
    sdcli generate "a cute kitten" --save-steps steps.gif -o "kitten-{seed}.png"

    A picture depends on its own settings and seed alone; picture i of a prompt has seed N + i.
    """
    from sdcli.output import OutputSettings, plan_pictures

    options.go_offline(offline)
    spec = find_loadable(model, models_file)
    chosen = {
        "width": width,
        "height": height,
        "num_inference_steps": steps,
        "guidance_scale": guidance_scale,
        "sampler": sampler,
        "schedule": schedule,
        "clip_skip": clip_skip,
        "prediction_type": prediction_type,
        "timestep_spacing": timestep_spacing,
    }
    texts = {"model": spec.name, "negative_prompt": negative_prompt}
    shared = {**texts, **with_defaults(chosen, spec), "eta": eta, "guidance_rescale": guidance_rescale}
    first_seed = secrets.randbits(32) if seed is None else seed
    where = OutputSettings(output=output, file_format=file_format, save_steps=save_steps, if_exists=if_exists)
    to_make, skipped = plan_pictures(requests_for(prompts, num_images, first_seed, shared), where)
    with reporter_for(progress, len(to_make)) as reporter:
        if skipped:
            reporter.skipped(len(skipped))
        if to_make:
            printer = ResultPrinter(reporter, as_json, first_seed if seed is None else None)
            make(to_make, spec, (device, precision), if_exists, printer)


def with_defaults(chosen: dict[str, Any], spec: ModelSpec) -> dict[str, Any]:
    """What the user chose, and the model's defaults for what is None."""
    defaults = asdict(spec.defaults)
    if chosen["sampler"] not in (None, spec.defaults.sampler):
        defaults["schedule"] = None  # it was chosen for the model's sampler; another does not inherit it
    return {**defaults, **{name: value for name, value in chosen.items() if value is not None}}


def requests_for(
    prompts: list[str], num_images: int, seed: int, shared: dict[str, Any]
) -> list[tuple[str, GenerateSettings]]:
    """For each picture the id of its prompt, which is its place, and its settings.

    Raises:
        SdcliError: a value that no model can take.
    """
    if num_images < 1:
        raise SdcliError(f"--num-images must be at least 1, got {num_images}", hint="try --num-images 1")
    return [
        (str(place), GenerateSettings(prompt=prompt, seed=seed + i, **shared))
        for place, prompt in enumerate(prompts)
        for i in range(num_images)
    ]


class ResultPrinter:
    """Passes events on to the progress report, and prints each finished picture to stdout.

    Args:
        reporter: tells of progress.
        as_json: a JSON object for each picture instead of its path.
        drawn_seed: to be reported as soon as nothing can be wrong with the settings any more.
    """

    def __init__(self, reporter: Reporter, as_json: bool, drawn_seed: int | None = None):
        self.reporter = reporter
        self.as_json = as_json
        self.drawn_seed = drawn_seed

    def __call__(self, event: Event) -> None:
        """Take one event of a run."""
        self.reporter(event)
        if type(event).__name__ == "Loaded" and self.drawn_seed is not None:
            self.reporter.seed(self.drawn_seed)
        if type(event).__name__ == "Made":
            self.print_picture(event)

    def print_picture(self, event: Made) -> None:
        """Print a finished picture."""
        picture = event.picture
        with self.reporter.paused():
            if self.as_json:
                steps_path = picture.steps_path and str(picture.steps_path)
                about = {"index": picture.index, **asdict(picture.settings), "steps_path": steps_path}
                options.print_path(picture.path, as_json=True, **about, elapsed_s=round(event.elapsed_s, 3))
            else:
                options.print_path(picture.path, as_json=False)


def make(
    pictures: list[Picture], spec: ModelSpec, where: tuple[str, str], if_exists: str, on_event: ResultPrinter
) -> None:
    """Load torch and the model, and make the pictures."""
    with options.heavy_imports():  # here, so that --help and a user's mistake are answered at once
        from sdcli import batch
        from sdcli.device import choose_placement

    batch.run(pictures, spec, choose_placement(*where), on_event, if_exists)
