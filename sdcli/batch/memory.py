"""What to do when memory runs out: smaller batches, then the VAE in tiles, then networks off the GPU, then give up."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from sdcli.batch.events import Warned
from sdcli.errors import EXIT_OUT_OF_MEMORY, SdcliError
from sdcli.settings import SIZE_MULTIPLE
from sdcli.workbench import Workbench


@dataclass
class Ladder:
    """Goes down a step each time that memory runs out, and stays there. Each step is told once.

    Args:
        limit: pictures that may go through the networks together; None while nothing has run out.
        told: warnings that nobody has passed on yet; both threads of a run add to it.
    """

    limit: int | None = None
    told: deque[Warned] = field(default_factory=deque)

    def size(self, wanted: int) -> int:
        """How many pictures go together, where `wanted` would."""
        return wanted if self.limit is None else min(wanted, self.limit)

    def smaller(self, count: int, error: SdcliError, bench: Workbench) -> int | None:
        """How many pictures to try together, after so many took too much memory to denoise.

        Returns:
            None where there is nothing left to do.
        """
        if error.exit_code != EXIT_OUT_OF_MEMORY:
            return None
        if count > 1:
            self.limit = count // 2
            self._tell(f"out of memory with {count} pictures at once: from here on {self.limit}")
            return self.limit
        return 1 if self.offload(bench) else None

    def develop(self, develop: Callable[[], torch.Tensor], bench: Workbench) -> torch.Tensor:
        """What `develop` gives, with the VAE in tiles where it takes too much memory.

        Raises:
            SdcliError: memory runs out all the same, or something else is wrong.
        """
        try:
            return develop()
        except SdcliError as error:
            if error.exit_code != EXIT_OUT_OF_MEMORY or not bench.tile():
                raise
            self._tell("out of memory while decoding: the VAE works in tiles from here on (--tile-vae)")
            return develop()

    def offload(self, bench: Workbench) -> bool:
        """Take networks off the GPU that are not at work; False where that is not possible.

        For the thread that denoises: no network may be at work meanwhile.
        """
        if not bench.offload("model"):
            return False
        self._tell("out of memory: networks that are not at work leave the GPU from here on (--offload model)")
        return True

    def _tell(self, message: str) -> None:
        self.told.append(Warned(message))


def what_would_fit(width: int, height: int) -> str:
    """A hint for pictures of a size that does not fit."""
    smaller = [max(SIZE_MULTIPLE, side // 2 // SIZE_MULTIPLE * SIZE_MULTIPLE) for side in (width, height)]
    return f"try -W {smaller[0]} -H {smaller[1]}, which takes a quarter of it, or --precision fp16 or bf16"
