"""`sdcli data check`: every kind of trouble is found before training, told once, and put aside without loss."""

import json
import shutil
from pathlib import Path

import numpy
import pytest
from PIL import Image

from sdcli.cli import run

ORIENTATION = 0x0112


def sdcli(*arguments: object) -> int:
    return run([str(argument) for argument in arguments])


def photo(seed: int, size: tuple[int, int] = (128, 128)) -> Image.Image:
    """A smooth picture that looks like no other one."""
    small = numpy.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype="uint8")
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def troubled(tmp_path) -> Path:
    """A folder with one of everything."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    photo(0).save(folder / "good.png")
    shutil.copy(folder / "good.png", folder / "same.png")
    photo(0).resize((120, 120)).resize((128, 128)).save(folder / "alike.png")
    photo(1, (32, 32)).save(folder / "small.png")
    photo(2).convert("CMYK").save(folder / "cmyk.jpg")
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    photo(3, (256, 128)).save(folder / "turned.jpg", exif=exif)
    clear = photo(4).convert("RGBA")
    clear.putalpha(128)
    clear.save(folder / "clear.png")
    Image.fromarray(numpy.full((128, 128), 40000, dtype="uint16")).save(folder / "deep.png")
    photo(5).save(folder / "moving.gif", save_all=True, append_images=[photo(6)])
    (folder / "broken.png").write_bytes((folder / "good.png").read_bytes()[:300])
    photo(7).save(folder / "wordless.png")
    photo(8).save(folder / "blank.png")
    photo(9).save(folder / "long.png")
    Image.new("1", (20000, 20000)).save(folder / "bomb.png")
    for path in list(folder.iterdir()):
        path.with_suffix(".txt").write_text(f"a picture called {path.stem}")
    (folder / "wordless.txt").unlink()
    (folder / "blank.txt").write_text(" \n")
    (folder / "long.txt").write_text("word " * 100)
    (folder / "lonely.txt").write_text("nothing to see")
    return folder


def found(report: dict, name: str) -> dict[str, str]:
    return {Path(each["place"]).name: each["kind"] for each in report[name]}


@pytest.mark.filterwarnings("ignore")
def test_everything_is_found_and_told(troubled, capsys):
    """Errors are what a run would refuse; notes are what it would take, but not as it is."""
    assert sdcli("data", "check", troubled, "--json") == 1
    report = json.loads(capsys.readouterr().out)
    assert found(report, "problems") == {
        "moving.gif": "bad-picture",
        "broken.png": "bad-picture",
        "bomb.png": "bad-picture",
        "wordless.png": "no-caption",
        "blank.txt": "no-caption",
        "lonely.txt": "no-picture",
    }
    messages = {Path(each["place"]).name: each["message"] for each in report["problems"]}
    assert messages["bomb.png"] == "is too large: 400 million pixels"
    assert messages["moving.gif"] == "is an animation of 2 pictures"
    notes = found(report, "notes")
    expected = {
        "good.png": "near-duplicate",
        "same.png": "identical",
        "small.png": "small",
        "cmyk.jpg": "converted",
        "turned.jpg": "rotated",
        "clear.png": "transparent",
        "deep.png": "converted",
        "long.txt": "long-caption",
    }
    assert expected.items() <= notes.items()
    assert report["images"] == 9
    assert report["sizes"] == {"128x128": 7, "32x32": 1, "128x256": 1}
    assert sum(report["buckets"].values()) == 9
    assert report["captions"] == sum(report["tokens"].values()) == 9


@pytest.mark.filterwarnings("ignore")
def test_mending_puts_aside_what_no_run_can_use_and_loses_nothing(troubled, capsys):
    """After --fix the folder is clean, and every file is still somewhere."""
    before = {path.name: path.read_bytes() for path in troubled.iterdir()}
    assert sdcli("data", "check", troubled, "--fix") == 0
    assert sdcli("data", "check", troubled) == 0
    aside = troubled.with_name("pictures.rejected")
    after = {path.name: path.read_bytes() for folder in (troubled, aside) for path in folder.iterdir()}
    assert after == before
    assert sorted(path.stem for path in aside.iterdir() if path.suffix != ".txt") == [
        "blank",
        "bomb",
        "broken",
        "moving",
        "wordless",
    ]
    assert (aside / "broken.txt").is_file() and (aside / "lonely.txt").is_file()


def test_mending_metadata_keeps_good_lines_as_they_are(tmp_path, capsys):
    folder = tmp_path / "pictures"
    folder.mkdir()
    photo(0).save(folder / "a.png")
    (folder / "b.png").write_bytes(b"no picture")
    photo(1).save(folder / "unnamed.png")
    lines = ['{"file_name": "a.png",  "text": "a"}', "{", '{"file_name": "b.png", "text": "b"}']
    lines += ['{"file_name": "c.png", "text": "c"}', '{"file_name": "../a.png", "text": "d"}']
    (folder / "metadata.jsonl").write_text("".join(f"{line}\n" for line in lines))
    assert sdcli("data", "check", folder, "--fix") == 0
    assert (folder / "metadata.jsonl").read_text() == lines[0] + "\n"
    rejected = (tmp_path / "pictures.rejected" / "metadata.jsonl").read_text().splitlines()
    assert rejected == lines[1:]
    capsys.readouterr()
    assert sdcli("data", "check", folder) == 0
    assert "unnamed.png is not named in metadata.jsonl" in capsys.readouterr().out


def test_a_vae_s_pictures_need_no_captions(tmp_path):
    photo(0).save(tmp_path / "a.png")
    assert sdcli("data", "check", tmp_path) == 1
    assert sdcli("data", "check", tmp_path, "--no-captions") == 0


def test_an_empty_folder_and_none_at_all(tmp_path, capsys):
    assert sdcli("data", "check", tmp_path) == 1
    assert "holds no pictures" in capsys.readouterr().out
    assert sdcli("data", "check", tmp_path / "missing") == 1
    assert "error: no folder" in capsys.readouterr().err
