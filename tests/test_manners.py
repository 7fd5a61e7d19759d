"""How the program behaves among others in a shell: streams, exit codes, pipes, events. Every test starts processes.

Signals, a full disk, and the pipe of encode, add-noise and decode are in test_signals.py, running out of memory in
test_batch_jobs.py.
"""

import json
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

import sdcli
from sdcli.cli import run
from sdcli.errors import EXIT_MISTAKE, EXIT_NOT_A_NUMBER, EXIT_SOME_FAILED
from sdcli.images import load_image

PROGRAM = (sys.executable, "-m", "sdcli")
START_S = 120  # a loaded machine takes its time to import torch


@pytest.fixture(autouse=True)
def environment(tmp_path, monkeypatch):
    """A folder of its own, one thread, this checkout."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(sdcli.__file__).parent.parent))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def ended(*arguments: object) -> subprocess.CompletedProcess:
    """A command of its own process, at its end."""
    words = [*PROGRAM, *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=START_S, check=False)


def shell(line: str) -> subprocess.CompletedProcess:
    """A line of bash, in which SDCLI is the program; its code is that of the first command of a pipe that failed."""
    line = line.replace("SDCLI", " ".join(PROGRAM))
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", line], capture_output=True, timeout=START_S, text=True, check=False
    )


def events_of(stderr: str) -> list[dict]:
    """Every line as an event; all are JSON."""
    return [json.loads(line) for line in stderr.splitlines()]


def write_jobs(*jobs: dict) -> None:
    Path("jobs.jsonl").write_text("".join(json.dumps(job) + "\n" for job in jobs))


def broken_model(tiny_folder: Path) -> Path:
    """The tiny model with a UNet that gives nothing but not-a-number."""
    folder = Path("broken")
    shutil.copytree(tiny_folder, folder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["conv_in.bias"][:] = float("nan")
    save_file(tensors, weights, metadata={"format": "pt"})
    return folder


# Events and streams


def test_events_come_exactly_and_in_order(tiny_folder, tmp_path):
    """What is there already, what is made again, the model, each step and each picture, the end; all with times."""
    write_jobs(
        *({"id": name, "prompt": "a cat", "steps": 2, "sampler": "ddim"} for name in ("there", "torn", "new", "newer"))
    )
    command = ("generate", "--jobs", "jobs.jsonl", "-m", tiny_folder, "-o", "{id}.png", "--if-exists", "skip", "-s", 7)
    assert run([*map(str, command), "--shard", "1/2", "--progress", "none"]) == 0  # there and new
    torn = Path("torn.png")
    torn.write_bytes(Path("there.png").read_bytes()[:-20])
    Path("new.png").unlink()
    done = ended(*command, "--progress", "json", "--batch-size", "1")
    assert done.returncode == 0
    assert done.stdout == "torn.png\nnew.png\nnewer.png\n"
    events = events_of(done.stderr)
    kinds = [event["event"] for event in events]
    # On a GPU a picture is written while the next one is denoised, so that its event may come between steps.
    steps_and_images = kinds[3:-1]
    assert kinds[:3] == ["skip", "warning", "load"] and kinds[-1] == "done"
    assert sorted(steps_and_images) == ["image"] * 3 + ["step"] * 6
    assert [(event["index"], event["step"], event["steps"]) for event in events if event["event"] == "step"] == [
        (index, step, 2) for index in (1, 2, 3) for step in (1, 2)
    ]
    assert [(event["index"], event["path"]) for event in events if event["event"] == "image"] == [
        (1, "torn.png"),
        (2, "new.png"),
        (3, "newer.png"),
    ]
    check_figures(events)
    assert events[0].items() >= {"path": "there.png", "index": 0}.items()
    assert "torn.png does not open" in events[1]["message"]
    assert events[2].items() >= {"model": str(tiny_folder), "device": "cpu", "precision": "fp32"}.items()
    assert events[-1].items() >= {"images": 3, "skipped": 1, "failed": 0}.items()
    for index in (1, 2, 3):  # none is told before its last step
        places = [place for place, event in enumerate(events) if event.get("index") == index]
        assert events[places[-1]]["event"] == "image"


def check_figures(events: list[dict]) -> None:
    """Time goes forward; rate and time left are where something is being made, and nothing is left at the end."""
    times = [event["elapsed_s"] for event in events]
    assert times == sorted(times) and times[0] >= 0
    for event in events:
        paced = event["event"] in ("step", "image")
        assert ("eta_s" in event) == paced
        assert ("images_per_s" in event) == (paced or event["event"] == "done")
        assert event.get("eta_s", 0) >= 0 and event.get("images_per_s", 1) > 0
    left = [event["eta_s"] for event in events if event["event"] == "image"]
    assert left[-1] == 0


def test_results_alone_go_to_stdout(tiny_folder):
    """As JSON an object a line; on the terminal, which is stderr, a drawn seed and a bar that goes away."""
    code, out, shown = on_terminal("generate", "a cat", "-n", 2, "-m", tiny_folder, "--steps", 1, "-o", "a/", "--json")
    objects = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [Path(each["path"]).parent for each in objects] == [Path("a")] * 2
    assert all(Path(each["path"]).is_file() and each["elapsed_s"] > 0 for each in objects)
    assert f"seed: {objects[0]['seed']}\r\n".encode() in shown
    assert b"loading" in shown and b".png" not in shown
    assert shown.endswith(b"\r\x1b[1A\x1b[2K")  # one line up, and that line is emptied


def on_terminal(*arguments: object) -> tuple[int, bytes, bytes]:
    """Exit code, stdout, and what a terminal shows that is stderr."""
    master, terminal = pty.openpty()
    words = [*PROGRAM, *map(str, arguments)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=terminal)
    os.close(terminal)
    shown = b""
    while True:
        try:
            shown += os.read(master, 4096)
        except OSError:  # how Linux tells that nobody writes to the terminal any more
            break
    out, _ = process.communicate(timeout=START_S)
    os.close(master)
    return process.returncode, out, shown


# Exit codes


def test_mistakes_and_wrong_usage_are_told_at_once():
    """1 and 2, two lines on stderr, nothing on stdout; no traceback."""
    for code, arguments in {
        EXIT_MISTAKE: ("generate", "a cat", "--width", 515),
        2: ("generate", "a cat", "--wdith", 512),
    }.items():
        done = ended(*arguments)
        assert (done.returncode, done.stdout) == (code, "")
        assert [line.split(" ")[0] for line in done.stderr.splitlines()] == ["error:", "hint:"]
    done = ended("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"sdcli {sdcli.__version__}\n", "")


@pytest.mark.slow
def test_what_is_no_number_is_no_picture(tiny_folder, tmp_path):
    """4 where it is the end; 5 where the rest is made, and the list of failures is a job file."""
    broken = broken_model(tiny_folder)
    write_jobs(
        {"id": "good", "prompt": "a cat", "model": str(tiny_folder)},
        {"id": "bad", "prompt": "a cat", "model": str(broken)},
    )
    common = ("generate", "--jobs", "jobs.jsonl", "-s", 1, "--progress", "json")
    done = ended(*common, "-o", "skip/", "--on-error", "skip")
    assert done.returncode == EXIT_SOME_FAILED == 5
    assert done.stdout == "skip/good-1-a-cat.png\n"
    *events, error, hint = done.stderr.splitlines()
    assert (error, hint[:6]) == ("error: 1 of 2 pictures failed", "hint: ")
    assert "skip/failed.jsonl" in hint
    events = events_of("\n".join(events))
    assert events[-1].items() >= {"event": "done", "images": 1, "failed": 1}.items()
    assert "number" in next(event["message"] for event in events if event["event"] == "warning")
    assert json.loads(Path("skip/failed.jsonl").read_text())["id"] == "bad"
    done = ended("generate", "--jobs", "skip/failed.jsonl", "-o", "stop/", "-s", 1, "--progress", "none")
    assert (done.returncode, done.stdout) == (EXIT_NOT_A_NUMBER, "") and EXIT_NOT_A_NUMBER == 4
    assert [line.split(" ")[0] for line in done.stderr.splitlines()] == ["error:", "hint:"]
    assert list(Path().rglob("bad*.png")) == []


# Pipes and terminals


def test_pictures_go_through_pipes(tiny_folder, tmp_path):
    """A PNG to stdout and into the next command; a reader that has seen enough ends the writer without a word.

    With --progress none, a given seed and no mistake nothing at all is on stderr.
    """
    flags = f"-m {tiny_folder} -s 1 --steps 1 --progress none"
    done = shell(f"SDCLI generate 'a cat' {flags} -o - | tee a.png | SDCLI encode - -m {tiny_folder} -o a.safetensors")
    assert (done.returncode, done.stdout, done.stderr) == (0, "a.safetensors\n", "")
    assert Path("a.png").read_bytes().startswith(b"\x89PNG") and load_image(Path("a.png")).size == (16, 16)
    done = shell(f"SDCLI generate 'a cat' -n 300 {flags} -o out/ | head -1")
    assert (done.returncode, done.stderr) == (141, "")
    (path,) = done.stdout.splitlines()
    with Image.open(path) as picture:
        assert picture.size == (16, 16)


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", "a cat", "-o", "-"),
        ("encode", "a.png", "-o", "-"),
        ("add-noise", "a.png", "-t", "5", "-o", "-"),
    ],
)
def test_a_file_is_not_written_to_a_terminal(arguments):
    """It is refused at once, before anything is loaded."""
    Image.new("RGB", (16, 16)).save("a.png")
    master, terminal = pty.openpty()
    done = subprocess.run(
        [*PROGRAM, *arguments], stdout=terminal, stderr=subprocess.PIPE, text=True, timeout=START_S, check=False
    )
    os.write(terminal, b"nothing but this\n")
    os.close(terminal)
    assert done.returncode == EXIT_MISTAKE
    assert done.stderr.startswith("error: stdout is the terminal") and "hint:  pipe it" in done.stderr
    assert os.read(master, 1000).replace(b"\r", b"") == b"nothing but this\n"
    os.close(master)
