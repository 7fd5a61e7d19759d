"""`sdcli train` as it is typed: what stdout gets, what is refused, and what an interrupted run leaves."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sdcli.cli import run

pytestmark = pytest.mark.alone

LESS_COMMON = ((signal.SIGUSR1, 143), (signal.SIGINT, 130))
QUICK = ("--part", "vae", "--batch-size", "2", "--warmup", "1", "--device", "cpu")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def sdcli(*arguments: object) -> int:
    return run([str(argument) for argument in arguments])


def test_stdout_gets_the_run_folder_alone(squares, architecture, tmp_path, capsys):
    """So that `--model "$(sdcli train …)"` works; progress is on stderr."""
    assert sdcli("train", "--data", squares, "--config", architecture, *QUICK, "--steps", 2, "-o", "run") == 0
    captured = capsys.readouterr()
    assert captured.out == "run\n"
    assert "updates 0 to 2" in captured.err
    assert (tmp_path / "run" / "model" / "model_index.json").is_file()
    settings = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert (settings["part"], settings["steps"], settings["seed"]) == ("vae", 2, 0)


def test_json_tells_where_the_run_is_and_how_it_ended(squares, architecture, capsys):
    code = sdcli(
        "train", "--data", squares, "--config", architecture, *QUICK, "--steps", 2, "--json", "--progress", "json"
    )
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert code == 0
    assert result["output"].startswith("runs/vae-")
    assert result["global_step"] == 2
    assert [json.loads(line)["event"] for line in captured.err.splitlines()] == [
        "started",
        "saved",
        "stepped",
        "stepped",
        "saved",
        "sampled",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--config", "emoji"), "error: --data is missing"),
        (("--data", "nowhere", "--config", "emoji"), "error: no folder nowhere"),
        (("--data", ".", "--config", "emoji"), "error: no pictures in ."),
        (("--data", ".", "--config", "emojy"), "hint:  did you mean emoji?"),
        (("--data", ".", "--model", "emojy"), "hint:  did you mean emoji?"),
        (("--data", ".", "--config", "emoji", "--steps", "0"), "error: --steps must be at least 1, got 0"),
        (("--resume",), "error: --resume needs --output"),
        (("--resume", "-o", "nowhere"), "error: no run to resume in nowhere"),
    ],
)
def test_a_mistake_is_one_line_and_a_hint(arguments, message, tmp_path, capsys):
    """Nothing is left on the disk."""
    if "emojy" in arguments:
        (tmp_path / "a.txt").write_text("a")
        from PIL import Image

        Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    before = sorted(tmp_path.iterdir())
    assert sdcli("train", *arguments) == 1
    captured = capsys.readouterr()
    assert message in captured.err
    assert len(captured.err.splitlines()) == 2
    assert captured.out == ""
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), *(pytest.param(*each, marks=pytest.mark.slow) for each in LESS_COMMON)],
)
def test_a_signal_leaves_a_checkpoint_that_resumes(number, code, squares, architecture, tmp_path):
    """The run ends after the update in hand, with the shell's code for the signal, and goes on where it was."""
    command = [sys.executable, "-m", "sdcli", "train", "--data", squares, "--config", architecture, *QUICK]
    command += ["--steps", "100000", "-o", tmp_path / "run"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    process = subprocess.Popen(list(map(str, command)), env=environment, stderr=subprocess.DEVNULL)
    metrics = tmp_path / "run" / "metrics.jsonl"
    until = time.monotonic() + 120
    while time.monotonic() < until and not metrics.exists():
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(timeout=60) == code
    done = len(metrics.read_text().splitlines())
    assert (tmp_path / "run" / "checkpoints" / "latest").resolve().name == f"step-{done:06d}"
    assert sdcli("train", "-o", tmp_path / "run", "--resume", "--steps", done + 1, "--progress", "none") == 0
    assert len(metrics.read_text().splitlines()) == done + 1
