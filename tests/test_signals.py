"""What only a process of its own shows: signals, pipes that close, a full disk, and the pipe of three commands."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

import sdcli
from sdcli.cli import run
from sdcli.images import load_image

pytestmark = pytest.mark.alone

PROGRAM = (sys.executable, "-m", "sdcli")
START_S = 120  # a loaded machine takes its time to import torch


@pytest.fixture(autouse=True)
def environment(tmp_path, monkeypatch):
    """A folder of its own, one thread, this checkout."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(sdcli.__file__).parent.parent))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def unignored() -> None:
    """Signals as a shell leaves them to a command in the foreground, whatever the test runner inherited."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_keeps_what_is_finished(tiny_folder, tmp_path, number, code):
    """The first picture stays, whole; no temporary file, no traceback; the documented exit code."""
    command = ("generate", "a", "-n", "1000", "-s", "1", "--steps", "20", "-m", str(tiny_folder), "-o", "out/")
    with subprocess.Popen(
        (*PROGRAM, *command), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=unignored
    ) as process:
        first = process.stdout.readline().strip()
        time.sleep(0.1)  # into the denoising of the next one
        process.send_signal(number)
        out, err = process.communicate(timeout=START_S)
    assert process.returncode == code
    printed = [first, *out.split()]
    assert files_in(tmp_path / "out") == [Path(path).name for path in printed]
    assert all(load_image(Path(path)).size == (16, 16) for path in printed)
    assert [line for line in err.splitlines() if line.startswith("error: ")] == [f"error: interrupted by {number.name}"]
    assert "Traceback" not in err


def test_a_pipe_that_closes_ends_the_run_quietly(tiny_folder, tmp_path):
    """As `| head -1` does: no message, the picture that was printed is whole."""
    command = ("generate", "a", "-n", "1000", "-s", "1", "--steps", "1", "-m", str(tiny_folder), "-o", "out/")
    with subprocess.Popen(
        (*PROGRAM, *command, "--progress", "none"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        first = process.stdout.readline().strip()
        process.stdout.close()
        err = process.stderr.read()
        process.wait(timeout=START_S)
    assert (process.returncode, err) == (128 + signal.SIGPIPE, "")
    assert load_image(Path(first)).size == (16, 16)
    assert all(name.endswith(".png") for name in files_in(tmp_path / "out"))


@pytest.mark.parametrize("command", [("models", "list"), ("--help",)])
def test_a_closed_stdout_is_quiet_for_short_output(command):
    """Where the pipe is gone before the first line."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run((*PROGRAM, *command), stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


@pytest.mark.parametrize("line", ["models list >&-", "info - <&- >&-", "encode - -o a.safetensors <&-"])
def test_streams_that_the_shell_has_closed_are_no_bug(line):
    """Results go nowhere, and a missing input is a mistake like any other."""
    line = f"{' '.join(PROGRAM)} {line}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1) and "Traceback" not in done.stderr
    assert [word for word in done.stderr.split() if word in ("error:", "hint:")] == ["error:", "hint:"][
        : 2 * done.returncode
    ]


def test_a_file_name_need_not_be_text(tmp_path):
    """The bytes that the shell gave come back on stdout and in errors."""
    name = b"photo-\xff.png"
    Image.new("RGB", (8, 8)).save(os.path.join(os.fsencode(tmp_path), name), "PNG")
    done = subprocess.run((*PROGRAM, "info", name, "--json"), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    done = subprocess.run((*PROGRAM, "info", name), capture_output=True, check=False)
    assert (done.returncode, done.stdout.split(b"\n")[0]) == (0, name + b":")
    done = subprocess.run((*PROGRAM, "info", b"none-\xff.png"), capture_output=True, check=False)
    assert done.returncode == 1 and b"Traceback" not in done.stderr


@pytest.mark.slow  # test_manners has a pipe of two
def test_three_commands_make_a_pipe(tiny_folder, tmp_path):
    """encode | add-noise | decode: the bytes of files, and the picture of the same steps through files."""
    Image.linear_gradient("L").resize((16, 16)).convert("RGB").save("a.png")
    words = " ".join(PROGRAM)
    stages = (f"encode a.png -m {tiny_folder} -o -", "add-noise - -t 600 --seed 1 -o -", "decode - -o b.png")
    line = " | ".join(f"{words} {stage}" for stage in stages)
    done = subprocess.run(["bash", "-o", "pipefail", "-c", line], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "b.png\n", "")
    assert run(["encode", "a.png", "-m", str(tiny_folder), "-o", "a.safetensors"]) == 0
    assert run(["add-noise", "a.safetensors", "-t", "600", "--seed", "1", "-o", "n.safetensors"]) == 0
    assert run(["decode", "n.safetensors", "-o", "c.png"]) == 0
    assert load_image(Path("b.png")).tobytes() == load_image(Path("c.png")).tobytes()


@contextmanager
def small_disk(folder: Path):
    """A file system of 64 kB."""
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(words, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if mounted.returncode:
        pytest.skip(f"mounting is not permitted: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_an_error_and_leaves_nothing_half_written(tiny_folder, tmp_path, capsys):
    """Pictures that fitted stay, whole."""
    with small_disk(tmp_path / "disk"):
        (tmp_path / "disk" / "filler").write_bytes(bytes(48 * 1024))
        common = ["-s", "1", "--steps", "1", "--progress", "none", "-m", str(tiny_folder), "-o", "disk/"]
        code = run(["generate", "a", "-n", "30", "-W", "64", "-H", "64", *common])
        out, err = capsys.readouterr()
        assert code == 1
        error, hint = err.splitlines()
        assert error.startswith("error: cannot write disk/") and error.endswith("No space left on device")
        assert hint == "hint:  free some space"
        pictures = [name for name in files_in(tmp_path / "disk") if name != "filler"]
        assert [f"disk/{name}" for name in pictures] == out.split()
        assert all(load_image(tmp_path / "disk" / name).size == (64, 64) for name in pictures)
