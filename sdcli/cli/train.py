"""`sdcli train`: flags to settings, one call, events to text."""

import dataclasses
import datetime
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from sdcli.cli import options
from sdcli.cli.options import ProgressChoice
from sdcli.cli.train_options import DEFAULTS, OF_RUN, option
from sdcli.cli.train_progress import training_progress
from sdcli.errors import SdcliError
from sdcli.registry import find_architecture
from sdcli.settings import PREDICTION_TYPES
from sdcli.training.choices import (
    AVERAGES,
    LOSSES,
    LR_SCHEDULES,
    OPTIMIZERS,
    PARTS,
    SAVE_PRECISIONS,
    TOWERS,
    TRACKERS,
)
from sdcli.training.settings import TrainSettings, from_table, resumed

# Batch systems announce the end of a job's time by SIGUSR1 or SIGTERM.
ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))


def train(
    data: Annotated[
        str | None,
        option(
            "data",
            "Folder of pictures with captions, or of .tar or .parquet shards; a pattern or URL of shards, or a data "
            "set of the hub. Needed but with --resume.",
        ),
    ] = None,
    where: Annotated[
        list[str] | None,
        option("where", "Only pictures whose metadata say so: COLUMN=VALUE,... or COLUMN!=VALUE,...; repeatable."),
    ] = None,
    output: Annotated[str | None, option("output", "Run folder (default: runs/PART-DATE).", "--output", "-o")] = None,
    part: Annotated[str | None, option("part", f"What to train: {', '.join(PARTS)}.")] = None,
    model: Annotated[
        str | None, option("model", "Fine-tune this: a name, a model folder or a run.", "--model", "-m")
    ] = None,
    config: Annotated[
        str | None, option("config", "Train the part from scratch: a named architecture (emoji) or a TOML file.")
    ] = None,
    steps: Annotated[int | None, option("steps", "Optimizer updates in all.")] = None,
    batch_size: Annotated[int | None, option("batch_size", "Pictures per pass, over all processes.")] = None,
    accumulate: Annotated[int | None, option("accumulate", "Passes per update.")] = None,
    learning_rate: Annotated[float | None, option("learning_rate", "Learning rate, at its peak.")] = None,
    text_encoder_lr: Annotated[
        float | None,
        option("text_encoder_lr", "Train the text encoders with the UNet, at this rate; 0, the default, leaves them."),
    ] = None,
    lr_schedule: Annotated[str | None, option("lr_schedule", f"How it falls: {', '.join(LR_SCHEDULES)}.")] = None,
    warmup: Annotated[int | None, option("warmup", "Updates until the peak.")] = None,
    optimizer: Annotated[str | None, option("optimizer", f"One of {', '.join(OPTIMIZERS)}.")] = None,
    weight_decay: Annotated[float | None, option("weight_decay", "The optimizer's weight decay.")] = None,
    max_grad_norm: Annotated[float | None, option("max_grad_norm", "Longer gradients are shortened to this.")] = None,
    resolution: Annotated[int | None, option("resolution", "Side of the pictures (default: the model's own).")] = None,
    buckets: Annotated[bool, option("buckets", "Keep about the aspect ratio; else squares are cut.")] = False,
    random_crop: Annotated[bool, option("random_crop", "Cut anywhere, not at the centre.")] = False,
    random_flip: Annotated[float | None, option("random_flip", "Share of pictures mirrored left to right.")] = None,
    random_affine: Annotated[
        float | None, option("random_affine", "Turn, move and scale pictures by chance; 0.1: by up to 9° and a tenth.")
    ] = None,
    color_jitter: Annotated[
        float | None, option("color_jitter", "Change brightness, contrast and saturation by chance, by up to this.")
    ] = None,
    grounds: Annotated[
        float | None, option("grounds", "Share of transparent drawings put on a colour, which their caption tells.")
    ] = None,
    pairs: Annotated[
        float | None,
        option("pairs", "Share of transparent drawings put beside another, which their caption tells."),
    ] = None,
    variations: Annotated[
        int | None,
        option("variations", "Compositions per transparent drawing, encoded once; 0 makes new ones always."),
    ] = None,
    caption_dropout: Annotated[float | None, option("caption_dropout", "Share of captions left out.")] = None,
    caption_filler: Annotated[
        float | None, option("caption_filler", "Share of captions that get words which say nothing of the picture.")
    ] = None,
    loss: Annotated[str | None, option("loss", f"One of {', '.join(LOSSES)} (default: the part's own).")] = None,
    prediction_type: Annotated[
        str | None,
        option("prediction_type", f"One of {', '.join(PREDICTION_TYPES)} (default: the model's own)."),
    ] = None,
    zero_terminal_snr: Annotated[
        bool, option("zero_terminal_snr", "Rescale the noise schedule so that it ends in pure noise.")
    ] = False,
    snr_gamma: Annotated[
        float | None, option("snr_gamma", "Min-SNR loss weighting; 5 is usual (default: off).")
    ] = None,
    noise_offset: Annotated[float | None, option("noise_offset", "Noise that a whole channel shares.")] = None,
    kl_weight: Annotated[float | None, option("kl_weight", "Beta of the VAE's loss.")] = None,
    perceptual_weight: Annotated[
        float | None, option("perceptual_weight", "Weight of the distance that CLIP sees, in the VAE's loss.")
    ] = None,
    adversarial_weight: Annotated[
        float | None, option("adversarial_weight", "Weight of a patch discriminator, in the VAE's loss.")
    ] = None,
    caption_weight: Annotated[
        float | None,
        option("caption_weight", "Weight of which captions are of the same picture, in CLIP's loss."),
    ] = None,
    lock: Annotated[
        str | None, option("lock", f"Tower of CLIP that stays as it is while the other learns: {', '.join(TOWERS)}.")
    ] = None,
    rank: Annotated[int | None, option("rank", "Rank of a LoRA.")] = None,
    alpha: Annotated[float | None, option("alpha", "A LoRA counts alpha / rank (default: the rank).")] = None,
    target: Annotated[
        list[str] | None,
        option(
            "targets",
            "Layers that get a LoRA, by the end of the name; repeatable (default: all attention).",
            "--target",
        ),
    ] = None,
    token: Annotated[str | None, option("token", "Word that an embedding is called by.")] = None,
    initialize_from: Annotated[str | None, option("initialize_from", "Word that an embedding starts from.")] = None,
    ema: Annotated[
        float | None, option("ema", "Decay of averaged weights; a second average is ten times as short.")
    ] = None,
    average: Annotated[str | None, option("average", f"Which weights RUN/model has: {', '.join(AVERAGES)}.")] = None,
    seed: Annotated[int | None, option("seed", "Decides order, captions and noise.")] = None,
    validation_split: Annotated[float | None, option("validation_split", "Share of pictures held out.")] = None,
    validate_every: Annotated[int | None, option("validate_every", "Updates between two validations.")] = None,
    sample_prompt: Annotated[
        list[str] | None, option("sample_prompts", "Prompt of the sample sheets; repeatable.", "--sample-prompt")
    ] = None,
    sample_every: Annotated[
        int | None, option("sample_every", "Updates between two sample sheets; 0 makes none.")
    ] = None,
    checkpoint_every: Annotated[int | None, option("checkpoint_every", "Updates between two checkpoints.")] = None,
    keep: Annotated[int | None, option("keep", "Checkpoints that stay on disk.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest checkpoint of --output.", **OF_RUN)
    ] = False,
    on_error: Annotated[
        str | None, option("on_error", "Pictures and captions that cannot be used: stop, or skip them.")
    ] = None,
    allow_data_change: Annotated[bool, option("allow_data_change", "Resume although the data has changed.")] = False,
    cache: Annotated[
        str | None,
        option("cache", "File of latents and text features; none keeps none."),
    ] = None,
    num_workers: Annotated[int | None, option("num_workers", "Batches that are read ahead.")] = None,
    tracker: Annotated[str | None, option("tracker", f"Beside metrics.jsonl: {', '.join(TRACKERS)}.")] = None,
    device: Annotated[str | None, option("device", "Where to compute: auto, cpu, cuda, cuda:N or mps.")] = None,
    precision: Annotated[str | None, option("precision", "Number format: auto, fp32, fp16 or bf16.")] = None,
    save_precision: Annotated[
        str | None, option("save_precision", f"Of RUN/model: {', '.join(SAVE_PRECISIONS)}.")
    ] = None,
    gradient_checkpointing: Annotated[
        bool, option("gradient_checkpointing", "Compute parts twice instead of remembering them.")
    ] = False,
    channels_last: Annotated[bool, option("channels_last", "Lay colours of a pixel side by side in memory.")] = False,
    tf32: Annotated[bool, option("tf32", "Multiply fp32 in tf32, on CUDA.")] = False,
    compile: Annotated[bool, option("compile", "Compile the network with torch.compile.")] = False,  # noqa: A002
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check data, model and settings; train nothing.", **OF_RUN)
    ] = False,
    as_json: options.Json = False,
    progress: options.Progress = ProgressChoice.auto,
) -> None:
    r"""Train a part of a model, from scratch or from another model.

    \b
    sdcli train --data pictures/ --model emoji --steps 500
    sdcli train --data pictures/ --part lora --model emoji --rank 8 -o runs/mug
    sdcli train --data pictures/ --part all --config emoji -o runs/mine
    sdcli train -o runs/mine --resume
    """
    given = {
        name: value for name, value in locals().items() if name in DEFAULTS and value is not None and value is not False
    }
    for name, value in (("where", where), ("sample_prompts", sample_prompt), ("targets", target)):
        if value:
            given[name] = tuple(value)
        else:
            given.pop(name, None)
    settings = saved_settings(given) if resume else new_settings(given)
    with options.heavy_imports():  # here, so that --help and a user's mistake are answered at once
        from sdcli.training.stages import train as run

    first = os.environ.get("RANK", "0") == "0"  # of the processes that `accelerate launch` has started
    last: dict[str, Any] = {}
    with stopping() as stop, training_progress(progress if first else ProgressChoice.none) as tell:
        for event in run(settings, resume, stop, dry_run):
            tell(event)
            last = event.row() if hasattr(event, "row") else last
    if stop.signal:
        raise SystemExit(130 if stop.signal == signal.SIGINT else 128 + signal.SIGTERM)
    if dry_run or not first:
        return
    if as_json:
        options.print_json({"output": settings.output, **last})
    else:
        options.print_result(settings.output)


def new_settings(given: dict[str, Any]) -> TrainSettings:
    """Settings of a run that begins. Raises SdcliError without data."""
    if "data" not in given:
        raise SdcliError("--data is missing", hint="give the folder of pictures to learn from: --data pictures/")
    now = datetime.datetime.now()
    if "config" in given:
        given = from_table(find_architecture(given["config"]).get("train", {}), given)
    part = given.get("part", DEFAULTS["part"])
    return TrainSettings(**{"output": f"runs/{part}-{now:%Y-%m-%d-%H%M%S}", **given})


def saved_settings(given: dict[str, Any]) -> TrainSettings:
    """Settings of the run in --output, with what may change. Raises SdcliError where there is none."""
    if "output" not in given:
        raise SdcliError("--resume needs --output", hint="name the run that is to go on: --output RUN --resume")
    from sdcli.training.run_folder import RunFolder

    saved = RunFolder(Path(given["output"])).read_settings()
    return resumed(dataclasses.replace(saved, output=given["output"]), given)


class Stop:
    """Whether somebody asked the run to end, and by which signal."""

    def __init__(self) -> None:
        self.signal = 0

    def __call__(self) -> bool:
        """Whether to end."""
        return self.signal != 0


@contextmanager
def stopping() -> Iterator[Stop]:
    """Turn the first SIGINT, SIGTERM or SIGUSR1 into a request to end with a checkpoint; the second ends at once."""
    stop = Stop()

    def ask(number: int, frame: object) -> None:
        stop.signal = number
        for each in before:
            signal.signal(each, signal.SIG_DFL)

    before = {each: signal.signal(each, ask) for each in ENDING}
    try:
        yield stop
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
