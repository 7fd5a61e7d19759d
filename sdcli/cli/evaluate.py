"""`sdcli evaluate`: figures of a model on pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sdcli.cli import evaluate_options as measured
from sdcli.cli import evaluate_results as results
from sdcli.cli import options
from sdcli.cli.counting import counting
from sdcli.cli.figures import FigureTarget
from sdcli.cli.options import ExamplesFirst, ExamplesFirstGroup, IfExistsChoice, ProgressChoice
from sdcli.registry import find_loadable
from sdcli.settings import check_choice, check_range

VARIANCES = ("fixed_small", "fixed_large")

evaluate = typer.Typer(
    cls=ExamplesFirstGroup,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Measure a model on pictures.\n\n"
    "sdcli evaluate likelihood --data pictures/\nsdcli evaluate vae --data pictures/ --plot worst.png\n"
    "sdcli evaluate clip --data pictures/\nsdcli evaluate denoiser --data pictures/ --json\n"
    "sdcli evaluate samples --data pictures/ --samples outputs/",
)


@evaluate.command("likelihood", cls=ExamplesFirst)
def likelihood(
    data: measured.Data,
    model: options.Model = None,
    timesteps: Annotated[
        int, typer.Option("--timesteps", metavar="N", help="That are looked at, drawn from strata; 1000 is all.")
    ] = 64,
    variance: Annotated[
        str | None,
        typer.Option("--variance", metavar="NAME", help=f"Of a step: {', '.join(VARIANCES)} (default: its own)."),
    ] = None,
    no_captions: measured.NoCaptions = False,
    num_pictures: measured.NumPictures = None,
    where: measured.Where = None,
    resolution: measured.Resolution = None,
    batch_size: measured.BatchSize = 8,
    seed: measured.FixedSeed = 0,
    plot: options.Plot = None,
    if_exists: options.IfExists = IfExistsChoice.error,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    models_file: options.ModelsFile = None,
    offline: options.Offline = False,
    as_json: options.Json = False,
    progress: options.Progress = ProgressChoice.auto,
) -> None:
    """Bound the likelihood of pictures from below (ELBO), term by term, in nats and bits per dimension.

    sdcli evaluate likelihood --data pictures/ --num-pictures 64
    sdcli evaluate likelihood --data digits/ --model runs/digits --timesteps 1000 --plot terms.png
    sdcli evaluate likelihood --data pictures/ --json

    L_T is exact; each L_t is the divergence of the model's reverse step from the true posterior; L_0 is a discretised
    Gaussian for a model of pixels, and for one of latents their Gaussian density, beside which stands what the VAE
    loses. Fewer timesteps than all are drawn from strata; the error that this makes is told.
    """
    options.go_offline(offline)
    check_choice("--variance", variance, VARIANCES)
    measured.check_common(batch_size, seed)
    spec, target = find_loadable(model, models_file), FigureTarget("--plot", plot, if_exists)
    with options.heavy_imports():  # here, so that --help and a user's mistake are answered at once
        from sdcli.checkpoints import load_component
        from sdcli.evaluation.bound import BoundSettings, measure_likelihood
        from sdcli.evaluation.pictures import find_pictures

    examples = find_pictures(data, num_pictures, where or ())
    settings = BoundSettings(
        timesteps=timesteps, variance=variance, seed=seed, batch_size=batch_size, use_captions=not no_captions
    )
    settings.check(len(load_component(spec.path, "scheduler")))
    pipeline, size = measured.load_sized_pipeline(spec, resolution, device, precision)
    with counting(progress, "passes of the UNet") as count:
        found = measure_likelihood(pipeline, examples, size, settings, count).figures()
    results.finish({"model": spec.name, **found}, results.likelihood_lines, as_json, target, "bound_terms")


@evaluate.command("vae", cls=ExamplesFirst)
def vae(
    data: measured.Data,
    model: options.Model = None,
    num_pictures: measured.NumPictures = None,
    where: measured.Where = None,
    resolution: measured.Resolution = None,
    batch_size: measured.BatchSize = 8,
    worst: Annotated[int, typer.Option("--worst", metavar="N", help="Pictures on the sheet of --plot.")] = 8,
    plot: options.Plot = None,
    if_exists: options.IfExists = IfExistsChoice.error,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    models_file: options.ModelsFile = None,
    offline: options.Offline = False,
    as_json: options.Json = False,
    progress: options.Progress = ProgressChoice.auto,
) -> None:
    """Measure what a model's VAE keeps of pictures, and how far its latents are from the standard normal.

    sdcli evaluate vae --data pictures/
    sdcli evaluate vae --data pictures/ --num-pictures 200 --plot worst.png

    PSNR, SSIM and L1 of pictures that are rebuilt from the mean of their latents; the divergence from the prior in nats
    per latent number; mean and standard deviation of each channel. --plot draws the worst pictures.
    """
    options.go_offline(offline)
    measured.check_common(batch_size)
    check_range("--worst", worst, 1, 16)
    spec, target = find_loadable(model, models_file), FigureTarget("--plot", plot, if_exists)
    with options.heavy_imports():
        from sdcli.device import choose_placement
        from sdcli.evaluation.pictures import find_pictures, fitting_size
        from sdcli.evaluation.reconstruction import measure_vae
        from sdcli.images import to_image
        from sdcli.latents import load_vae

    examples = find_pictures(data, num_pictures, where or ())
    pipeline = load_vae(spec, choose_placement(device, precision))
    size = fitting_size(pipeline, resolution or spec.defaults.width)
    with counting(progress, "pictures") as count:
        found = measure_vae(pipeline, examples, size, batch_size=batch_size, worst=worst, on_progress=count)
    columns = [(e.example.path.name, e.psnr, to_image(e.picture), to_image(e.reconstruction)) for e in found.worst]
    results.finish({"model": spec.name, **found.figures()}, results.vae_lines, as_json, target, "worst_sheet", columns)


@evaluate.command("clip", cls=ExamplesFirst)
def clip(
    data: measured.Data,
    model: options.Model = None,
    template: Annotated[
        str, typer.Option("--template", metavar="TEXT", help="Text for a class; {} is its name.")
    ] = "{}",
    truncate: measured.Truncate = False,
    num_pictures: measured.NumPictures = None,
    where: measured.Where = None,
    batch_size: measured.BatchSize = 32,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    models_file: options.ModelsFile = None,
    offline: options.Offline = False,
    as_json: options.Json = False,
    progress: options.Progress = ProgressChoice.auto,
) -> None:
    """Measure how well a model's CLIP finds captions of pictures, pictures of captions, and classes.

    sdcli evaluate clip --data pictures/
    sdcli evaluate clip --data animals/ --template "a photo of a {}"

    Recall at 1, 5 and 10 and the median rank, both ways, among all pictures and captions that are taken; and where
    pictures have classes, by their label or the folder that they lie in, the zero-shot accuracy.
    """
    options.go_offline(offline)
    measured.check_common(batch_size)
    with options.heavy_imports():
        from sdcli.clip_models import find_with_tower, load_comparer
        from sdcli.device import choose_placement
        from sdcli.evaluation.pictures import class_of, find_pictures
        from sdcli.evaluation.retrieval import measure_retrieval

    spec = find_with_tower(model, models_file)
    examples = find_pictures(data, num_pictures, where or (), need_captions=True, least=2)
    comparer = load_comparer(spec, choose_placement(device, precision), truncate)
    classes = [class_of(example, data) for example in examples]
    with counting(progress, "pictures") as count:
        found = measure_retrieval(
            comparer, examples, classes, template=template, batch_size=batch_size, on_progress=count
        )
    for text in found.truncated[:3]:
        options.warn(f"cut off after {comparer.length} tokens: {text[:60]} …")
    results.finish({"model": spec.name, **found.figures()}, results.clip_lines, as_json)


@evaluate.command("denoiser", cls=ExamplesFirst)
def denoiser(
    data: measured.Data,
    model: options.Model = None,
    draws: Annotated[int, typer.Option("--draws", metavar="N", help="Timesteps of each range, for every picture.")] = 2,
    no_captions: measured.NoCaptions = False,
    num_pictures: measured.NumPictures = None,
    where: measured.Where = None,
    resolution: measured.Resolution = None,
    batch_size: measured.BatchSize = 8,
    seed: measured.FixedSeed = 0,
    plot: options.Plot = None,
    if_exists: options.IfExists = IfExistsChoice.error,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    models_file: options.ModelsFile = None,
    offline: options.Offline = False,
    as_json: options.Json = False,
    progress: options.Progress = ProgressChoice.auto,
) -> None:
    """Measure a UNet's loss in each tenth of the timesteps, at noise that is the same for every model.

    sdcli evaluate denoiser --data pictures/
    sdcli evaluate denoiser --data pictures/ --model runs/mine --draws 8 --plot losses.png

    Of what the model was trained to predict, and of the noise that its prediction means.
    """
    options.go_offline(offline)
    measured.check_common(batch_size, seed)
    check_range("--draws", draws, 1, 1000)
    spec, target = find_loadable(model, models_file), FigureTarget("--plot", plot, if_exists)
    with options.heavy_imports():
        from sdcli.evaluation.denoising import NoiseSettings, measure_losses
        from sdcli.evaluation.pictures import find_pictures

    examples = find_pictures(data, num_pictures, where or ())
    pipeline, size = measured.load_sized_pipeline(spec, resolution, device, precision)
    settings = NoiseSettings(seed=seed, batch_size=batch_size, use_captions=not no_captions)
    with counting(progress, "pictures") as count:
        found = measure_losses(pipeline, examples, size, draws=draws, settings=settings, on_progress=count)
    results.finish(
        {"model": spec.name, **found.figures()}, results.denoiser_lines, as_json, target, "losses_by_timestep"
    )


@evaluate.command("samples", cls=ExamplesFirst)
def samples(
    data: measured.Data,
    generated: Annotated[Path, typer.Option("--samples", metavar="DIR", help="Folder of generated pictures.")],
    model: options.Model = None,
    num_pictures: measured.NumPictures = None,
    where: measured.Where = None,
    batch_size: measured.BatchSize = 32,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    models_file: options.ModelsFile = None,
    offline: options.Offline = False,
    as_json: options.Json = False,
    progress: options.Progress = ProgressChoice.auto,
) -> None:
    """Measure how near generated pictures are to real ones: Fréchet distance, precision and recall.

    sdcli evaluate samples --data pictures/ --samples outputs/
    sdcli evaluate samples --data pictures/ --samples outputs/ --json

    In the features of the image tower of --model's CLIP, so the distance is no FID and compares with none; it also
    shrinks with the number of pictures, so compare equal numbers. --where and --num-pictures are about --data.
    """
    options.go_offline(offline)
    measured.check_common(batch_size)
    with options.heavy_imports():
        from sdcli.clip_models import find_with_tower
        from sdcli.device import choose_placement
        from sdcli.evaluation.distance import LEAST, compare_features
        from sdcli.evaluation.pictures import find_pictures
        from sdcli.evaluation.towers import image_features

    spec = find_with_tower(model, models_file, with_head=False)
    real = find_pictures(data, num_pictures, where or (), least=LEAST)
    made = find_pictures(generated, least=LEAST)
    placement, paths = choose_placement(device, precision), [each.path for each in (*real, *made)]
    with counting(progress, "pictures") as count:
        features = image_features(spec, placement, paths, batch_size, count)
    found = compare_features(features[: len(real)], features[len(real) :]).figures()
    if min(len(real), len(made)) <= found["features"]:
        message = f"{min(len(real), len(made))} pictures for {found['features']} features: the distance is too large"
        options.warn(message)
    results.finish({"model": spec.name, **found}, results.sample_lines, as_json)
