"""Groups of pictures through the networks together, in smaller groups where memory does not suffice."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from sdcli.batch.agreement import Agreement
from sdcli.batch.events import Stepped
from sdcli.batch.finishing import Drawn
from sdcli.batch.memory import Ladder, what_would_fit
from sdcli.batch.part import Part
from sdcli.device import explain_out_of_memory
from sdcli.drawing import Easel, ForeignEasel
from sdcli.errors import SdcliError
from sdcli.output import Picture
from sdcli.preview import Preview
from sdcli.run_settings import RunSettings
from sdcli.settings import GenerateSettings
from sdcli.workbench import Workbench


@dataclass(frozen=True)
class Undrawn:
    """Pictures that could not be denoised, and why."""

    pictures: list[Picture]
    error: SdcliError


@dataclass(frozen=True, kw_only=True)
class Denoiser:
    """Denoises the pictures of one model.

    Args:
        part: that they belong to.
        bench: that they are made on.
        how: everything that decides no picture.
        ladder: what to do when memory runs out.
        preview: to be kept up to date, if there is one.
        size_of: how many pictures of some settings go through the networks together.
        on_stepped: told of every step.
        agreement: of groups on a CPU with their pictures alone.
    """

    part: Part
    bench: Workbench
    how: RunSettings
    ladder: Ladder
    preview: Preview | None
    size_of: Callable[[GenerateSettings], int]
    on_stepped: Callable[[Stepped], None]
    agreement: Agreement = field(default_factory=Agreement)

    def __call__(self, group: Sequence[Picture], easel: Easel | ForeignEasel) -> Iterator[list[Drawn] | Undrawn]:
        """Denoise a group of pictures of equal settings but for text and seed, in as many parts as it takes."""
        groups = [list(group)] if group else []
        while groups:
            group = groups.pop(0)
            limit = self.ladder.size(len(group))
            if limit > 1 and not self.agrees(group[:limit], easel):
                limit = 1
            if len(group) > limit:
                groups[:0] = in_parts(group, limit)
                continue
            try:
                drawn = self.draw(group, easel)
            except SdcliError as error:
                fewer = self.ladder.smaller(len(group), error, self.bench)
                if fewer is None and len(group) > 1 and self.how.on_error == "skip":
                    fewer = 1  # to see which of them it is
                if fewer is None:
                    yield Undrawn(group, error)
                else:
                    groups[:0] = in_parts(group, fewer)
                continue
            yield drawn

    def agrees(self, group: Sequence[Picture], easel: Easel | ForeignEasel) -> bool:
        """Whether pictures may be made together: on a CPU where each is as alone, or all batches are of one size."""
        if self.how.strict or self.bench.placement.device.type != "cpu":
            return True
        return self.agreement([picture.settings for picture in group], easel)

    def draw(self, group: list[Picture], easel: Easel | ForeignEasel) -> list[Drawn]:
        """Denoise pictures.

        Raises:
            SdcliError: memory runs out, or the UNet gives values that are no numbers.
        """
        started_at = time.monotonic()
        settings = [picture.settings for picture in group]
        if self.how.strict:
            settings += settings[-1:] * (self.size_of(settings[0]) - len(group))
        steps: list[torch.Tensor] = []
        wants_steps = any(picture.steps_path is not None for picture in group)

        def on_step(step: int, total: int, latents: torch.Tensor, pred_original_sample: torch.Tensor | None) -> None:
            seen = latents if pred_original_sample is None else pred_original_sample
            if wants_steps:
                steps.append(seen)
            if self.preview is not None:
                self.preview(easel.pipeline, step, seen[0])
            self.on_stepped(Stepped(group[0].index, len(group), step, total))

        size = (settings[0].width, settings[0].height)
        with explain_out_of_memory(f"at {size[0]}x{size[1]}", what_would_fit(*size)):
            latents = easel.draw(settings, on_step)
        elapsed_s = (time.monotonic() - started_at) / len(group)
        return [
            Drawn(self.part.resolved(picture), latents[[place]], [step[place] for step in steps], elapsed_s, easel)
            for place, picture in enumerate(group)
        ]


def in_parts(group: list[Picture], size: int) -> list[list[Picture]]:
    """A group as groups of at most `size`."""
    return [group[start : start + size] for start in range(0, len(group), size)]
