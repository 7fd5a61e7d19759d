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
from sdcli.training.sharding import DEEPSPEED, FSDP
from sdcli.training.trackers import find_tracker


def join_processes(settings: TrainSettings) -> PartialState:
    """Wait until all processes of a run are there."""
    with hidden(DEEPSPEED):
        return PartialState(cpu=choose_placement(settings.device, settings.precision).device.type == "cpu")


def start_accelerator(settings: TrainSettings, folder: RunFolder) -> Accelerator:
    """Join the other processes, if there are any.

    Raises:
        SdcliError: a batch does not divide among them.
    """
    placement = choose_placement(settings.device, settings.precision)
    join_processes(settings)  # before FSDP is hidden: it may need a second backend
    with hidden(FSDP, DEEPSPEED):
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
def hidden(*variables: str) -> Iterator[None]:
    """Let accelerate place processes and nothing more: the weights are split by `Sharding`, on CPUs too."""
    asked = {name: os.environ.pop(name) for name in variables if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(asked)
