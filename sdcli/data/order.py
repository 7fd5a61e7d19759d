"""Which pictures make which batch: aspect ratios, and an order that follows from the seed alone."""

import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence

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


def batches_of(
    indices: Iterable[int], bucket_of: Callable[[int], object], batch_size: int, queues: dict[object, list[int]]
) -> Iterator[list[int]]:
    """Batches of one bucket each.

    Args:
        indices: of examples, in the order in which they come into the queue of their bucket.
        bucket_of: the bucket of an example, by any name.
        batch_size: a queue as long as this is a batch.
        queues: what has been left over before, and then what is left over now.
    """
    for index in indices:
        queue = queues.setdefault(bucket_of(index), [])
        queue.append(index)
        if len(queue) == batch_size:
            del queues[bucket_of(index)]
            yield queue


class Order:
    """Batches of examples of one bucket each. Every epoch shows every example, and is a new permutation.

    What does not fill a batch at the end of an epoch opens the next one.

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
            batch = next(self._batches)
            self._next += 1
            if self._next > number:
                return batch

    def _restart(self) -> None:
        self._next = 0  # the batch that comes next
        self._batches = batches_of(self._sequence(), self.buckets.__getitem__, self.batch_size, {})

    def _sequence(self) -> Iterator[int]:
        """Epoch after epoch."""
        for epoch in itertools.count():
            permutation = list(self._each_once)
            random.Random(f"order {self.seed} {epoch}").shuffle(permutation)
            yield from permutation
