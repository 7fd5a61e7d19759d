"""docs/cli.md is what the program says, whole, and the same on every machine."""

import json
import re
from pathlib import Path

import cli_contract
import pytest
import typer
from write_cli_reference import DOCUMENT, command_blocks, documentation, walk

import sdcli
from sdcli.cli import program

PACKAGE = Path(sdcli.__file__).parent
READ = re.compile(r"""environ(?:\.get\(|\[|\.pop\()\s*["'](\w+)["']|["'](SDCLI_\w+)["']""")
OF_LAUNCHERS = re.compile(r"(ACCELERATE|FSDP|TRANSFORMERS|DIFFUSERS|HF_HUB_DISABLE)_")  # which nobody sets by hand


def contexts() -> list[typer.Context]:
    return list(walk(typer.Context(program(), info_name="sdcli")))


def test_the_reference_is_up_to_date():
    """After a change to a command: python tests/write_cli_reference.py."""
    assert DOCUMENT.read_text(encoding="utf-8") == documentation(), "run: python tests/write_cli_reference.py"


@pytest.mark.parametrize("columns", ["40", "200"])
def test_the_reference_does_not_depend_on_the_terminal(columns, monkeypatch):
    """Nor on what the environment says else."""
    before = documentation()
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("SDCLI_MODELS", "/nowhere.toml")
    monkeypatch.setenv("XDG_CACHE_HOME", "/nowhere")
    assert documentation() == before


@pytest.mark.parametrize("context", contexts(), ids=lambda context: context.command_path)
def test_every_command_is_told_whole(context):
    """Under a heading of its own: each example, every spelling of each option, every default."""
    text = DOCUMENT.read_text(encoding="utf-8")
    section = text.split(f"\n## {context.command_path}\n")[1].split("\n## ")[0]
    assert section.strip() == "\n\n".join(command_blocks(context)[1:]).strip()
    for param in context.command.get_params(context):
        spellings = param.opts if param.param_type_name == "option" else [param.metavar or param.name.upper()]
        assert all(re.search(rf"^- `[^`]*{re.escape(each)}[ ,`]", section, re.MULTILINE) for each in spellings)
        default = getattr(param.default, "value", param.default)
        if isinstance(default, (str, int, float)) and not isinstance(default, bool):
            assert f"default: {default})" in " ".join(section.split())
    for line in (context.command.help or "").splitlines():
        if line.strip().startswith("sdcli "):
            assert f"\n{line.strip()}\n" in section
    for link, path in re.findall(r"\[`(sdcli[^`]*)`\]\(#([\w-]+)\)", section):
        assert path == link.replace(" ", "-") and f"\n## {link}\n" in text


def test_no_line_of_the_lists_is_long_and_no_markup_is_open():
    """Tables aside, the source is pleasant to read; inline code is closed in every paragraph."""
    for block in DOCUMENT.read_text(encoding="utf-8").split("\n\n"):
        if not block.startswith(("| ", "```")):
            assert block.count("`") % 2 == 0, block
            assert max(map(len, block.splitlines())) <= 120, block


def test_every_variable_that_the_program_reads_is_told():
    """But those that launchers and libraries have among themselves."""
    read = set()
    for path in PACKAGE.rglob("*.py"):
        read |= {name for pair in READ.findall(path.read_text(encoding="utf-8")) for name in pair if name}
    told = cli_contract.VARIABLES.keys()
    assert {name for name in read if not OF_LAUNCHERS.match(name)} - told == set()


def test_every_job_key_is_one_that_is_taken():
    """And every key that is taken is there."""
    from sdcli.jobs import OF_JOBS, read_job
    from sdcli.setting_types import ALIASES, KINDS

    keys = [key.strip("`") for key, _, _ in cli_contract.job_keys()]
    assert set(keys) == {*OF_JOBS, *ALIASES, *KINDS} - set(ALIASES.values())
    samples = {"text": "a", "whole": 1, "number": 1.0, "list": []}
    for key, kind, _ in cli_contract.job_keys():
        read_job(json.dumps({key.strip("`"): samples[kind.split()[1]]}), "here")
