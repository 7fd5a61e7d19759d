"""Pictures altered by chance: as far as asked, the same again for the same batch, and never those that are held out."""

import dataclasses
import json
import random

import numpy
import pytest
from PIL import Image, ImageDraw, ImageEnhance

from sdcli.data.augment import Augmentation, augment, draw_augmentation
from sdcli.data.folder import read_contents
from sdcli.data.pictures import Framing, Pictures
from sdcli.data.scan import scan
from sdcli.data.store import Store
from sdcli.errors import SdcliError
from sdcli.training.settings import TrainSettings
from sdcli.training.stages import train

GROUND = (40, 90, 200)


@pytest.fixture
def drawing() -> Image.Image:
    """A red bar above the centre, on blue."""
    image = Image.new("RGB", (32, 32), GROUND)
    ImageDraw.Draw(image).rectangle((10, 4, 21, 11), fill=(210, 60, 30))
    return image


def test_nothing_asked_for_changes_nothing(drawing):
    assert augment(drawing, Augmentation()).tobytes() == drawing.tobytes()
    assert draw_augmentation(random.Random(0), 0.0, 0.0) is None


def test_a_shift_is_in_sides_and_ground_comes_after_it(drawing):
    """Right and down are positive."""
    moved, expected = augment(drawing, Augmentation(shift=(0.25, 0.125))), Image.new("RGB", (32, 32), GROUND)
    expected.paste(drawing, (8, 4))
    assert moved.tobytes() == expected.tobytes()


@pytest.mark.parametrize("angle", [90, -90, 180])
def test_a_turn_is_about_the_centre(drawing, angle):
    turned = augment(drawing, Augmentation(angle=angle))
    assert numpy.allclose(turned, numpy.rot90(drawing, angle // 90), atol=1)


def test_half_the_scale_is_half_the_size_on_its_ground(drawing):
    """About the centre, where a bar of half the size lies."""
    smaller = numpy.asarray(augment(drawing, Augmentation(scale=0.5))).astype(int)
    red = abs(smaller - (210, 60, 30)).sum(-1) < 60
    rows, columns = numpy.flatnonzero(red.any(1)), numpy.flatnonzero(red.any(0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (10, 13, 13, 18)
    assert (smaller[0] == GROUND).all() and (smaller[:, -1] == GROUND).all()


@pytest.mark.parametrize(
    ("name", "reference"),
    [("brightness", ImageEnhance.Brightness), ("contrast", ImageEnhance.Contrast), ("saturation", ImageEnhance.Color)],
)
@pytest.mark.parametrize("factor", [0.0, 0.6, 1.5])
def test_colours_change_as_those_of_pillow_do(drawing, name, reference, factor):
    changed = augment(drawing, Augmentation(**{name: factor}))
    assert numpy.allclose(changed, reference(drawing).enhance(factor), atol=1)


def test_chance_stays_within_what_is_asked_for():
    """And uses all of it; what is not asked for stays."""
    draw = random.Random(0)
    drawn = [draw_augmentation(draw, 0.2, 0.0) for _ in range(300)]
    assert {(each.brightness, each.contrast, each.saturation) for each in drawn} == {(1.0, 1.0, 1.0)}
    furthest = [max(abs(each.angle) / 90, *map(abs, each.shift), abs(each.scale - 1)) for each in drawn]
    assert 0.15 < min(max(abs(each.angle) / 90 for each in drawn), max(abs(each.scale - 1) for each in drawn))
    assert max(furthest) <= 0.2
    drawn = [draw_augmentation(draw, 0.0, 0.4) for _ in range(300)]
    assert {(each.angle, each.shift, each.scale) for each in drawn} == {(0.0, (0.0, 0.0), 1.0)}
    assert all(0.6 <= each.contrast <= 1.4 for each in drawn) and len({each.contrast for each in drawn}) == 300


def shown(folder, **framing) -> Pictures:
    pictures = list(scan(read_contents(folder), Store(None), need_captions=True))
    return Pictures(pictures, Framing(resolution=16, multiple=8, **framing), batch_size=4, seed=1)


def test_a_batch_is_altered_and_the_same_again(squares):
    """Only in how it looks: order and captions are those of a run without, and what is shown at rest is as it is."""
    plain, altered = shown(squares), shown(squares, random_affine=0.2, color_jitter=0.3)
    one, other = altered.batch(3), shown(squares, random_affine=0.2, color_jitter=0.3).batch(3)
    assert one == other and len({each.augmentation for each in one}) == len(one)
    assert [each.index for each in one] == [each.index for each in plain.batch(3)]
    assert not (altered.pixel_values(one) == plain.pixel_values(plain.batch(3))).all()
    assert altered.at_rest(0) == plain.at_rest(0)


def test_pictures_on_grounds_and_mirrored_ones_are_altered_too(tmp_path):
    image = Image.new("RGBA", (16, 16))
    ImageDraw.Draw(image).rectangle((6, 2, 12, 7), fill=(210, 60, 30, 255))
    image.save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a bar")
    for framing in ({"grounds": 1.0}, {"pairs": 1.0}, {"random_flip": 1.0}):
        pictures = shown(tmp_path, color_jitter=0.5, **framing)
        (each, *_) = pictures.batch(0)
        still = dataclasses.replace(each, augmentation=None)
        assert not (pictures.pixel_values([each]) == pictures.pixel_values([still])).all(), framing


@pytest.mark.parametrize("how", [{"random_affine": 0.1}, {"color_jitter": 0.1}])
def test_what_is_always_new_is_not_encoded_ahead(how):
    assert Framing(resolution=16, multiple=8).repeats
    assert not Framing(resolution=16, multiple=8, **how).repeats
    assert not Framing(resolution=16, multiple=8, **how, grounds=0.5, variations=3).repeats


@pytest.mark.parametrize("part", ["clip", "unet"])
def test_a_run_with_altered_pictures_holds_out_unaltered_ones(part, squares, tiny_folder, architecture, tmp_path):
    """The loss on held-out pictures, before anything is learned, is that of a run without."""
    losses, start = {}, {"model": str(tiny_folder)} if part == "unet" else {"config": str(architecture)}
    for amount in (0.0, 0.3):
        run = TrainSettings(
            data=str(squares), output=str(tmp_path / f"run-{amount}"), part=part, **start, device="cpu",
            steps=1, batch_size=2, validation_split=0.5, validate_every=1, sample_every=0, cache="none", resolution=16,
            learning_rate=1e-9, random_affine=amount, color_jitter=amount,
        )  # fmt: skip
        list(train(run))
        rows = [json.loads(line) for line in open(tmp_path / f"run-{amount}" / "metrics.jsonl")]
        losses[amount] = {name: row[name] for row in rows for name in ("loss", "validation_raw") if name in row}
    assert losses[0.0]["validation_raw"] == pytest.approx(losses[0.3]["validation_raw"], rel=1e-4)
    assert losses[0.0]["loss"] != pytest.approx(losses[0.3]["loss"], rel=1e-4)


@pytest.mark.parametrize(("name", "value"), [("random_affine", 0.6), ("color_jitter", -0.1), ("color_jitter", 1.1)])
def test_amounts_out_of_range_are_refused(name, value):
    with pytest.raises(SdcliError, match=f"--{name.replace('_', '-')} "):
        TrainSettings(data="d", output="o", model="m", **{name: value})
