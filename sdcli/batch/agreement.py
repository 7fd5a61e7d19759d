"""Whether pictures may go through the networks together on a CPU: where each comes out the same, bit for bit, as alone.

How many are computed at once decides how sums are split, in some layers of some networks on some processors. So it is
tried, with the first step of the group in hand: what is computed in which order depends on shapes alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from sdcli.batch.groups import kind_of
from sdcli.device import explain_out_of_memory
from sdcli.drawing import Easel, ForeignEasel
from sdcli.errors import SdcliError
from sdcli.settings import GenerateSettings


class Agreement:
    """Knows of which groups a CPU makes the same pictures as of each alone."""

    def __init__(self) -> None:
        self._known: dict[Hashable, bool] = {}

    def __call__(self, group: Sequence[GenerateSettings], easel: Easel | ForeignEasel) -> bool:
        """Whether a group of pictures of equal settings but for text and seed comes out as each alone does."""
        if isinstance(easel, ForeignEasel):
            return False  # what its steps are is not ours to know
        kind = (kind_of(group[0]), easel.count_chunks(group[0]), len(group))
        if kind not in self._known:
            self._known[kind] = agree(group, easel)
        return self._known[kind]


def agree(group: Sequence[GenerateSettings], easel: Easel) -> bool:
    """Take the first step of a group, together and one after the other, and compare."""
    try:
        with explain_out_of_memory("together", "one after the other"):
            together = first_step(group, easel)
            pairs = zip(together.split(1), group, strict=True)
            return all(torch.equal(one, first_step([each], easel)) for one, each in pairs)
    except SdcliError:  # each of them alone will be told what is wrong
        return False


class Enough(Exception):
    """Ends a drawing after its first step."""


def first_step(group: Sequence[GenerateSettings], easel: Easel) -> Tensor:
    """The latents of a group after one step, (B, C, h, w)."""
    seen: list[Tensor] = []

    def stop(step: int, steps: int, latents: Tensor, pred_original_sample: Tensor | None) -> None:
        seen.append(latents)
        raise Enough

    with contextlib.suppress(Enough):
        easel.draw(group, stop)
    return seen[0]
