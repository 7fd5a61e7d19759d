"""What a UNet is told beside noisy latents and the time. Tensors only.

B pictures, L tokens, D width of the text features, P width of the pooled ones.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from sdcli.components.unet import UNet


@dataclass(frozen=True)
class Conditioning:
    """What is told of B pictures; None for what a network does not take.

    Args:
        prompt_embeds: text features, (B, L, D).
        pooled_embeds: of the whole text, (B, P); SDXL.
        time_ids: sizes of the picture, (B, 6), or with an aesthetic score (B, 5), of the refiner; SDXL.
        class_labels: (B,) int64; 0 is no class.
    """

    prompt_embeds: Tensor | None = None
    pooled_embeds: Tensor | None = None
    time_ids: Tensor | None = None
    class_labels: Tensor | None = None

    @property
    def empty(self) -> bool:
        """Whether nothing is told at all, so that there is nothing to be guided by."""
        return all(getattr(self, each.name) is None for each in fields(self))

    def _map(self, change: Callable[..., Tensor], *others: "Conditioning") -> "Conditioning":
        told = {}
        for each in fields(self):
            values = [getattr(conditioning, each.name) for conditioning in (self, *others)]
            told[each.name] = None if values[0] is None else change(*values)
        return Conditioning(**told)

    def repeated(self, times: int) -> "Conditioning":
        """The same of `times` pictures each, which lie together."""
        return self._map(lambda tensor: tensor.repeat_interleave(times, dim=0))

    def joined(self, *others: "Conditioning") -> "Conditioning":
        """One batch of several, in their order."""
        return self._map(lambda *tensors: torch.cat(tensors), *others)

    def arguments(self, unet: UNet) -> dict[str, object]:
        """The keyword arguments of `UNet.forward`; the text is projected, which need not be done at every step."""
        arguments: dict[str, object] = {}
        if self.prompt_embeds is not None:
            arguments["text_keys_values"] = unet.project_text(self.prompt_embeds.to(unet.dtype))
        if self.class_labels is not None:
            arguments["class_labels"] = self.class_labels.to(unet.device)
        if (added := self.added(unet.dtype)) is not None:
            arguments["added_cond_kwargs"] = added
        return arguments

    def added(self, dtype: torch.dtype) -> dict[str, Tensor] | None:
        """What stock networks call `added_cond_kwargs`."""
        if self.time_ids is None:
            return None
        return {"text_embeds": self.pooled_embeds.to(dtype), "time_ids": self.time_ids.to(dtype)}
