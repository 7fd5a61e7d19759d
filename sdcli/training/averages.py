"""Weights averaged over the updates, in two lengths, which make better pictures than the last ones."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sdcli.training.sharding import split_like

SHORTER = 10  # times; the short average forgets that much faster


class Averages:
    """Two exponential moving averages of the same weights, so that their length can be chosen after training.

    Args:
        parameters: the weights that are trained.
        decay: share of the long average that an update keeps; it rises to this from 0.1 in the first updates.

    Reference: Song et al. 2020 (arXiv:2006.09011), technique 5; choosing the length afterwards, Karras et al. 2023
    (arXiv:2312.02696), section 3.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float):
        self.parameters = list(parameters)
        self.decays = {"long": decay, "short": max(0.0, 1 - SHORTER * (1 - decay))}
        self.averages = {name: [each.detach().clone() for each in self.parameters] for name in self.decays}

    @torch.no_grad()
    def update(self, global_step: int) -> None:
        """Move the averages towards the weights after update number `global_step`."""
        for name, decay in self.decays.items():
            decay = min(decay, (1 + global_step) / (10 + global_step))
            torch._foreach_lerp_(self.averages[name], self.parameters, 1 - decay)

    def state(self) -> dict[str, list[Tensor]]:
        """What a checkpoint has to hold."""
        return self.averages

    @torch.no_grad()
    def load(self, state: dict[str, list[Tensor]]) -> None:
        """Go on from averages that were saved."""
        for name, average in self.averages.items():
            for ours, saved in zip(average, state[name], strict=True):
                ours.copy_(split_like(saved, ours))

    @contextmanager
    def applied(self, name: str) -> Iterator[None]:
        """Put an average in the place of the trained weights for a while; "none" leaves them."""
        if name == "none":
            yield
            return
        trained = [parameter.detach().clone() for parameter in self.parameters]
        copy_all(self.parameters, self.averages[name])
        try:
            yield
        finally:
            copy_all(self.parameters, trained)


@torch.no_grad()
def copy_all(targets: Iterable[Tensor], sources: Iterable[Tensor]) -> None:
    """Overwrite tensors, whole ones or shares, by others of the same kind."""
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)
