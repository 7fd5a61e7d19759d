"""Several pictures as one file: strips, animations, and grids with labels."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from io import BytesIO

from PIL import Image, ImageDraw, ImageFont

LABEL_PX = 13  # height of letters
MARGIN_PX = 4
LARGEST_SHEET = 64_000_000  # pixels; cells of larger sheets are made smaller


def make_strip(images: Sequence[Image.Image]) -> Image.Image:
    """Pictures of one size side by side, from left to right."""
    width, height = images[0].size
    strip = Image.new("RGB", (width * len(images), height))
    for index, image in enumerate(images):
        strip.paste(image, (index * width, 0))
    return strip


def encode_animation(images: Sequence[Image.Image], frame_s: float = 0.15, last_s: float = 1.5) -> bytes:
    """Images as a GIF that repeats for ever and rests on the last one."""
    content = BytesIO()
    durations = [round(frame_s * 1000)] * (len(images) - 1) + [round(last_s * 1000)]
    first, *others = (image.quantize(256) for image in images)
    first.save(content, "GIF", save_all=True, append_images=others, duration=durations, loop=0)
    return content.getvalue()


def make_grid(images: Iterable[Image.Image], columns: int, labels: Sequence[str]) -> Image.Image:
    """Pictures in rows, with a line of text below each, on white.

    Args:
        images: each is made smaller to fit into a cell of the size of the first, and centred in it.
        columns: in a row.
        labels: one for each picture, cut off where its cell ends.
    """
    images = iter(images)
    first = next(images)
    rows = math.ceil(len(labels) / columns)
    shrink = min(1.0, math.sqrt(LARGEST_SHEET / (math.prod(first.size) * rows * columns)))
    width, height = (max(1, int(side * shrink)) for side in first.size)
    font = ImageFont.load_default(LABEL_PX)
    below = LABEL_PX + 2 * MARGIN_PX if any(labels) else 0
    cell = (width + MARGIN_PX, height + below + MARGIN_PX)
    sheet = Image.new("RGB", (columns * cell[0] + MARGIN_PX, rows * cell[1] + MARGIN_PX), "white")
    draw = ImageDraw.Draw(sheet)
    for place, (image, label) in enumerate(zip(itertools.chain([first], images), labels, strict=True)):
        left, top = MARGIN_PX + cell[0] * (place % columns), MARGIN_PX + cell[1] * (place // columns)
        image.thumbnail((width, height))
        sheet.paste(image, (left + (width - image.width) // 2, top + (height - image.height) // 2))
        if below:
            draw.text((left, top + height + MARGIN_PX), fitting(label, font, width), fill="black", font=font)
    return sheet


def fitting(text: str, font: ImageFont.ImageFont, width: int) -> str:
    """A text, cut off so that it is at most so many pixels wide."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
