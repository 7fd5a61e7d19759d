"""`sdcli encode`: pictures to a latents file."""

from __future__ import annotations

from typing import Annotated

import typer

from sdcli.cli import options
from sdcli.cli.options import IfExistsChoice
from sdcli.registry import find_loadable


def encode(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE", help="Pictures of one size; - reads stdin.")],
    output: Annotated[
        str, typer.Option("-o", "--output", metavar="FILE.safetensors", help="Where to; - writes to stdout.")
    ],
    model: options.Model = None,
    if_exists: options.IfExists = IfExistsChoice.error,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    models_file: options.ModelsFile = None,
    offline: options.Offline = False,
    as_json: options.Json = False,
) -> None:
    """Turn pictures into latents, what the VAE makes of them. Only the model's VAE is loaded.

    sdcli encode photo.png -o photo.safetensors
    sdcli encode a.png b.png -o both.safetensors --model emoji
    sdcli encode photo.png -o - | sdcli decode - -o again.png

    The file holds one tensor, latents, (N, C, h, w), multiplied by the VAE's scaling factor.
    """
    from sdcli.cli.files import Target, input_name, read_input
    from sdcli.images import load_image

    options.go_offline(offline)
    spec = find_loadable(model, models_file)
    target = Target(output, (".safetensors",), if_exists)
    if target.done:
        return
    pictures = [(input_name(name), load_image(read_input(name), input_name(name))) for name in images]
    with options.heavy_imports():  # here, so that --help and a user's mistake are answered at once
        from sdcli import latents
        from sdcli.device import choose_placement

    file = latents.encode(pictures, spec, choose_placement(device, precision))
    target.finish(file.to_bytes(), as_json, shape=list(file.latents.shape), **file.metadata)
