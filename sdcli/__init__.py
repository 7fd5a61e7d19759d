"""Text to image from the shell, on our own noise scheduler, VAE, UNet and CLIP. Importing this loads no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sdcli.pipeline import SdPipeline

__version__ = "0.1.0"
__all__ = ["__version__", "load_pipeline"]


def load_pipeline(
    model: str | None = None, device: str = "auto", precision: str = "auto", allow_pickle: bool = False
) -> SdPipeline:
    """A model from models.toml, a folder or a training run, ready to make images.

    Args:
        model: a name in models.toml, a folder, a single file, a training run or OWNER/NAME of the hub; None is the
            built-in model.
        device: auto, cpu, cuda, cuda:N or mps.
        precision: auto, fp32, fp16 or bf16.
        allow_pickle: read weights that are no safetensors, without running what is in them.

    Raises:
        SdcliError: there is no such model, or it does not load.
    """
    from sdcli.checkpoints import load_pipeline as load
    from sdcli.device import choose_placement
    from sdcli.registry import find_loadable

    return load(find_loadable(model, allow_pickle=allow_pickle), choose_placement(device, precision))
