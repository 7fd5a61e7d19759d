"""`sdcli serve`: keep a model warm behind a socket."""

from __future__ import annotations

import importlib
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from sdcli.cli import options
from sdcli.run_settings import RunSettings
from sdcli.settings import GenerateSettings, check_range


def serve(
    socket: Annotated[Path, typer.Option("--socket", metavar="PATH", help="Where to listen; for its owner only.")],
    model: options.Model = None,
    idle_timeout: Annotated[
        float, typer.Option("--idle-timeout", metavar="SECONDS", help="End when nobody has come for so long.")
    ] = 600.0,
    queue: Annotated[int, typer.Option("--queue", metavar="N", help="Commands that may wait; more are refused.")] = 16,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    models_file: options.ModelsFile = None,
    offline: options.Offline = False,
) -> None:
    """Keep a model loaded, so that a loop in a script does not load it each time.

    sdcli serve --socket ~/.sdcli.sock
    sdcli generate "a cute kitten" --socket ~/.sdcli.sock
    sdcli serve --socket /tmp/sd.sock --model emoji --idle-timeout 60

    `sdcli generate --socket PATH`, or with PATH in $SDCLI_SOCKET, runs there with the same flags, output and exit
    codes. One command runs at a time. The model of the last one stays loaded; that of --model is loaded at once. A
    client that is killed frees its place.
    """
    from sdcli.cli import run
    from sdcli.cli.invocation import Warm
    from sdcli.cli.server import Server
    from sdcli.registry import find_loadable

    options.go_offline(offline)
    check_range("--idle-timeout", idle_timeout, 0, 1e9, hint="600 is ten minutes")
    check_range("--queue", queue, 1, 10_000)
    spec = None if model is None else find_loadable(model, models_file)
    warm = Warm()
    server = Server(socket.expanduser().absolute(), lambda arguments: run(arguments, warm), queue, idle_timeout)
    with options.heavy_imports(), server.cleared_up():
        importlib.import_module("sdcli.batch.run")  # so that the first command need not wait for torch
        from sdcli.device import choose_placement

        if spec is not None:
            settings = GenerateSettings(prompt="", model=spec.name, seed=0, **asdict(spec.defaults))
            warm.benches(choose_placement(device, precision)).of(spec, RunSettings()).easel(settings)
    options.tell(f"listening on {socket}")
    server()
