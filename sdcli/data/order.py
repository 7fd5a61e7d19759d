"""Which pictures make which batch: aspect ratios, and an order that follows from the seed alone."""

import math
import random
from collections.abc import Sequence

Size = tuple[int, int]  # width and height in pixels


def bucket_sizes(resolution: int, multiple: int) -> list[Size]:
    """Sizes that pictures are brought to: about resolution² pixels each, up to twice as long in one direction.

    Args:
        resolution: side of the square one, in pixels.
        multiple: what divides every side.

    Returns:
        From the tallest to the widest; the largest area for each width that does not exceed the square's.
    """
    sizes = set()
    for width in range(multiple, 2 * resolution + 1, multiple):
        height = min(resolution**2 // width, 2 * resolution) // multiple * multiple
        if height >= resolution / 2 and width >= resolution / 2:
            sizes.add((width, height))
    sizes.add((resolution, resolution))
    return sorted(sizes)


def nearest_size(size: Size, sizes: Sequence[Size]) -> Size:
    """Of several sizes the one whose aspect ratio is nearest, as a factor; the larger one of equals."""
    ratio = math.log(size[0] / size[1])
    return min(sizes, key=lambda each: (abs(math.log(each[0] / each[1]) - ratio), -each[0] * each[1]))


class Order:
    """Batches of examples of one bucket each. Every epoch shows every example, and is a new permutation.

    Examples come in the order of the permutation into the queue of their bucket; a queue as long as a batch is one.
    What is left in a queue at the end of an epoch opens the next one.

    Args:
        buckets: the bucket of each example, by any name.
        repeats: how often an epoch shows each example.
        batch_size: examples in a batch.
        seed: of the permutations.
    """

    def __init__(self, buckets: Sequence[object], repeats: Sequence[int], batch_size: int, seed: int):
        self.buckets = buckets
        self.batch_size = batch_size
        self.seed = seed
        self._each_once = [index for index, times in enumerate(repeats) for _ in range(times)]
        self._restart()

    @property
    def per_epoch(self) -> int:
        """Examples that an epoch shows, repeats counted."""
        return len(self._each_once)

    def batch(self, number: int) -> list[int]:
        """Indices of the examples of batch `number`, counted from 0 since the beginning of training."""
        if number < self._next:
            self._restart()
        while True:
            batch = self._advance()
            if self._next > number:
                return batch

    def _restart(self) -> None:
        self._next = 0  # the batch that comes next
        self._epoch, self._place, self._permutation = -1, 0, []
        self._queues: dict[object, list[int]] = {}

    def _advance(self) -> list[int]:
        """The next batch."""
        while True:
            if self._place == len(self._permutation):
                self._epoch, self._place, self._permutation = self._epoch + 1, 0, list(self._each_once)
                random.Random(f"order {self.seed} {self._epoch}").shuffle(self._permutation)
            index = self._permutation[self._place]
            self._place += 1
            queue = self._queues.setdefault(self.buckets[index], [])
            queue.append(index)
            if len(queue) == self.batch_size:
                self._queues[self.buckets[index]] = []
                self._next += 1
                return queue
