"""Pictures altered by chance: as far as asked, the same again for the same batch, and never those that are held out."""

import dataclasses
import json
import random

import numpy
import pytest
from PIL import Image, ImageDraw, ImageEnhance

from sdcli.data.augment import Augmentation, draw_augmentation, move, recolour
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
    assert move(drawing, Augmentation()) is drawing and recolour(drawing, Augmentation()) is drawing
    assert draw_augmentation(random.Random(0), 0.0, 0.0) == Augmentation()


def test_a_move_is_in_sides_and_ground_comes_after_it(drawing):
    """Right and down are positive."""
    moved, expected = move(drawing, Augmentation(translate=(0.25, 0.125))), Image.new("RGB", (32, 32), GROUND)
    expected.paste(drawing, (8, 4))
    assert moved.tobytes() == expected.tobytes()


@pytest.mark.parametrize("angle", [90, -90, 180])
def test_a_turn_is_about_the_centre(drawing, angle):
    turned = move(drawing, Augmentation(angle=angle))
    assert numpy.allclose(turned, numpy.rot90(drawing, angle // 90), atol=1)


def test_half_the_scale_is_half_the_size_on_its_ground(drawing):
    """About the centre, where a bar of half the size lies."""
    smaller = numpy.asarray(move(drawing, Augmentation(scale=0.5))).astype(int)
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
    changed = recolour(drawing, Augmentation(**{name: factor}))
    assert numpy.allclose(changed, reference(drawing).enhance(factor), atol=1)


def test_what_is_transparent_stays_so(drawing):
    drawing.putalpha(Image.linear_gradient("L").resize(drawing.size))
    changed = recolour(drawing, Augmentation(brightness=0.5))
    assert changed.getchannel("A").tobytes() == drawing.getchannel("A").tobytes()
    assert changed.getpixel((12, 6))[:3] == (105, 30, 15)


def test_chance_stays_within_what_is_asked_for():
    """And uses nearly all of it, of everything; what is not asked for stays."""
    draw = random.Random(0)
    drawn = [draw_augmentation(draw, 0.2, 0.0) for _ in range(300)]
    assert {(each.brightness, each.contrast, each.saturation) for each in drawn} == {(1.0, 1.0, 1.0)}
    for amounts in (
        [each.angle / 90 for each in drawn],
        [each.translate[0] for each in drawn],
        [each.translate[1] for each in drawn],
        [each.scale - 1 for each in drawn],
    ):
        assert -0.2 <= min(amounts) < -0.18 and 0.18 < max(amounts) <= 0.2
    drawn = [draw_augmentation(draw, 0.0, 0.4) for _ in range(300)]
    assert {(each.angle, each.translate, each.scale) for each in drawn} == {(0.0, (0.0, 0.0), 1.0)}
    for name in ("brightness", "contrast", "saturation"):
        factors = [getattr(each, name) for each in drawn]
        assert 0.6 <= min(factors) < 0.64 and 1.36 < max(factors) <= 1.4


def shown(folder, **framing) -> Pictures:
    pictures = list(scan(read_contents(folder), Store(None), need_captions=True))
    return Pictures(pictures, Framing(resolution=16, multiple=8, **framing), batch_size=4, seed=1)


def test_a_batch_is_altered_and_the_same_again(drawings):
    """Only in how it looks: order, flips, compositions and captions are those of a run without."""
    common = {"random_flip": 0.5, "grounds": 0.4, "pairs": 0.3}
    plain, altered = shown(drawings, **common), shown(drawings, **common, random_affine=0.2, color_jitter=0.3)
    one, other = altered.batch(3), shown(drawings, **common, random_affine=0.2, color_jitter=0.3).batch(3)
    assert one == other and len({each.augmentation for each in one}) == len(one)
    assert [dataclasses.replace(each, augmentation=Augmentation()) for each in one] == plain.batch(3)
    assert altered.captions(one, 3) == plain.captions(plain.batch(3), 3)
    assert not (altered.pixel_values(one) == plain.pixel_values(plain.batch(3))).all()
    assert altered.at_rest(0) == plain.at_rest(0)


@pytest.fixture
def drawings(tmp_path):
    """Three bars on transparent ground."""
    for name, colour in {"red": (210, 60, 30), "green": (30, 160, 60), "blue": (30, 60, 200)}.items():
        image = Image.new("RGBA", (16, 16))
        ImageDraw.Draw(image).rectangle((5, 4, 11, 11), fill=(*colour, 255))
        image.save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(f"a {name} bar")
    return tmp_path


@pytest.mark.parametrize("framing", [{"grounds": 1.0}, {"pairs": 1.0}, {"random_flip": 1.0}])
def test_compositions_and_mirrored_ones_are_altered_but_grounds_keep_their_colour(framing, drawings):
    """A caption tells it."""
    pictures = shown(drawings, color_jitter=0.5, **framing)
    for each in pictures.batch(0):
        still = dataclasses.replace(each, augmentation=Augmentation())
        changed, unchanged = pictures.pixel_values([each]), pictures.pixel_values([still])
        assert not (changed == unchanged).all()
        assert each.composition is None or (changed[..., 0, 0] == unchanged[..., 0, 0]).all()


@pytest.mark.parametrize("how", [{"random_affine": 0.1}, {"color_jitter": 0.1}])
def test_what_is_always_new_is_not_encoded_ahead(how):
    assert Framing(resolution=16, multiple=8).comes_again
    assert not Framing(resolution=16, multiple=8, **how).comes_again
    assert not Framing(resolution=16, multiple=8, **how, grounds=0.5, variations=3).comes_again


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
        rows = map(json.loads, (tmp_path / f"run-{amount}" / "metrics.jsonl").read_text().splitlines())
        losses[amount] = {name: row[name] for row in rows for name in ("loss", "validation_raw") if name in row}
    assert losses[0.0]["validation_raw"] == pytest.approx(losses[0.3]["validation_raw"], rel=1e-4)
    assert losses[0.0]["loss"] != pytest.approx(losses[0.3]["loss"], rel=1e-4)


@pytest.mark.parametrize(("name", "value"), [("random_affine", 0.6), ("color_jitter", -0.1), ("color_jitter", 1.1)])
def test_amounts_out_of_range_are_refused(name, value):
    with pytest.raises(SdcliError, match=f"--{name.replace('_', '-')} "):
        TrainSettings(data="d", output="o", model="m", **{name: value})
