"""A folder of pictures with captions, in the layouts that the field uses."""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sdcli.errors import SdcliError
from sdcli.images import SUFFIXES, Image, fit_square, load_image, to_pixel_values

KEPT_BYTES = 2 * 2**30  # pictures that stay in memory once decoded
METADATA = "metadata.jsonl"
LAYOUTS = f'{METADATA} with "file_name" and "text" or "captions" a line, or x.png beside x.txt'
MISSING = "copy the picture there, or take the line out"


@dataclass(frozen=True)
class Example:
    """One picture and everything that is said of it."""

    path: Path
    captions: tuple[str, ...]


def read_folder(folder: Path, need_captions: bool = True) -> list[Example]:
    """The examples of a folder, in the order of its metadata or of its file names.

    Args:
        folder: Hugging Face's imagefolder (metadata.jsonl), or pictures with a text file of the same stem beside each.
        need_captions: whether a picture without a caption is a mistake.

    Raises:
        SdcliError: no folder, no pictures, a missing file or caption, a line that cannot be read.
    """
    if not folder.is_dir():
        raise SdcliError(f"no folder {folder}", hint=f"--data takes a folder: {LAYOUTS}")
    metadata = folder / METADATA
    examples = list(read_metadata(metadata, need_captions) if metadata.exists() else read_pairs(folder, need_captions))
    if not examples:
        raise SdcliError(f"no pictures in {folder}", hint=f"expected {LAYOUTS}")
    return examples


def read_metadata(metadata: Path, need_captions: bool) -> Iterator[Example]:
    """The examples that a metadata.jsonl names. Raises SdcliError with the line that is wrong."""
    root = metadata.parent.resolve()
    for number, line in enumerate(metadata.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        place = f"{metadata}:{number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise SdcliError(f"{place} is not JSON: {error}", hint=f"expected {LAYOUTS}") from error
        if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
            raise SdcliError(f'{place} has no "file_name"', hint=f"expected {LAYOUTS}")
        path = (root / row["file_name"]).resolve()
        if not path.is_relative_to(root):
            raise SdcliError(f"{place} leaves the folder: {row['file_name']}", hint="pictures lie in or below it")
        if not path.is_file():
            raise SdcliError(f"{place} names a picture that is not there: {row['file_name']}", hint=MISSING)
        captions = [*as_list(row.get("text", [])), *as_list(row.get("captions", []))]
        if not all(isinstance(caption, str) for caption in captions):
            raise SdcliError(f"{place} has a caption that is no text", hint=f"expected {LAYOUTS}")
        yield example(path, captions, need_captions, place)


def as_list(value: object) -> list:
    """A list as it is, anything else as the only one of its kind."""
    return value if isinstance(value, list) else [value]


def read_pairs(folder: Path, need_captions: bool) -> Iterator[Example]:
    """The pictures of a folder, each with the lines of the text file of its stem as captions."""
    for path in sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES):
        text = path.with_suffix(".txt")
        captions = text.read_text(encoding="utf-8").splitlines() if text.is_file() else []
        yield example(path, captions, need_captions, str(text))


def example(path: Path, captions: list[str], need_captions: bool, place: str) -> Example:
    """An example whose captions are stripped and told apart. Raises SdcliError where one is needed and none is."""
    captions = list(dict.fromkeys(caption.strip() for caption in captions if caption.strip()))
    if need_captions and not captions:
        raise SdcliError(f"no caption for {path.name} in {place}", hint=f"expected {LAYOUTS}")
    return Example(path, tuple(captions))


class ImageFolder:
    """Examples as batches whose order, captions and noise follow from the seed and the step alone.

    Args:
        examples: what there is to learn from.
        resolution: side of the square pictures, in pixels.
        seed: of the order and of everything drawn for a batch.
    """

    def __init__(self, examples: list[Example], resolution: int, seed: int):
        self.examples = examples
        self.resolution = resolution
        self.seed = seed
        self._decoded: dict[int, Image.Image] = {}
        self._room = KEPT_BYTES // (3 * resolution**2)
        self._epoch, self._order = -1, []

    def indices(self, global_step: int, batch_size: int) -> list[int]:
        """Which examples make the batch of a step: every epoch is a new permutation, and none is left out."""
        count = len(self.examples)
        first = global_step * batch_size
        return [self._permutation(place // count)[place % count] for place in range(first, first + batch_size)]

    def generator(self, global_step: int) -> torch.Generator:
        """The source of all that is drawn at random for a step."""
        return torch.Generator().manual_seed(random.Random(f"{self.seed} {global_step}").getrandbits(63))

    def captions(self, indices: list[int], global_step: int) -> list[str]:
        """One caption for each example, drawn anew at every step."""
        draw = random.Random(f"captions {self.seed} {global_step}")
        return [draw.choice(self.examples[index].captions) for index in indices]

    def spread(self, count: int) -> list[int]:
        """At most `count` examples, evenly from the first to the last."""
        everything = len(self.examples)
        return [place * everything // min(count, everything) for place in range(min(count, everything))]

    def pixel_values(self, indices: list[int]) -> Tensor:
        """Pictures (B, 3, resolution, resolution) in [-1, 1]: scaled to fill the square, cut at the centre."""
        return torch.cat([to_pixel_values(picture) for picture in map(self._picture, indices)])

    def _picture(self, index: int) -> Image.Image:
        if index in self._decoded:
            return self._decoded[index]
        picture = fit_square(load_image(self.examples[index].path), self.resolution)
        if len(self._decoded) < self._room:
            self._decoded[index] = picture
        return picture

    def _permutation(self, epoch: int) -> list[int]:
        if self._epoch != epoch:
            self._epoch, self._order = epoch, list(range(len(self.examples)))
            random.Random(f"order {self.seed} {epoch}").shuffle(self._order)
        return self._order
