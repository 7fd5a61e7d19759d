"""The manifest: lines for good, claims that end with their process."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sdcli.batch.manifest import NAME, Manifest, seed_in
from sdcli.errors import SdcliError

OTHER = """
import sys, time
from pathlib import Path
from sdcli.batch.manifest import Manifest
manifest = Manifest(Path(sys.argv[1]), 5)
print(manifest.seed, manifest.claim(Path(sys.argv[1]) / "a.png"), flush=True)
time.sleep(float(sys.argv[2]))
"""


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / NAME).read_text().splitlines()]


def other(folder: Path, seconds: float) -> subprocess.Popen:
    process = subprocess.Popen([sys.executable, "-c", OTHER, str(folder), str(seconds)], stdout=subprocess.PIPE)
    process.said = process.stdout.readline().decode().split()
    return process


def test_the_first_to_come_says_the_seed(tmp_path):
    """And all others take it."""
    assert seed_in(tmp_path) is None
    with Manifest(tmp_path / "new" / "folder", 7) as manifest:
        assert manifest.seed == 7
    assert seed_in(tmp_path / "new" / "folder") == 7
    with Manifest(tmp_path / "new" / "folder", 8) as manifest:
        assert manifest.seed == 7
    assert lines(tmp_path / "new" / "folder") == [{"schema": "sdcli.manifest/1", "seed": 7}]


def test_each_picture_has_one_line(tmp_path):
    """However often it is written down, in this run or the next; another key is another line."""
    for _ in range(2):
        with Manifest(tmp_path, 7) as manifest:
            manifest.add(tmp_path / "a.png", "k1", {"id": "x"})
            manifest.add(tmp_path / "sub" / "b.png", "k2", {})
    with Manifest(tmp_path, 7) as manifest:
        manifest.add(tmp_path / "a.png", "k3", {})
    assert lines(tmp_path)[1:] == [
        {"id": "x", "key": "k1", "path": "a.png"},
        {"key": "k2", "path": "sub/b.png"},
        {"key": "k3", "path": "a.png"},
    ]


def test_a_torn_line_goes_and_a_damaged_one_stays_alone(tmp_path):
    """As a power cut leaves them."""
    with Manifest(tmp_path, 7) as manifest:
        manifest.add(tmp_path / "a.png", "k1", {})
    whole = (tmp_path / NAME).read_bytes()
    (tmp_path / NAME).write_bytes(whole + b'{"key": "k2", "pa')
    with Manifest(tmp_path, 7) as manifest:
        assert manifest.keys == {"a.png": "k1"}
    assert (tmp_path / NAME).read_bytes() == whole
    (tmp_path / NAME).write_bytes(whole + b"\0\0\0\n")
    with Manifest(tmp_path, 7) as manifest:
        manifest.add(tmp_path / "b.png", "k2", {})
        assert manifest.keys == {"a.png": "k1", "b.png": "k2"}


@pytest.mark.parametrize("content", [b"{}\n", b'{"schema": "sdcli.manifest/2", "seed": 1}\n', b"hello\n", b"[1]\n"])
def test_what_is_no_manifest_is_left_alone(tmp_path, content):
    """It may be the user's own file."""
    (tmp_path / NAME).write_bytes(content)
    with pytest.raises(SdcliError, match="no manifest"):
        Manifest(tmp_path, 7)
    assert (tmp_path / NAME).read_bytes() == content
    assert seed_in(tmp_path) is None


def test_a_claim_is_for_one_process_and_ends_with_it(tmp_path):
    """Even where that is killed."""
    process = other(tmp_path, 60)
    assert process.said == ["5", "True"]
    with Manifest(tmp_path, 7) as manifest:
        assert manifest.seed == 5
        assert not manifest.claim(tmp_path / "a.png")
        assert manifest.claim(tmp_path / "b.png")
        process.send_signal(signal.SIGKILL)
        process.wait()
        manifest.wait_for(tmp_path / "a.png")
        second = other(tmp_path, 0)
        assert second.said == ["5", "False"]
        second.wait()
        manifest.release(tmp_path / "a.png")
        third = other(tmp_path, 0)
        assert third.said == ["5", "True"]
        third.wait()


def test_waiting_ends_when_the_other_is_done(tmp_path):
    """Not before."""
    process = other(tmp_path, 1)
    started_at = time.monotonic()
    with Manifest(tmp_path, 7) as manifest:
        manifest.wait_for(tmp_path / "a.png")
    assert time.monotonic() - started_at > 0.5
    process.wait()


def test_lines_of_another_process_are_seen(tmp_path):
    """So that none stands twice."""
    with Manifest(tmp_path, 7) as manifest:
        code = "import sys\nfrom pathlib import Path\nfrom sdcli.batch.manifest import Manifest\n"
        code += "Manifest(Path(sys.argv[1]), 1).add(Path(sys.argv[1]) / 'a.png', 'k1', {})"
        subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
        manifest.add(tmp_path / "a.png", "k1", {})
    assert len(lines(tmp_path)) == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_read_only_is_told(tmp_path):
    """By one error."""
    tmp_path.chmod(0o500)
    with pytest.raises(SdcliError, match="cannot write"):
        Manifest(tmp_path, 7)
