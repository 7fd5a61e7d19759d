"""`sdcli train`: flags to settings, one call, events to text."""

import dataclasses
import datetime
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from sdcli.cli import options
from sdcli.cli.options import ProgressChoice
from sdcli.cli.train_progress import training_progress
from sdcli.errors import SdcliError
from sdcli.training.settings import PARTS, PREDICTION_TYPES, TrainSettings, resumed

TYPES = {field.name: str(getattr(field.type, "__name__", field.type)) for field in dataclasses.fields(TrainSettings)}
METAVARS = {"int": "N", "float": "X", "str": "TEXT"}
DEFAULTS = {field.name: field.default for field in dataclasses.fields(TrainSettings)}


def option(name: str, text: str, *spellings: str) -> Any:
    """A flag of a setting, whose default lives in TrainSettings."""
    default = DEFAULTS[name]
    shown = "" if default in (None, (), dataclasses.MISSING) else f" (default: {default})"
    metavar = METAVARS.get(TYPES[name].split(" ")[0])
    spellings = spellings or ("--" + name.replace("_", "-"),)
    return typer.Option(*spellings, metavar=metavar, help=text + shown, show_default=False)


def train(
    data: Annotated[str | None, option("data", "Folder of pictures with captions.")] = None,
    output: Annotated[str | None, option("output", "Run folder (default: runs/PART-DATE).", "--output", "-o")] = None,
    part: Annotated[str | None, option("part", f"What to train: {', '.join(PARTS)}.")] = None,
    model: Annotated[
        str | None, option("model", "Fine-tune this: a name, a model folder or a run.", "--model", "-m")
    ] = None,
    config: Annotated[
        str | None, option("config", "Train the part from scratch: a named architecture (emoji) or a TOML file.")
    ] = None,
    steps: Annotated[int | None, option("steps", "Optimizer updates.")] = None,
    batch_size: Annotated[int | None, option("batch_size", "Pictures per update.")] = None,
    learning_rate: Annotated[float | None, option("learning_rate", "Peak learning rate.")] = None,
    warmup: Annotated[int | None, option("warmup", "Updates until the peak; a cosine falls from there.")] = None,
    weight_decay: Annotated[float | None, option("weight_decay", "AdamW's weight decay.")] = None,
    resolution: Annotated[int | None, option("resolution", "Side of the pictures (default: the model's own).")] = None,
    caption_dropout: Annotated[float | None, option("caption_dropout", "Share of captions left out.")] = None,
    prediction_type: Annotated[
        str | None, option("prediction_type", f"{', '.join(PREDICTION_TYPES)} (default: the model's own).")
    ] = None,
    snr_gamma: Annotated[
        float | None, option("snr_gamma", "Min-SNR loss weighting; 5 is usual (default: off).")
    ] = None,
    kl_weight: Annotated[float | None, option("kl_weight", "Beta of the VAE's loss.")] = None,
    ema: Annotated[float | None, option("ema", "Decay of the averaged weights.")] = None,
    seed: Annotated[int | None, option("seed", "Decides order, captions and noise.")] = None,
    sample_prompt: Annotated[
        list[str] | None, option("sample_prompts", "Prompt of the sample sheets; repeatable.", "--sample-prompt")
    ] = None,
    sample_every: Annotated[int | None, option("sample_every", "Updates between two sample sheets.")] = None,
    checkpoint_every: Annotated[int | None, option("checkpoint_every", "Updates between two checkpoints.")] = None,
    keep: Annotated[int | None, option("keep", "Checkpoints that stay on disk.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint of --output.")] = False,
    device: Annotated[str | None, option("device", "auto, cpu, cuda, cuda:N or mps.")] = None,
    precision: Annotated[str | None, option("precision", "auto, fp32, fp16 or bf16.")] = None,
    save_precision: Annotated[str | None, option("save_precision", "Precision of RUN/model.")] = None,
    as_json: options.Json = False,
    progress: options.Progress = ProgressChoice.auto,
) -> None:
    r"""Train a part of a model, from scratch or from another model.

    \b
    sdcli train --data pictures/ --model emoji --steps 500
    sdcli train --data pictures/ --part vae --config emoji -o runs/vae
    sdcli train --data pictures/ --part clip --config emoji --model runs/vae -o runs/clip
    sdcli train --data pictures/ --part unet --config emoji --model runs/clip -o runs/unet
    sdcli train -o runs/unet --resume
    """
    given = {name: value for name, value in locals().items() if name in DEFAULTS and value is not None}
    if sample_prompt:
        given["sample_prompts"] = tuple(sample_prompt)
    settings = saved_settings(given) if resume else new_settings(given)
    with options.heavy_imports():  # here, so that --help and a user's mistake are answered at once
        from sdcli.training.loop import train as run

    last: dict[str, Any] = {}
    with stopping() as stop, training_progress(progress) as tell:
        for event in run(settings, resume, stop):
            tell(event)
            last = event.row() if hasattr(event, "row") else last
    if stop.signal:
        raise SystemExit(128 + stop.signal)
    if as_json:
        options.print_json({"output": settings.output, **last})
    else:
        options.print_result(settings.output)


def new_settings(given: dict[str, Any]) -> TrainSettings:
    """Settings of a run that begins. Raises SdcliError without data."""
    if "data" not in given:
        raise SdcliError("--data is missing", hint="give the folder of pictures to learn from: --data pictures/")
    now = datetime.datetime.now()
    part = given.get("part", DEFAULTS["part"])
    return TrainSettings(**{"output": f"runs/{part}-{now:%Y-%m-%d-%H%M%S}", **given})


def saved_settings(given: dict[str, Any]) -> TrainSettings:
    """Settings of the run in --output, with what may change. Raises SdcliError where there is none."""
    if "output" not in given:
        raise SdcliError("--resume needs --output", hint="name the run that is to go on: --output RUN --resume")
    from sdcli.training.state import RunFolder

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
    """Turn the first SIGINT or SIGTERM into a request to end with a checkpoint; the second ends at once."""
    stop = Stop()

    def ask(number: int, frame: object) -> None:
        stop.signal = number
        for each in before:
            signal.signal(each, signal.SIG_DFL)

    before = {each: signal.signal(each, ask) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
