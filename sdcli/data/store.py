"""What was computed once and may be needed again, in one file: small arrays and texts by key.

A key holds the hash of everything that the value follows from, so a stale value is never found. The file may be deleted
at any time.
"""

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path

import numpy

from sdcli.errors import SdcliError


def default_store() -> Path:
    """The file of this user, for all runs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "sdcli" / "training.sqlite3"


class Store:
    """A table of keys and values in an SQLite file, which several threads and processes may use at once.

    Args:
        path: of the file; None keeps everything in memory, and only for this object.

    Raises:
        SdcliError: the file cannot be used.
    """

    def __init__(self, path: Path | None):
        self.path = path
        self._lock = threading.Lock()
        if path is None:
            self._open(":memory:")
            return
        with self._explained():
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._open(path)
        except sqlite3.DatabaseError:  # damaged: it holds nothing that cannot be computed again
            with self._explained():
                for suffix in ("", "-wal", "-shm"):
                    Path(f"{path}{suffix}").unlink(missing_ok=True)
                self._open(path)

    def get(self, key: str) -> bytes | None:
        """The value of a key; None where there is none."""
        with self._lock, self._explained():
            row = self._database.execute("SELECT value FROM kept WHERE key = ?", (key,)).fetchone()
        return None if row is None else row[0]

    def put(self, items: Iterable[tuple[str, bytes]]) -> None:
        """Keep values, all or none of them."""
        with self._lock, self._explained(), self._database:
            self._database.executemany("INSERT OR REPLACE INTO kept VALUES (?, ?)", items)

    def get_array(self, key: str) -> numpy.ndarray | None:
        """An array that was kept; None where there is none."""
        value = self.get(key)
        return None if value is None else numpy.load(BytesIO(value), allow_pickle=False)

    def put_arrays(self, arrays: Iterable[tuple[str, numpy.ndarray]]) -> None:
        """Keep arrays, all or none of them."""
        self.put((key, to_bytes(array)) for key, array in arrays)

    def close(self) -> None:
        """Give the file back; nothing can be asked after."""
        self._database.close()

    def _open(self, path: Path | str) -> None:
        self._database = sqlite3.connect(path, timeout=60, check_same_thread=False)
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = OFF")  # what a power cut takes is computed again
        self._database.execute("CREATE TABLE IF NOT EXISTS kept (key TEXT PRIMARY KEY, value BLOB)")
        self._database.execute("SELECT count(*) FROM (SELECT * FROM kept LIMIT 1)").fetchone()

    @contextlib.contextmanager
    def _explained(self):
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise SdcliError(
                f"cannot use the cache {self.path}: {error}", hint="choose another by --cache FILE, or --cache none"
            ) from error


def to_bytes(array: numpy.ndarray) -> bytes:
    """An array with its shape and type."""
    content = BytesIO()
    numpy.save(content, array, allow_pickle=False)
    return content.getvalue()
