"""How far two pictures are apart, in values from 0 to 255."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sdcli.images import load_image

WHITE = 255


@dataclass(frozen=True)
class Comparison:
    """How far a picture is from another one.

    Args:
        sizes: of both, width and height.
        largest_difference: of any value; 0 where both are equal, or differ in size.
        share: of all values that differ, from 0 to 1.
        psnr_db: peak signal to noise ratio in decibels; None where there is no noise, or no common size.
    """

    sizes: tuple[tuple[int, int], tuple[int, int]]
    largest_difference: int = 0
    share: float = 0.0
    psnr_db: float | None = None

    @property
    def equal(self) -> bool:
        """Whether every value is the same."""
        return self.sizes[0] == self.sizes[1] and self.largest_difference == 0

    def __str__(self) -> str:
        if self.equal:
            return "bitwise equal"
        if self.sizes[0] != self.sizes[1]:
            (width, height), (other_width, other_height) = self.sizes
            return f"differs, {width}x{height} where {other_width}x{other_height} is made"
        largest = f"largest difference {self.largest_difference} of {WHITE} in {100 * self.share:.3g} % of the values"
        return f"differs, PSNR {self.psnr_db:.1f} dB, {largest}"


def compare(picture: bytes, made: bytes, name: str) -> Comparison:
    """How far a picture is from what was made again.

    Args:
        picture: content of its file.
        made: content of the other file.
        name: what to call the picture in an error.

    Raises:
        SdcliError: the picture is damaged.
    """
    import numpy

    images = (load_image(picture, name), load_image(made, "the picture that was made"))
    sizes = (images[0].size, images[1].size)
    if sizes[0] != sizes[1]:
        return Comparison(sizes)
    values, others = (numpy.asarray(image, dtype=numpy.int16) for image in images)  # (H, W, 3)
    difference = numpy.abs(values - others)
    largest = int(difference.max())
    if largest == 0:
        return Comparison(sizes)
    mean_square = float(numpy.square(difference, dtype=numpy.float64).mean())
    return Comparison(sizes, largest, float((difference > 0).mean()), 10 * math.log10(WHITE**2 / mean_square))
