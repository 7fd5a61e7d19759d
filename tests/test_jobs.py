"""Job files and prompt files: what each line asks for, and every mistake with its line."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from sdcli.errors import SdcliError
from sdcli.jobs import Asker, job_of, jobs_of_file, jobs_of_prompts, read_job, requests_of
from sdcli.output import OutputSettings, Request, plan_pictures
from sdcli.setting_types import KINDS
from sdcli.settings import GenerateSettings


@pytest.fixture
def asker(tiny_folder) -> Asker:
    flags = {"model": str(tiny_folder), "num_inference_steps": 5, "guidance_scale": 3.0}
    return Asker(flags=flags, seed=7)


def ask(asker: Asker, *jobs: dict) -> list[Request]:
    content = "\n".join(json.dumps(job) for job in jobs).encode()
    return requests_of(asker, jobs_of_file(content, "jobs.jsonl"))


def test_a_line_goes_before_flags_and_these_before_the_model(asker, tiny_folder):
    """Every value of the contract reaches the settings."""
    job = {
        "id": "x",
        "prompt": "a cat",
        "negative_prompt": "a dog",
        "seed": 3,
        "num_images": 2,
        "width": 24,
        "steps": 9,
        "sampler": "euler",
        "schedule": "karras",
        "lora": ["a.safetensors:0.5"],
        "output": "cat-{seed}.png",
    }
    first, second = ask(asker, job)
    expected = GenerateSettings(
        prompt="a cat",
        negative_prompt="a dog",
        model=str(tiny_folder),
        seed=3,
        width=24,
        height=16,
        num_inference_steps=9,
        guidance_scale=3.0,
        sampler="euler",
        schedule="karras",
        lora=("a.safetensors:0.5",),
    )
    assert first == Request(expected, "x", "cat-{seed}.png", "jobs.jsonl line 1")
    assert second == replace(first, settings=replace(expected, seed=4))


def test_ids_are_line_numbers_where_none_is_said(asker):
    """Counted over the jobs; a number is an id too."""
    requests = requests_of(asker, jobs_of_file(b'{"prompt": "a"}\n\n{"prompt": "b"}\n{"prompt": "c", "id": 7}', "f"))
    assert [(each.id, each.settings.prompt, each.settings.seed) for each in requests] == [
        ("00000", "a", 7),
        ("00001", "b", 7),
        ("7", "c", 7),
    ]


def test_prompts_have_comments_and_wildcards(asker):
    """A prompt a line, in any script."""
    content = "\ufeff# pets\n a cat \n\na {{red|blue}} Kätzchen\r\n".encode()
    prompts = [each.settings.prompt for each in requests_of(asker, jobs_of_prompts(content, "f"))]
    assert prompts == ["a cat", "a red Kätzchen", "a blue Kätzchen"]


def test_a_pattern_is_each_file_that_matches(asker, tmp_path):
    """Each gives its size; turned pictures theirs after turning."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (24, 16)).save(tmp_path / "b.jpg", exif=exif)
    Image.new("RGB", (24, 16)).save(tmp_path / "a.jpg")
    requests = ask(asker, {"prompt": "p", "init_image": f"{tmp_path}/*.jpg"})
    sizes = [(Path(each.settings.init_image).name, each.settings.width, each.settings.height) for each in requests]
    assert sizes == [("a.jpg", 24, 16), ("b.jpg", 16, 24)]
    assert [each.id for each in requests] == ["00000-00000", "00000-00001"]
    with pytest.raises(SdcliError, match="line 1: no file matches"):
        ask(asker, {"prompt": "p", "init_image": f"{tmp_path}/*.webp"})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a", "stpes": 3}', "unknown key 'stpes'"),
        ('{"prompt": "a", "steps": "3"}', "steps must be a whole number, got '3'"),
        ('{"prompt": "a", "steps": true}', "steps must be a whole number, got True"),
        ('{"prompt": "a", "steps": 0}', "--steps must be from 1 to 1000, got 0"),
        ('{"prompt": "a", "seed": -1}', "--seed must be from 0"),
        ('{"prompt": "a", "lora": "a.safetensors"}', "lora must be a list of texts"),
        ('{"prompt": "a", "steps": 3, "num_inference_steps": 4}', "are the same"),
        ('{"prompt": 3}', "prompt must be a text, got 3"),
        ('{"seed": 3}', "there is no prompt"),
        ('{"prompt": "a", "prompt": "b"}', "is no JSON: 'prompt' is given twice"),
        ('{"prompt": "a"', "is no JSON"),
        ('["a"]', "a job is a JSON object"),
        ("[" * 100_000, "is no JSON"),
        ("# a", "JSON has no comments"),
        ('{"prompt": "a", "num_images": 0}', "--num-images must be from 1"),
        ('{"prompt": "a", "model": "nobody"}', "no model named 'nobody'"),
        ('{"prompt": "a", "width": 20}', "--width must be a positive multiple of 8"),
        ('{"prompt": "a", "guidance_scale": NaN}', "guidance_scale must be a number"),
        ('{"prompt": "\\ud800"}', "is no JSON"),
        ('{"prompt": "a", "output": "a\\u0000.png"}', "holds a zero byte"),
        ('{"prompt": "a", "id": "\\ud800"}', "is no JSON"),
        ('{"prompt": "a", "lora": ["\\u0000"]}', "holds a zero byte"),
        ("\xff", "is not UTF-8"),
    ],
)
def test_a_mistake_is_told_with_its_line(asker, line, message):
    """The second line of a file, the first is good."""
    content = b'{"prompt": "a"}\n' + line.encode("latin-1")
    with pytest.raises(SdcliError, match="jobs.jsonl line 2") as raised:
        requests_of(asker, jobs_of_file(content, "jobs.jsonl"))
    assert message in str(raised.value)


def test_every_setting_is_a_key_and_kinds_are_checked():
    """So that a job can say all that a flag can."""
    values = {str: "a", int: 8, float: 1, float | None: 1.5, str | None: None, int | None: 1}
    for name, kind in KINDS.items():
        assert name in read_job(json.dumps({name: values.get(kind, [])}), "x")
        with pytest.raises(SdcliError, match=f"x: {name} must be"):
            read_job(json.dumps({name: {}}), "x")


def test_a_picture_as_a_job_asks_for_the_same_again(asker):
    """Whatever it was made from, and into the same file."""
    job = {"prompt": r"a \{red|blue\} cat", "sampler": "euler", "lora": ["a:2"], "strength": None, "id": "a/b"}
    (request,) = ask(asker, job)
    assert request.settings.prompt == "a {red|blue} cat"
    where = OutputSettings(output="out/", of_jobs=True)
    (picture,) = plan_pictures([request], where)
    (again,) = ask(asker, {**job_of(picture, Path("out")), "error": "because"})
    assert again.settings == request.settings
    assert plan_pictures([again], where)[0].path == picture.path


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
keys = st.sampled_from([*KINDS, "steps", "id", "output", "num_images", "error"]) | st.text(max_size=5)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(jobs=st.lists(st.dictionaries(keys, values, max_size=6), max_size=3))
def test_any_json_is_pictures_or_one_clear_error(asker, tmp_path_factory, monkeypatch, jobs):
    """No traceback, and no file outside the output folder."""
    monkeypatch.chdir(tmp_path_factory.mktemp("fuzz"))
    monkeypatch.setattr("sdcli.jobs.MOST_IMAGES", 50)
    try:
        requests = ask(asker, *[{"prompt": "a", "model": asker.flags["model"], **job} for job in jobs])
        pictures = plan_pictures(requests, OutputSettings(output="out/", of_jobs=True)) if requests else []
    except SdcliError:
        return
    for picture in pictures:
        assert Path.cwd() / "out" in (Path.cwd() / picture.path).resolve().parents


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_jobs_or_one_clear_error(asker, content):
    """Both kinds of file."""
    for read in (jobs_of_file, jobs_of_prompts):
        try:
            requests_of(asker, read(content, "f"))
        except SdcliError as error:
            assert str(error)
