"""What the README says is true: commands parse, places exist, .ci/run does the test command, the Python runs."""

import re
import shlex
from pathlib import Path

import pytest
import typer.main

from sdcli.cli import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)
LINES = [line for kind, block in BLOCKS if kind == "sh" for line in block.splitlines() if line.strip()]
COMMANDS = [part.strip() for line in LINES for part in re.split(r"&&|\|", line) if part.strip().startswith("sdcli ")]
PLACES = re.findall(r"^\| .+ \| (.+) \|$", README, flags=re.MULTILINE)[1:]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_readme_parses(command):
    """Each names a command that exists and flags that it has, with values of their kind."""
    name, *arguments = shlex.split(command)[1:]
    group = typer.main.get_command(app)
    command = group.commands[name]
    command.make_context(name, arguments, resilient_parsing=False)


@pytest.mark.parametrize("place", PLACES)
def test_every_place_of_the_readme_exists(place):
    """The file is there, and what is said to be in it is defined in it."""
    path, *names = re.findall(r"`([^`]+)`", place)
    source = (ROOT / path).read_text(encoding="utf-8")
    for name in names:
        if not name.startswith("sdcli/"):
            assert name.rpartition(".")[2] in source, f"{path} does not hold {name}"


def test_the_test_command_is_what_ci_runs():
    """The README's test command stands in .ci/run to the letter."""
    command = next(line for line in LINES if "pytest" in line)
    assert command in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


def test_the_python_of_the_readme_makes_a_picture():
    """On the built-in model, as a newcomer would run it."""
    (snippet,) = [block for kind, block in BLOCKS if kind == "python" and "load_pipeline" in block]
    names: dict[str, object] = {}
    exec(compile(snippet, "README.md", "exec"), names)
    assert names["image"].size == (128, 128)
