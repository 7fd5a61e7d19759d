"""Whether pictures may go through the networks together on a CPU: where each comes out the same, bit for bit, as alone.

How many are computed at once decides how sums are split, in some layers of some networks on some processors. So it is
tried, with the group in hand and one step: what is computed in which order depends on shapes alone.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace

import torch

from sdcli.batch.groups import kind_of
from sdcli.device import explain_out_of_memory
from sdcli.drawing import Easel, ForeignEasel
from sdcli.errors import SdcliError
from sdcli.settings import GenerateSettings

STEPS_TRIED = 1  # which calls every network


class Agreement:
    """Knows of which groups a CPU makes the same pictures as of each alone."""

    def __init__(self) -> None:
        self._known: dict[Hashable, bool] = {}

    def __call__(self, group: Sequence[GenerateSettings], easel: Easel | ForeignEasel) -> bool:
        """Whether a group of pictures of equal settings but for text and seed comes out as each alone does."""
        first = group[0]
        plain = first.init_image is None and not first.controlnet and first.hires_scale == 1 and not first.clip_guidance
        if not plain or isinstance(easel, ForeignEasel):
            return False  # rare, or slow to try
        kind = (kind_of(first), easel.count_chunks(first), len(group))
        if kind not in self._known:
            self._known[kind] = agree(group, easel)
        return self._known[kind]


def agree(group: Sequence[GenerateSettings], easel: Easel) -> bool:
    """Draw a group in one step, together and one after the other, and compare."""
    tried = [replace(each, num_inference_steps=min(each.num_inference_steps, STEPS_TRIED)) for each in group]
    try:
        with explain_out_of_memory("together", "one after the other"):
            together = easel.draw(tried, lambda *step: None)
            return all(
                torch.equal(one, easel.draw([each], lambda *step: None))
                for one, each in zip(together.split(1), tried, strict=True)
            )
    except (SdcliError, ValueError):  # alone it will be told what is wrong; some samplers need more steps
        return False
