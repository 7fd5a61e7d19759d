"""`sdcli generate --dry-run`: what would be made, where, how long it takes and whether it fits."""

import json
from pathlib import Path

import pytest
import torch
from conftest import seeded
from diffusers import ControlNetModel
from families import stock, write_folder
from PIL import Image
from seeing import give_sight

from sdcli import costs
from sdcli.batch import estimate
from sdcli.cli import run

QUICK = ("--steps", "2", "-s", "1")


@pytest.fixture
def dry(capsys, tmp_path, monkeypatch, tiny_folder):
    """Run the command in an empty folder: its code, the lines of stdout, and the events on stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def command(*words: object, dry: bool = True) -> tuple[int, list[str], list[dict]]:
        capsys.readouterr()
        flags = [*(() if "-m" in words else ("-m", tiny_folder, "--sampler", "euler"))]
        flags += ["--dry-run"] if dry else []
        code = run(["generate", *map(str, [*words, *QUICK, *flags]), "--progress", "json"])
        out, err = capsys.readouterr()
        return code, out.splitlines(), [json.loads(line) if line[0] == "{" else line for line in err.splitlines()]

    return command


@pytest.fixture
def one_second(monkeypatch) -> None:
    """Whatever is done in earnest takes a second."""
    monkeypatch.setattr(costs, "shortest_of", lambda times, do: 1.0)


def estimates(events: list) -> list[dict]:
    return [event for event in events if isinstance(event, dict) and event["event"] == "estimate"]


def files() -> list[str]:
    return sorted(str(path) for path in Path().rglob("*") if "cache" not in path.parts)


def test_it_says_what_is_missing_and_writes_nothing(dry):
    """Of a run that was made in part; stdout has the paths that would be made."""
    Path("jobs.jsonl").write_text("".join(f'{{"prompt": "{word}"}}\n' for word in ("a", "b", "c")))
    assert dry("--prompts", "two.txt", "-o", "out/")[0] == 1  # there is none
    assert dry("--jobs", "jobs.jsonl", "-o", "out/", "--shard", "1/3", dry=False)[0] == 0
    before = files()
    code, out, events = dry("--jobs", "jobs.jsonl", "-o", "out/", "--if-exists", "skip")
    assert (code, out) == (0, ["out/00001-1-b.png", "out/00002-1-c.png"])
    (event,) = estimates(events)
    assert (event["images"], event["there"], event["device"], event["precision"]) == (2, 1, "cpu", "fp32")
    assert event["seconds"] > 0 and 0 < event["memory_bytes"] < event["memory_room_bytes"]
    assert files() == before
    lines = [json.loads(line) for line in dry("--jobs", "jobs.jsonl", "-o", "out/", "--if-exists", "skip", "--json")[1]]
    assert [(line["path"], line["there"]) for line in lines] == [
        ("out/00000-1-a.png", True),
        ("out/00001-1-b.png", False),
        ("out/00002-1-c.png", False),
    ]
    assert lines[0]["sampler"] and lines[0]["seed"] == 1


def test_it_ends_as_the_run_would(dry):
    """With the same error: a file in the way, another picture in the place of a job's, a setting that does not go."""
    Path("jobs.jsonl").write_text('{"prompt": "a"}\n')
    dry("--jobs", "jobs.jsonl", "-o", "out/", dry=False)
    for words, message in (
        (("--jobs", "jobs.jsonl", "-o", "out/"), "out/00000-1-a.png is already there"),
        (("--jobs", "jobs.jsonl", "-o", "out/", "--if-exists", "skip", "-g", "3"), "was made from something else"),
        (("a", "--eta", "1"), "--eta means nothing to the sampler euler"),
        (("a", "--init-image", "none.png"), "none.png"),
    ):
        code, out, events = dry(*words)
        errors = [line for line in events if isinstance(line, str) and line.startswith("error: ")]
        assert code == 1 and out == [] and len(errors) == 1 and message in errors[0]
    code, out, events = dry(
        "--jobs", "jobs.jsonl", "-o", "out/", "--if-exists", "skip", "-g", "3", "--on-error", "skip"
    )
    assert code == 0 and out == [] and "was made from something else" in events[0]["message"]
    code, out, events = dry("a", "-o", "out/00000-1-a.png", "--if-exists", "skip", "-g", "3")
    assert code == 0 and out == [] and "stays as it is" in events[0]["message"]


def test_time_grows_with_pictures_and_steps(dry, one_second):
    """Each network takes a second here: reading, decoding, and as many steps as there are."""
    (event,) = estimates(dry("a", "-n", "3", "-o", "out/", "--batch-size", "1")[2])
    assert event["seconds"] == 3 * (1 + 2 + 1)
    (event,) = estimates(dry("a", "-n", "3", "-o", "out/")[2])
    assert event["seconds"] == pytest.approx(1 + 2 + 3 * 1)  # together, and decoded one after the other
    Path("jobs.jsonl").write_text('{"prompt": "a", "steps": 5}\n{"prompt": "b", "width": 24, "steps": 3}\n')
    (event,) = estimates(dry("--jobs", "jobs.jsonl", "-o", "out/")[2])
    assert event["seconds"] == (1 + 5 + 1) + (1 + 3 + 1)
    (event,) = estimates(dry("a", "--hires-scale", "2", "-o", "out/")[2])
    assert event["seconds"] == (1 + 2 + 1) + (1 + 1 + 1) + 1  # half of the steps again, and the picture read


def test_what_cannot_fit_ends_with_3(dry, one_second, monkeypatch):
    """After the files have been told; what fits in small pieces is a warning."""
    monkeypatch.setattr(estimate, "free_on", lambda device: 2**20)
    code, out, events = dry("a", "-W", "128", "-H", "128", "-o", "out/")
    assert code == 3 and len(out) == 1 and estimates(events)
    error, hint = events[-2:]
    assert error.startswith("error: ") and " needs about " in error and "at 128x128" in error
    assert "-W 64 -H 64" in hint and not Path("out").exists()

    real = estimate.Studio.costs

    def costs_in_pieces(self, settings, count, tiled):
        return real(self, settings, count, tiled) | ({} if tiled else {"vae": costs.Cost(1.0, 2**60)})

    monkeypatch.setattr(estimate.Studio, "costs", costs_in_pieces)
    monkeypatch.setattr(estimate, "free_on", lambda device: 2**40)
    code, _, events = dry("a", "-o", "out/")
    assert code == 0 and "memory is short" in events[-2]["message"] and events[-1]["event"] == "done"


@pytest.mark.parametrize("family", ["sd1", "sd2-inpainting", "sdxl", "sdxl-refiner"])
def test_every_family_is_estimated(dry, family, tmp_path):
    """With a picture to begin from, a mask and a ControlNet where it takes them."""
    folder = write_folder(family, tmp_path / "model")
    Image.new("RGB", (32, 32), "red").save("photo.png")
    Image.new("L", (32, 32), 255).save("mask.png")
    flags = ["-W", "32", "-H", "32", "--init-image", "photo.png"]
    if family != "sdxl-refiner":
        flags += ["--mask", "mask.png"]
    if family == "sd1":
        network = ControlNetModel.from_unet(stock(family).unet, conditioning_embedding_out_channels=(16, 32))
        seeded(network, 9).save_pretrained("control")
        flags += ["--controlnet", "control", "--control-image", "photo.png"]
    code, out, events = dry("a (red:1.2) cat", "-m", folder, *flags, "-o", "out/")
    assert code == 0 and len(out) == 1
    (event,) = estimates(events)
    weights = sum(
        weight.numel() * 4
        for name, network in stock(family).components.items()
        if isinstance(network, torch.nn.Module)
        for weight in network.parameters()
    )
    taken_at_least = weights + (network.num_parameters() * 4 if family == "sd1" else 0)
    assert event["seconds"] > 0 and event["memory_bytes"] > taken_at_least


def test_of_another_family_nothing_is_guessed(dry, tmp_path):
    """But its files are told."""
    from test_foreign import pixart

    pixart().save_pretrained(tmp_path / "model")
    code, out, events = dry("a", "-m", tmp_path / "model", "-W", "32", "-H", "32", "-o", "out/")
    assert code == 0 and len(out) == 1
    (event,) = estimates(events)
    assert (event["images"], event["seconds"], event["memory_bytes"]) == (1, None, None)


def test_a_gradient_takes_more_memory_than_none(dry, tmp_path, tiny_folder):
    """What the way back needs is kept on the way there."""
    folder = give_sight(tiny_folder, tmp_path / "model")
    (plain,) = estimates(dry("a", "-m", folder, "-W", "64", "-H", "64", "-o", "a.png")[2])
    (guided,) = estimates(dry("a", "-m", folder, "-W", "64", "-H", "64", "-o", "a.png", "--clip-guidance", "2")[2])
    assert guided["memory_bytes"] > plain["memory_bytes"] + 2**20 and guided["seconds"] > plain["seconds"]


def test_of_a_contest_every_candidate_is_to_be_made(dry, tmp_path, tiny_folder):
    """Until those that are kept are there; candidates of one file are one line."""
    folder = give_sight(tiny_folder, tmp_path / "model")
    words = ("a", "-m", folder, "--best-of", "3")
    code, out, events = dry(*words, "-o", "one.png")
    assert (code, out, estimates(events)[0]["images"]) == (0, ["one.png"], 3)
    flags = ("-n", "2", "-o", "{seed}.png", "--if-exists", "skip")
    assert dry(*words, *flags)[1] == ["1.png", "2.png", "3.png"]
    assert dry(*words, *flags, dry=False)[0] == 0
    code, out, events = dry(*words, *flags)
    assert (code, out) == (0, []) and (estimates(events)[0]["images"], estimates(events)[0]["there"]) == (0, 2)
