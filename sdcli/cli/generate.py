"""`sdcli generate`: flags to settings, one call, paths to stdout."""

from __future__ import annotations

import secrets
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdcli.cli import generate_options as flags
from sdcli.cli import options
from sdcli.cli.options import IfExistsChoice, ProgressChoice
from sdcli.cli.progress import Reporter, reporter_for
from sdcli.errors import SdcliError
from sdcli.registry import ModelSpec, find_loadable
from sdcli.settings import GenerateSettings, lora_of

if TYPE_CHECKING:
    from sdcli.batch import Event, Made
    from sdcli.output import Picture


def generate(
    prompts: flags.Prompts,
    model: options.Model = None,
    negative_prompt: flags.NegativePrompt = GenerateSettings.negative_prompt,
    num_images: flags.NumImages = 1,
    seed: options.Seed = None,
    steps: flags.Steps = None,
    guidance_scale: flags.GuidanceScale = None,
    width: flags.Width = None,
    height: flags.Height = None,
    sampler: flags.Sampler = None,
    schedule: flags.Schedule = None,
    prediction_type: flags.PredictionType = None,
    timestep_spacing: flags.TimestepSpacing = None,
    eta: flags.Eta = None,
    guidance_rescale: flags.GuidanceRescale = GenerateSettings.guidance_rescale,
    clip_skip: flags.ClipSkip = None,
    init_image: flags.InitImage = None,
    strength: flags.Strength = None,
    mask: flags.Mask = None,
    lora: flags.Lora = None,
    lenient: flags.Lenient = False,
    embedding: flags.Embedding = None,
    vae: flags.Vae = None,
    controlnet: flags.ControlNet = None,
    control_image: flags.ControlImage = None,
    control_scale: flags.ControlScale = None,
    control_start: flags.ControlStart = GenerateSettings.control_start,
    control_end: flags.ControlEnd = GenerateSettings.control_end,
    hires_scale: flags.HiresScale = GenerateSettings.hires_scale,
    hires_strength: flags.HiresStrength = GenerateSettings.hires_strength,
    output: flags.Output = None,
    if_exists: options.IfExists = IfExistsChoice.error,
    file_format: options.Format = None,
    save_steps: flags.SaveSteps = None,
    preview: flags.PreviewFile = None,
    preview_vae: flags.PreviewVae = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    models_file: options.ModelsFile = None,
    allow_pickle: options.AllowPickle = False,
    offline: options.Offline = False,
    as_json: options.Json = False,
    progress: options.Progress = ProgressChoice.auto,
) -> None:
    """Make pictures from prompts. Each path is printed when its file is whole.

    sdcli generate "a cute kitten"
    sdcli generate "a red heart" --seed 1 --steps 30 -o heart.png
    sdcli generate "a rocket" "a slice of pizza" -n 4 -o out/ --if-exists skip
    sdcli generate "a cute kitten" --save-steps steps.gif -o "kitten-{seed}.png"
    sdcli generate "a cat in the snow" --init-image cat.png --strength 0.6 --lora snow.safetensors:0.8

    A picture depends on its own settings and seed alone; picture i of a prompt has seed N + i.
    """
    from sdcli.output import OutputSettings, plan_pictures

    options.go_offline(offline)
    spec = find_loadable(model, models_file, allow_pickle)
    chosen = {
        "width": width,
        "height": height,
        "num_inference_steps": steps,
        "guidance_scale": guidance_scale,
        "sampler": sampler,
        "schedule": schedule,
        "eta": eta,
        "clip_skip": clip_skip,
        "prediction_type": prediction_type,
        "timestep_spacing": timestep_spacing,
    }
    if init_image is not None:
        chosen |= size_of_picture(init_image, chosen)
    shared = {
        "model": spec.name,
        "negative_prompt": negative_prompt,
        **with_defaults(chosen, spec),
        "guidance_rescale": guidance_rescale,
        "init_image": init_image,
        "strength": strength,
        "mask": mask,
        "lora": lora or (),
        "embedding": embedding or (),
        "vae": vae,
        "controlnet": controlnet or (),
        "control_image": control_image or (),
        "control_scale": control_scale or (),
        "control_start": control_start,
        "control_end": control_end,
        "hires_scale": hires_scale,
        "hires_strength": hires_strength,
    }
    first_seed = secrets.randbits(32) if seed is None else seed
    where = OutputSettings(output=output, file_format=file_format, save_steps=save_steps, if_exists=if_exists)
    if preview_vae is not None and preview is None:
        raise SdcliError("--preview-vae needs a file to show it in", hint="give one by --preview FILE.png")
    if preview is not None and not preview.lower().endswith(".png"):
        raise SdcliError(f"--preview {preview} must end in .png", hint="try --preview preview.png")
    requests = requests_for(prompts, num_images, first_seed, shared)
    check_inputs(requests[0][1])
    to_make, skipped = plan_pictures(requests, where)
    with reporter_for(progress, len(to_make)) as reporter:
        if skipped:
            reporter.skipped(len(skipped))
        if to_make:
            printer = ResultPrinter(reporter, as_json, first_seed if seed is None else None)
            how = {"if_exists": if_exists, "lenient": lenient}
            how["preview"] = None if preview is None else (preview, preview_vae)
            make(to_make, spec, (device, precision), printer, **how)


def size_of_picture(file: str, chosen: dict[str, Any]) -> dict[str, int]:
    """Width and height of a picture to begin from, as far as the user has not chosen them."""
    from sdcli.images import load_image

    width, height = load_image(Path(file).expanduser()).size
    found = {"width": width, "height": height}
    return {name: value for name, value in found.items() if chosen[name] is None}


def check_inputs(settings: GenerateSettings) -> None:
    """See that every file is there and every picture has its size, before anything is loaded.

    Raises:
        SdcliError: one is not, or has not.
    """
    from sdcli.images import load_sized

    size = (settings.width, settings.height)
    pictures = [("--init-image", settings.init_image), ("--mask", settings.mask)]
    for flag, file in [*pictures, *(("--control-image", each) for each in settings.control_image)]:
        if file is not None:
            load_sized(flag, file, size)
    files = [("--lora", lora_of(each)[0]) for each in settings.lora]
    for flag, file in [*files, *(("--embedding", each) for each in settings.embedding)]:
        if not Path(file).expanduser().is_file():
            raise SdcliError(f"{flag}: there is no file {file}", hint="name a .safetensors file")


def with_defaults(chosen: dict[str, Any], spec: ModelSpec) -> dict[str, Any]:
    """What the user chose, and the model's defaults for what is None."""
    defaults = asdict(spec.defaults)
    if chosen["sampler"] not in (None, spec.defaults.sampler):
        defaults |= {"schedule": None, "eta": 0.0}  # chosen for the model's sampler; another does not inherit them
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


def make(pictures: list[Picture], spec: ModelSpec, where: tuple[str, str], on_event: ResultPrinter, **how: Any) -> None:
    """Load torch and the model, and make the pictures; `how` are options of `batch.run`."""
    with options.heavy_imports():  # here, so that --help and a user's mistake are answered at once
        from sdcli import batch
        from sdcli.device import choose_placement

    batch.run(pictures, spec, choose_placement(*where), on_event, **how)
