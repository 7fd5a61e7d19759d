"""Batches on their way to the network: made ahead in a thread, shared among processes."""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor, wait

from accelerate import Accelerator

from sdcli.data.pictures import Pictures
from sdcli.training.parts.base import Batch, Part


class Feed:
    """The batches of a run in order.

    Args:
        part: that makes them.
        data: that they are made from.
        accelerator: knows the device, and how many processes share a batch.
        ahead: batches that are begun before they are asked for; 0 makes each when it is.
    """

    def __init__(self, part: Part, data: Pictures, accelerator: Accelerator, ahead: int):
        self.part = part
        self.data = data
        self.accelerator = accelerator
        self.ahead = ahead
        # One thread: the order of examples is a sequence, and decoding itself runs outside of Python's lock.
        self._reader = ThreadPoolExecutor(1, "reader") if ahead else None
        self._begun: deque[tuple[int, Future]] = deque()

    def batch(self, number: int) -> Batch:
        """This process's share of a batch, on its device; the next ones are begun meanwhile."""
        if self._reader is None:
            return self.share(self.part.batch(self.data, number))
        if self._begun and self._begun[0][0] != number:
            self.forget()
        for following in range(number + len(self._begun), number + self.ahead + 1):
            self._begun.append((following, self._reader.submit(self.part.batch, self.data, following)))
        return self.share(self._begun.popleft()[1].result())

    def share(self, batch: Batch) -> Batch:
        """This process's part of a batch, on its device."""
        processes, index = self.accelerator.num_processes, self.accelerator.process_index
        return {name: tensor.chunk(processes)[index].to(self.accelerator.device) for name, tensor in batch.items()}

    def forget(self) -> None:
        """Drop what was begun, and wait for the batch in hand: the run goes on elsewhere."""
        for _, future in self._begun:
            future.cancel()
        wait(future for _, future in self._begun)
        self._begun.clear()

    def close(self) -> None:
        """End the thread."""
        self.forget()
        if self._reader is not None:
            self._reader.shutdown(wait=True)
