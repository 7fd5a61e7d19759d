"""`sdcli plot`: figures of schedules, runs, models and pictures."""

from __future__ import annotations

import secrets
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from sdcli.cli import options
from sdcli.cli.figures import FigureTarget
from sdcli.cli.models import table
from sdcli.cli.options import ExamplesFirst, ExamplesFirstGroup, IfExistsChoice
from sdcli.errors import SdcliError
from sdcli.registry import find_loadable
from sdcli.settings import (
    LARGEST_SEED,
    SAMPLER_NAMES,
    SCHEDULE_NAMES,
    TIMESTEP_SPACINGS,
    DenoiseSettings,
    check_choice,
    check_range,
    check_size,
    check_steps,
)

ALL_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid")

plot = typer.Typer(
    cls=ExamplesFirstGroup,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Draw what models and runs do, as PNG or SVG.\n\n"
    "sdcli plot schedule -o schedules.png\nsdcli plot training runs/mine -o curves.svg\n"
    'sdcli plot similarity cat.png dog.png --caption "a cat" --caption "a dog" -o grid.png\n'
    'sdcli plot trajectory "a cute kitten" --seed 1 -o steps.png\nsdcli plot forward photo.png -o noise.png',
)

Output = Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="Where to, as .png or .svg.")]


@plot.command("schedule", cls=ExamplesFirst)
def plot_schedule(
    output: Output,
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help=f"Of {', '.join(ALL_SCHEDULES)}, cosine, or models (default: all)."),
    ] = None,
    zero_snr: Annotated[bool, typer.Option("--zero-snr", help="Also each with zero terminal SNR.")] = False,
    steps: Annotated[int | None, typer.Option("--steps", metavar="N", help="Mark the steps of a sampler.")] = None,
    sampler: Annotated[str, typer.Option("--sampler", metavar="NAME", help=f"Of {', '.join(SAMPLER_NAMES)}.")] = "ddim",
    schedule: Annotated[
        str | None, typer.Option("--schedule", metavar="NAME", help=f"Of sigmas: {', '.join(SCHEDULE_NAMES)}.")
    ] = None,
    spacing: Annotated[
        str | None, typer.Option("--spacing", metavar="NAME", help=f"Of timesteps: {', '.join(TIMESTEP_SPACINGS)}.")
    ] = None,
    num_train_timesteps: Annotated[
        int, typer.Option("--num-train-timesteps", metavar="T", help="Of schedules by name.")
    ] = 1000,
    beta_start: Annotated[float, typer.Option("--beta-start", metavar="X", help="Of schedules by name.")] = 0.00085,
    beta_end: Annotated[float, typer.Option("--beta-end", metavar="X", help="Of schedules by name.")] = 0.012,
    if_exists: options.IfExists = IfExistsChoice.error,
    models_file: options.ModelsFile = None,
    as_json: options.Json = False,
) -> None:
    """Draw noise schedules: beta, alpha-bar, the signal-to-noise ratio and its logarithm over the timestep.

    sdcli plot schedule -o schedules.png
    sdcli plot schedule emoji --steps 20 --sampler dpmpp_2m --spacing trailing -o emoji.png
    sdcli plot schedule scaled_linear --zero-snr -o zero.svg
    """
    check_choice("--sampler", sampler, SAMPLER_NAMES)
    check_choice("--schedule", schedule, SCHEDULE_NAMES)
    check_choice("--spacing", spacing, TIMESTEP_SPACINGS)
    target = FigureTarget("--output", output, if_exists)
    with options.heavy_imports():
        from sdcli.evaluation.schedules import Range, betas_of, figures_of, visited, without_signal_at_the_end
        from sdcli.plots.schedule import Curve, noise_schedules

    about = Range(num_train_timesteps=num_train_timesteps, beta_start=beta_start, beta_end=beta_end)
    betas = {name: betas_of(name, about, models_file) for name in dict.fromkeys(names or ALL_SCHEDULES)}
    if zero_snr:
        for name, each in list(betas.items()):
            if (rescaled := without_signal_at_the_end(each)) is not None:
                betas[f"{name}, zero terminal SNR"] = rescaled
    curves = [
        Curve(name, each, () if steps is None else visited(each, steps, sampler, schedule, spacing))
        for name, each in betas.items()
    ]
    if target.wanted:
        marks = "" if steps is None else f"{steps} steps of {sampler}"
        target.write(noise_schedules(curves, marks, target.format))
    told = [{"name": each.name, **figures_of(each.betas), "visited": list(each.marked)} for each in curves]
    options.print_path(target.path, as_json, schedules=told)


@plot.command("training", cls=ExamplesFirst)
def plot_training(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder of `sdcli train`.")],
    output: Output,
    if_exists: options.IfExists = IfExistsChoice.error,
    as_json: options.Json = False,
) -> None:
    """Draw a training run: losses, per timestep too, averaged weights against those as trained, learning rate.

    sdcli plot training runs/mine -o curves.png
    sdcli plot training runs/mine/unet -o unet.svg
    """
    target = FigureTarget("--output", output, if_exists)
    if not run.is_dir():
        raise SdcliError(f"there is no run {run}", hint="give the --output of a `sdcli train`")
    with options.heavy_imports():
        from sdcli.plots import training_curves
        from sdcli.training.run_folder import RunFolder

    rows = RunFolder(run).drawn_rows()
    if not rows:
        inner = sorted(path.parent.name for path in run.glob("*/metrics.jsonl"))
        hint = f"one of its parts may be meant: {', '.join(f'{run}/{name}' for name in inner)}"
        hint = hint if inner else "give the --output of a `sdcli train` that has begun"
        raise SdcliError(f"{run} has no metrics.jsonl with anything in it", hint=hint)
    if target.wanted:
        target.write(training_curves(rows, target.format))
    options.print_path(target.path, as_json, rows=len(rows), **rows[-1])


@plot.command("similarity", cls=ExamplesFirst)
def plot_similarity(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Pictures.")],
    caption: Annotated[list[str], typer.Option("--caption", metavar="TEXT", help="To compare them with; repeatable.")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Draw the grid, as .png or .svg (default: print a table)."),
    ] = None,
    model: options.Model = None,
    truncate: Annotated[bool, typer.Option("--truncate", help="Cut captions that are too long.")] = False,
    if_exists: options.IfExists = IfExistsChoice.error,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    models_file: options.ModelsFile = None,
    offline: options.Offline = False,
    as_json: options.Json = False,
) -> None:
    """Compare every picture with every caption: the cosines of CLIP, as a table, as JSON or as a figure.

    sdcli plot similarity cat.png dog.png --caption "a cat" --caption "a dog"
    sdcli plot similarity cat.png dog.png --caption "a cat" --caption "a dog" -o grid.png
    """
    options.go_offline(offline)
    target = FigureTarget("--output", output, if_exists)
    with options.heavy_imports():
        from sdcli.clip_models import find_with_tower, load_comparer
        from sdcli.device import choose_placement
        from sdcli.evaluation.retrieval import compare_files
        from sdcli.images import load_image
        from sdcli.plots.similarity import similarity_grid

    spec = find_with_tower(model, models_file)
    pictures = [load_image(path) for path in images]
    comparer = load_comparer(spec, choose_placement(device, precision), truncate)
    for text in comparer.check(caption):
        options.warn(f"cut off after {comparer.length} tokens: {text[:60]} …")
    similarities, chances = compare_files(comparer, images, caption)
    if target.wanted:
        target.write(similarity_grid(pictures, caption, similarities, target.format))
    if as_json:
        found = {"model": spec.name, "images": [str(path) for path in images], "captions": caption}
        found |= {"similarities": similarities, "probabilities": chances}
        options.print_json({**({} if output is None else {"path": str(target.path)}), **found})
    elif output is not None:
        options.print_result(str(target.path))
    else:
        rows = [(text, *(f"{value:.3f}" for value in row)) for text, row in zip(caption, similarities, strict=True)]
        for line in table([("", *(path.name for path in images)), *rows]):
            options.print_result(line)


@plot.command("trajectory", cls=ExamplesFirst)
def plot_trajectory(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What the picture shows.")],
    output: Output,
    negative_prompt: Annotated[
        str | None, typer.Option("-N", "--negative-prompt", metavar="TEXT", help="What to steer away from.")
    ] = None,
    model: options.Model = None,
    seed: options.Seed = None,
    steps: Annotated[int | None, typer.Option("--steps", metavar="N", help="Default: the model's own.")] = None,
    guidance_scale: Annotated[
        float | None, typer.Option("-g", "--guidance-scale", metavar="X", help="1 is off (default: the model's own).")
    ] = None,
    sampler: Annotated[
        str | None, typer.Option("--sampler", metavar="NAME", help=f"Of {', '.join(SAMPLER_NAMES)}.")
    ] = None,
    rows: Annotated[int, typer.Option("--rows", metavar="N", help="Steps that are drawn, evenly.")] = 6,
    width: Annotated[int | None, typer.Option("-W", "--width", metavar="N", help="Pixels.")] = None,
    height: Annotated[int | None, typer.Option("-H", "--height", metavar="N", help="Pixels.")] = None,
    if_exists: options.IfExists = IfExistsChoice.error,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    models_file: options.ModelsFile = None,
    offline: options.Offline = False,
    as_json: options.Json = False,
) -> None:
    """Draw how a picture comes to be: x_t and the predicted x_0 at several steps.

    sdcli plot trajectory "a cute kitten" --seed 1 -o steps.png
    sdcli plot trajectory "a red heart" --steps 50 --sampler ddim --rows 8 -o steps.svg
    """
    options.go_offline(offline)
    check_choice("--sampler", sampler, SAMPLER_NAMES)
    check_range("--rows", rows, 1, 20)
    check_range("--seed", seed or 0, 0, LARGEST_SEED)
    spec, target = find_loadable(model, models_file), FigureTarget("--output", output, if_exists)
    if sampler is not None:
        spec = replace(spec, defaults=replace(spec.defaults, sampler=sampler))
    size = (width or spec.defaults.width, height or spec.defaults.height)
    for flag, pixels in zip(("--width", "--height"), size, strict=True):
        check_size(flag, pixels)
    settings = DenoiseSettings(
        num_inference_steps=spec.defaults.num_inference_steps if steps is None else steps,
        guidance_scale=spec.defaults.guidance_scale if guidance_scale is None else guidance_scale,
    )
    check_steps("--steps", settings.num_inference_steps)
    check_range("--guidance-scale", settings.guidance_scale, 1, 1000, hint="1 switches guidance off")
    drawn_seed = secrets.randbits(32) if seed is None else seed
    if target.wanted:
        with options.heavy_imports():
            from sdcli.checkpoints import load_pipeline
            from sdcli.device import choose_placement
            from sdcli.evaluation.trajectory import record, spread, trajectory_frames
            from sdcli.plots.processes import trajectory

        pipeline = load_pipeline(spec, choose_placement(device, precision))
        moments = record(pipeline, (prompt, negative_prompt or ""), size, settings, drawn_seed)
        frames = trajectory_frames(pipeline, spread(moments, rows))
        what = "pixels" if pipeline.vae is None else "latents"
        target.write(trajectory(frames, prompt, what, target.format))
    if seed is None:
        options.tell(f"seed: {drawn_seed}")
    options.print_path(target.path, as_json, seed=drawn_seed, model=spec.name)


@plot.command("forward", cls=ExamplesFirst)
def plot_forward(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="A picture.")],
    output: Output,
    timesteps: Annotated[
        str | None, typer.Option("--timesteps", metavar="T,T,...", help="To look at (default: six, to the last).")
    ] = None,
    latents: Annotated[
        bool, typer.Option("--latents", help="Noise what the model's VAE makes of it, not its pixels.")
    ] = False,
    seed: Annotated[int, typer.Option("-s", "--seed", metavar="N", help="Decides the noise.")] = 0,
    model: options.Model = None,
    if_exists: options.IfExists = IfExistsChoice.error,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    models_file: options.ModelsFile = None,
    offline: options.Offline = False,
    as_json: options.Json = False,
) -> None:
    """Draw the forward process: a picture turning into noise, its numbers, and how far they are from the prior.

    sdcli plot forward photo.png -o noise.png
    sdcli plot forward photo.png --latents --timesteps 0,200,400,600,800,999 -o latents.svg

    The noise schedule is the model's. The divergence of q(x_t | x_0) from the standard normal is exact.
    """
    from sdcli.cli.add_noise import parse_timesteps
    from sdcli.images import load_image, to_pixel_values

    options.go_offline(offline)
    check_range("--seed", seed, 0, LARGEST_SEED)
    spec, target = find_loadable(model, models_file), FigureTarget("--output", output, if_exists)
    chosen = None if timesteps is None else parse_timesteps(None, timesteps, "--timesteps")
    picture = load_image(image)
    with options.heavy_imports():
        from sdcli.device import choose_placement
        from sdcli.evaluation.trajectory import forward_frames, prior_divergences, usual_timesteps
        from sdcli.latents import ForwardProcess, encode, load_vae
        from sdcli.plots.processes import forward_process

    process = ForwardProcess(spec, seed)
    chosen = usual_timesteps(len(process.alphas_cumprod)) if chosen is None else chosen
    process.check(chosen)
    placement = choose_placement(device, precision)
    clean = encode([(str(image), picture)], spec, placement).latents if latents else to_pixel_values(picture)
    divergences = prior_divergences(clean, process.alphas_cumprod)
    if target.wanted:
        noised = [process.noised(clean, timestep) for timestep in chosen]
        decode = load_vae(spec, placement).decode if latents else None
        frames = forward_frames(noised, chosen, process.alphas_cumprod, decode)
        target.write(forward_process(frames, divergences, "latents" if latents else "pixels", target.format))
    told = [{"timestep": timestep, "nats_per_number": divergences[timestep]} for timestep in chosen]
    options.print_path(target.path, as_json, divergences=told, seed=seed, model=spec.name)
