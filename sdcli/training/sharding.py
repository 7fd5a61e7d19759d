"""A network split among processes by FSDP, with its gradients, optimizer and averages; and whole again to be used."""

import copy
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
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

# What `accelerate launch` sets, with the details in FSDP_… and ACCELERATE_DEEPSPEED_….
FSDP, DEEPSPEED = "ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"
UNITS = (ResnetBlock, SpatialTransformer)  # what is gathered at once; the rest stays whole for a pass
SPLIT = ("unet", "vae")  # parts whose network is large, and called as one
KEPT_WHOLE = {"false", "shard_grad_op", "2"}  # values of reshard_after_forward, in both versions of FSDP
NOT_SPLIT = {"no_shard", "3"}
ABOUT_SPEED = {"zero_optimization", "steps_per_print", "wall_clock_breakdown", "zero_allow_untested_optimizer"}


@dataclass(frozen=True)
class SplitPlan:
    """How the weights are split.

    Args:
        reshard: give up gathered weights after the forward pass (ZeRO-3), and not only after the backward (ZeRO-2).
        offload: keep what a process holds in the CPU's memory.
        stands_for: what else than FSDP was asked for.
    """

    reshard: bool
    offload: bool
    stands_for: str | None = None


def asked_split(settings: TrainSettings) -> SplitPlan | None:
    """The plan of accelerate's configuration; None where every process is to have all the weights.

    Raises:
        SdcliError: it does not go with the settings.
    """
    plan = plan_of_fsdp() if is_set(FSDP) else plan_of_deepspeed() if is_set(DEEPSPEED) else None
    if plan is None:
        return None
    name = plan.stands_for or "FSDP"
    if settings.part not in SPLIT:
        hint = f"--part {' and '.join(SPLIT)} are split; launch this one by accelerate launch --multi_gpu, or torchrun"
        raise SdcliError(f"accelerate is configured for {name}, which does not split --part {settings.part}", hint=hint)
    if settings.text_encoder_lr is not None:
        hint = "leave out --text-encoder-lr (0 where a file sets it), or launch by torchrun"
        raise SdcliError(f"accelerate is configured for {name}, which does not split text encoders", hint=hint)
    if settings.precision == "fp16":
        hint = f"take --precision bf16 or fp32, or launch without {name}"
        raise SdcliError(f"--precision fp16 does not go with {name}: its loss scaler needs whole gradients", hint=hint)
    return plan


def is_set(variable: str) -> bool:
    """Whether an environment variable says yes."""
    return os.environ.get(variable, "false").lower() == "true"


def plan_of_fsdp() -> SplitPlan | None:
    """What FSDP's configuration asks for."""
    strategy = os.environ.get("FSDP_RESHARD_AFTER_FORWARD", os.environ.get("FSDP_SHARDING_STRATEGY", "true")).lower()
    if strategy in NOT_SPLIT:
        return None
    return SplitPlan(reshard=strategy not in KEPT_WHOLE, offload=is_set("FSDP_OFFLOAD_PARAMS"))


def plan_of_deepspeed() -> SplitPlan | None:
    """What DeepSpeed's configuration asks for: its ZeRO stages are what FSDP does too.

    Raises:
        SdcliError: its file cannot be read, or would decide what settings of the run decide.
    """
    named = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    config = {} if named == "none" else read_json(Path(named))
    for key, value in config.items():
        if key not in ABOUT_SPEED and not is_automatic(value):
            hint = 'make it "auto", and give it to sdcli train as a flag'
            raise SdcliError(f"{named} sets {key}, which the settings of the run decide", hint=hint)
    zero = config.get("zero_optimization", {})
    stage = zero.get("stage", os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2"))
    devices = {
        zero.get(f"offload_{what}", {}).get("device")
        or os.environ.get(f"ACCELERATE_DEEPSPEED_OFFLOAD_{what.upper()}_DEVICE", "none")
        for what in ("optimizer", "param")
    }
    if unknown := devices - {"none", "cpu", "auto"}:
        raise SdcliError(f"weights and optimizer cannot be kept on {unknown.pop()}", hint='take "cpu" or "none"')
    if str(stage) == "0":
        return None
    return SplitPlan(reshard=str(stage) == "3", offload="cpu" in devices, stands_for=f"DeepSpeed's ZeRO stage {stage}")


def is_automatic(value: object) -> bool:
    """Whether a value of DeepSpeed's configuration, or every one in it, is left to the program."""
    if isinstance(value, dict):
        return all(is_automatic(each) or name == "enabled" for name, each in value.items())
    return value == "auto"


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file.

    Raises:
        SdcliError: it cannot be read.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise SdcliError(f"cannot read {path}: {error}", hint="it is DeepSpeed's configuration, in JSON") from error


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
