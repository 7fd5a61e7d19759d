"""Batches from a stream: read once an epoch, shuffled within a window, and resumed to the picture."""

import hashlib
import itertools
import random
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sdcli.data.folder import Example, Problem
from sdcli.data.order import Size, batches_of
from sdcli.data.pictures import Framing, Pictures, Shown
from sdcli.data.scan import DECODERS, Picture
from sdcli.data.shards import Row, Shards
from sdcli.errors import SdcliError
from sdcli.images import describe_picture

WINDOW = 1024  # pictures that are in memory at once, and shuffled among each other


@dataclass(frozen=True)
class Place:
    """A place in a stream that goes on for ever: rows of a shard, shards of an epoch, epoch after epoch."""

    epoch: int = 0
    shard: int = 0  # which of the epoch's order
    row: int = 0  # of the shard
    index: int = 0  # pictures taken before


Rows = Iterator[tuple[int, int, Row]]


class Reader:
    """Pictures from shards, a window at a time.

    Args:
        shards: where they are.
        need_captions: leave out rows without one.
        choose: what is made of a picture that was read; None leaves it out.
        seed: of the order of shards.
    """

    def __init__(self, shards: Shards, need_captions: bool, choose: Callable[[Picture], Picture | None], seed: int):
        self.shards = shards
        self.need_captions = need_captions
        self.choose = choose
        self.seed = seed
        self.problems: deque[Problem] = deque()
        self._open: tuple[Place, Rows] | None = None  # where the last window has ended

    def window(self, place: Place) -> tuple[list[Picture], Place]:
        """The pictures from a place on, up to WINDOW of them or the end of the epoch, and the place after them.

        Raises:
            SdcliError: a shard cannot be read, or a whole epoch holds no picture that can be used.
        """
        goes_on = self._open is not None and self._open[0] == place
        rows, self._open = self._open[1] if goes_on else self._rows(place), None
        taken = list(itertools.islice(rows, WINDOW))
        with ThreadPoolExecutor(DECODERS) as pool:
            looked_at = list(pool.map(self._look, (row for _, _, row in taken)))
        pictures = [each for each in looked_at if isinstance(each, Picture)]
        self.problems += [each for each in looked_at if isinstance(each, Problem)]
        if len(taken) < WINDOW:
            if not pictures and place.index == 0:
                raise SdcliError(f"{self.shards.data} holds no picture that can be used", hint=self._first_problem())
            return pictures, Place(epoch=place.epoch + 1, index=place.index + len(pictures))
        shard, row, _ = taken[-1]
        following = replace(place, shard=shard, row=row + 1, index=place.index + len(pictures))
        self._open = following, rows
        return pictures, following

    def _rows(self, place: Place) -> Rows:
        """Rows of an epoch from a place on, each with its shard's place in the order and its number in the shard."""
        order = list(range(len(self.shards)))
        random.Random(f"shards {self.seed} {place.epoch}").shuffle(order)
        for shard in range(place.shard, len(order)):
            first = place.row if shard == place.shard else 0
            for number, row in enumerate(self.shards.rows(order[shard], first), start=first):
                yield shard, number, row

    def _look(self, row: Row) -> Picture | Problem | None:
        """A row as a picture, or what is wrong with it, or nothing where it is left out."""
        try:
            return self.choose(picture_of(row, self.need_captions))
        except SdcliError as error:
            return Problem("bad-picture", row.name, str(error).removeprefix(f"{row.name} "))

    def _first_problem(self) -> str:
        return f"{self.problems[0].place} {self.problems[0].message}" if self.problems else "its shards are empty"


def picture_of(row: Row, need_captions: bool) -> Picture:
    """A row as a picture that was decoded once, and is kept as its file is.

    Raises:
        SdcliError: it has no caption, or its picture cannot be used.
    """
    if need_captions and not row.captions:
        raise SdcliError(f"{row.name} has no caption")
    facts = describe_picture(row.content, row.name)
    example = Example(Path(row.name), row.captions, place=row.name, label=row.label)
    return Picture(example, hashlib.sha256(row.content).hexdigest(), facts, row.content)


class StreamOrder:
    """Batches of one bucket each from the windows of a stream, whose pictures are here while they are needed.

    Args:
        reader: of the stream.
        framing: decides on the bucket of a picture.
        batch_size: pictures in a batch.
        seed: of the order within a window.
        ahead: batches, at most, that are made before they are trained on.
    """

    def __init__(self, reader: Reader, framing: Framing, batch_size: int, seed: int, ahead: int = 0):
        self.reader = reader
        self.framing = framing
        self.batch_size = batch_size
        self.seed = seed
        self.ahead = ahead
        self.pictures: dict[int, Picture] = {}  # by their number in the stream
        self.sizes: dict[int, Size] = {}
        self._lock = threading.Lock()  # batches are made in a thread, while another one saves and shows
        self.restore({})

    def add(self, index: int, picture: Picture) -> None:
        """Have a picture at hand."""
        self.pictures[index] = picture
        self.sizes[index] = self.framing.size_for(picture)

    def batch(self, number: int) -> list[int]:
        """Numbers of the pictures of batch `number`, which are at hand until the next one is asked for."""
        with self._lock:
            assert number >= self._next, "a stream runs forwards; `restore` goes back"
            while True:
                for index in self._used:
                    del self.pictures[index], self.sizes[index]
                self._used = next(self._batches)
                self._next += 1
                if self._next > number:
                    return self._used

    def state(self, number: int) -> dict[str, Any]:
        """Where to begin reading so that batch `number` comes: the window that it is in, and what was left before."""
        with self._lock:
            begun = [each for each in self._windows if each["batch"] <= number][-1]
            left = [
                {
                    "content": torch.frombuffer(bytearray(picture.content), dtype=torch.uint8),
                    "captions": list(picture.example.captions),
                    "label": picture.example.label,
                    "name": picture.example.place,
                }
                for picture in begun["left"]
            ]
            return {"batch": begun["batch"], "place": asdict(begun["place"]), "left": left}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave; from the beginning if that is nothing, as of a run on other data."""
        state = state or {"batch": 0, "place": {}, "left": []}
        with self._lock:
            for index in [index for index in self.pictures if index >= 0]:
                del self.pictures[index], self.sizes[index]
            place = Place(**state["place"])
            self._next: int = state["batch"]  # the batch that comes next
            self._used: list[int] = []  # the batch that was given last
            self._queues: dict[Size, list[int]] = {}
            for before, kept in enumerate(state["left"], start=1):
                content = kept["content"].numpy().tobytes()
                row = Row(content, tuple(kept["captions"]), kept["label"], kept["name"])
                index = place.index - before
                self.add(index, picture_of(row, need_captions=False))
                self._queues.setdefault(self.sizes[index], []).append(index)
            self._windows = deque([self._beginning(place)])
            self._batches = self._all_batches(place)

    def _all_batches(self, place: Place) -> Iterator[list[int]]:
        """Batches of one window after the other."""
        while True:
            first = place.index
            window, place = self.reader.window(place)
            for index, picture in enumerate(window, start=first):
                self.add(index, picture)
            indices = list(range(first, first + len(window)))
            del window  # so that each picture goes when it has been shown
            random.Random(f"window {self.seed} {first}").shuffle(indices)
            yield from batches_of(indices, self.sizes.__getitem__, self.batch_size, self._queues)
            self._windows.append(self._beginning(place))
            while len(self._windows) > 1 and self._windows[1]["batch"] < self._next - self.ahead - 1:
                self._windows.popleft()

    def _beginning(self, place: Place) -> dict[str, Any]:
        """Of the window that is about to be read: its first batch, its place, and what was left over before."""
        left = [self.pictures[index] for queue in self._queues.values() for index in queue]
        return {"batch": self._next, "place": place, "left": left}


class StreamedPictures(Pictures):
    """The pictures of a stream.

    Args:
        order: of the stream.
        shown: pictures for sample sheets and measurements, which stay at hand.
        framing, seed: as for `Pictures`.
    """

    known = False

    def __init__(self, order: StreamOrder, shown: list[Picture], framing: Framing, seed: int):
        super().__init__([], framing, order.batch_size, seed)
        self.order = order
        self.pictures, self.sizes = order.pictures, order.sizes
        self.shown = [-1 - number for number in range(len(shown))]  # numbers that no picture of the stream has
        for index, picture in zip(self.shown, shown, strict=True):
            order.add(index, picture)
        self._room = 0  # for decoded pictures: none of them comes again soon

    def state(self, number: int) -> dict[str, Any]:
        """See `StreamOrder.state`."""
        return self.order.state(number)

    def restore(self, state: Mapping[str, Any]) -> None:
        """See `StreamOrder.restore`."""
        self.order.restore(state)

    def new_problems(self) -> list[Problem]:
        """What was left out since this was last asked."""
        waiting = self.order.reader.problems  # to which the thread that reads ahead adds
        return [waiting.popleft() for _ in range(len(waiting))]

    def spread(self, count: int) -> list[Shown]:
        """At most `count` of the pictures that stay."""
        return [self.at_rest(index) for index in self.shown[:count]]
