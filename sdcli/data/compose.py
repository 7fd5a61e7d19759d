"""Drawings on transparent ground put on colours, and side by side, so that a model learns to do so with all of them."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from sdcli.data.filler import add_filler, article
from sdcli.images import Image

GROUNDS = {  # typical colours of the basic colour words, sRGB
    "white": (255, 255, 255),
    "black": (20, 20, 20),
    "gray": (140, 140, 140),
    "red": (215, 45, 40),
    "orange": (245, 140, 30),
    "yellow": (250, 220, 60),
    "green": (70, 165, 75),
    "blue": (50, 110, 215),
    "purple": (130, 70, 180),
    "pink": (245, 150, 190),
    "brown": (125, 80, 50),
    "teal": (30, 150, 150),
}
SHADES = 12  # of 255, by which each channel of a ground differs from the typical colour at most
ON_GROUND = ("{thing} on {article} {colour} background",) * 3 + ("{thing} on {colour}", "{thing}, {colour} background")
SIDE_BY_SIDE = (
    "{left} next to {right}",
    "{left} and {right}",
    "{left} to the left of {right}",
    "{right} to the right of {left}",
)
MOST_WORDS = 6  # of a caption that becomes a part of a longer one


@dataclass(frozen=True)
class Composition:
    """On what ground the drawing of an example is put, alone or beside another one.

    Args:
        colour: the ground's name.
        ground: its colour.
        partner: index of the example at its right; None leaves it alone.
    """

    colour: str
    ground: tuple[int, int, int]
    partner: int | None = None


def draw_composition(draw: random.Random, partner: int | None) -> Composition:
    """A ground by chance; two drawings lie on white as often as on all colours together."""
    colour = draw.choice(list(GROUNDS)) if partner is None or draw.random() < 0.5 else "white"
    shades = [draw.randint(-SHADES, SHADES) for _ in range(3)]
    if colour == "white":
        shades = [0, 0, 0]
    ground = tuple(min(255, max(0, value + shade)) for value, shade in zip(GROUNDS[colour], shades, strict=True))
    return Composition(colour, ground, partner)


def compose(drawings: Sequence[Image.Image], composition: Composition, size: tuple[int, int]) -> Image.Image:
    """Put one drawing, or two side by side, on a ground.

    One lies where it lies by itself, and each of two, at half its size, in the middle of its half: a small model, which
    knows a thing by its place, need not learn it again for every place and size.

    Args:
        drawings: RGBA, each of `size`.
        composition: on what.
        size: of the picture, width and height.

    Returns:
        RGB.
    """
    canvas = Image.new("RGBA", size, (*composition.ground, 255))
    width, height = (max(1, side // len(drawings)) for side in size)
    top = (size[1] - height) // 2
    for place, drawing in enumerate(drawings):
        layer = Image.new("RGBA", size)
        layer.paste(drawing.resize((width, height), Image.Resampling.LANCZOS), (place * width, top))
        canvas = Image.alpha_composite(canvas, layer)
    return canvas.convert("RGB")


def simple_caption(draw: random.Random, captions: Sequence[str], filler: float = 0.0) -> str:
    """One of the captions; a share `filler` of them gets words that say nothing of the picture."""
    caption = draw.choice(captions)
    return add_filler(draw, caption) if filler and draw.random() < filler else caption


def composed_caption(draw: random.Random, things: Sequence[Sequence[str]], colour: str, filler: float = 0.0) -> str:
    """What to say of a composition, from what is said of its parts.

    Args:
        draw: decides on the words.
        things: captions of each part.
        colour: of the ground; white is mentioned only where there is one thing.
        filler: share of parts that get words which say nothing of them.
    """
    said = [simple_caption(draw, short_ones(captions), filler) for captions in things]
    if len(said) == 2:
        together = draw.choice(SIDE_BY_SIDE).format(left=said[0], right=said[1])
        if colour == "white":
            return together
        return f"{together} on {article(colour)} {colour} background"
    return draw.choice(ON_GROUND).format(thing=said[0], article=article(colour), colour=colour)


def short_ones(captions: Sequence[str]) -> Sequence[str]:
    """Captions that can be parts of a longer one; all of them where none is short."""
    return [each for each in captions if "," not in each and len(each.split()) <= MOST_WORDS] or captions
