"""Pictures turned, moved, scaled and recoloured by chance, so that few of them are not learned by heart."""

import math
import random
from dataclasses import dataclass

from sdcli.images import Image

RIGHT_ANGLE = 90  # degrees


@dataclass(frozen=True)
class Augmentation:
    """What is done to a picture; the defaults do nothing.

    Args:
        angle: in degrees, counterclockwise.
        translate: to the right and down, as shares of the sides.
        scale: of what is seen; below 1 there is ground around it.
        brightness: what every colour is multiplied by.
        contrast: what its distance from the picture's mean grey is multiplied by.
        saturation: what its distance from its own grey is multiplied by. Hues stay; white, grey and black do not.
    """

    angle: float = 0.0
    translate: tuple[float, float] = (0.0, 0.0)
    scale: float = 1.0
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0


def draw_augmentation(draw: random.Random, affine: float, jitter: float) -> Augmentation:
    """One by chance, which does nothing where both amounts are 0.

    Args:
        draw: decides.
        affine: how far a picture is turned, in right angles, moved, in its sides, and scaled, in itself, at most.
        jitter: how far brightness, contrast and saturation change at most, in themselves.
    """
    angle, right, down, scale = (draw.uniform(-affine, affine) for _ in range(4))
    colours = [1 + draw.uniform(-jitter, jitter) for _ in range(3)]
    return Augmentation(RIGHT_ANGLE * angle, (right, down), 1 + scale, *colours)


def move(image: Image.Image, augmentation: Augmentation) -> Image.Image:
    """A picture (RGB) turned about its centre, scaled and moved; what was outside has its corners' colour.

    Reference: torchvision's RandomAffine.
    """
    if augmentation.angle == 0 and augmentation.translate == (0, 0) and augmentation.scale == 1:
        return image
    width, height = image.size
    angle = math.radians(augmentation.angle)
    along, across = math.cos(angle) / augmentation.scale, math.sin(angle) / augmentation.scale
    # Where the centre of the source comes to lie, and from there back to the source.
    centre = width * (0.5 + augmentation.translate[0]), height * (0.5 + augmentation.translate[1])
    matrix = (
        *(along, -across, width / 2 - along * centre[0] + across * centre[1]),
        *(across, along, height / 2 - across * centre[0] - along * centre[1]),
    )
    ground = corner_colour(image)
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=ground)


def recolour(image: Image.Image, augmentation: Augmentation) -> Image.Image:
    """A picture (RGB, or RGBA, whose transparency stays) with other brightness, then contrast, then saturation.

    Reference: torchvision's ColorJitter, whose order is by chance.
    """
    if augmentation.brightness == augmentation.contrast == augmentation.saturation == 1:
        return image
    alpha, image = image.getchannel("A") if image.mode == "RGBA" else None, image.convert("RGB")
    image = Image.blend(Image.new("RGB", image.size), image, augmentation.brightness)
    mean = image.convert("L").resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
    image = Image.blend(Image.new("RGB", image.size, (mean, mean, mean)), image, augmentation.contrast)
    image = Image.blend(image.convert("L").convert("RGB"), image, augmentation.saturation)
    if alpha is not None:
        image.putalpha(alpha)
    return image


def corner_colour(image: Image.Image) -> tuple[int, int, int]:
    """The mean of a picture's four corners: a drawing's ground."""
    right, bottom = (side - 1 for side in image.size)
    corners = [image.getpixel(place) for place in ((0, 0), (right, 0), (0, bottom), (right, bottom))]
    return tuple(round(sum(values) / len(corners)) for values in zip(*corners, strict=True))
