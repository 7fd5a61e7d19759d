"""What the loop needs to know of the part that it trains, and what the parts share.

B batch, C channels, h w rows and columns of latents, H W of pixels.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdcli.checkpoints import save_components
from sdcli.checkpoints.clip import clip_parts
from sdcli.data.pictures import Pictures, Shown
from sdcli.training.assembly import Model
from sdcli.training.settings import TrainSettings

Batch = dict[str, Tensor]
AT_ONCE = 32  # pictures per pass where nothing is learned
SHOWN = 8  # pictures on a sample sheet


class Part:
    """A part of a model that is trained, with the components around it as they are.

    Args:
        model: all components.
        data: what is learned from.
        settings: of the run.
    """

    network: nn.Module  # whose weights are trained
    reads_captions = False

    def __init__(self, model: Model, data: Pictures, settings: TrainSettings):
        self.model = model
        self.data = data
        self.settings = settings

    def parameters(self) -> list[nn.Parameter]:
        """The weights that are trained."""
        return list(self.network.parameters())

    def groups(self) -> list[dict[str, Any]]:
        """The same weights as an optimizer takes them: with a learning rate where that is not the run's."""
        return [{"params": self.parameters()}]

    def take(self, model: Model) -> None:
        """Take the weights of the part from another model of the same kind."""
        self.network.load_state_dict(model.components[self.settings.part].state_dict())

    def prepare(self) -> Iterator[tuple[int, int]]:
        """Compute once what every pass needs; yields (done, total) meanwhile."""
        yield from ()

    def batch(self, data: Pictures, number: int, validating: bool = False) -> Batch:
        """All that a pass needs, for all processes together, on the CPU; first dimension B.

        It depends on nothing but its arguments, so that batches can be made ahead, in a thread.

        Args:
            data: the pictures to take: those that are trained on, or those that are held out.
            number: of the batch, counted from 0 over the whole training.
            validating: leave out what chance does for training only.
        """
        raise NotImplementedError

    def losses(self, network: nn.Module, batch: Batch) -> Batch:
        """What a pass loses.

        Args:
            network: the part's own one, wrapped for its devices.
            batch: this process's share, on its device.

        Returns:
            "loss", which is minimised, terms to report, and perhaps "by_timestep", see `by_timestep`.
        """
        raise NotImplementedError

    def updated(self) -> None:
        """Do what follows on an update of the weights."""

    def finish(self) -> None:
        """Settle what depends on the weights as a whole, before they are saved."""

    def sample(self) -> Tensor | None:
        """What the weights can do by now, as one picture (1, 3, H, W); None where there is nothing to look at."""

    def state(self) -> dict[str, Any]:
        """What has to be kept besides the weights, for resuming."""
        return {}

    def load(self, checkpoint: Path, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint, whose whole components are in place already."""

    def write(self, folder: Path, dtype: torch.dtype | None, metadata: Mapping[str, str]) -> None:
        """Write the weights as users want them."""
        clip = {} if self.model.clip is None else clip_parts(self.model.clip)
        model = self.model
        save_components(model.components | clip, folder, dtype, metadata, model.class_names, model.defaults)

    def sizes(self, pixel_values: Tensor) -> tuple[int, int, int, int]:
        """The shape of the latents of pictures (B, 3, H, W): (B, C, h, w)."""
        vae = self.model.components.get("vae")
        batch, _, height, width = pixel_values.shape
        if vae is None:
            return batch, self.model.components["unet"].config.in_channels, height, width
        return batch, vae.config.latent_channels, height // vae.stride, width // vae.stride


def in_batches(shown: list[Shown]) -> Iterator[list[Shown]]:
    """Pictures in portions of one size that a network takes at once."""
    by_size: dict[tuple[int, int], list[Shown]] = {}
    for each in shown:
        by_size.setdefault(each.size, []).append(each)
    for alike in by_size.values():
        for start in range(0, len(alike), AT_ONCE):
            yield alike[start : start + AT_ONCE]


def same_size(shown: list[Shown]) -> list[Shown]:
    """Those pictures that have the size of the first one, so that they fit on a sheet."""
    return [each for each in shown if each.size == shown[0].size]


def sheet(pixel_values: Tensor, columns: int) -> Tensor:
    """Pictures (N, 3, H, W) as one, (1, 3, rows * H, columns * W), row by row; missing ones are white."""
    count, channels, height, width = pixel_values.shape
    rows = -(-count // columns)
    canvas = pixel_values.new_ones(rows * columns, channels, height, width)
    canvas[:count] = pixel_values
    canvas = canvas.view(rows, columns, channels, height, width).permute(2, 0, 3, 1, 4)  # (3, rows, H, columns, W)
    return canvas.reshape(1, channels, rows * height, columns * width)
