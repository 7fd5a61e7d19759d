"""A disk that is really full: one line of error, everything written before is still whole, and a run goes on after."""

import shutil
import subprocess
from pathlib import Path

import pytest

from sdcli.cli import run
from sdcli.training.run_folder import RunFolder, load_state


def mount(*arguments: object) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True, capture_output=True)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, of 12 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        mount("-t", "tmpfs", "-o", "size=12m", "tmpfs", disk)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a file system needs more rights than this user has")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def sdcli(*arguments: object) -> int:
    return run([str(argument) for argument in arguments])


def fill(disk: Path, but: int) -> Path:
    """A file that leaves so many bytes free."""
    filler = disk / "filler"
    filler.write_bytes(b"\0" * (shutil.disk_usage(disk).free - but))
    return filler


def test_a_run_keeps_its_checkpoints_and_goes_on_when_there_is_space(squares, architecture, small_disk, capsys):
    """Every checkpoint is kept until the disk is full; the newest whole one is what `latest` names."""
    folder = small_disk / "run"
    common = ("train", "-o", folder, "--device", "cpu", "--progress", "none", "--cache", "none")
    begin = ("--data", squares, "--config", architecture, "--part", "vae", "--batch-size", 4, "--steps", 200)
    assert sdcli(*common, *begin, "--checkpoint-every", 1, "--keep", 1000) == 1
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 2 and "cannot write" in error and "No space left on device" in error
    newest = RunFolder(folder).newest()
    done = load_state(newest)["global_step"]
    assert done > 1 and newest.name == f"step-{done:06d}"
    mount("-o", "remount,size=40m", small_disk)
    assert sdcli(*common, "--resume", "--steps", done + 2, "--keep", 2) == 0
    assert load_state(RunFolder(folder).newest())["global_step"] == done + 2
    assert not [path for path in folder.rglob(".*") if path.name != ".lock"]


def test_pictures_and_latents_appear_whole_or_not_at_all(tiny_folder, small_disk, tmp_path, capsys):
    flags = "--seed 1 --steps 1 -W 64 -H 64 --device cpu --progress none"
    common = ("generate", "a cat", "--model", tiny_folder, *flags.split())
    assert sdcli(*common, "-o", small_disk / "fits.png") == 0
    before = (small_disk / "fits.png").read_bytes()
    filler = fill(small_disk, but=4096)
    capsys.readouterr()
    assert sdcli(*common, "-o", small_disk / "full.png") == 1
    captured = capsys.readouterr()
    assert captured.out == "" and "No space left on device" in captured.err and len(captured.err.splitlines()) == 2
    assert sdcli("encode", small_disk / "fits.png", "--model", tiny_folder, "-o", small_disk / "a.safetensors") == 1
    assert {path.name for path in small_disk.iterdir()} == {"fits.png", "filler"}
    assert (small_disk / "fits.png").read_bytes() == before
    filler.unlink()
    assert sdcli(*common, "-o", small_disk / "full.png") == 0
    assert (small_disk / "full.png").read_bytes().startswith(b"\x89PNG")
