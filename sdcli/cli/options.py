"""Each flag that several commands share, once; help that begins with examples; results to stdout. Imports no torch."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from sdcli.cli.completion import among, model_names
from sdcli.cli.help import first_sentence, write_help

IfExistsChoice = StrEnum("IfExistsChoice", ["error", "skip", "overwrite", "number"])
FormatChoice = StrEnum("FormatChoice", ["png", "jpg", "webp"])
ProgressChoice = StrEnum("ProgressChoice", ["auto", "bar", "plain", "json", "none"])

PROMPTS = "What to make"  # the sections of a long help
MODEL = "Model"
OUTPUT = "Output"
MACHINE = "Machine"

DEVICES = ("auto", "cpu", "cuda", "cuda:0", "mps")
PRECISIONS = ("auto", "fp32", "fp16", "bf16")

Model = Annotated[
    str | None,
    typer.Option(
        "-m",
        "--model",
        metavar="NAME|FOLDER|FILE|HUB_ID",
        help="A name in models.toml, a model folder, a single file, a training run, or OWNER/NAME of the hub "
        "(default: the default of models.toml, the built-in model).",
        rich_help_panel=MODEL,
        autocompletion=model_names,
    ),
]
ModelsFile = Annotated[
    Path | None,
    typer.Option(
        "--models-file",
        metavar="FILE",
        help="A models.toml that comes before $SDCLI_MODELS, ./models.toml, "
        "~/.config/sdcli/models.toml and the shipped one.",
        rich_help_panel=MODEL,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        "-s", "--seed", metavar="N", help="Decides the noise (default: drawn, and reported).", rich_help_panel=PROMPTS
    ),
]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="NAME",
        help="Where to compute: auto, cpu, cuda, cuda:N or mps; auto is CUDA where there is CUDA.",
        rich_help_panel=MACHINE,
        autocompletion=among(DEVICES),
    ),
]
Precision = Annotated[
    str,
    typer.Option(
        "--precision",
        metavar="NAME",
        help="Number format: auto, fp32, fp16 or bf16; auto is fp16 on CUDA, else fp32.",
        rich_help_panel=MACHINE,
        autocompletion=among(PRECISIONS),
    ),
]
Offline = Annotated[
    bool,
    typer.Option(
        "--offline", help="Open no socket, as $HF_HUB_OFFLINE=1. The built-in model never does.", rich_help_panel=MODEL
    ),
]
IfExists = Annotated[
    IfExistsChoice,
    typer.Option(
        "--if-exists",
        help="A file that is already there: end with an error, skip it, overwrite it, or number the new one.",
        rich_help_panel=OUTPUT,
    ),
]
AllowPickle = Annotated[
    bool,
    typer.Option(
        "--allow-pickle",
        help="Read .ckpt, .pt and .bin files too, without running what is in them.",
        rich_help_panel=MODEL,
    ),
]
Format = Annotated[
    FormatChoice | None,
    typer.Option("--format", help="File format (default: as --output says, else png).", rich_help_panel=OUTPUT),
]
Plot = Annotated[
    Path | None,
    typer.Option("--plot", metavar="FILE", help="Also draw a figure, as .png or .svg.", rich_help_panel=OUTPUT),
]
Json = Annotated[bool, typer.Option("--json", help="Print results as JSON, one object a line.", rich_help_panel=OUTPUT)]
Progress = Annotated[
    ProgressChoice,
    typer.Option(
        "--progress",
        help="Progress on stderr: a bar, a plain line every few seconds, JSON events, or none; auto is a bar on a "
        "terminal, else plain.",
    ),
]


class ExamplesFirst(TyperCommand):
    """A command whose help begins with the examples of its docstring: the lines that begin with `sdcli`."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write examples, then usage, text and options in sections."""
        write_help(self, ctx, formatter)


class ExamplesFirstGroup(TyperGroup):
    """A group of commands whose help begins with examples."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write examples, then usage, text, commands and options."""
        write_help(self, ctx, formatter)

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Commands that begin so, with a sentence on each that has no examples in it."""
        items = super().shell_complete(ctx, incomplete)
        for item in items:
            if item.value in self.commands:
                item.help = first_sentence(self.commands[item.value])
        return items


@contextlib.contextmanager
def without_collector() -> Iterator[None]:
    """Make many things that stay without the garbage collector, which else walks through them again and again.

    They live until the end, so that it need not look at them later either.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def heavy_imports() -> contextlib.AbstractContextManager[None]:
    """Import torch and diffusers `without_collector`."""
    return contextlib.nullcontext() if "torch" in sys.modules else without_collector()


def go_offline(offline: bool) -> None:
    """Forbid every connection to the hub, before its libraries are imported."""
    if offline:
        os.environ.update({"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"})


def print_result(text: str) -> None:
    """A line of result on stdout, at once."""
    typer.echo(text)
    sys.stdout.flush()


def print_json(value: dict[str, Any]) -> None:
    """A result as one line of JSON on stdout."""
    print_result(json.dumps(value, ensure_ascii=False))


def print_path(path: Path, as_json: bool, **about: Any) -> None:
    """The path of a finished file as a line on stdout, or as JSON with what is said about it."""
    if as_json:
        print_json({"path": str(path), **about})
    else:
        print_result(str(path))


def print_bytes(content: bytes) -> None:
    """A result that is a file, on stdout.

    Raises:
        BrokenPipeError: nobody reads it.
    """
    sys.stdout.buffer.write(content)
    sys.stdout.buffer.flush()


def tell(message: str) -> None:
    """A line on stderr."""
    typer.echo(message, err=True)


def warn(message: str) -> None:
    """A line on stderr about something that the user should know."""
    tell(f"warning: {message}")
