"""`sdcli models`: what models.toml names, and what of it is on disk."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from sdcli.cli import options
from sdcli.cli.completion import among, model_names
from sdcli.cli.options import PRECISIONS, ExamplesFirst, ExamplesFirstGroup
from sdcli.errors import SdcliError
from sdcli.model_config import family_name
from sdcli.registry import ModelSpec, find_loadable, find_model, load_registry

models = typer.Typer(
    cls=ExamplesFirstGroup,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="List and show models, see that their files are whole, and convert them to other layouts.\n\n"
    "sdcli models list\nsdcli models show emoji\nsdcli models verify emoji\n"
    "sdcli models convert runs/mine -o mine.safetensors",
)


@models.command("list", cls=ExamplesFirst)
def list_models(models_file: options.ModelsFile = None, as_json: options.Json = False) -> None:
    """List the models by name, the default one with a star.

    sdcli models list
    sdcli models list --json
    """
    registry = load_registry(models_file)
    if as_json:
        for name in sorted(registry.models):
            options.print_json({**about(registry.models[name]), "default": name == registry.default})
        return
    rows = [
        (
            f"{name}{' *' if name == registry.default else ''}",
            f"{spec.defaults.width}x{spec.defaults.height}",
            "on disk" if spec.on_disk else "missing",
            spec.licence,
            spec.description,
        )
        for name, spec in sorted(registry.models.items())
    ]
    for line in table(rows):
        options.print_result(line)


@models.command("show", cls=ExamplesFirst)
def show_model(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME|FOLDER|FILE",
            help="A name in models.toml, a folder, a file or a run.",
            autocompletion=model_names,
        ),
    ],
    models_file: options.ModelsFile = None,
    as_json: options.Json = False,
) -> None:
    """Show where a model lies, its licence, and what it uses for all that is left open.

    sdcli models show emoji
    sdcli models show runs/unet --json
    """
    values = about(find_model(name, models_file))
    if as_json:
        options.print_json(values)
        return
    defaults = {key: "the model's own" if value is None else value for key, value in values.pop("defaults").items()}
    places = {key: values[key] or "none" for key in ("path", "hub", "lora", "source")}
    for line in table([(f"{key}:", text_of(value)) for key, value in {**values, **places, **defaults}.items()]):
        options.print_result(line)


@models.command("verify", cls=ExamplesFirst)
def verify_model(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME|FOLDER|FILE",
            help="A name in models.toml, a folder, a file or a run.",
            autocompletion=model_names,
        ),
    ],
    models_file: options.ModelsFile = None,
    as_json: options.Json = False,
) -> None:
    """Read every weight file of a model to its end: its size, its SHA-256, and what is wrong with it.

    sdcli models verify emoji
    sdcli models verify model.safetensors --json

    A file that the hub's cache has is compared with the hash that the hub gave for it.
    """
    spec = find_loadable(name, models_file)
    with options.heavy_imports():
        from sdcli.checkpoints.verification import verify

    bad = 0
    for found in verify(spec.path, *([] if spec.lora is None else [spec.lora])):
        bad += found["problem"] != ""
        if as_json:
            options.print_json(found)
        else:
            size = f"{found['bytes'] / 2**20:.1f} MiB"
            options.print_result(f"{found['sha256']}  {size:>10}  {found['file']}  {found['problem'] or 'whole'}")
    if bad:
        raise SdcliError(f"{bad} of the files of {name} are bad", hint="fetch or copy them again")


@models.command("convert", cls=ExamplesFirst)
def convert_model(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME|FOLDER|FILE",
            help="A name in models.toml, a folder, a file or a run.",
            autocompletion=model_names,
        ),
    ],
    output: Annotated[
        str, typer.Option("-o", "--output", metavar="FOLDER/|FILE.safetensors", help="Where to, and in which layout.")
    ],
    precision: Annotated[
        str,
        typer.Option(
            "--precision",
            metavar="NAME",
            help="Number format of the weights: auto (as they are), fp32, fp16 or bf16.",
            autocompletion=among(PRECISIONS),
        ),
    ] = "auto",
    models_file: options.ModelsFile = None,
    allow_pickle: options.AllowPickle = False,
) -> None:
    """Write a model in the other layout: a folder as diffusers has it, or a single file as ComfyUI and A1111 read it.

    sdcli models convert runs/mine -o mine.safetensors --precision fp16
    sdcli models convert model.safetensors -o model/
    sdcli models convert model.ckpt --allow-pickle -o model.safetensors
    """
    spec = find_loadable(name, models_file, allow_pickle)
    if precision not in ("auto", "fp32", "fp16", "bf16"):
        raise SdcliError(f"--precision knows no {precision!r}", hint="known: auto, fp32, fp16, bf16")
    if spec.lora is not None or spec.adapter is not None:
        hint = "convert the model that they are put onto, and put them onto the result"
        raise SdcliError(f"{name} is a model and what is put onto it, which stay files of their own", hint=hint)
    if Path(output).exists():
        raise SdcliError(f"{output} is already there", hint="choose another --output")
    with options.heavy_imports():
        from sdcli.checkpoints.conversion import convert

    convert(spec.path, Path(output), precision, allow_pickle, spec.defaults)
    options.print_result(output)


def about(spec: ModelSpec) -> dict[str, Any]:
    """What is known of a model, as JSON types."""
    return {
        "name": spec.name,
        "description": spec.description,
        "licence": spec.licence,
        "path": str(spec.path or ""),
        "hub": spec.hub.place if spec.hub else "",
        "lora": str(spec.lora or (spec.lora_hub.place if spec.lora_hub else "")),
        "on_disk": spec.on_disk,
        "family": family_name(spec.path, spec.allow_pickle) if spec.on_disk else "",
        "bytes": size_of(spec),
        "source": str(spec.source or ""),
        "defaults": asdict(spec.defaults),
    }


def size_of(spec: ModelSpec) -> int | None:
    """Bytes of a model's files; None where it is not on disk."""
    if not spec.on_disk:
        return None
    files = [spec.path] if spec.path.is_file() else [path for path in spec.path.rglob("*") if path.is_file()]
    files += [] if spec.lora is None else [spec.lora]
    return sum(path.stat().st_size for path in files)


def text_of(value: Any) -> str:
    """A value as people read it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "unknown" if value in (None, "") else str(value)


def table(rows: list[tuple[str, ...]]) -> list[str]:
    """Rows as lines with aligned columns."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
