"""`sdcli generate --socket`: hand the command to a server that has its model loaded already. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from sdcli.cli import options
from sdcli.cli.ending import Signalled
from sdcli.cli.wire import Message, connect, receive_reply, send_message
from sdcli.errors import SdcliError

VARIABLE = "SDCLI_SOCKET"


def forward(socket_flag: str | None, arguments: Sequence[str]) -> int | None:
    """Run a command in the server that a flag or the environment names, and give its exit code.

    Returns:
        None where the command is to be run here: nobody named a server, or that of the environment is gone.

    Raises:
        SdcliError: nobody listens where the flag says, the server is busy, or it ended before it was done.
    """
    named = socket_flag or os.environ.get(VARIABLE)
    if not named:
        return None
    path = Path(named).expanduser()
    connection = connect(path)
    if connection is None and socket_flag is None:
        options.warn(f"nobody listens on ${VARIABLE}, {path}; the model is loaded here")
        return None
    if connection is None:
        raise SdcliError(f"nobody listens on {path}", hint=f"start a server: sdcli serve --socket {path}")
    with connection:
        environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
        try:
            send_message(connection, Message(without_socket(arguments), os.getcwd(), environment))
            reply = wait_for(connection)
        except ConnectionError as error:
            raise SdcliError(f"the server on {path} is gone", hint="start it again") from error
    if reply is None:
        raise SdcliError(f"the server on {path} ended before it was done", hint="start it again")
    if "error" in reply:
        raise SdcliError(reply["error"], hint=reply["hint"])
    return reply["code"]


def wait_for(connection) -> dict | None:
    """The server's reply; a signal that comes meanwhile is passed on, the next one ends this process."""
    try:
        return receive_reply(connection)
    except Signalled as ending:
        connection.sendall(bytes([ending.number]))
        return receive_reply(connection)


def without_socket(arguments: Sequence[str]) -> list[str]:
    """Arguments without --socket and its value."""
    kept, place = [], 0
    while place < len(arguments):
        if arguments[place] == "--":
            return [*kept, *arguments[place:]]
        if arguments[place] == "--socket":
            place += 1
        elif not arguments[place].startswith("--socket="):
            kept.append(arguments[place])
        place += 1
    return kept
