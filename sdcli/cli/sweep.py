"""`sdcli sweep`: a job file for every combination of some settings."""

from __future__ import annotations

from typing import Annotated

import typer

from sdcli.cli import options


def sweep(
    prompts: Annotated[
        list[str] | None, typer.Argument(metavar="[PROMPT]...", help="What to show; several are swept as well.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE,…",
            help=r"A setting of a job and its values; 1..8 and 0.2..0.8:0.2 are ranges, \, is a comma; repeatable.",
        ),
    ] = None,
    model: options.Model = None,
    num_images: Annotated[
        int | None, typer.Option("-n", "--num-images", metavar="N", help="Pictures per job (default: 1).")
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option("-s", "--seed", metavar="N", help="Of every job (default: generate draws one for all of them)."),
    ] = None,
) -> None:
    """Print a job file, one job a line: every combination of the values, of which the last --set changes fastest.

    sdcli sweep --set guidance_scale=5,7,9 --set sampler=euler,dpmpp_2m "a cute kitten" > jobs.jsonl
    sdcli sweep --set steps=10..50:10 "a red heart" "a rocket" | sdcli generate --jobs - -o out/ --grid sheet.png
    sdcli sweep --set strength=0.2..0.8:0.2 "a cat in the snow" | sdcli generate --jobs - --init-image cat.png -o out/

    Whatever is not said here is said by the flags of generate, or by the model.
    """
    from sdcli.sweep import Axis
    from sdcli.sweep import sweep as jobs_of

    fixed = {"model": model, "num_images": num_images, "seed": seed}
    fixed = {name: value for name, value in fixed.items() if value is not None}
    for job in jobs_of(prompts or (), [Axis.parse(each) for each in settings or ()], fixed):
        options.print_json(job)
