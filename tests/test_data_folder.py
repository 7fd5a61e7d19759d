"""Reading a training folder: every layout, and each mistake told with its place."""

import json
from pathlib import Path

import pytest
from PIL import Image

from sdcli.data.folder import read_contents
from sdcli.errors import SdcliError


def picture(path: Path, size: tuple[int, int] = (8, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "red").save(path)
    return path


def captions_of(folder: Path) -> dict[str, tuple[str, ...]]:
    contents = read_contents(folder)
    assert not contents.problems
    return {str(example.path.relative_to(folder.resolve())): example.captions for example in contents.examples}


def test_metadata_gives_the_main_caption_and_the_others(tmp_path):
    picture(tmp_path / "a.png")
    row = {"file_name": "a.png", "text": "a square", "captions": ["a red square", " a square ", ""]}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row) + "\n\n")
    assert captions_of(tmp_path) == {"a.png": ("a square", "a red square")}


def test_text_and_captions_may_each_be_one_or_several(tmp_path):
    """As the peers' scripts take them: a caption is a text, or a list to draw from."""
    picture(tmp_path / "a.png")
    row = {"file_name": "a.png", "text": ["one", "two"], "captions": "three"}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row))
    assert captions_of(tmp_path) == {"a.png": ("one", "two", "three")}


def test_metadata_may_be_a_table(tmp_path):
    """Hugging Face's metadata.csv: quotes, commas and a byte order mark as spreadsheets write them."""
    picture(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_bytes('\ufefffile_name,text\na.png,"a square, red"\n'.encode())
    assert captions_of(tmp_path) == {"a.png": ("a square, red",)}


def test_a_text_file_beside_a_picture_holds_its_captions(tmp_path):
    picture(tmp_path / "b.png")
    picture(tmp_path / "a.jpg")
    (tmp_path / "a.txt").write_text("first\nsecond\n")
    (tmp_path / "b.caption").write_text("third")
    assert captions_of(tmp_path) == {"a.jpg": ("first", "second"), "b.png": ("third",)}


def test_folders_say_how_often_their_pictures_are_shown_and_what_they_show(tmp_path):
    """Kohya's `10_name`, and folders by class; a picture's own caption goes before the folder's name."""
    picture(tmp_path / "10_my cat" / "a.png")
    picture(tmp_path / "10_my cat" / "b.png")
    (tmp_path / "10_my cat" / "b.txt").write_text("my cat asleep")
    picture(tmp_path / "dog" / "c.png")
    examples = {example.path.name: example for example in read_contents(tmp_path).examples}
    assert (examples["a.png"].captions, examples["a.png"].repeats) == (("my cat",), 10)
    assert (examples["b.png"].captions, examples["b.png"].repeats) == (("my cat asleep",), 10)
    assert (examples["c.png"].captions, examples["c.png"].repeats) == (("dog",), 1)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("{", "metadata.jsonl:1 is not JSON"),
        ('{"text": "a"}', 'metadata.jsonl:1 has no "file_name"'),
        ('{"file_name": "no.png", "text": "a"}', "metadata.jsonl:1 names a picture that is not there: no.png"),
        ('{"file_name": "../a.png", "text": "a"}', "metadata.jsonl:1 leaves the folder: ../a.png"),
        ('{"file_name": "a.png", "text": 3}', "metadata.jsonl:1 has a caption that is no text"),
    ],
)
def test_a_line_that_cannot_be_used_is_named_and_the_others_are_read(lines, message, tmp_path):
    picture(tmp_path / "a.png")
    good = '{"file_name": "a.png", "text": "good"}'
    (tmp_path / "metadata.jsonl").write_text(f"{lines}\n{good}\n")
    contents = read_contents(tmp_path)
    (problem,) = contents.problems
    assert f"{problem.place} {problem.message}".startswith(f"{tmp_path}/{message}")
    assert [example.captions for example in contents.examples] == [("good",)]


def test_captions_that_fit_no_picture_or_fit_it_twice_are_told(tmp_path):
    picture(tmp_path / "a.png")
    for name in ("a.txt", "a.caption", "lonely.txt"):
        (tmp_path / name).write_text("a square")
    kinds = {problem.path.name: problem.kind for problem in read_contents(tmp_path).problems}
    assert kinds == {"a.caption": "two-captions", "lonely.txt": "no-picture"}


def test_a_folder_that_is_not_there_and_text_that_is_none_are_mistakes(tmp_path):
    with pytest.raises(SdcliError, match="no folder"):
        read_contents(tmp_path / "missing")
    picture(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SdcliError, match="is not UTF-8"):
        read_contents(tmp_path)


def drawings(folder: Path) -> Path:
    """Three pictures with columns beyond the captions."""
    rows = [
        {"file_name": "a.png", "text": "a heart", "family": "noto", "tags": ["red", "love"]},
        {"file_name": "b.png", "text": "a dog", "family": "fx", "tags": ["brown"]},
        {"file_name": "c.png", "text": "the letter A", "family": "noto", "tags": []},
    ]
    for row in rows:
        picture(folder / row["file_name"])
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.mark.parametrize(
    ("where", "left"),
    [
        (["family=noto"], "ac"),
        (["family!=noto"], "b"),
        (["tags=red, brown"], "ab"),
        (["tags!=red"], "bc"),
        (["family=noto", "text!=a heart"], "c"),
        (["family=two"], ""),
    ],
)
def test_conditions_choose_rows(tmp_path, where, left):
    examples = read_contents(drawings(tmp_path), where).examples
    assert "".join(example.path.stem for example in examples) == left


@pytest.mark.parametrize(
    ("where", "message", "hint"),
    [
        ("family", "--where takes COLUMN=VALUE, got 'family'", "group!=symbol"),
        ("familie=noto", "has no column 'familie'", "file_name, text, family, tags"),
    ],
)
def test_a_condition_that_cannot_be_told_is_a_mistake(tmp_path, where, message, hint):
    with pytest.raises(SdcliError, match=message) as caught:
        read_contents(drawings(tmp_path), [where])
    assert hint in caught.value.hint


def test_conditions_need_metadata(tmp_path):
    picture(tmp_path / "dog" / "a.png")
    with pytest.raises(SdcliError, match="no metadata"):
        read_contents(tmp_path, ["family=noto"])
