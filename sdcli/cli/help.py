"""How help is laid out: examples, usage, text, then options in sections. Knows no command. Imports no torch.

It is written here and not by Typer, whose layout differs between its versions and has no sections without Rich.
"""

from __future__ import annotations

import textwrap
from typing import Any

FEW_OPTIONS = 12  # that are read in one go, without sections
OTHER = "Other options"
WIDEST_TERM = 26  # what is longer has a line of its own
WIDEST_HELP = 100  # longer lines are hard to read, however wide the terminal is


def parts_of(command: Any) -> tuple[list[str], str]:
    """The examples of a command's help, the lines that begin with `sdcli`, and the rest of it."""
    lines = (command.help or "").splitlines()
    examples = [line.strip() for line in lines if line.strip().startswith("sdcli ")]
    kept = [line for line in lines if line.strip() not in (*examples, "\b", "\\b")]
    return examples, "\n".join(kept).strip()


def paragraphs_of(text: str) -> list[str]:
    """The paragraphs of a text, each in one line."""
    return [" ".join(paragraph.split()) for paragraph in text.split("\n\n") if paragraph.strip()]


def usage_of(command: Any) -> list[str]:
    """What follows the name of a command: its arguments, the options that it needs, the others."""
    pieces = []
    for param in command.params:
        if param.param_type_name == "argument":
            name = label_of(param) if param.required else f"[{label_of(param)}]"
            pieces.append(f"{name}..." if param.nargs == -1 else name)
    needed = [param for param in command.params if param.param_type_name == "option" and param.required]
    pieces += [f"{shortest(param.opts)} {label_of(param)}" for param in needed]
    pieces.append("[OPTIONS]")
    return [*pieces, "COMMAND [ARGUMENTS]"] if hasattr(command, "commands") else pieces


def sections_of(command: Any, context: Any) -> dict[str, list[tuple[str, str]]]:
    """Rows of what to type and what it does: the arguments, then the options by their panels, in order of the first.

    Few options are one section, whatever their panels.
    """
    shown = [param for param in command.get_params(context) if not getattr(param, "hidden", False)]
    arguments = [param for param in shown if param.param_type_name == "argument"]
    by_panel: dict[str, list[Any]] = {}
    for param in shown:
        if param.param_type_name == "option":
            by_panel.setdefault(getattr(param, "rich_help_panel", None) or OTHER, []).append(param)
    if sum(map(len, by_panel.values())) <= FEW_OPTIONS:
        by_panel = {"Options": [param for param in shown if param.param_type_name == "option"]}
    elif OTHER in by_panel:
        by_panel[OTHER] = by_panel.pop(OTHER)  # to the end
    panels = {"Arguments": arguments} | by_panel
    return {title: [(name_of(param), text_of(param)) for param in params] for title, params in panels.items() if params}


def commands_of(command: Any, context: Any) -> list[tuple[str, str]]:
    """Name and first sentence of each command of a group."""
    names = command.list_commands(context) if hasattr(command, "commands") else []
    found = [(name, command.get_command(context, name)) for name in names]
    return [(name, first_sentence(each)) for name, each in found if not each.hidden]


def first_sentence(command: Any) -> str:
    """What a command does, in one sentence."""
    text = "".join(paragraphs_of(parts_of(command)[1])[:1])
    return f"{text.split('. ')[0].removesuffix('.')}."


def name_of(param: Any) -> str:
    """An argument or option as it is typed: its spellings, the short ones first, and what it takes."""
    if param.param_type_name == "argument":
        return label_of(param)
    spellings = ", ".join(sorted([*param.opts, *param.secondary_opts], key=lambda each: each.startswith("--")))
    takes_none = param.is_flag or getattr(param, "count", False) or param.name == "help"
    return spellings if takes_none else f"{spellings} {label_of(param)}"


def label_of(param: Any) -> str:
    """What stands for a value: its own word for it, or what there is to choose from."""
    kind = getattr(param, "type_descriptor", None) or param.type  # of newer and of older versions of Typer
    choices = getattr(kind, "choices", None) or ()
    return param.metavar or "|".join(str(getattr(each, "value", each)) for each in choices) or param.name.upper()


def shortest(spellings: list[str]) -> str:
    """The shortest spelling of an option."""
    return min(spellings, key=len)


def text_of(param: Any) -> str:
    """What an argument or option does, with its default where its own text does not tell it."""
    text = (param.help or "").strip()
    default = getattr(param.default, "value", param.default)
    silent = default is None or isinstance(default, (bool, list, tuple)) or callable(default) or not param.show_default
    if param.required and param.param_type_name == "option":
        return f"{text} Required."
    if silent or "default:" in text or str(default) == "":
        return text
    return with_default(text, default)


def with_default(text: str, default: object) -> str:
    """A sentence that ends with a default."""
    return f"{text.removesuffix('.')} (default: {default})."


def write_help(command: Any, context: Any, formatter: Any) -> None:
    """Write the help of a command or a group to click's formatter."""
    examples, text = parts_of(command)
    blocks = ["Examples:\n" + "\n".join(f"  {example}" for example in examples)] if examples else []
    blocks.append(wrapped(" ".join(usage_of(command)), formatter.width, f"Usage: {context.command_path} "))
    blocks += [wrapped(paragraph, formatter.width, "  ") for paragraph in paragraphs_of(text)]
    sections = sections_of(command, context)
    if commands := commands_of(command, context):
        sections = {"Commands": commands, **sections}
    blocks += [f"{title}:\n{table(rows, formatter.width)}" for title, rows in sections.items()]
    formatter.write("\n\n".join(blocks) + "\n")


def table(rows: list[tuple[str, str]], width: int) -> str:
    """Terms and what they mean, in two columns."""
    first = min(max(len(term) for term, _ in rows), WIDEST_TERM)
    lines = []
    for term, text in rows:
        if len(term) > first:
            lines.append(f"  {term}")
            term = ""
        lines.append(wrapped(text, width, f"  {term:{first}}  ").rstrip())
    return "\n".join(lines)


def wrapped(text: str, width: int, start: str) -> str:
    """A paragraph in lines of at most `width`; those after the first are indented as far as it. No flag is split."""
    layout = {"break_on_hyphens": False, "break_long_words": False, "subsequent_indent": " " * len(start)}
    return textwrap.fill(text, width, initial_indent=start, **layout) or start
