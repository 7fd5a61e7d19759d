"""Reading a training folder: both layouts, and each mistake told with its place."""

import json
from pathlib import Path

import pytest
from PIL import Image

from sdcli.errors import SdcliError
from sdcli.training.dataset import ImageFolder, read_folder


def picture(path: Path, size: tuple[int, int] = (8, 8)) -> Path:
    Image.new("RGB", size, "red").save(path)
    return path


def test_metadata_gives_the_main_caption_and_the_others(tmp_path):
    picture(tmp_path / "a.png")
    row = {"file_name": "a.png", "text": "a square", "captions": ["a red square", " a square ", ""]}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row) + "\n\n")
    (example,) = read_folder(tmp_path)
    assert example.captions == ("a square", "a red square")


def test_text_and_captions_may_each_be_one_or_several(tmp_path):
    """As the peers' scripts take them: a caption is a text, or a list to draw from."""
    picture(tmp_path / "a.png")
    row = {"file_name": "a.png", "text": ["one", "two"], "captions": "three"}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row))
    assert read_folder(tmp_path)[0].captions == ("one", "two", "three")


def test_a_text_file_beside_a_picture_holds_its_captions(tmp_path):
    picture(tmp_path / "b.png")
    picture(tmp_path / "a.jpg")
    (tmp_path / "a.txt").write_text("first\nsecond\n")
    (tmp_path / "b.txt").write_text("third")
    assert [example.captions for example in read_folder(tmp_path)] == [("first", "second"), ("third",)]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("{", r"metadata.jsonl:1 is not JSON"),
        ('{"text": "a"}', r'metadata.jsonl:1 has no "file_name"'),
        ('{"file_name": "no.png", "text": "a"}', "metadata.jsonl:1 names a picture that is not there: no.png"),
        ('{"file_name": "../a.png", "text": "a"}', r"metadata.jsonl:1 leaves the folder: \.\./a.png"),
        ('{"file_name": "a.png"}', "no caption for a.png"),
        ('{"file_name": "a.png", "text": 3}', "a caption that is no text"),
        ("", "no pictures in"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(lines, message, tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text(lines)
    with pytest.raises(SdcliError, match=message):
        read_folder(tmp_path)


def test_a_vae_needs_no_captions(tmp_path):
    picture(tmp_path / "a.png")
    assert len(read_folder(tmp_path, need_captions=False)) == 1
    with pytest.raises(SdcliError, match="no caption for a.png"):
        read_folder(tmp_path)


def test_no_folder_is_a_mistake(tmp_path):
    with pytest.raises(SdcliError, match="no folder"):
        read_folder(tmp_path / "missing")


def test_pictures_fill_a_square_and_keep_their_shape(tmp_path):
    """A wide picture is scaled by its height and cut left and right, not squeezed."""
    wide = Image.new("RGB", (30, 10), "white")
    wide.paste("black", (10, 0, 20, 10))
    wide.save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a bar")
    pixel_values = ImageFolder(read_folder(tmp_path), resolution=10, seed=0).pixel_values([0])
    assert pixel_values.shape == (1, 3, 10, 10)
    assert pixel_values.max() == -1
