"""The server behind `sdcli serve`: one command at a time, with the streams of its client and models kept warm."""

from __future__ import annotations

import os
import queue
import signal
import socket
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from sdcli import __version__
from sdcli.cli.ending import Signalled
from sdcli.cli.wire import Message, close_all, connect, receive_message, send_reply
from sdcli.errors import SdcliError

LOOK_EVERY_S = 0.2
PATIENCE_S = 10.0  # for a client to say what it wants
CANCEL = signal.SIGUSR1  # from the thread that watches a client to the thread that works for it


@dataclass
class Job:
    """A command of a client.

    Args:
        connection: to it.
        message: what it wants.
        streams: its stdin, stdout and stderr.
        ending: the signal that it is to end by; it got that itself, or is gone.
    """

    connection: socket.socket
    message: Message
    streams: list[int]
    ending: int | None = None
    over: threading.Event = field(default_factory=threading.Event)

    def is_gone(self) -> bool:
        """Whether the client has hung up."""
        try:
            return self.connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True


class Server:
    """Runs commands one after the other, in the order in which they come.

    Args:
        path: of the socket.
        run: a command's arguments to its exit code.
        waiting: commands that may wait; more are refused.
        idle_timeout_s: after which it ends when nobody comes.

    Raises:
        SdcliError: a server listens there already, or the path cannot be used.
    """

    def __init__(self, path: Path, run: Callable[[list[str]], int], waiting: int, idle_timeout_s: float):
        self.path, self.run, self.idle_timeout_s = path, run, idle_timeout_s
        self.jobs: queue.Queue[Job] = queue.Queue(maxsize=waiting)
        self.job: Job | None = None
        self.ending: int | None = None  # the signal that this process is to end by
        self.listener = listen(path)

    def __call__(self) -> None:
        """Work until nobody has come for a while, or a signal comes."""
        signal.signal(CANCEL, self._cancel)
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._end)
        threading.Thread(target=self._accept, daemon=True, name="accepting").start()
        with self.cleared_up():
            last_used_at = time.monotonic()
            while time.monotonic() - last_used_at < self.idle_timeout_s or not self.jobs.empty():
                try:
                    job = self.jobs.get(timeout=LOOK_EVERY_S)
                except queue.Empty:
                    continue
                self._work(job)
                if self.ending is not None:  # the command has ended by it
                    raise Signalled(self.ending)
                last_used_at = time.monotonic()
            self.close()

    @contextmanager
    def cleared_up(self) -> Iterator[None]:
        """Leave no socket behind, whatever happens."""
        try:
            yield
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Listen no more; clients that come now find nobody."""
        self.path.unlink(missing_ok=True)
        self.listener.close()

    def _accept(self) -> None:
        """Put clients into the queue, or tell them that it is full."""
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return  # the server ends
            threading.Thread(target=self._greet, args=(connection,), daemon=True).start()

    def _greet(self, connection: socket.socket) -> None:
        """Hear what a client wants."""
        if not is_ours(connection):
            connection.close()
            return
        connection.settimeout(PATIENCE_S)
        try:
            message, streams = receive_message(connection)
        except (ValueError, OSError):
            connection.close()
            return
        connection.settimeout(None)
        job = Job(connection, message, streams)
        if message.version != __version__:
            error = f"the server is sdcli {__version__}, this is {message.version}"
            self._refuse(job, error, "start it again")
            return
        try:
            self.jobs.put_nowait(job)
        except queue.Full:
            self._refuse(job, f"the server on {self.path} is busy: {self.jobs.maxsize} wait", "try again later")

    def _refuse(self, job: Job, error: str, hint: str) -> None:
        with suppress(OSError):
            send_reply(job.connection, {"error": error, "hint": hint})
        job.connection.close()
        close_all(job.streams)

    def _work(self, job: Job) -> None:
        """Run a command, unless its client is gone, and tell it how that ended."""
        code = 128 + signal.SIGTERM
        try:
            if job.is_gone():
                return
            threading.Thread(target=self._watch, args=(job,), daemon=True, name="watching").start()
            with in_place_of(job):
                self.job = job
                try:
                    code = self.run(job.message.arguments)
                    sys.stdout.flush()
                except BrokenPipeError:
                    code = 128 + signal.SIGPIPE
                except Signalled as ending:
                    code = 128 + ending.number
                except Exception:  # noqa: BLE001 - a bug ends the command that met it, not those of others
                    traceback.print_exc()
                    code = 1
                finally:
                    self.job = None
        finally:
            job.over.set()
            with suppress(OSError):
                send_reply(job.connection, {"code": code})
            job.connection.close()
            close_all(job.streams)

    def _watch(self, job: Job) -> None:
        """End a command when its client is gone, or passes a signal on."""
        try:
            said = job.connection.recv(1)
        except OSError:
            said = b""
        if not job.over.is_set():
            job.ending = said[0] if said else signal.SIGTERM
            signal.pthread_kill(threading.main_thread().ident, CANCEL)

    def _end(self, number: int, frame: object) -> None:
        """End the command in work, if there is one, and then the server; a second signal ends it at once."""
        signal.signal(number, signal.SIG_DFL)
        self.ending = number
        raise Signalled(number)

    def _cancel(self, number: int, frame: object) -> None:
        """In the main thread: end what is being done for a client that wants no more of it."""
        if self.job is not None and self.job.ending is not None:
            raise Signalled(self.job.ending)


@contextmanager
def in_place_of(job: Job) -> Iterator[None]:
    """Take a client's streams, folder and environment for a while."""
    folder, environment, own = os.getcwd(), dict(os.environ), (sys.stdin, sys.stdout, sys.stderr)
    kept = [os.dup(number) for number in range(len(job.streams))]
    try:
        for number, stream in enumerate(job.streams):
            os.dup2(stream, number)
        sys.stdin = open(0, encoding="utf-8", closefd=False)
        sys.stdout = open(1, "w", encoding="utf-8", errors="surrogateescape", closefd=False)
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)
        os.environ.clear()
        os.environ.update(job.message.environment)
        os.chdir(job.message.folder)
        yield
    finally:
        with suppress(OSError, ValueError):
            sys.stderr.flush()
        sys.stdin, sys.stdout, sys.stderr = own
        for number, stream in enumerate(kept):
            os.dup2(stream, number)
        close_all(kept)
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)


def listen(path: Path) -> socket.socket:
    """A socket at a path, for its owner only; what a killed server has left there is replaced.

    Raises:
        SdcliError: a server listens there, or something else has the name.
    """
    if (there := connect(path)) is not None:
        there.close()
        raise SdcliError(f"a server listens on {path} already", hint="choose another --socket")
    if path.exists() and not path.is_socket():
        raise SdcliError(f"{path} is there, and no socket", hint="choose another --socket")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        path.unlink(missing_ok=True)
        listener.bind(os.fspath(path))
    except OSError as error:
        listener.close()
        raise SdcliError(f"cannot make the socket {path}: {error}", hint="choose another --socket") from error
    finally:
        os.umask(before)
    listener.listen()
    return listener


def is_ours(connection: socket.socket) -> bool:
    """Whether the client is of the same user, as far as the system tells."""
    if not hasattr(socket, "SO_PEERCRED"):
        return True  # the permissions of the socket say so
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return struct.unpack("3i", credentials)[1] == os.geteuid()
