"""A LoRA: two small matrices beside each chosen layer of the UNet, whose product is what the layer learns.

Reference: Hu et al. 2021 (arXiv:2106.09685), section 4.1.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn

from sdcli.checkpoints.adapters import LORA, write_lora
from sdcli.checkpoints.weights import read_tensors
from sdcli.data.pictures import Pictures
from sdcli.data.store import Store
from sdcli.errors import SdcliError
from sdcli.training.assembly import Model
from sdcli.training.parts.unet import UnetPart
from sdcli.training.settings import TrainSettings

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")  # of every attention, as diffusers' own training scripts have it


class LoraPart(UnetPart):
    """The UNet learns as `UnetPart` does, but through the added matrices alone."""

    def __init__(self, model: Model, data: Pictures, settings: TrainSettings, store: Store):
        super().__init__(model, data, settings, store)
        self.alpha = settings.rank if settings.alpha is None else settings.alpha
        targets = list(settings.targets or TARGETS)
        names = [name for name, _ in self.network.named_modules()]
        for target in targets:
            if not any(name == target or name.endswith(f".{target}") for name in names):
                raise SdcliError(
                    f"--targets: no layer's name ends in {target!r}", hint=f"usual are {' '.join(TARGETS)}"
                )
        config = LoraConfig(
            r=settings.rank, lora_alpha=self.alpha, target_modules=targets, init_lora_weights="gaussian"
        )
        try:
            inject_adapter_in_model(config, self.network)
        except ValueError as error:
            raise SdcliError(f"--targets: {error}", hint=f"usual are {' '.join(TARGETS)}") from error

    def parameters(self) -> list[nn.Parameter]:
        """The added matrices."""
        return [parameter for name, parameter in self.network.named_parameters() if ".lora_" in name]

    def load(self, checkpoint: Path, state: Mapping[str, Any]) -> None:
        """Put the matrices of a checkpoint in their places."""
        tensors = {name.removeprefix("unet."): tensor for name, tensor in read_tensors(checkpoint / LORA).items()}
        set_peft_model_state_dict(self.network, tensors)

    def write(self, folder: Path, dtype: torch.dtype | None, metadata: Mapping[str, str]) -> None:
        """The matrices in peft's names, as diffusers has them, and in kohya's; beside them what they are put onto."""
        tensors = {f"unet.{name}": tensor for name, tensor in get_peft_model_state_dict(self.network).items()}
        write_lora(folder, tensors, self.alpha, self.settings.model, dtype, metadata)
