"""A network split among processes by FSDP, with its gradients, optimizer and averages; and whole again to be used."""

import copy
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from sdcli.components.attention import SpatialTransformer
from sdcli.components.layers import ResnetBlock
from sdcli.errors import SdcliError
from sdcli.training.settings import TrainSettings

ASKED_BY = "ACCELERATE_USE_FSDP"  # what `accelerate launch` sets, beside FSDP_… for the details
UNITS = (ResnetBlock, SpatialTransformer)  # what is gathered at once; the rest stays whole for a pass
SPLIT = ("unet", "vae")  # parts whose network is large, and called as one
KEPT_WHOLE = {"false", "shard_grad_op", "no_shard", "2", "3"}  # values of reshard_after_forward, in both versions


@dataclass(frozen=True)
class SplitPlan:
    """How the weights are split.

    Args:
        reshard: give up gathered weights after the forward pass (ZeRO-3), and not only after the backward (ZeRO-2).
        offload: keep what a process holds in the CPU's memory.
    """

    reshard: bool
    offload: bool


def asked_split(settings: TrainSettings) -> SplitPlan | None:
    """The plan of accelerate's configuration; None where every process is to have all the weights.

    Raises:
        SdcliError: it does not go with the settings.
    """
    if os.environ.get(ASKED_BY, "false").lower() != "true":
        return None
    if settings.part not in SPLIT:
        hint = "FSDP goes with --part unet and vae; launch this one by accelerate launch --multi_gpu, or torchrun"
        raise SdcliError(f"accelerate is configured for FSDP, which does not split --part {settings.part}", hint=hint)
    if settings.precision == "fp16":
        hint = "take --precision bf16 or fp32, or launch without FSDP"
        raise SdcliError("--precision fp16 does not go with FSDP: its loss scaler needs whole gradients", hint=hint)
    strategy = os.environ.get("FSDP_RESHARD_AFTER_FORWARD", os.environ.get("FSDP_SHARDING_STRATEGY", "true")).lower()
    return SplitPlan(
        reshard=strategy not in KEPT_WHOLE,
        offload=os.environ.get("FSDP_OFFLOAD_PARAMS", "false").lower() == "true",
    )


class Sharding:
    """Every process holds a share of each weight of `network`, and gathers those of a block while it runs.

    Args:
        whole: the network as it begins; it stays on the CPU while nobody uses it.
        device: of this process.
        plan: how to split.

    Reference: Zhao et al. 2023 (arXiv:2304.11277); Rajbhandari et al. 2019 (arXiv:1910.02054) for the stages.
    """

    def __init__(self, whole: nn.Module, device: torch.device, plan: SplitPlan):
        self.whole = whole
        self.device = device
        self.network = copy.deepcopy(whole)
        mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
        how = {"mesh": mesh, "offload_policy": CPUOffloadPolicy() if plan.offload else OffloadPolicy()}
        for module in self.network.modules():
            if isinstance(module, UNITS):
                fully_shard(module, reshard_after_forward=plan.reshard, **how)
                if hasattr(module, "project_text"):
                    register_fsdp_forward_method(module, "project_text")
        fully_shard(self.network, **how)
        self.whole.to("cpu")

    @property
    def parameters(self) -> list[nn.Parameter]:
        """This process's shares, which are trained."""
        return list(self.network.parameters())

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Have the weights as they are now in `whole`, on the device. Every process must come here."""
        self.whole.to(self.device)
        with torch.no_grad():
            for ours, share in zip(self.whole.parameters(), self.parameters, strict=True):
                ours.copy_(share.full_tensor())
        try:
            yield
        finally:
            self.whole.to("cpu")

    @torch.no_grad()
    def scatter(self) -> None:
        """Take the weights from `whole`."""
        for ours, share in zip(self.whole.parameters(), self.parameters, strict=True):
            share.copy_(split_like(ours, share))


def split_like(tensor: Tensor, share: Tensor) -> Tensor:
    """This process's share of a whole tensor, as another one is shared; the tensor itself where that is whole."""
    if not isinstance(share, DTensor) or isinstance(tensor, DTensor):
        return tensor
    return distribute_tensor(tensor.to(share.device), share.device_mesh, share.placements)


def gather_all(state: Any) -> Any:
    """A state with whole tensors, on the CPU, in the place of shares. Every process must come here."""
    if isinstance(state, DTensor):
        return state.full_tensor().cpu()
    if isinstance(state, dict):
        return {name: gather_all(value) for name, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(gather_all(value) for value in state)
    return state


def split_optimizer_state(state: dict[str, Any], parameters: Sequence[Tensor]) -> dict[str, Any]:
    """An optimizer's state with its tensors shared as the parameters are that they belong to."""
    shared = {
        index: {
            name: split_like(value, parameters[index])
            if isinstance(value, Tensor) and value.shape == parameters[index].shape
            else value
            for name, value in entry.items()
        }
        for index, entry in state["state"].items()
    }
    return {**state, "state": shared}
