"""`sdcli generate`: flags to settings, one call, paths to stdout."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

import typer

from sdcli.cli import generate_options as flags
from sdcli.cli import options
from sdcli.cli.client import forward
from sdcli.cli.dry_run import rehearse
from sdcli.cli.invocation import Invocation
from sdcli.cli.options import IfExistsChoice, ProgressChoice
from sdcli.cli.progress import reporter_for
from sdcli.cli.results import ResultPrinter
from sdcli.errors import EXIT_SOME_FAILED, SdcliError
from sdcli.run_settings import WHOLE, RunSettings, Shard, parse_batch_size

if TYPE_CHECKING:
    from sdcli.cli.asking import Plan


def generate(
    context: typer.Context,
    prompts: flags.Prompts = None,
    prompts_file: flags.PromptsFile = None,
    jobs_file: flags.JobsFile = None,
    from_file: flags.FromFile = None,
    model: options.Model = None,
    negative_prompt: flags.NegativePrompt = None,
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
    guidance_rescale: flags.GuidanceRescale = None,
    clip_skip: flags.ClipSkip = None,
    init_image: flags.InitImage = None,
    strength: flags.Strength = None,
    mask: flags.Mask = None,
    lora: flags.Lora = None,
    embedding: flags.Embedding = None,
    vae: flags.Vae = None,
    controlnet: flags.ControlNet = None,
    control_image: flags.ControlImage = None,
    control_scale: flags.ControlScale = None,
    control_start: flags.ControlStart = None,
    control_end: flags.ControlEnd = None,
    hires_scale: flags.HiresScale = None,
    hires_strength: flags.HiresStrength = None,
    clip_guidance: flags.ClipGuidance = None,
    clip_model: flags.ClipModel = None,
    best_of: flags.BestOf = None,
    output: flags.Output = None,
    if_exists: options.IfExists = IfExistsChoice.error,
    file_format: options.Format = None,
    save_steps: flags.SaveSteps = None,
    save_latents: flags.SaveLatents = False,
    grid: flags.Grid = None,
    preview: flags.PreviewFile = None,
    preview_vae: flags.PreviewVae = None,
    batch_size: flags.BatchSize = "auto",
    strict: flags.Strict = False,
    shard: flags.ShardOf = None,
    on_error: flags.OnError = flags.OnErrorChoice.stop,
    dry_run: flags.DryRun = False,
    allow_outside: flags.AllowOutside = False,
    compile_unet: flags.Compile = False,
    offload: flags.Offload = flags.OffloadChoice.none,
    tile_vae: flags.TileVae = False,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    models_file: options.ModelsFile = None,
    allow_pickle: options.AllowPickle = False,
    lenient: flags.Lenient = False,
    offline: options.Offline = False,
    socket: flags.Socket = None,
    as_json: options.Json = False,
    progress: options.Progress = ProgressChoice.auto,
) -> None:
    """Make pictures from prompts. Each path is printed when its file is whole.

    sdcli generate "a cute kitten"
    sdcli generate "a red heart" --seed 1 --steps 30 -o heart.png
    sdcli generate "a {red|blue} rocket" "a slice of pizza" -n 4 -o out/ --grid sheet.png
    sdcli generate --jobs jobs.jsonl -o out/ --if-exists skip
    sdcli generate "a cute kitten" --save-steps steps.gif -o "kitten-{seed}.png"
    sdcli generate "a cat in the snow" --init-image cat.png --strength 0.6 --lora snow.safetensors:0.8

    A picture depends on its own settings and seed alone; picture i of a prompt has seed N + i. What a line of --jobs
    says goes before flags, flags go before --from, and that before the model's own.
    """
    invocation: Invocation = context.find_root().obj
    if invocation.warm is None and not dry_run and (code := forward(socket, invocation.arguments)) is not None:
        raise typer.Exit(code)
    from sdcli.cli.asking import Asked, Plan, with_recalled
    from sdcli.cli.files import Target
    from sdcli.images import SUFFIXES
    from sdcli.output import OutputSettings

    options.go_offline(offline)
    settings = {
        "model": model,
        "negative_prompt": negative_prompt,
        "seed": seed,
        "num_inference_steps": steps,
        "guidance_scale": guidance_scale,
        "width": width,
        "height": height,
        "sampler": sampler,
        "schedule": schedule,
        "prediction_type": prediction_type,
        "timestep_spacing": timestep_spacing,
        "eta": eta,
        "guidance_rescale": guidance_rescale,
        "clip_skip": clip_skip,
        "init_image": init_image,
        "strength": strength,
        "mask": mask,
        "lora": lora or None,
        "embedding": embedding or None,
        "vae": vae,
        "controlnet": controlnet or None,
        "control_image": control_image or None,
        "control_scale": control_scale or None,
        "control_start": control_start,
        "control_end": control_end,
        "hires_scale": hires_scale,
        "hires_strength": hires_strength,
        "clip_guidance": clip_guidance,
        "clip_model": clip_model,
    }
    asked = Asked(
        prompts=tuple(prompts or ()),
        prompts_file=prompts_file,
        jobs_file=jobs_file,
        settings=with_recalled({name: value for name, value in settings.items() if value is not None}, from_file),
        num_images=num_images,
        best_of=best_of,
        models_file=models_file,
        allow_pickle=allow_pickle,
    )
    where = OutputSettings(
        output=output,
        file_format=file_format,
        save_steps=save_steps,
        save_latents=save_latents,
        if_exists=if_exists,
        of_jobs=asked.of_jobs,
        allow_outside=allow_outside,
    )
    how = RunSettings(
        batch_size=parse_batch_size(batch_size),
        strict=strict,
        on_error=on_error,
        if_exists=if_exists,
        allow_pickle=allow_pickle,
        lenient=lenient,
        preview=preview,
        preview_vae=preview_vae,
        save_latents=save_latents,
        compile=compile_unet,
        offload=offload,
        tile_vae=tile_vae,
        clip_model=clip_model,
    )
    sheet = None if grid is None else Target(grid, tuple(SUFFIXES), if_exists, "--grid")
    with options.without_collector():  # which would walk through all pictures of a long job file again and again
        plan = Plan.of(asked, where, WHOLE if shard is None else Shard.parse(shard), device)
    with reporter_for(progress, len(plan.pictures)) as reporter:
        printer = ResultPrinter(reporter, as_json, plan.seed if plan.seed_drawn else None)
        if dry_run:
            rehearse(plan, (device, precision), how, printer)
            return
        failed = make(plan, (device, precision), how, printer, invocation)
        if sheet is not None and not sheet.done and printer.on_disk:
            from sdcli.grid import grid_of

            pictures = sorted(printer.on_disk, key=lambda picture: picture.index)
            sheet.finish(grid_of(pictures, SUFFIXES[sheet.path.suffix.lower()]), as_json)
    if failed:
        from sdcli.batch.failures import name_of_list

        hint = f"{where.folder / name_of_list(plan.shard)} lists them: --jobs takes it"
        message = f"{failed} of {plan.count} pictures failed"
        raise SdcliError(message, hint=hint, exit_code=EXIT_SOME_FAILED)


def make(plan: Plan, placed: tuple[str, str], how: RunSettings, printer: ResultPrinter, invocation: Invocation) -> int:
    """Load torch and the models, make the pictures, and give the number of those that failed, which are listed.

    Raises:
        SdcliError: something failed, and failures are not skipped.
    """
    from sdcli.inputs import bad_inputs

    bad = bad_inputs(plan.pictures)
    if bad and how.on_error == "stop":
        raise next(iter(bad.values()))
    with options.heavy_imports():  # here, so that --help and a user's mistake are answered at once
        from sdcli.batch.failures import FailureList
        from sdcli.batch.manifest import Manifest
        from sdcli.batch.run import Run
        from sdcli.device import choose_placement

    placement = choose_placement(*placed)
    if placement.device.type == "cpu":
        how = replace(how, strict=False)  # there no picture depends on the others in any case
    run = Run(plan.models, invocation.benches(placement), how, printer)
    parts = run.check([picture for picture in plan.pictures if picture.index not in bad])
    with contextlib.ExitStack() as books:
        if plan.where.of_jobs:
            run.manifest = books.enter_context(Manifest(plan.where.folder, plan.seed))
            if plan.seed_drawn and run.manifest.seed != plan.seed:  # another process has begun at the same moment
                plan = plan.with_seed(run.manifest.seed)
                parts = run.check([picture for picture in plan.pictures if picture.index not in bad])
        if how.on_error == "skip":
            run.failures = FailureList(plan.where.folder, plan.shard)
        for picture in plan.pictures:
            if picture.index in bad:
                run.fail([picture], bad[picture.index])
        run(parts)
    return run.failed
