"""docs/theory.md is true: its Python runs, its commands parse, what it links to and names exists."""

import re
import shlex
from pathlib import Path

import pytest
import torch
import typer.main

from sdcli.cli import app

DOCS = Path(__file__).parent.parent / "docs"
TEXT = (DOCS / "theory.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
COMMANDS = re.findall(r"^`(sdcli .+)`$", TEXT, flags=re.MULTILINE)
LINKS = re.findall(r"\[([^\]]*)\]\(([^)]+)\)", TEXT)
ROWS = re.findall(r"^\| .+ \| `([^`]+)`, `([^`]+)` \| `([^`]+)`, `([^`]+)` \|$", TEXT, flags=re.MULTILINE)
MOST_BYTES = 150_000  # of a figure


def test_every_snippet_runs_and_its_numbers_hold():
    """Top to bottom, as a reader would type them; the assertions are the numbers of the text."""
    torch.manual_seed(0)
    names: dict[str, object] = {}
    for snippet in SNIPPETS:
        exec(compile(snippet, "theory.md", "exec"), names)
    assert len(SNIPPETS) == 10


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_parses(command):
    """And each figure has one."""
    name, *arguments = shlex.split(command)[1:]
    group = typer.main.get_command(app)
    context = group.commands[name].make_context(name, arguments)
    name, command, rest = context.command.resolve_command(context, context._protected_args + context.args)
    command.make_context(name, rest, parent=context)
    assert len(COMMANDS) == TEXT.count("](figures/")


@pytest.mark.parametrize(("label", "target"), LINKS)
def test_every_link_leads_somewhere(label, target):
    """A function that is linked is defined in that file; a figure is small enough for a repository."""
    path = (DOCS / target).resolve()
    assert path.is_file()
    if path.suffix == ".py":
        assert re.search(rf"^(def|class) {label.strip('`')}\b", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    else:
        assert path.stat().st_size < MOST_BYTES


@pytest.mark.parametrize(("file", "name", "test_file", "test"), ROWS)
def test_every_equation_has_its_function_and_its_test(file, name, test_file, test):
    """Both are where the table says."""
    for path, defined in ((file, name), (test_file, test)):
        source = (DOCS.parent / path).read_text(encoding="utf-8")
        assert re.search(rf"^(def|class) {defined}\b", source, flags=re.MULTILINE), f"{path} lacks {defined}"


def test_the_table_is_read_whole():
    """Each row has the form that the test above looks for."""
    table = TEXT.partition("| equation |")[2]
    assert len(ROWS) == sum(line.startswith("| ") for line in table.splitlines())
