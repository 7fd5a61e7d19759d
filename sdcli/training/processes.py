"""The processes of a run, each with its device, through accelerate."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator, PartialState

from sdcli.device import choose_placement
from sdcli.errors import SdcliError
from sdcli.training.run_folder import RunFolder
from sdcli.training.settings import TrainSettings
from sdcli.training.sharding import ASKED_BY
from sdcli.training.trackers import find_tracker


def join_processes(settings: TrainSettings) -> PartialState:
    """Wait until all processes of a run are there."""
    return PartialState(cpu=choose_placement(settings.device, settings.precision).device.type == "cpu")


def start_accelerator(settings: TrainSettings, folder: RunFolder) -> Accelerator:
    """Join the other processes, if there are any.

    Raises:
        SdcliError: a batch does not divide among them, or they are configured for DeepSpeed.
    """
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        raise SdcliError(
            "accelerate is configured for DeepSpeed, whose engine would take over optimizer and checkpoints",
            hint="FSDP splits the same: accelerate launch --use_fsdp --fsdp_version 2",
        )
    placement = choose_placement(settings.device, settings.precision)
    join_processes(settings)  # before FSDP is hidden: it may need a second backend
    with fsdp_hidden():
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


@contextmanager
def fsdp_hidden() -> Iterator[None]:
    """Let accelerate place processes and nothing more: the weights are split by `Sharding`, on CPUs too."""
    asked = os.environ.pop(ASKED_BY, None)
    try:
        yield
    finally:
        if asked is not None:
            os.environ[ASKED_BY] = asked
