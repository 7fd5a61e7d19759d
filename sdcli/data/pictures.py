"""From examples to batches: sizes, crops, flips, alterations, captions, all following from the seed and the batch."""

import functools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdcli.data.augment import Augmentation, draw_augmentation, move, recolour
from sdcli.data.compose import Composition, compose, composed_caption, draw_composition, simple_caption
from sdcli.data.folder import Example, Problem
from sdcli.data.order import Order, Size, bucket_sizes, nearest_size
from sdcli.data.scan import Picture
from sdcli.images import Image, crop_box, scale_and_cut, to_pixel_values

KEPT_BYTES = 2 * 2**30  # pictures that stay in memory once decoded
CENTRE = (0.5, 0.5)


@dataclass(frozen=True, kw_only=True)
class Framing:
    """How a picture becomes one of the size that is trained on, and its captions one caption."""

    resolution: int  # side of square pictures, in pixels
    multiple: int  # what divides every side of a bucket
    buckets: bool = False  # keep about the aspect ratio, instead of cutting a square
    random_crop: bool = False  # cut anywhere, instead of at the centre
    random_flip: float = 0.0  # share of pictures mirrored left to right
    random_affine: float = 0.0  # how far pictures are turned, moved and scaled
    color_jitter: float = 0.0  # how far their brightness, contrast and saturation change
    grounds: float = 0.0  # share of drawings on transparent ground that are put on a colour
    pairs: float = 0.0  # share of them that are put beside another one
    variations: int = 0  # that a picture has, each the same whenever it is shown; 0 makes a new one every time
    caption_filler: float = 0.0  # share of captions with words that say nothing of the picture

    @property
    def composes(self) -> bool:
        """Whether pictures are made of others."""
        return self.grounds > 0 or self.pairs > 0

    @property
    def comes_again(self) -> bool:
        """Whether chance leaves a picture so few ways to be shown that each of them comes again."""
        if self.random_crop or self.random_affine or self.color_jitter:
            return False
        return self.variations > 0 or not self.composes

    @functools.cached_property
    def sizes(self) -> list[Size]:
        """What pictures may be brought to."""
        return bucket_sizes(self.resolution, self.multiple) if self.buckets else [(self.resolution, self.resolution)]

    def size_for(self, picture: Picture) -> Size:
        """What a picture is brought to."""
        return nearest_size(picture.size, self.sizes)


@dataclass(frozen=True)
class Shown:
    """One picture of a batch: which, brought to what size, cut where, mirrored or not, put on what, and altered how."""

    index: int
    size: Size
    place: tuple[float, float] = CENTRE  # of the cut; see `crop_box`
    flipped: bool = False
    composition: Composition | None = None
    augmentation: Augmentation = Augmentation()


class Pictures:
    """The examples of a run, as batches that any process computes alike from their number.

    Args:
        pictures: all that there is to learn from.
        framing: sizes, crops, flips and alterations.
        batch_size: pictures in a batch.
        seed: of the order, and of everything drawn for a batch.
    """

    known = True  # before the first batch, all of them

    def __init__(self, pictures: Sequence[Picture], framing: Framing, batch_size: int, seed: int):
        self.pictures = pictures
        self.framing = framing
        self.seed = seed
        self.sizes = [framing.size_for(picture) for picture in pictures]
        self.order = Order(self.sizes, [picture.example.repeats for picture in pictures], batch_size, seed)
        self._decoded: dict[tuple, Image.Image] = {}  # by index, and place of the cut or size of the drawing
        self._room = KEPT_BYTES // (4 * framing.resolution**2)
        self._drawings = [index for index, picture in enumerate(pictures) if picture.facts.transparent]

    def __len__(self) -> int:
        return len(self.pictures)

    def example(self, index: int) -> Example:
        """The example with that index."""
        return self.pictures[index].example

    def batch(self, number: int) -> list[Shown]:
        """The pictures of a batch, all of one size."""
        draw, altering = (random.Random(f"{name} {self.seed} {number}") for name in ("framing", "augmentation"))
        shown = []
        for index in self.order.batch(number):
            place = (draw.random(), draw.random()) if self.framing.random_crop else CENTRE
            flipped = draw.random() < self.framing.random_flip
            composition = self._composition(index, draw)
            augmentation = draw_augmentation(altering, self.framing.random_affine, self.framing.color_jitter)
            shown.append(Shown(index, self.sizes[index], place, flipped, composition, augmentation))
        return shown

    def _composition(self, index: int, draw: random.Random) -> Composition | None:
        """What a picture becomes a part of, if it does."""
        if not self.framing.composes or not self.pictures[index].facts.transparent:
            return None
        if self.framing.variations:
            return self._variation(index, draw.randrange(self.framing.variations))
        return self._fresh_composition(draw)

    @functools.cache  # noqa: B019 - as long-lived as the pictures themselves
    def _variation(self, index: int, number: int) -> Composition | None:
        return self._fresh_composition(random.Random(f"variation {self.seed} {index} {number}"))

    def _fresh_composition(self, draw: random.Random) -> Composition | None:
        chance = draw.random()
        if chance < self.framing.pairs:
            return draw_composition(draw, draw.choice(self._drawings))
        if chance < self.framing.pairs + self.framing.grounds:
            return draw_composition(draw, None)
        return None

    def captions(self, batch: Sequence[Shown], number: int, others: bool = False) -> list[str]:
        """One caption for each picture of a batch, drawn anew whenever the picture is shown; `others` draws again."""
        draw = random.Random(f"{'other ' if others else ''}captions {self.seed} {number}")
        return [self._caption(shown, draw) for shown in batch]

    def _caption(self, shown: Shown, draw: random.Random) -> str:
        if shown.composition is None:
            return simple_caption(draw, self.example(shown.index).captions, self.framing.caption_filler)
        things = [self.example(index).captions for index in self._parts(shown)]
        return composed_caption(draw, things, shown.composition.colour, self.framing.caption_filler)

    def generator(self, number: int) -> torch.Generator:
        """The source of all other chance in a batch."""
        return torch.Generator().manual_seed(random.Random(f"{self.seed} {number}").getrandbits(63))

    def state(self, number: int) -> dict[str, Any]:
        """What `restore` needs besides the number of the batch that comes next: nothing."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was asked for."""

    def new_problems(self) -> list[Problem]:
        """What has turned out to be unusable since this was last asked: nothing, everything was looked at before."""
        return []

    def at_rest(self, index: int, flipped: bool = False) -> Shown:
        """A picture as it is shown where chance does not cut it."""
        return Shown(index, self.sizes[index], CENTRE, flipped)

    def all_at_rest(self, index: int) -> list[Shown]:
        """Every way in which a picture is shown, where chance does not cut it: mirrored or not, each variation."""
        share = self.framing.random_flip
        flips = (False, True) if 0 < share < 1 else (share == 1,)
        compositions: list[Composition | None] = [None]
        if self.framing.composes and self.pictures[index].facts.transparent:
            compositions = [self._variation(index, number) for number in range(self.framing.variations)]
        ways = [Shown(index, self.sizes[index], CENTRE, flip, way) for flip in flips for way in compositions]
        return list(dict.fromkeys(ways))

    def spread(self, count: int) -> list[Shown]:
        """At most `count` pictures, evenly from the first to the last."""
        count = min(count, len(self))
        return [self.at_rest(place * len(self) // count) for place in range(count)]

    def pixel_values(self, batch: Sequence[Shown]) -> Tensor:
        """Pictures of one size, (B, 3, H, W) in [-1, 1]."""
        return torch.cat([self._pixel_values(shown) for shown in batch])

    def crop(self, shown: Shown) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of what is cut from the picture's own pixels, before it is scaled."""
        return crop_box(self.pictures[shown.index].size, shown.size, shown.place)

    def sizes_told(self, shown: Shown) -> tuple[int, ...]:
        """What SDXL is told of a picture: rows and columns that it had, those cut off above and left, those it has.

        Of what an augmentation moves out of sight it is told nothing.

        Reference: Podell et al. 2023 (arXiv:2307.01952), section 2.2.
        """
        width, height = shown.size
        if shown.composition is not None:
            return (height, width, 0, 0, height, width)
        old_width, old_height = self.pictures[shown.index].size
        left, top, right, _ = self.crop(shown)
        factor = width / (right - left)
        hidden = old_width - right if shown.flipped else left
        return (old_height, old_width, round(top * factor), round(hidden * factor), height, width)

    def _pixel_values(self, shown: Shown) -> Tensor:
        flip, altered = Image.Transpose.FLIP_LEFT_RIGHT, shown.augmentation
        if shown.composition is not None:
            drawings = [self._drawing(index, shown.size) for index in self._parts(shown)]
            if shown.flipped:
                drawings[0] = drawings[0].transpose(flip)
            # Only the drawings change colour: that of the ground is what the caption tells.
            drawings = [recolour(drawing, altered) for drawing in drawings]
            picture = compose(drawings, shown.composition, shown.size)
        else:
            picture = self._scaled(shown)
            picture = recolour(picture.transpose(flip) if shown.flipped else picture, altered)
        return to_pixel_values(move(picture, altered))

    @staticmethod
    def _parts(shown: Shown) -> list[int]:
        """Indices of the examples that a picture is made of."""
        partner = shown.composition.partner
        return [shown.index] if partner is None else [shown.index, partner]

    def _scaled(self, shown: Shown) -> Image.Image:
        key = (shown.index, shown.place)
        if key in self._decoded:
            return self._decoded[key]
        picture = scale_and_cut(self.pictures[shown.index].load(), shown.size, self.crop(shown))
        if shown.place == CENTRE:
            self._keep(key, picture)
        return picture

    def _drawing(self, index: int, size: Size) -> Image.Image:
        """An example's drawing with its transparency, whole."""
        key = (index, size)
        if key not in self._decoded:
            picture = self.pictures[index]
            box = crop_box(picture.size, size, CENTRE)
            drawing = scale_and_cut(picture.load(as_drawing=True), size, box)
            self._keep(key, drawing)
            return drawing
        return self._decoded[key]

    def _keep(self, key: tuple, picture: Image.Image) -> None:
        """Remember a decoded picture, while there is room."""
        if len(self._decoded) < self._room:
            self._decoded[key] = picture
