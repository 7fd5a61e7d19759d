"""`sdcli add-noise`: the forward process on a picture or on latents."""

from __future__ import annotations

import json
import secrets
from typing import Annotated

import typer

from sdcli.cli import options
from sdcli.cli.options import IfExistsChoice
from sdcli.errors import SdcliError
from sdcli.registry import find_loadable
from sdcli.settings import LARGEST_SEED, check_range


def add_noise(
    source: Annotated[str, typer.Argument(metavar="INPUT", help="A picture or a latents file; - reads stdin.")],
    output: Annotated[
        str,
        typer.Option("-o", "--output", metavar="OUTPUT", help="A picture, or latents as .safetensors; - is stdout."),
    ],
    timestep: Annotated[
        int | None,
        typer.Option(
            "-t", "--timestep", metavar="T", help="How far to noise: 0 is almost clean, 999 almost all noise."
        ),
    ] = None,
    strip: Annotated[
        str | None,
        typer.Option(
            "--strip", metavar="T,T,...", help="Instead of -t: one picture that shows several timesteps side by side."
        ),
    ] = None,
    seed: options.Seed = None,
    model: options.Model = None,
    if_exists: options.IfExists = IfExistsChoice.error,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    models_file: options.ModelsFile = None,
    offline: options.Offline = False,
    as_json: options.Json = False,
) -> None:
    """Noise a picture or latents as training does.

    sdcli add-noise photo.png -t 500 --seed 1 -o noisy.png
    sdcli add-noise photo.png --strip 0,100,250,500,999 --seed 1 -o strip.png
    sdcli encode photo.png -o - | sdcli add-noise - -t 600 --seed 1 -o - | sdcli decode - -o noisy.png

    This is the forward process, q(x_t | x_0). A picture is noised pixel by pixel. The noise schedule is that of
    --model, else of the model that a latents file names, else Stable Diffusion's.
    """
    from sdcli.cli.files import Target, input_name, looks_like_safetensors, read_input
    from sdcli.images import SUFFIXES, encode_image, load_image
    from sdcli.metadata import NOISED_SCHEMA
    from sdcli.sheets import make_strip

    options.go_offline(offline)
    timesteps = parse_timesteps(timestep, strip)
    check_range("--seed", seed or 0, 0, LARGEST_SEED, hint="leave --seed out and one is drawn and reported")
    name, content = input_name(source), read_input(source)
    picture = None if looks_like_safetensors(content) else load_image(content, name)
    makes_latents = picture is None and strip is None
    target = Target(output, (".safetensors",) if makes_latents else tuple(SUFFIXES), if_exists)
    if target.done:
        return
    spec = find_loadable(model, models_file) if model else None
    with options.heavy_imports():  # here, so that --help and a user's mistake are answered at once
        from sdcli import latents
        from sdcli.device import choose_placement

    file = latents.LatentsFile.parse(content, name) if picture is None else None
    if file is not None and spec is None and "model" in file.metadata:
        spec = find_loadable(file.metadata["model"], models_file)
    process = latents.ForwardProcess(spec, secrets.randbits(32) if seed is None else seed)
    process.check(timesteps)
    about = {"timesteps": timesteps, "seed": process.seed, "model": spec and spec.name}
    if makes_latents:
        result = process.noised_file(file, timestep).to_bytes()
    else:
        if file is None:
            images = [process.noised_picture(picture, each) for each in timesteps]
        else:
            noised = [process.noised_file(file, each) for each in timesteps]
            placement = choose_placement(device, precision)
            images = [latents.decode(each, spec or find_loadable(None, models_file), placement)[0] for each in noised]
        text = {"sdcli": json.dumps({"schema": NOISED_SCHEMA, **about})}
        file_format = "png" if target.to_stdout else SUFFIXES[target.path.suffix.lower()]
        result = encode_image(make_strip(images), file_format, text)
    if seed is None:
        options.tell(f"seed: {process.seed}")
    target.finish(result, as_json, **about)


def parse_timesteps(timestep: int | None, strip: str | None, flag: str = "--strip") -> list[int]:
    """The timesteps of `-t` or of `--strip`, or of another flag that takes a list.

    Raises:
        SdcliError: neither or both are given, or the list is no list of numbers.
    """
    if (timestep is None) == (strip is None):
        raise SdcliError("add-noise needs one of --timestep and --strip", hint="try -t 500, or --strip 0,250,500,999")
    if strip is None:
        return [timestep]
    try:
        return [int(each) for each in strip.split(",")]
    except ValueError as error:
        raise SdcliError(f"{flag} {strip} is no list of timesteps", hint=f"try {flag} 0,250,500,999") from error
