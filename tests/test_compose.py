"""Compositions: the ground has its colour, drawings lie where their captions say, and nothing opaque is touched."""

import random
import re

import numpy
import pytest
from PIL import Image, ImageDraw

from sdcli.data.compose import GROUNDS, SHADES, Composition, compose, composed_caption
from sdcli.data.folder import read_contents
from sdcli.data.pictures import Framing, Pictures
from sdcli.data.scan import scan
from sdcli.data.store import Store
from sdcli.errors import SdcliError
from sdcli.training.settings import TrainSettings

INK = {"red": (200, 0, 0), "blue": (0, 0, 200), "green": (0, 150, 0)}


@pytest.fixture
def drawings(tmp_path):
    """Three discs on transparent ground, and an opaque picture."""
    for name, colour in INK.items():
        image = Image.new("RGBA", (64, 64))
        ImageDraw.Draw(image).ellipse((8, 8, 56, 56), fill=(*colour, 255))
        image.save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(f"a {name} disc\na {name} disc, in a style of many words")
    Image.new("RGB", (64, 64), "white").save(tmp_path / "opaque.png")
    (tmp_path / "opaque.txt").write_text("a sheet of paper")
    return tmp_path


def shown(folder, **framing) -> Pictures:
    pictures = list(scan(read_contents(folder), Store(None), need_captions=True))
    return Pictures(pictures, Framing(resolution=64, multiple=8, **framing), batch_size=4, seed=1)


def ink_of(pixels: numpy.ndarray) -> str | None:
    """Whose ink is in a part of a picture."""
    found = {name for name, ink in INK.items() if (abs(pixels.astype(int) - ink).sum(-1) < 30).sum() > 20}
    return found.pop() if len(found) == 1 else None


def test_a_ground_has_the_colour_that_the_caption_tells(drawings):
    pictures, colours = shown(drawings, grounds=1.0), set()
    for number in range(30):
        batch = pictures.batch(number)
        for each, caption, pixels in zip(
            batch, pictures.captions(batch, number), pictures.pixel_values(batch), strict=True
        ):
            corner = (pixels[:, 0, 0] + 1) * 127.5
            if each.composition is None:
                assert caption == "a sheet of paper"
                continue
            colour = re.search(r"(\w+)(?: background)?$", caption)[1]
            assert max(abs(corner - numpy.array(GROUNDS[colour]))) <= SHADES + 1
            assert any(caption.startswith(f"a {name} disc") for name in INK)
            colours.add(colour)
    assert colours == set(GROUNDS)


def test_two_drawings_lie_as_the_caption_says(drawings):
    """Left and right of the middle there is one ink each, in the order of the words where they give one."""
    pictures, seen = shown(drawings, pairs=1.0), set()
    for number in range(30):
        batch = pictures.batch(number)
        for each, caption, pixels in zip(
            batch, pictures.captions(batch, number), pictures.pixel_values(batch), strict=True
        ):
            if each.composition is None:
                continue
            image = ((pixels.permute(1, 2, 0).numpy() + 1) * 127.5).round()
            left, right = ink_of(image[:, :32]), ink_of(image[:, 32:])
            first, second = re.findall(r"a (\w+) disc", caption)
            words = re.search(r"disc (.*?) a \w+ disc", caption)[1]
            seen.add(words)
            assert [left, right] == ([second, first] if words == "to the right of" else [first, second])
            assert re.search("to the|next|and", words)
    assert seen == {"next to", "and", "to the left of", "to the right of"}


def test_without_the_settings_nothing_changes(drawings):
    plain, composed = shown(drawings), shown(drawings, grounds=0.5, pairs=0.5)
    for number in range(5):
        batch = plain.batch(number)
        assert all(each.composition is None for each in batch)
        again = composed.batch(number)
        assert [each.index for each in again] == [each.index for each in batch]
        assert composed.batch(number) == again
        assert composed.captions(again, number) == composed.captions(again, number)


def test_drawings_keep_their_edges_and_their_shape():
    """Half transparent pixels mix with the ground, not with white; nothing is squeezed or cut off."""
    drawing = Image.new("RGBA", (64, 64))
    ImageDraw.Draw(drawing).rectangle((16, 16, 47, 47), fill=(0, 0, 0, 128))
    composition = Composition("red", (200, 0, 0))
    picture = numpy.asarray(compose([drawing], composition, (64, 64)))
    assert abs(picture[32, 32].astype(int) - (100, 0, 0)).max() <= 2
    assert (picture[:, :, 0] < 150).sum() == 32 * 32


def test_a_drawing_lies_where_it_lies_by_itself_and_two_in_their_halves():
    """On white, one is the picture that there is without a composition; two have half its size, at middle height."""
    disc, white = Image.new("RGBA", (64, 48)), Composition("white", (255, 255, 255))
    ImageDraw.Draw(disc).ellipse((4, 2, 50, 40), fill=(1, 2, 3, 255))
    alone = Image.alpha_composite(Image.new("RGBA", disc.size, "white"), disc).convert("RGB")
    assert compose([disc], white, disc.size).tobytes() == alone.tobytes()
    small = numpy.asarray(alone.resize((32, 24), Image.Resampling.LANCZOS)).astype(int)
    sheet = Image.new("RGBA", (64, 48), (1, 2, 3, 255))
    for drawings, sheets, discs in (([sheet, disc], 0, 32), ([disc, sheet], 32, 0)):
        pair = numpy.asarray(compose(drawings, white, disc.size)).astype(int)
        assert (pair[:12] == 255).all() and (pair[36:] == 255).all()
        assert (pair[12:36, sheets : sheets + 32] == (1, 2, 3)).all()
        assert abs(pair[12:36, discs : discs + 32] - small).max() <= 3  # of 255: edges are made before the ground is


def test_long_captions_are_parts_only_where_there_is_no_short_one():
    draw = random.Random(0)
    long = "a very long caption of more words than six"
    assert all(long not in composed_caption(draw, [[long, "a cat"], ["a dog"]], "white") for _ in range(20))
    assert long in composed_caption(draw, [[long], ["a dog"]], "white")
    assert "an orange background" in {composed_caption(draw, [["x"]], "orange")[5:] for _ in range(20)}


def test_a_drawing_has_its_variations_and_no_others(drawings):
    """Each is the same whenever it comes, in pixels too, and all are known beforehand, so that they can be encoded."""
    pictures = shown(drawings, grounds=0.5, pairs=0.3, variations=3, random_flip=0.5)
    known = {each for index in range(len(pictures)) for each in pictures.all_at_rest(index)}
    seen = {each for number in range(60) for each in pictures.batch(number)}
    assert seen == known
    assert 4 < len(known) <= 2 * (3 * 3 + 1)


def test_latents_of_variations_are_computed_once(drawings, tmp_path_factory, architecture, monkeypatch):
    """A UNet's run encodes every variation before its first update, and nothing after it."""
    from sdcli.components.vae import VAE
    from sdcli.training.events import Preparing
    from sdcli.training.loop import train

    common = {"batch_size": 4, "device": "cpu", "cache": "none", "config": str(architecture), "data": str(drawings)}
    runs = tmp_path_factory.mktemp("runs")
    vae, clip, unet = (str(runs / part) for part in ("vae", "clip", "unet"))
    list(train(TrainSettings(**common, part="vae", output=vae, steps=1)))
    list(train(TrainSettings(**common, part="clip", model=vae, output=clip, steps=1)))
    changes = {"part": "unet", "model": clip, "output": unet, "steps": 8, "grounds": 0.5, "pairs": 0.3, "variations": 3}
    encoded, original = [], VAE.encode
    monkeypatch.setattr(VAE, "encode", lambda self, images: encoded.append(len(images)) or original(self, images))
    prepared = None
    for event in train(TrainSettings(**common, **changes)):
        if isinstance(event, Preparing) and event.done == event.total:
            prepared = sum(encoded)
    assert prepared == sum(encoded) <= 3 * 3 + 1


def test_shares_beyond_all_pictures_are_refused(tmp_path):
    with pytest.raises(SdcliError, match="more than all pictures together"):
        TrainSettings(data=str(tmp_path), output="run", config="emoji", grounds=0.7, pairs=0.5)
