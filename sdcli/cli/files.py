"""Files and pipes of the commands that turn one file into another; `-` is stdin or stdout."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from sdcli.cli import options
from sdcli.errors import SdcliError
from sdcli.files import read_bytes
from sdcli.results import already_there, check_writable, write_result

PIPE = "-"


def read_input(name: str) -> bytes:
    """Content of a file, or of stdin.

    Raises:
        SdcliError: there is no such file, or nobody writes to stdin.
    """
    if name != PIPE:
        return read_bytes(Path(name).expanduser())
    if sys.stdin is None or sys.stdin.isatty():
        raise SdcliError(
            "stdin is closed or the terminal, there is no file to read", hint="pipe one in, or name a file"
        )
    return sys.stdin.buffer.read()


def looks_like_safetensors(start: bytes) -> bool:
    """Whether content begins as safetensors does: the length of the header in eight bytes, then its JSON."""
    return start[8:9] == b"{"


def input_name(name: str) -> str:
    """What to call an input in messages."""
    return "stdin" if name == PIPE else name


class Target:
    """The one file, or stdout, that a command writes.

    Args:
        output: path, or `-` for stdout.
        suffixes: that the path may have.
        if_exists: error, skip, overwrite or number.
        flag: that names it.

    Raises:
        SdcliError: the path has another suffix, is taken, or cannot be written.
    """

    def __init__(self, output: str, suffixes: tuple[str, ...], if_exists: str, flag: str = "--output"):
        self.path = Path(output).expanduser()
        self.to_stdout = output == PIPE
        self.if_exists = if_exists
        self.done = False  # there already, and to be left alone
        if self.to_stdout:
            check_pipe()
            return
        if self.path.suffix.lower() not in suffixes:
            raise SdcliError(f"{flag} {output} must end in {' or '.join(suffixes)}", hint=f"try {output}{suffixes[0]}")
        self.done = already_there([self.path], if_exists)[0]
        if not self.done:
            check_writable([self.path])

    def finish(self, content: bytes, as_json: bool = False, **about: Any) -> None:
        """Write the file, whole or not at all, and print its path, or with `as_json` what is said about it as well."""
        if self.to_stdout:
            options.print_bytes(content)
        else:
            options.print_path(write_result(content, self.path, self.if_exists), as_json, **about)


def check_pipe() -> None:
    """Refuse to write a file to the terminal."""
    if sys.stdout.isatty():
        raise SdcliError("stdout is the terminal, a file does not go there", hint="pipe it, or name a file")
