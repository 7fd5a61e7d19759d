"""Names of results: templates, folders, clashes, and files that are already there."""

import os
import re
from pathlib import Path

import pytest

from sdcli.errors import SdcliError
from sdcli.names import name_files, slug
from sdcli.output import OutputSettings, Request, plan_pictures
from sdcli.results import already_there, check_writable, free_path, write_result
from sdcli.run_settings import Shard
from sdcli.settings import GenerateSettings


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def requests(*prompts: str, count: int = 1) -> list[Request]:
    values = {"model": "models/emoji", "width": 64, "height": 64, "num_inference_steps": 1, "guidance_scale": 1}
    return [
        Request(GenerateSettings(prompt=prompt, seed=7 + number, **values), str(place))
        for place, prompt in enumerate(prompts)
        for number in range(count)
    ]


def paths_of(*prompts: str, count: int = 1, **where) -> list[str]:
    return [str(each.path) for each in plan_pictures(requests(*prompts, count=count), OutputSettings(**where))]


def test_without_output_the_name_says_when_and_what():
    """The time of day keeps two runs of one command apart."""
    (path,) = paths_of("a cute kitten")
    assert re.fullmatch(r"outputs/\d{8}-\d{6}-00-7-a-cute-kitten\.png", path)


def test_in_a_folder_names_are_the_same_in_every_run():
    """So that an interrupted run can be resumed."""
    expected = ["out/00000-7-a.png", "out/00001-8-a.png", "out/00002-7-b.png", "out/00003-8-b.png"]
    assert paths_of("a", "b", count=2, output="out/") == expected
    os.mkdir("out")
    assert paths_of("a", "b", count=2, output="out") == expected


def test_a_template_knows_its_fields():
    """Index, id of the prompt, seed, prompt, model, date; numbers pad, dates take patterns."""
    output = "{model}/{id}-{index:03d}-{seed}-{prompt}-{date:%Y}.png"
    assert [re.sub(r"\d{4}\.png", "YEAR.png", path) for path in paths_of("a b", "c", output=output)] == [
        "emoji/0-000-7-a-b-YEAR.png",
        "emoji/1-001-7-c-YEAR.png",
    ]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d\.png", paths_of("a", output="{date}.png")[0])
    assert paths_of("a", output="{{x}}.png") == ["{x}.png"]


@pytest.mark.parametrize(
    ("output", "message", "hint"),
    [
        ("{sed}.png", "--output knows no field {sed}", "did you mean seed"),
        ("{}.png", "--output knows no field {}", "known: index"),
        ("{seed.real}.png", "--output knows no field {seed.real}", "known: index"),
        ("{prompt!r}.png", "--output knows no field {prompt!}", "known: index"),
        ("{seed", "has no suffix", "for a file"),
        ("{seed.png", "--output {seed.png: ", "{index:05d}"),
        ("{seed:x9}.png", "--output {seed:x9}.png: ", "{index:05d}"),
        ("kitten", "the name has no suffix", "kitten.png for a file, or kitten/ for a folder"),
        ("kitten.bmp", ".bmp is no picture format", "kitten.bmp.png"),
    ],
)
def test_a_wrong_template_is_refused(output, message, hint):
    """With what is known."""
    with pytest.raises(SdcliError) as raised:
        paths_of("a", output=output)
    assert message in str(raised.value)
    assert hint in raised.value.hint


def test_the_format_is_what_the_name_says():
    """A flag may choose it where the name does not, and may not contradict it."""
    assert paths_of("a", output="out/", file_format="webp") == ["out/00000-7-a.webp"]
    assert paths_of("a", file_format="jpg")[0].endswith(".jpg")
    assert paths_of("a", output="a.JPEG", file_format="jpg") == ["a.JPEG"]
    with pytest.raises(SdcliError, match="contradicts --format png"):
        paths_of("a", output="a.jpg", file_format="png")


def test_two_pictures_never_share_a_name():
    """Before anything is made."""
    with pytest.raises(SdcliError, match="2 files would all be a.png") as raised:
        paths_of("a", count=2, output="a.png")
    assert "{index}" in raised.value.hint
    with pytest.raises(SdcliError, match="--save-steps: 2 files"):
        paths_of("a", count=2, output="out/", save_steps="steps.gif")


def test_steps_go_to_a_strip_or_an_animation():
    """And nowhere else."""
    planned = plan_pictures(requests("a", "b"), OutputSettings(output="out/", save_steps="s{index}.gif"))
    assert [str(picture.steps_path) for picture in planned] == ["s0.gif", "s1.gif"]
    with pytest.raises(SdcliError, match=r"must end in .png or .gif"):
        paths_of("a", output="a.png", save_steps="steps.jpg")
    with pytest.raises(SdcliError, match="would both be a.png"):
        paths_of("a", output="a.png", save_steps="a.png")


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("a cute kitten", "a-cute-kitten"),
        ("../../etc/passwd", "etc-passwd"),
        ("/", "untitled"),
        ("", "untitled"),
        ("a\0b\nc", "a-b-c"),
        ("小猫, Kätzchen!", "小猫-Kätzchen"),
        ("-rf *", "rf"),
    ],
)
def test_a_prompt_is_safe_in_a_name(text, safe):
    """It leads to no other folder and is no flag."""
    assert slug(text) == safe


def test_a_long_prompt_is_cut_at_a_word():
    """A file name has at most 255 bytes, in any script."""
    assert slug("word " * 100) == "-".join(["word"] * 16)
    assert len(slug("小" * 500).encode()) <= 80
    with pytest.raises(SdcliError, match="too long"):
        check_writable([Path("a" * 300 + ".png")])


def test_a_file_that_is_there_is_an_error_unless_told(empty_folder):
    """Error, skip, overwrite, number."""
    (empty_folder / "a.png").touch()
    with pytest.raises(SdcliError, match="a.png is already there") as raised:
        paths_of("a", output="a.png")
    assert "--if-exists" in raised.value.hint
    assert paths_of("a", output="a.png", if_exists="skip") == ["a.png"]  # whether it is that picture is seen later
    assert paths_of("a", output="a.png", if_exists="overwrite") == ["a.png"]
    assert paths_of("a", output="a.png", if_exists="number") == ["a.png"]  # a number when it is written


def test_skipping_needs_names_that_come_again():
    """Names by time are never there already."""
    with pytest.raises(SdcliError, match="--if-exists skip needs --output"):
        paths_of("a", if_exists="skip")


def test_a_shard_is_a_part_and_looks_at_no_other(empty_folder):
    """The parts are all pictures, under the same names; what other parts have made is not in the way."""
    where = OutputSettings(output="out/")
    whole = [str(each.path) for each in plan_pictures(requests("a", count=5), where)]
    parts = [[str(e.path) for e in plan_pictures(requests("a", count=5), where, Shard(i, 2))] for i in (0, 1)]
    assert parts == [whole[0::2], whole[1::2]]
    (empty_folder / "out").mkdir()
    Path(whole[0]).touch()
    plan_pictures(requests("a", count=5), where, Shard(1, 2))
    with pytest.raises(SdcliError, match="already there"):
        plan_pictures(requests("a", count=5), where, Shard(0, 2))


def test_pictures_of_jobs_are_named_by_id():
    """In outputs/ where no output is named: the same in every run, wherever the job stands in its file."""
    assert paths_of("a", of_jobs=True) == ["outputs/0-7-a.png"]
    assert paths_of("a", of_jobs=True, output="x/{id}.jpg") == ["x/0.jpg"]


def job(output: str, **where) -> str:
    (request,) = requests("a b")
    request = Request(request.settings, "../7", output, "jobs.jsonl line 3")
    (picture,) = plan_pictures([request], OutputSettings(output="out/", of_jobs=True, **where))
    return str(picture.path)


def test_a_job_names_its_file_in_the_output_folder():
    """Or a folder there; templates work, and an id leads nowhere else."""
    assert job("cat.png") == "out/cat.png"
    assert job("cats/{seed}.webp") == "out/cats/7.webp"
    assert job("cats/") == "out/cats/7-7-a-b.png"
    assert job("{id}.png") == "out/7.png"


@pytest.mark.parametrize("output", ["../cat.png", "/tmp/cat.png", "cats/../../cat.png", "~/cat.png"])
def test_a_job_that_leads_out_of_the_output_folder_is_refused(output, tmp_path, monkeypatch):
    """Unless that is allowed."""
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(SdcliError, match="jobs.jsonl line 3 output: .* leads out of the output folder"):
        job(output)
    assert os.path.abspath(job(output, allow_outside=True)) != os.path.abspath("out/cat.png")


def test_one_picture_goes_to_stdout():
    """More do not fit."""
    (picture,) = plan_pictures(requests("a"), OutputSettings(output="-"))
    assert picture.to_pipe
    assert not plan_pictures(requests("a"), OutputSettings(output="x/"))[0].to_pipe
    with pytest.raises(SdcliError, match="2 pictures do not fit into one pipe"):
        plan_pictures(requests("a", "b"), OutputSettings(output="-"))
    with pytest.raises(SdcliError, match="--save-latents does not go with -o -"):
        plan_pictures(requests("a"), OutputSettings(output="-", save_latents=True))


def test_a_folder_or_a_dangling_link_is_there_too(empty_folder):
    """Neither is replaced by accident."""
    (empty_folder / "folder.png").mkdir()
    with pytest.raises(SdcliError, match="is a folder"):
        already_there([Path("folder.png")], "overwrite")
    (empty_folder / "link.png").symlink_to("nowhere")
    with pytest.raises(SdcliError, match="already there"):
        already_there([Path("link.png")], "error")


def test_numbers_count_from_one(empty_folder):
    """kitten.png, kitten-1.png, kitten-2.png."""
    for name in ("kitten.png", "kitten-1.png"):
        (empty_folder / name).touch()
    assert free_path(Path("kitten.png")) == Path("kitten-2.png")
    assert write_result(b"x", Path("kitten.png"), "number") == Path("kitten-2.png")


def test_a_file_that_appears_meanwhile_is_not_lost(empty_folder):
    """Another process was faster: an error, kept, numbered or replaced, as told."""
    (empty_folder / "a.png").write_bytes(b"theirs")
    with pytest.raises(SdcliError, match="appeared meanwhile"):
        write_result(b"ours", Path("a.png"), "error")
    assert write_result(b"ours", Path("a.png"), "skip") == Path("a.png")
    assert write_result(b"ours", Path("a.png"), "number") == Path("a-1.png")
    assert (empty_folder / "a.png").read_bytes() == b"theirs"
    assert write_result(b"ours", Path("a.png"), "overwrite").read_bytes() == b"ours"


def test_a_folder_that_cannot_be_written_is_refused_beforehand(empty_folder):
    """And the test leaves no folders behind."""
    check_writable([empty_folder / "new" / "deep" / "a.png"])
    assert list(empty_folder.iterdir()) == []
    (empty_folder / "file").touch()
    with pytest.raises(SdcliError, match="cannot make the folder"):
        check_writable([empty_folder / "file" / "a.png"])
    with pytest.raises(SdcliError, match="cannot write to the folder /proc|cannot make"):
        check_writable([Path("/proc/a.png")])


def test_texts_in_fields_cannot_leave_the_folder():
    """Not even a model's name or an id."""
    fields = [{"index": 0, "model": "../up", "id": "/etc"}]
    assert name_files("--output", "{model}/{id}.png", fields) == [Path("up/etc.png")]
