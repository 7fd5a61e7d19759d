"""Write docs/cli.md: every command as the program itself tells it, then what they have in common."""

import re
import textwrap
from pathlib import Path

import typer
from cli_contract import common_sections

from sdcli.cli import program
from sdcli.cli.help import commands_of, paragraphs_of, parts_of, sections_of, usage_of

DOCUMENT = Path(__file__).parent.parent / "docs" / "cli.md"
WIDTH = 120
INTRODUCTION = """\
# The command line

Every command, as `sdcli COMMAND --help` tells it, then what all of them have in common: [exit codes](#exit-codes),
[streams](#streams), [progress events](#progress-events), [job files](#job-files), [environment
variables](#environment-variables), [files](#files) and [completion by Tab](#completion-by-tab).

Written by `python tests/write_cli_reference.py` from the program; a test compares."""


def documentation() -> str:
    """The content of docs/cli.md."""
    root = typer.Context(program(), info_name="sdcli")
    with root:
        commands = list(walk(root))
        contents = [f"- [`{context.command_path}`](#{anchor(context.command_path)})" for context in commands]
        blocks = [INTRODUCTION, "\n".join(contents)]
        for context in commands:
            blocks += command_blocks(context)
    return "\n\n".join([*blocks, *common_sections()]) + "\n"


def walk(context: typer.Context):
    """The context of a command, then those of the commands in it, in the order of the help."""
    yield context
    for name, _ in commands_of(context.command, context):
        yield from walk(typer.Context(context.command.get_command(context, name), info_name=name, parent=context))


def command_blocks(context: typer.Context) -> list[str]:
    """The section of a command: examples, usage, text, commands, then arguments and options."""
    command = context.command
    examples, text = parts_of(command)
    first, *others = paragraphs_of(text)
    blocks = [f"## {context.command_path}", prose(first)]
    if examples:
        blocks.append("```sh\n" + "\n".join(examples) + "\n```")
    blocks.append(f"```text\n{usage_lines(context)}\n```")
    blocks += [prose(paragraph) for paragraph in others]
    for name, sentence in commands_of(command, context):
        path = f"{context.command_path} {name}"
        blocks.append(item(f"[`{path}`](#{anchor(path)})", sentence))
    for title, rows in sections_of(command, context).items():
        blocks += [f"**{title}**", "\n".join(item(f"`{name}`", text) for name, text in rows)]
    return joined_items(blocks)


def usage_lines(context: typer.Context) -> str:
    """How a command is called."""
    start = f"{context.command_path} "
    return textwrap.fill(start + " ".join(usage_of(context.command)), WIDTH, subsequent_indent=" " * len(start))


def joined_items(blocks: list[str]) -> list[str]:
    """The blocks, with list items that follow each other in one."""
    joined: list[str] = []
    for block in blocks:
        if joined and block.startswith("- ") and joined[-1].startswith("- "):
            joined[-1] += f"\n{block}"
        else:
            joined.append(block)
    return joined


def item(name: str, text: str) -> str:
    """A list item: what to type, as Markdown, and what it does."""
    return textwrap.fill(
        f"{name}: {markdown(text)}",
        WIDTH,
        initial_indent="- ",
        subsequent_indent="  ",
        break_on_hyphens=False,
        break_long_words=False,
    )


def prose(text: str) -> str:
    """A paragraph."""
    return textwrap.fill(markdown(text), WIDTH, break_on_hyphens=False, break_long_words=False)


def markdown(text: str) -> str:
    """A text of the help, with flags, templates, variables and file names as code."""
    code = (
        r"--[a-z][\w-]*|(?<!\w)-[a-zA-Z]\b|\{+[\w|]+\}+|\$[A-Z_]+=?\w*|[~.]?/?[\w/.-]*\w\.(?:toml|jsonl|json|sqlite3)\b"
    )
    text = re.sub(rf"(?<![`\w])({code})", r"`\1`", text)
    return re.sub(r"([<*])", r"\\\1", text)


def anchor(path: str) -> str:
    """What a heading is linked by."""
    return path.replace(" ", "-")


if __name__ == "__main__":
    DOCUMENT.write_text(documentation(), encoding="utf-8")
