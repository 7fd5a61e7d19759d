"""The command line: commands, and every way in which one can end as text and an exit code. Imports no torch."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import warnings
from types import FrameType
from typing import Any

import typer

from sdcli import __version__
from sdcli.cli.add_noise import add_noise
from sdcli.cli.completion import answer_shell, with_completion
from sdcli.cli.data import data
from sdcli.cli.decode import decode
from sdcli.cli.encode import encode
from sdcli.cli.ending import Signalled
from sdcli.cli.evaluate import evaluate
from sdcli.cli.generate import generate
from sdcli.cli.help import WIDEST_HELP
from sdcli.cli.info import info
from sdcli.cli.invocation import Invocation, Warm
from sdcli.cli.models import models
from sdcli.cli.options import ExamplesFirst, ExamplesFirstGroup
from sdcli.cli.plot import plot
from sdcli.cli.reproduce import reproduce
from sdcli.cli.serve import serve
from sdcli.cli.sweep import sweep
from sdcli.cli.train import train
from sdcli.errors import EXIT_OUT_OF_MEMORY, SdcliError

# The exceptions of Click, which older versions of Typer import and newer ones carry inside.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]

app = typer.Typer(
    cls=ExamplesFirstGroup,
    name="sdcli",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"max_content_width": WIDEST_HELP},
    pretty_exceptions_enable=False,
)
for command in (generate, encode, decode, add_noise, train, info, reproduce, sweep, serve):
    app.command(cls=ExamplesFirst, no_args_is_help=command is not train)(command)
app.add_typer(models, name="models")
app.add_typer(data, name="data")
app.add_typer(evaluate, name="evaluate")
app.add_typer(plot, name="plot")


def show_version(wanted: bool) -> None:
    """Print the version and end, if that was asked for."""
    if wanted:
        typer.echo(f"sdcli {__version__}")
        raise typer.Exit


@app.callback()
def about(
    version: bool = typer.Option(False, "--version", callback=show_version, is_eager=True, help="Print the version."),
) -> None:
    """Text to image from the shell: generate, train, and look inside.

    sdcli generate "a cute kitten"
    sdcli generate "a cute kitten" --num-images 4 --seed 1 -o kittens/
    sdcli encode photo.png -o - | sdcli add-noise - -t 600 --seed 1 -o - | sdcli decode - -o noisy.png
    sdcli models list
    sdcli COMMAND --help
    """


def main() -> None:
    """Run the command that the arguments ask for, and end the process with the exit code for what happened."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # a background job of a script ignores Ctrl-C; so it stays
            signal.signal(number, raise_signalled)
    if sys.stdout is None:  # closed by the shell: `>&-`
        sys.stdout = open(os.devnull, "w", encoding="utf-8")
    sys.stdout.reconfigure(errors="surrogateescape")  # a file name need not be text
    quieten_libraries()
    answer_shell(program)
    try:
        code = run(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:
        code = closed_pipe()
    except Signalled as ending:  # after the command's own end
        code = 128 + ending.number
    gc.freeze()  # the interpreter's last collections need not walk through all of torch: a second saved
    raise SystemExit(code)


def program() -> Any:
    """The root of all commands."""
    return with_completion(typer.main.get_command(app))


def run(arguments: list[str], warm: Warm | None = None) -> int:
    """Run a command and give its exit code; a bug raises, and so does a stdout that nobody reads.

    Args:
        arguments: of the program.
        warm: models of a server that are loaded already.
    """
    invocation = Invocation(tuple(arguments), warm)
    try:
        with program().make_context("sdcli", list(arguments), obj=invocation) as context:
            context.command.invoke(context)
    except SdcliError as error:
        return tell(str(error), error.hint, error.exit_code)
    except UsageError as error:
        return tell_usage(error)
    except typer.Exit as ending:
        return ending.exit_code
    except typer.Abort:
        return tell("interrupted", "", 130)
    except Signalled as ending:
        return tell(
            f"interrupted by {signal.Signals(ending.number).name}", "finished files are kept", 128 + ending.number
        )
    except MemoryError:
        return tell("out of memory", "close other programs, or take a smaller model", EXIT_OUT_OF_MEMORY)
    return 0


def raise_signalled(number: int, frame: FrameType | None) -> None:
    """End what is being done, with its clean-up; a second signal ends the process at once."""
    signal.signal(number, signal.SIG_DFL)
    raise Signalled(number)


def tell(message: str, hint: str, code: int) -> int:
    """Say on stderr what was wrong and what to try, a line each, and give back the exit code."""
    typer.echo(f"error: {one_line(message)}", err=True)
    if hint:
        typer.echo(f"hint:  {one_line(hint)}", err=True)
    return code


def tell_usage(error: Exception) -> int:
    """Say that a flag or argument is wrong; a command without any shows its help."""
    message, context = error.format_message(), error.ctx
    if type(error).__name__ == "NoArgsIsHelpError":
        typer.echo(message, err=True)
        return error.exit_code
    hint = f"{context.command_path} --help shows what there is" if context else "sdcli --help shows what there is"
    return tell(message, hint, error.exit_code)


def one_line(text: str) -> str:
    """A text without line breaks."""
    return " ".join(text.split())


def closed_pipe() -> int:
    """End quietly when nobody reads stdout any more, as `| head` does; the code is the shell's for SIGPIPE."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the last flush does not fail again
    return 128 + signal.SIGPIPE


def quieten_libraries() -> None:
    """Keep progress bars, advice and warnings of libraries off the terminal, unless Python's -W asks for them."""
    quiet = {"TRANSFORMERS_VERBOSITY": "error", "DIFFUSERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    for name, value in quiet.items():
        os.environ.setdefault(name, value)
    logging.getLogger().addHandler(logging.NullHandler())
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
