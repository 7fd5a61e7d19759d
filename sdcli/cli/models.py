"""`sdcli models`: what models.toml names, and what of it is on disk."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from sdcli.cli import options
from sdcli.cli.options import ExamplesFirst, ExamplesFirstGroup
from sdcli.registry import ModelSpec, find_model, load_registry

models = typer.Typer(
    cls=ExamplesFirstGroup,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="What models.toml names.\n\nsdcli models list\nsdcli models show emoji",
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
    name: Annotated[str, typer.Argument(metavar="NAME|FOLDER", help="A name in models.toml, a folder or a run.")],
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
    defaults = values.pop("defaults")
    for line in table([(f"{key}:", text_of(value)) for key, value in {**values, **defaults}.items()]):
        options.print_result(line)


def about(spec: ModelSpec) -> dict[str, Any]:
    """What is known of a model, as JSON types."""
    return {
        "name": spec.name,
        "description": spec.description,
        "licence": spec.licence,
        "path": str(spec.path or ""),
        "hub": str(spec.hub or ""),
        "on_disk": spec.on_disk,
        "source": str(spec.source or ""),
        "defaults": asdict(spec.defaults),
    }


def text_of(value: Any) -> str:
    """A value as people read it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return {None: "the model's own", "": "unknown"}.get(value, str(value))


def table(rows: list[tuple[str, ...]]) -> list[str]:
    """Rows as lines with aligned columns."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
