"""The help of every command as it is read: whole, in sections, at any width, with nothing left unsaid."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import sdcli
from sdcli.cli import program, run
from sdcli.cli.help import FEW_OPTIONS, name_of, sections_of, text_of


def all_commands() -> dict[str, object]:
    """Every command and group, by the words that call it, in the order of the help."""
    found = {}

    def add(words: tuple[str, ...], command: object) -> None:
        found[" ".join(words)] = command
        for name, inner in getattr(command, "commands", {}).items():
            add((*words, name), inner)

    add((), program())
    return found


COMMANDS = all_commands()


def help_of(words: str, capsys, monkeypatch, columns: int) -> str:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert run([*words.split(), "--help"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("columns", [60, 80, 120])
@pytest.mark.parametrize("words", COMMANDS)
def test_help_fits_the_terminal_and_is_cut_nowhere(words, columns, capsys, monkeypatch):
    """Examples, which are there to be copied, and what is one word are as long as they are; all else is wrapped."""
    text = help_of(words, capsys, monkeypatch, columns)
    after = text.partition("\n\n")[2] if text.startswith("Examples:\n") else text
    too_long = [line for line in after.splitlines() if len(line) > columns]
    assert [line for line in too_long if len(line.split()) > 2 and not line.startswith("Usage:")] == []
    assert not re.search(r"\w\.\.\.$", after, flags=re.MULTILINE)
    assert not re.search(r"--[a-z]+-$|\w-$", after, flags=re.MULTILINE)  # no flag is split at a hyphen


@pytest.mark.parametrize("words", COMMANDS)
def test_every_argument_and_option_is_explained(words):
    """A sentence each; a value has a name of its own or the list of what there is to choose from."""
    command = COMMANDS[words]
    with typer.Context(command) as context:
        for title, rows in sections_of(command, context).items():
            assert title[0].isupper()
            for name, text in rows:
                assert re.match(r"[A-Z\d]|\.", text), f"{words} {name}: no sentence: {text!r}"
                assert text.endswith("."), f"{words} {name}: no sentence: {text!r}"
    for param in command.params:
        takes_none = param.param_type_name == "option" and param.is_flag
        assert takes_none or param.metavar or "|" in name_of(param), name_of(param)


@pytest.mark.parametrize("words", COMMANDS)
def test_defaults_are_told_once(words):
    """Those that the flags have themselves and those that their texts tell, in one form."""
    for param in COMMANDS[words].params:
        text = text_of(param)
        assert text.count("default:") <= 1 and "[default" not in text
        default = getattr(param.default, "value", param.default)
        if isinstance(default, (str, int, float)) and not isinstance(default, bool):
            assert f"(default: {default})." in text


def test_many_options_are_shown_in_sections(capsys, monkeypatch):
    """Each once, those that belong together in one place; few of them are one list."""
    lines = help_of("generate", capsys, monkeypatch, 80).splitlines()
    titles = [line for line in lines if re.fullmatch(r"[A-Z][^:]*:", line)]
    assert titles[:2] == ["Examples:", "Arguments:"] and titles[-1] == "Other options:"
    assert {"Model:", "Size and sampling:", "Output:", "Many pictures:", "Machine:"} < set(titles)
    shown = [line for line in lines if line.startswith("  -")]
    assert len(shown) == len([param for param in COMMANDS["generate"].params if param.param_type_name == "option"]) + 1
    place = {line.split(" ")[2].rstrip(","): number for number, line in enumerate(lines) if line.startswith("  -")}
    assert lines.index("Size and sampling:") < place["--sampler"] < place["--eta"] < lines.index("ControlNet:")
    assert len(COMMANDS["encode"].params) <= FEW_OPTIONS
    assert "Options:" in help_of("encode", capsys, monkeypatch, 80).splitlines()


def test_what_has_no_section_comes_last():
    """Wherever it is declared; so a new option shows in a long help before it has a section."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None)

    @app.command()
    def many(
        new: bool = typer.Option(False, "--new", help="New."),
        old: bool = typer.Option(False, "--old", help="Old.", rich_help_panel="Old ones"),
    ) -> None:
        """Do."""

    command = typer.main.get_command(app)
    command.params += [param for param in command.params if param.name == "old"] * FEW_OPTIONS
    with typer.Context(command) as context:
        sections = sections_of(command, context)
    assert list(sections) == ["Old ones", "Other options"]
    assert [name for name, _ in sections["Other options"]][0] == "--new"


def test_usage_says_what_is_needed(capsys, monkeypatch):
    """Arguments by their names, and options that may not be left out."""
    for words, usage in {
        "encode": "Usage: sdcli encode IMAGE... -o FILE.safetensors [OPTIONS]",
        "generate": "Usage: sdcli generate [PROMPT]... [OPTIONS]",
        "models": "Usage: sdcli models [OPTIONS] COMMAND [ARGUMENTS]",
    }.items():
        assert usage in help_of(words, capsys, monkeypatch, 80).splitlines()


def test_help_reads_no_heavy_library():
    """What takes long to import is known; a clock would tell of the machine."""
    code = (
        "import sys\nfrom sdcli.cli import run\ncode = run(['--help'])\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'PIL', 'numpy', 'rich', 'safetensors', 'accelerate', 'json5',"
        " 'asyncio', 'urllib.request', 'typer.rich_utils'}\nsys.exit(str(sorted(heavy & set(sys.modules))))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(sdcli.__file__).parent.parent)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.stderr.strip() == "[]"
