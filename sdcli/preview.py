"""A picture of what is not finished yet, from its latents: cheap, rough, and rewritten every few steps.

C channels of latents, h w their rows and columns.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from sdcli.device import Placement
from sdcli.errors import SdcliError
from sdcli.images import save_png, to_image
from sdcli.model_config import read_config
from sdcli.pipeline import SdPipeline

EVERY = 3  # steps
SAMPLES = 48  # pictures that the projection is fitted to
SQUARE = 4  # side of the coloured square in each, in latents


class Preview:
    """Writes a PNG of the picture in work.

    Args:
        path: of the file.
        decoder: folder of a small VAE made for it (TAESD); None takes a linear projection, fitted to the model's own.
        placement: of the decoder.
    """

    def __init__(self, path: Path, decoder: str | None = None, placement: Placement | None = None):
        self.path = path
        self.decoder = None if decoder is None else load_decoder(decoder, placement)
        self._projection: Tensor | None = None

    def __call__(self, pipeline: SdPipeline, step: int, latents: Tensor) -> None:
        """Show latents (C, h, w), every few steps."""
        if (step - 1) % EVERY == 0:
            save_png(to_image(self.pixel_values(pipeline, latents)), self.path)

    @torch.no_grad()
    def pixel_values(self, pipeline: SdPipeline, latents: Tensor) -> Tensor:
        """What latents (C, h, w) will about look like, (3, H, W), small where they are projected."""
        if pipeline.vae is None:
            return latents.expand(3, -1, -1)
        if self.decoder is not None:
            return self.decoder.decode(latents[None].to(self.decoder.dtype)).sample[0].float().clamp(-1, 1)
        if self._projection is None:
            self._projection = fit_projection(pipeline)
        ones = torch.ones_like(latents[:1])
        rows = torch.cat([latents, ones]).float().cpu().flatten(1)  # (C + 1, h * w)
        return (self._projection @ rows).view(3, *latents.shape[1:]).clamp(-1, 1)


def load_decoder(folder: str, placement: Placement) -> nn.Module:
    """A TAESD-style decoder.

    Raises:
        SdcliError: the folder is none.
    """
    from diffusers import AutoencoderTiny  # here, because it brings half a second of other networks with it

    path = Path(folder).expanduser()
    if read_config(path).get("_class_name") != "AutoencoderTiny":
        raise SdcliError(f"--preview-vae {folder} is no AutoencoderTiny", hint="such as madebyollin/taesd, as a folder")
    try:
        network = AutoencoderTiny.from_pretrained(
            path, torch_dtype=placement.dtype, local_files_only=True, use_safetensors=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise SdcliError(f"{folder} does not load: {str(error).splitlines()[0]}", hint="copy it again") from error
    return network.to(placement.device).eval()


@torch.no_grad()
def fit_projection(pipeline: SdPipeline) -> Tensor:
    """The linear map from latents, and a one, to colours that fits the VAE best, (3, C + 1).

    It is fitted by least squares to coloured squares on white and on black; no constants of a family are needed.
    """
    stride, side = pipeline.vae_scale_factor, 2 * SQUARE
    colours = torch.rand(SAMPLES, 3, 1, 1, generator=torch.Generator().manual_seed(0)) * 2 - 1
    small = torch.ones(SAMPLES, 3, side, side)
    small[::4] = -1
    middle = slice(SQUARE // 2, SQUARE // 2 + SQUARE)
    small[:, :, middle, middle] = colours
    large = nn.functional.interpolate(small, scale_factor=stride)
    latents = torch.cat([pipeline.encode(each[None]).cpu() for each in large])
    rows = torch.cat([latents, torch.ones_like(latents[:, :1])], dim=1).transpose(0, 1).flatten(1)  # (C + 1, N)
    wanted = small.transpose(0, 1).flatten(1)  # (3, N)
    return torch.linalg.lstsq(rows.T, wanted.T).solution.T
