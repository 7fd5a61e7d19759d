"""What passes through the socket of `sdcli serve`: a request with the streams of its client, and the exit code.

The client hands over its stdin, stdout and stderr themselves, so that results, progress and pipes are as in a process
of its own. While it waits it may send the number of a signal that it got.
"""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdcli import __version__
from sdcli.errors import SdcliError

STREAMS = 3  # stdin, stdout, stderr
LARGEST_MESSAGE = 2**24  # bytes: arguments and environment


@dataclass(frozen=True)
class Message:
    """A command to run.

    Args:
        arguments: of the program.
        folder: to run it in.
        environment: of the client.
        version: of the client.
    """

    arguments: list[str]
    folder: str
    environment: dict[str, str]
    version: str = __version__


def connect(path: Path) -> socket.socket | None:
    """A connection to the server at a path; None if nobody listens there.

    Raises:
        SdcliError: the path is no socket, or not ours.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(os.fspath(path))
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        return None
    except OSError as error:
        connection.close()
        raise SdcliError(
            f"cannot use the socket {path}: {error}", hint="sdcli serve --socket PATH makes one"
        ) from error
    return connection


def send_message(connection: socket.socket, message: Message) -> None:
    """Hand over a command, and the three streams of this process."""
    content = json.dumps(vars(message)).encode()
    socket.send_fds(connection, [len(content).to_bytes(4, "big")], list(range(STREAMS)))
    connection.sendall(content)


def receive_message(connection: socket.socket) -> tuple[Message, list[int]]:
    """A command and the streams of its client.

    Raises:
        ValueError: it is none; streams that came are closed.
        OSError: the client is gone.
    """
    length, streams, _, _ = socket.recv_fds(connection, 4, STREAMS)
    try:
        size = int.from_bytes(length, "big")
        if len(streams) != STREAMS or len(length) != 4 or size > LARGEST_MESSAGE:
            raise ValueError("the message does not begin as one of ours")
        return Message(**json.loads(receive(connection, size))), streams
    except (ValueError, TypeError, OSError) as error:
        close_all(streams)
        raise ValueError(str(error)) from error


def receive(connection: socket.socket, size: int) -> bytes:
    """So many bytes.

    Raises:
        ValueError: there are fewer.
    """
    parts = []
    while size:
        part = connection.recv(min(size, 2**16))
        if not part:
            raise ValueError("the message is cut off")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def close_all(streams: list[int]) -> None:
    """Close file descriptors."""
    for each in streams:
        os.close(each)


def send_reply(connection: socket.socket, reply: dict[str, Any]) -> None:
    """Tell the client how its command ended."""
    connection.sendall(json.dumps(reply).encode() + b"\n")


def receive_reply(connection: socket.socket) -> dict[str, Any] | None:
    """How a command ended; None if the server is gone."""
    content = b""
    while not content.endswith(b"\n"):
        part = connection.recv(4096)
        if not part:
            return None
        content += part
    return json.loads(content)
