"""How fast a run goes, how long it waits, and how much memory it takes."""

import contextlib
import resource
import sys
import time
from collections import deque
from collections.abc import Iterator

import torch

MEASURED_STEPS = 20  # the speed is told over so many updates


class Pace:
    """How fast a run goes, and how much of its time it waits for data.

    Args:
        first: the number of updates that it begins from.
    """

    def __init__(self, first: int):
        self.started_at = time.perf_counter()
        self._marks: deque[tuple[float, int, float]] = deque([(self.started_at, first, 0.0)], maxlen=MEASURED_STEPS)
        self._waited_s = 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as waiting."""
        begun_at = time.perf_counter()
        yield
        self._waited_s += time.perf_counter() - begun_at

    def after(self, global_step: int, images: int, steps: int) -> dict[str, float]:
        """The figures after an update of so many images, of so many updates in all."""
        now = time.perf_counter()
        then, before, waited_s = self._marks[0]
        self._marks.append((now, global_step, self._waited_s))
        seconds_per_step = (now - then) / (global_step - before)
        return {
            "images_per_s": images / seconds_per_step,
            "waiting": (self._waited_s - waited_s) / (now - then),
            "elapsed_s": now - self.started_at,
            "eta_s": (steps - global_step) * seconds_per_step,
        }


def peak_memory_mib(device: torch.device) -> float:
    """The most memory that was in use so far: of the GPU, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
