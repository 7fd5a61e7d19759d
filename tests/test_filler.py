"""Words that say nothing of a picture: the caption stays whole within them, and a UNet is told them afresh."""

import dataclasses
import random
import re

import pytest
from first_batch import part_of

from sdcli.data import filler
from sdcli.data.compose import GROUNDS, SIDE_BY_SIDE, composed_caption, simple_caption
from sdcli.data.filler import add_filler
from sdcli.training.settings import TrainSettings
from sdcli.training.stages import train

WORD_LISTS = [words for name, words in vars(filler).items() if name.isupper() and isinstance(words, (list, tuple))]
CAPTIONS = ["a cat", "an apple, flat emoji", "the red planet", "kitten", "clip art with dogs"]


def any_of(words: list[str]) -> str:
    return f"(?:{'|'.join(words)})"


def test_what_ends_a_caption_is_of_many_kinds():
    """Parts, of something else too, how many, and where; places, receivers, doings, and what it has to do with."""
    draw, look = random.Random(1), f"{any_of(filler.COLOURS + filler.LOOKS)} "
    parts, several, things, places = map(any_of, (filler.PARTS, filler.SEVERAL, filler.THINGS, filler.PLACES))
    said = "\n".join(add_filler(draw, "a cat") for _ in range(6000))
    for kind in (
        rf"cat with an? {parts}$",
        rf"cat with an? (?:{look})?{things} {parts} {any_of(filler.SPOTS)}$",
        rf"cat with {look}{several}$",
        rf"cat with an? {parts} and {look}{several}$",
        rf"cat {any_of(filler.BEFORE_PLACES)} an? {places}$",
        rf"cat {any_of(filler.BEFORE_PLACES)} the {look}{places}$",
        rf"cat for my {any_of(filler.RECEIVERS)}$",
        rf"cat {any_of(filler.DOINGS)}$",
        rf"cat holding an? (?:{look})?{things}$",
        rf"^a {places} cat\b",
    ):
        assert re.search(kind, said, re.MULTILINE), kind
    assert not re.search(rf"with an? {several}$", said, re.MULTILINE)
    assert not re.search(r" and an? | next to | (left|right) of | background", said)  # how compositions are told


@pytest.mark.parametrize("caption", CAPTIONS)
def test_a_caption_stays_whole_within_the_filler(caption):
    """Its words come in their order, a style last; what is new is of the lists, before or after the thing or both."""
    draw, seen = random.Random(5), set()
    thing, comma, style = caption.partition(",")
    words = [word for word in thing.split() if word not in ("a", "an", "the")]
    for _ in range(400):
        filled = add_filler(draw, caption)
        assert filled.endswith(comma + style)
        said = filled.removesuffix(comma + style).split()
        begin = next(i for i in range(len(said)) if said[i : i + len(words)] == words)
        seen.add((said[: begin + len(words)] != thing.split(), begin + len(words) < len(said)))
        added = [*said[:begin], *said[begin + len(words) :]]
        known = {word for words in WORD_LISTS for entry in words for word in entry.split()}
        assert set(added) <= known | {"a", "an", "the", "with", "and", "for", "my", "your"}
        assert filled != caption
    assert seen == {(True, False), (False, True), (True, True)}


def test_articles_fit_the_words_after_them():
    draw = random.Random(2)
    said = " ".join(add_filler(draw, caption) for caption in CAPTIONS * 200)
    assert re.findall(r"\ba (?=[aeio])\w+", said) == []
    assert {found for found in re.findall(r"\ban (\w)", said)} <= set("aeiou")
    assert re.search(r"\ban (?:amazing|average|elegant|unusual)", said)
    assert re.search(r"\ba (?:used|useful|usual)\b", said) and not re.search(r"\ban us", said)


def test_a_share_of_captions_is_filled_and_the_rest_are_as_they_were():
    draw = random.Random(3)
    filled = [simple_caption(draw, CAPTIONS, 0.3) not in CAPTIONS for _ in range(2000)]
    assert 0.26 < sum(filled) / len(filled) < 0.34
    assert all(simple_caption(draw, CAPTIONS, 1.0) not in CAPTIONS for _ in range(100))
    one, other = random.Random(4), random.Random(4)
    assert [simple_caption(one, CAPTIONS) for _ in range(50)] == [other.choice(CAPTIONS) for _ in range(50)]


def test_what_a_composition_says_of_ground_and_place_stays_outermost():
    draw, joints = random.Random(1), "|".join(re.split("{.*?}", form)[1].strip() for form in SIDE_BY_SIDE)
    of_one = rf"(?!\w+ (?:{'|'.join(filler.SEVERAL)})\b)"  # "a cat with a hat and red shoes"
    for colour in GROUNDS:
        said = composed_caption(draw, [["a cat"]], colour, 1.0)
        assert re.fullmatch(rf".*\bcat\b.*(?: on (?:an? )?|, ){colour}(?: background)?", said)
        assert not re.fullmatch(rf"a cat(?: on (?:an? )?|, ){colour}(?: background)?", said)
    for _ in range(100):
        said = composed_caption(draw, [["a cat"], ["a dog"]], "white", 1.0)
        parts = re.split(rf" (?:{joints}) {of_one}", said)  # between its parts once, whatever else is said
        assert len(parts) == 2
        assert "cat" in said and "dog" in said and "a cat" not in parts and "a dog" not in parts


def test_a_unet_is_told_captions_with_filler_and_keeps_no_features_of_them(squares, tmp_path, architecture):
    """They hardly come again; and what is held out is told captions as they are."""
    common = {"data": str(squares), "config": str(architecture), "device": "cpu", "cache": "none", "steps": 1}
    clip = str(tmp_path / "clip")
    list(train(TrainSettings(**common, output=str(tmp_path / "vae"), part="vae")))
    list(train(TrainSettings(**common, output=clip, part="clip", model=str(tmp_path / "vae"))))
    plain = TrainSettings(**common, output=str(tmp_path / "unet"), model=clip, batch_size=2, caption_dropout=0.0)
    for run in (plain, dataclasses.replace(plain, caption_filler=1.0)):
        part, data = part_of(run)
        captions = data.captions(data.batch(0), 0)
        filled = [not re.fullmatch(r"(a )?\w+ square", caption) for caption in captions]
        assert filled == [run.caption_filler > 0] * 2
        batch = part.batch(data, 0)
        assert batch["input_ids"].equal(part.pipeline.tokenize(captions))
        part.losses(part.network, batch)
        assert bool(part._captions._known) == (run.caption_filler == 0)


def test_held_out_pictures_are_told_captions_as_they_are(squares, tmp_path, architecture):
    from sdcli.data.store import Store
    from sdcli.training.assembly import start_model
    from sdcli.training.material import Material, gather

    settings = {"data": str(squares), "config": str(architecture), "output": str(tmp_path / "run"), "part": "clip"}
    run = TrainSettings(**settings, device="cpu", caption_filler=1.0, validation_split=0.5, batch_size=2)
    material = next(item for item in gather(run, Store(None)) if isinstance(item, Material))
    training, held_out = material.shown(run, start_model(run, material.captions))
    for pictures, whole in ((training, False), (held_out, True)):
        captions = pictures.captions(pictures.batch(0), 0)
        assert all(bool(re.fullmatch(r"(a )?\w+ square", caption)) == whole for caption in captions)
