"""The processes of a run, each with its device, through accelerate."""

import os

import torch
from accelerate import Accelerator, PartialState

from sdcli.device import choose_placement
from sdcli.errors import SdcliError
from sdcli.training.run_folder import RunFolder
from sdcli.training.settings import TrainSettings
from sdcli.training.trackers import find_tracker

# What `accelerate launch` sets where its configuration splits weights or optimizer among the processes. A checkpoint of
# ours is written by one process, which would have a part of them only.
SPLITTING = {"ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_DEEPSPEED": "DeepSpeed"}


def join_processes(settings: TrainSettings) -> PartialState:
    """Wait until all processes of a run are there."""
    return PartialState(cpu=choose_placement(settings.device, settings.precision).device.type == "cpu")


def start_accelerator(settings: TrainSettings, folder: RunFolder) -> Accelerator:
    """Join the other processes, if there are any.

    Raises:
        SdcliError: a batch does not divide among them, or they are configured to split the weights.
    """
    for variable, name in SPLITTING.items():
        if os.environ.get(variable, "false").lower() == "true":
            raise SdcliError(
                f"accelerate is configured for {name}, and sdcli train writes whole checkpoints only",
                hint="let every process have all weights: accelerate launch --multi_gpu, or torchrun",
            )
    placement = choose_placement(settings.device, settings.precision)
    accelerator = Accelerator(
        cpu=placement.device.type == "cpu",
        mixed_precision=placement.mixed_precision,
        log_with=find_tracker(settings.tracker),
        project_dir=folder.path,
    )
    processes = accelerator.num_processes
    if settings.batch_size % processes:
        raise SdcliError(
            f"--batch-size {settings.batch_size} does not divide among {processes} processes",
            hint=f"make it a multiple of {processes}",
        )
    if settings.tf32:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    return accelerator
