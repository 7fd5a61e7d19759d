"""What is left to do when a picture is denoised, in a thread of its own: decode, encode, write."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from sdcli.batch.events import Made
from sdcli.batch.memory import Ladder, what_would_fit
from sdcli.batch.part import Part
from sdcli.device import explain_out_of_memory
from sdcli.drawing import Easel, ForeignEasel
from sdcli.errors import EXIT_OUT_OF_MEMORY, SdcliError
from sdcli.images import SUFFIXES, encode_image, to_image
from sdcli.latents import latents_file
from sdcli.metadata import text_blocks
from sdcli.output import Picture
from sdcli.pipeline import SdPipeline
from sdcli.results import write_result
from sdcli.run_settings import RunSettings
from sdcli.sheets import encode_animation, make_strip
from sdcli.workbench import Workbench

STRIP_LENGTH = 10  # pictures in a strip of steps; an animation shows all of them


@dataclass(frozen=True)
class Drawn:
    """A picture that is denoised.

    Args:
        picture: with resolved settings.
        latents: (1, C, h, w).
        steps: what the model saw in the noise at each step, (C, h, w) each, where that is wanted.
        elapsed_s: its share of the time that its batch took.
        easel: that it was made on.
        ranking: why it is kept, where there are others.
        pixel_values: the picture, (1, 3, H, W) in [-1, 1], if it is decoded already.
    """

    picture: Picture
    latents: torch.Tensor
    steps: list[torch.Tensor] = field(default_factory=list)
    elapsed_s: float = 0.0
    easel: Easel | ForeignEasel | None = None
    ranking: dict[str, Any] = field(default_factory=dict)
    pixel_values: torch.Tensor | None = None


@dataclass(frozen=True)
class Finish:
    """From latents to a file on disk.

    Args:
        part: that the picture belongs to.
        bench: that it was made on.
        how: whether latents are kept, what to do about files that are there.
        ladder: what to do when memory runs out.
    """

    part: Part
    bench: Workbench
    how: RunSettings
    ladder: Ladder

    def __call__(self, drawn: Drawn) -> Made:
        """Decode, encode and write a picture.

        Raises:
            SdcliError: memory or disk run out, or the VAE gives values that are no numbers.
        """
        started_at = time.monotonic()
        picture, settings = drawn.picture, drawn.picture.settings
        pixel_values = self.pixels(drawn)
        provenance = self.part.provenance(settings, self.bench.placement, self.how)
        blocks = text_blocks(settings, replace(provenance, ranking=drawn.ranking))
        content = encode_image(to_image(pixel_values), SUFFIXES[picture.path.suffix.lower()], blocks)
        elapsed_s = drawn.elapsed_s + time.monotonic() - started_at
        if picture.to_pipe:
            return Made(picture, elapsed_s, content, drawn.ranking)
        if self.how.save_latents:
            write_result(self.latents_of(drawn), picture.latents_path, self.how.if_exists)
        steps_file = picture.steps_file
        if steps_file is not None:
            steps = draw_steps(drawn.steps, drawn.easel.pipeline, steps_file.lower().endswith(".gif"), blocks)
            steps_file = str(write_result(steps, picture.steps_path, self.how.if_exists))
        file = str(write_result(content, picture.path, self.how.if_exists))  # last: then everything of it is there
        return Made(replace(picture, file=file, steps_file=steps_file), elapsed_s, ranking=drawn.ranking)

    def pixels(self, drawn: Drawn) -> torch.Tensor:
        """The picture, (1, 3, H, W) in [-1, 1], in tiles where it takes too much memory else.

        Raises:
            SdcliError: memory runs out all the same, or the VAE gives values that are no numbers.
        """
        if drawn.pixel_values is not None:
            return drawn.pixel_values
        return self.ladder.develop(lambda: self.develop(drawn), self.bench)

    def develop(self, drawn: Drawn) -> torch.Tensor:
        """The picture, (1, 3, H, W) in [-1, 1]."""
        width, height = drawn.picture.settings.width, drawn.picture.settings.height
        with explain_out_of_memory(f"while decoding {width}x{height}", what_would_fit(width, height)):
            return drawn.easel.develop(drawn.latents)

    def latents_of(self, drawn: Drawn) -> bytes:
        """The content of a latents file."""
        return latents_file(drawn.latents, self.part.model, drawn.easel.pipeline.vae).to_bytes()

    def keep_latents(self, drawn: Drawn, error: SdcliError) -> None:
        """Write the latents of a picture that there is no memory to decode, and say in the error where they are."""
        if error.exit_code == EXIT_OUT_OF_MEMORY and isinstance(drawn.easel, Easel):
            path = write_result(self.latents_of(drawn), drawn.picture.latents_path, "number")
            error.hint = f"its latents are kept: sdcli decode {path} -o {drawn.picture.path}; or {error.hint}"


class Finisher:
    """A thread that finishes pictures in the order in which they come.

    Args:
        finish: what it does with each.
        beside: whether it also decodes, while the next ones are denoised on a GPU. Two threads that compute on a CPU
            share its cores, and wait for each other at the end of every operation.
    """

    def __init__(self, finish: Finish, beside: bool):
        self.finish = finish
        self.beside = beside
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="finishing")
        self._pending: deque[tuple[Drawn, Future[Made]]] = deque()

    def close(self) -> None:
        """Wait until everything is done that has been handed over."""
        self._thread.shutdown(wait=True)

    def submit(self, drawn: Drawn) -> None:
        """Hand a picture over."""
        future: Future[Made] = Future()
        if not self.beside:
            started_at = time.monotonic()
            try:
                pixel_values = self.finish.pixels(drawn)
            except SdcliError as error:
                future.set_exception(error)
                self._pending.append((drawn, future))
                return
            elapsed_s = drawn.elapsed_s + time.monotonic() - started_at
            drawn = replace(drawn, pixel_values=pixel_values, elapsed_s=elapsed_s)
        self._pending.append((drawn, future))  # first: a signal may come in between, and what is written is reported
        self._thread.submit(self._finish, drawn, future)

    def _finish(self, drawn: Drawn, future: Future[Made]) -> None:
        try:
            future.set_result(self.finish(drawn))
        except Exception as error:  # noqa: BLE001 - whoever asks for the result is told
            future.set_exception(error)

    def good(self) -> Iterator[Made]:
        """Pictures that are done, in order, up to the first that failed; waits for none."""
        while self._pending and self._pending[0][1].done() and self._pending[0][1].exception() is None:
            yield self._pending[0][1].result()
            self._pending.popleft()  # now that it is told, for a signal may come meanwhile

    def finished(self, waiting: int) -> Iterator[tuple[Drawn, Made | SdcliError]]:
        """Pictures that are done, in order, each with what came of it; at most `waiting` are left undone.

        Raises:
            Exception: a bug in the thread.
        """
        while self._pending and (len(self._pending) > waiting or self._pending[0][1].done()):
            drawn, future = self._pending[0]
            try:
                result = future.result()
            except SdcliError as error:
                self._pending.popleft()
                yield drawn, error
                continue
            yield drawn, result
            self._pending.popleft()


def draw_steps(steps: list[torch.Tensor], pipeline: SdPipeline, animated: bool, blocks: dict[str, str]) -> bytes:
    """What the model saw in the noise, step by step, (C, h, w) each, as the content of a strip or an animation.

    Some steps of a strip are left out, evenly, so that `STRIP_LENGTH` remain, the last among them.
    """
    if not animated and len(steps) > STRIP_LENGTH:
        last = len(steps) - 1
        steps = [steps[round(place * last / (STRIP_LENGTH - 1))] for place in range(STRIP_LENGTH)]
    images = [to_image(pipeline.decode(step[None])) for step in steps]
    return encode_animation(images) if animated else encode_image(make_strip(images), "png", blocks)
