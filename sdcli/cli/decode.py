"""`sdcli decode`: a latents file to pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sdcli.cli import options
from sdcli.cli.options import IfExistsChoice
from sdcli.errors import SdcliError
from sdcli.registry import find_loadable

if TYPE_CHECKING:
    from sdcli.latents import LatentsFile


def decode(
    latents_file: Annotated[str, typer.Argument(metavar="LATENTS", help="A latents file; - reads stdin.")],
    output: Annotated[
        str,
        typer.Option(
            "-o",
            "--output",
            metavar="IMAGE|FOLDER/|TEMPLATE",
            help="Where to; templates know {index} {model}; - is stdout.",
        ),
    ],
    model: options.Model = None,
    if_exists: options.IfExists = IfExistsChoice.error,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    models_file: options.ModelsFile = None,
    offline: options.Offline = False,
    as_json: options.Json = False,
) -> None:
    """Turn latents into pictures. Only the VAE is loaded, of the model that the file names unless --model is given.

    sdcli decode photo.safetensors -o photo.png
    sdcli decode both.safetensors -o "picture-{index}.png"
    sdcli encode photo.png -o - | sdcli decode - -o again.png
    """
    from sdcli.cli.files import PIPE, input_name, read_input
    from sdcli.images import SUFFIXES, encode_image
    from sdcli.results import already_there, check_writable, write_result

    options.go_offline(offline)
    content = read_input(latents_file)
    with options.heavy_imports():  # here, so that --help and a user's mistake are answered at once
        from sdcli import latents
        from sdcli.device import choose_placement

    file = latents.LatentsFile.parse(content, input_name(latents_file))
    spec = find_loadable(model or file.metadata.get("model"), models_file)
    paths = paths_for(file, output, spec.name)
    done = already_there(paths, if_exists)
    if paths and all(done):
        return
    check_writable(paths)
    warn_of_other_vae(file, latents.vae_sha256(spec), spec.name)
    images = latents.decode(file, spec, choose_placement(device, precision))
    if output == PIPE:
        options.print_bytes(encode_image(images[0]))
    for image, path, skip in zip(images, paths, done, strict=bool(paths)):
        if not skip:
            written = write_result(encode_image(image, SUFFIXES[path.suffix.lower()]), path, if_exists)
            options.print_path(written, as_json, width=image.width, height=image.height)


def paths_for(file: LatentsFile, output: str, model: str) -> list[Path]:
    """One path for each picture; none for stdout.

    Raises:
        SdcliError: the template is wrong or gives one name to several pictures.
    """
    from sdcli.cli.files import PIPE
    from sdcli.names import name_files, picture_template

    count = len(file.latents)
    if output == PIPE:
        if count > 1:
            raise SdcliError(f"{count} pictures do not fit into one pipe", hint='write files: -o "picture-{index}.png"')
        return []
    fields = [{"index": index, "model": Path(model).name} for index in range(count)]
    return name_files("--output", picture_template(output, "{index:05d}"), fields)


def warn_of_other_vae(file: LatentsFile, vae_sha256: str, model: str) -> None:
    """Tell when latents come from another VAE than the one that decodes them."""
    made_by = file.metadata.get("vae_sha256")
    if made_by and made_by != vae_sha256:
        options.warn(f"these latents were made by another VAE than that of {model}; colours and details may be off")
