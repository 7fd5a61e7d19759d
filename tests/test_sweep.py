"""Job files of every combination: order, values, ids, mistakes; and that generate takes them."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest

import sdcli
from sdcli.cli import run
from sdcli.jobs import read_job
from sdcli.names import slug
from sdcli.sweep import KNOWN


@pytest.fixture
def sweep(capsys):
    """The jobs that a command prints."""

    def jobs(*arguments: str) -> list[dict]:
        capsys.readouterr()
        assert run(["sweep", *arguments]) == 0, capsys.readouterr().err
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return jobs


def values(jobs: list[dict], name: str) -> list:
    return [job[name] for job in jobs]


def test_the_last_one_changes_fastest(sweep):
    """And prompts slowest."""
    jobs = sweep("--set", "guidance_scale=5,7.5", "--set", "sampler=euler,dpmpp_2m", "a cat", "a dog")
    expected = itertools.product(("a cat", "a dog"), (5.0, 7.5), ("euler", "dpmpp_2m"))
    assert [(job["prompt"], job["guidance_scale"], job["sampler"]) for job in jobs] == list(expected)
    for job in jobs:
        read_job(json.dumps(job), "here")


def test_ids_can_be_read_and_are_all_different(sweep):
    """As parts of file names too, however long or odd values are."""
    jobs = sweep("--set", "guidance_scale=5,7.5", "--set", "sampler=euler", "a cat")
    assert values(jobs, "id") == ["guidance_scale=5-sampler=euler", "guidance_scale=7.5-sampler=euler"]
    assert values(sweep("a cute kitten"), "id") == ["a-cute-kitten"]
    odd = sweep("--set", r"lora=/a/b/x.safetensors:0.5,x.safetensors:0.5,", "--set", "strength=0.1,0.2", "a")
    assert values(odd, "id")[0] == "0-lora=x.safetensors_0.5-strength=0.1"
    long = sweep("--set", "seed=1..3", "--set", f"negative_prompt={'word ' * 30}", "--set", f"vae={'v' * 90}", "a")
    for jobs in (odd, long):
        assert len({slug(job["id"]) for job in jobs}) == len(jobs)
    prompts = sweep("a {red|blue} cat", "a {red|green} cat", "../cat")
    assert len({slug(job["id"]) for job in prompts}) == 3 and not any("/" in job["id"] for job in prompts)


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("seed=1..4", "seed", [1, 2, 3, 4]),
        ("steps=10,20..40:10", "steps", [10, 20, 30, 40]),
        ("num_inference_steps=8", "steps", [8]),
        ("guidance-scale=5", "guidance_scale", [5.0]),
        ("strength=0.2..0.8:0.2", "strength", [0.2, 0.4, 0.6, 0.8]),
        ("strength=0.1..0.9:0.3", "strength", [0.1, 0.4, 0.7]),
        ("seed=18446744073709551614..18446744073709551615", "seed", [2**64 - 2, 2**64 - 1]),
        ("guidance_scale=5..7", "guidance_scale", [5.0, 6.0, 7.0]),
        (r"negative_prompt=blurry\, dark,", "negative_prompt", ["blurry, dark", ""]),
        ("negative_prompt=1..3", "negative_prompt", ["1..3"]),
        ("sampler=null,euler", "sampler", [None, "euler"]),
        ("lora=,a.safetensors:0.5", "lora", [[], ["a.safetensors:0.5"]]),
        ("control_scale=0.5,1", "control_scale", [[0.5], [1.0]]),
        ("num_images=1,2", "num_images", [1, 2]),
        ("mask=a.png", "mask", ["a.png"]),
    ],
)
def test_values_have_their_types(sweep, text, name, expected):
    """Ranges hold their end, a comma can be part of a value."""
    found = values(sweep("--set", text, "a cat"), name)
    assert found == expected and [type(each) for each in found] == [type(each) for each in expected]


def test_flags_go_into_every_job(sweep):
    """Those that a sweep has; a prompt may be swept as any setting."""
    jobs = sweep("--set", "prompt=a cat,a dog", "-s", "3", "-n", "2", "-m", "emoji")
    assert [{name: job[name] for name in ("prompt", "seed", "num_images", "model")} for job in jobs] == [
        {"prompt": prompt, "seed": 3, "num_images": 2, "model": "emoji"} for prompt in ("a cat", "a dog")
    ]


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (("--set", "stpes=1", "a"), "--set stpes: there is no such setting", "did you mean steps"),
        (("--set", "id=1", "a"), "--set id: there is no such setting", "known: "),
        (("--set", "steps", "a"), "--set steps has no values", "1..8"),
        (("--set", "steps=ten", "a"), "--set steps must be a whole number, got 'ten'", "1..8"),
        (("--set", "steps=", "a"), "--set steps must be a whole number, got ''", "1..8"),
        (("--set", "steps=1..x", "a"), "--set steps must be a whole number, got '1..x'", "1..8"),
        (("--set", "steps=1..2:0.5", "a"), "--set steps must be a whole number, got '1.5'", "1..8"),
        (("--set", "steps=0", "a"), "--steps must be from 1 to 1000", "20 to 50"),
        (("--set", "width=64,65", "a"), "--width must be a positive multiple of 8, got 65", "64 or 72"),
        (("--set", "strength=2", "a"), "--strength must be from 0 to 1", "0"),
        (("--set", "strength=nan", "a"), "--strength must be from 0 to 1", "0"),
        (("--set", "strength=0.2..0.8", "a"), "does not say its steps", ":0.1"),
        (("--set", "seed=3..1", "a"), "has no numbers in it", "smaller"),
        (("--set", "seed=1..3:0", "a"), "has no numbers in it", "positive"),
        (("--set", "seed=1..9999999999", "a"), "stands for 9999999999 values", "100000"),
        (("--set", "seed=1..1000", "--set", "steps=1..1000", "a"), "that makes 1000000 jobs", "100000"),
        (("--set", "num_images=0", "a"), "--num-images must be from 1", "1"),
        (("--set", "seed=18446744073709551615", "-n", "2", "a"), "--seed must be", "N + i"),
        (("--set", "sampler=eulr", "a"), "--sampler knows no 'eulr'", "did you mean euler"),
        (("--set", "clip_skip=0,0", "a"), "--set clip_skip: 0 is given twice", "once"),
        (("--set", "seed=1", "-s", "1", "a"), "seed is given twice", "flag"),
        (("--set", "steps=1", "--set", "num_inference_steps=2", "a"), "steps is given twice", "--set"),
        (("--set", "prompt=b", "a"), "prompt is given twice", "--set"),
        (("--set", "seed=1..3"), "there is no prompt", "kitten"),
    ],
)
def test_a_mistake_is_one_error(capsys, arguments, message, hint):
    """And no job is printed."""
    assert run(["sweep", *arguments]) == 1
    said = capsys.readouterr()
    error, advice = said.err.splitlines()
    assert said.out == "" and message in error and hint in advice


def test_settings_of_jobs_can_be_swept():
    """All of them, under the names that a job takes."""
    assert {"steps", "prompt", "lora", "num_images"} <= set(KNOWN) and not {"id", "output", "error"} & set(KNOWN)


def test_generate_makes_them(sweep, capsys, tmp_path, monkeypatch, tiny_folder):
    """A picture a job, in files that say what sets them apart; no torch is needed to sweep."""
    code = "import sys; from sdcli.cli import run; assert run(sys.argv[1:]) == 0; assert 'torch' not in sys.modules"
    words = ("sweep", "--set", "steps=1,2", "--set", "sampler=euler,ddim", "a cat", "-s", "1", "-m", str(tiny_folder))
    root = Path(sdcli.__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True, cwd=root)
    monkeypatch.chdir(tmp_path)
    Path("jobs.jsonl").write_text(done.stdout)
    assert run(["generate", "--jobs", "jobs.jsonl", "-o", "out/", "--grid", "sheet.png", "--progress", "none"]) == 0
    names = [f"steps-{steps}-sampler-{sampler}-1-a-cat.png" for steps in (1, 2) for sampler in ("euler", "ddim")]
    assert capsys.readouterr().out.splitlines() == [*(f"out/{name}" for name in names), "sheet.png"]
