"""Files appear whole or not at all, and never over one that is to stay."""

import signal
import subprocess
import sys

import pytest

from sdcli import files
from sdcli.errors import SdcliError
from sdcli.files import delete_unfinished, write_whole

HANGS = """
import sys, time
from pathlib import Path
from sdcli import files
files.os.fsync = lambda descriptor: print("writing", flush=True) or time.sleep(60)
files.write_whole(b"half of it", Path(sys.argv[1]))
"""


def test_without_replacement_the_file_that_is_there_stays(tmp_path):
    """And no temporary file does."""
    path = tmp_path / "a.txt"
    write_whole(b"first", path, replace=False)
    with pytest.raises(FileExistsError):
        write_whole(b"second", path, replace=False)
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    """The disk fills up before the rename."""
    path = tmp_path / "a.txt"
    path.write_bytes(b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(SdcliError, match="No space left on device") as raised:
        write_whole(b"new", path)
    assert "space" in raised.value.hint
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_is_refused(tmp_path):
    """A file has its name; with and without replacement."""
    (tmp_path / "file").touch()
    for replace in (True, False):
        with pytest.raises(SdcliError, match="cannot make the folder"):
            write_whole(b"x", tmp_path / "file" / "a.png", replace)


def test_what_a_killed_process_left_is_deleted_and_nothing_else(tmp_path):
    """Not what a process is writing, nor files of others, nor where there is no folder."""
    (tmp_path / ".mine.tmp").touch()
    writer = subprocess.Popen([sys.executable, "-c", HANGS, str(tmp_path / "a.png")], stdout=subprocess.PIPE)
    writer.stdout.readline()
    delete_unfinished(tmp_path)
    left = {path.name for path in tmp_path.iterdir()} - {".mine.tmp"}
    assert len(left) == 1 and left.pop().startswith(".a.png.")
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    delete_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".mine.tmp"]
    delete_unfinished(tmp_path / "nowhere")


def test_a_file_whose_half_is_deleted_meanwhile_is_written_again(tmp_path, monkeypatch):
    """By another machine, for which it is not locked."""
    publish, deleted = files.publish, []

    def late(temporary, path, replace):
        if not deleted:
            deleted.append(temporary.unlink())
        publish(temporary, path, replace)

    monkeypatch.setattr(files, "publish", late)
    write_whole(b"whole", tmp_path / "a.png", replace=False)
    assert deleted and (tmp_path / "a.png").read_bytes() == b"whole"
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
