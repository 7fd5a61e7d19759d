"""What the shell offers on Tab for values that are names; reads models.toml at most. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import typer

from sdcli.errors import SdcliError
from sdcli.registry import PACKAGE_FOLDER, load_registry

PROTOCOL = "_SDCLI_COMPLETE"  # by which the scripts of Typer ask the program what fits
HELP = {
    "install_completion": "Set up completion by Tab in the shell that runs this, by a line in its start-up file.",
    "show_completion": "Print the script for completion by Tab in the shell that runs this.",
}


def among(names: Iterable[str]) -> Callable[[], list[str]]:
    """A completion that knows all names there are."""
    known = list(names)
    return lambda: known


def model_names(ctx: typer.Context) -> list[str]:
    """Names of models.toml; none where it cannot be read, as there is no place for a message on Tab."""
    named = ctx.params.get("models_file")
    try:
        return sorted(load_registry(Path(named) if named else None).models)
    except SdcliError:
        return []


def architectures() -> list[str]:
    """Names that `train --config` knows."""
    return sorted(path.stem for path in (PACKAGE_FOLDER / "training" / "architectures").glob("*.toml"))


def answer_shell(program: Callable[[], Any]) -> None:
    """End the process with what fits, if the shell asks for it: it does so by an environment variable."""
    if os.environ.get(PROTOCOL):
        program().main(args=[], prog_name="sdcli")


def with_completion(command: Any) -> Any:
    """A group whose two options of completion, which Typer adds, say what they do and fail as all else does."""
    for param in command.params:
        if param.name in HELP:
            param.help = HELP[param.name]
            param.callback = guarded(param.callback)
    return command


def guarded(callback: Callable[..., Any]) -> Callable[..., Any]:
    """A callback that ends by an exception of Typer's, and by an error with a hint where the shell is not known."""

    def call(context: Any, param: Any, value: Any) -> Any:
        if not value or context.resilient_parsing:
            return value
        check_shell()
        try:
            return callback(context, param, value)
        except SystemExit as ending:
            raise typer.Exit(ending.code or 0) from ending

    return call


def check_shell() -> None:
    """Refuse where no shell can be told that Typer has a script for.

    Raises:
        SdcliError: it cannot.
    """
    hint = f"bash, zsh, fish and pwsh are known; {PROTOCOL}=source_bash sdcli prints the script for the first"
    try:
        import shellingham

        shell, _ = shellingham.detect_shell()
    except ImportError as error:
        raise SdcliError("the package shellingham, which tells shells apart, is missing", hint=hint) from error
    except (shellingham.ShellDetectionFailure, OSError) as error:
        raise SdcliError("cannot tell which shell runs this", hint=hint) from error
    if shell not in ("bash", "zsh", "fish", "powershell", "pwsh"):
        raise SdcliError(f"there is no completion for the shell {shell}", hint=hint)
