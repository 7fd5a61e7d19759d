"""Which device and number format to compute in, through accelerate. Nothing else decides this."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from sdcli.errors import EXIT_OUT_OF_MEMORY, SdcliError
from sdcli.settings import did_you_mean

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
PRECISION_OF = {dtype: precision for precision, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Placement:
    """Where weights and tensors go.

    Args:
        device: where to compute.
        dtype: number format of weights and activations in generation; None is that in which each weight is saved.
        mixed_precision: accelerate's name for the same choice in training: no, fp16 or bf16.
    """

    device: torch.device
    dtype: torch.dtype | None
    mixed_precision: str

    @property
    def precision(self) -> str:
        """The choice as `--precision` spells it."""
        return PRECISION_OF[self.dtype]


def choose_placement(device: str = "auto", precision: str = "auto") -> Placement:
    """Turn `--device` and `--precision` into a placement; auto is CUDA in fp16 where there is CUDA, else CPU in fp32.

    Raises:
        SdcliError: an unknown name, a device that this machine lacks, or a format that the device cannot compute in.
    """
    if precision not in (*DTYPES, "auto"):
        raise SdcliError(f"--precision knows no {precision!r}", hint=did_you_mean(precision, ("auto", *DTYPES)))
    chosen = choose_device(device)
    if precision == "auto":
        precision = "fp16" if chosen.type == "cuda" else "fp32"
    if precision == "fp16" and chosen.type == "cpu":
        raise SdcliError("--precision fp16 does not work on the CPU", hint="use --precision fp32 or --precision bf16")
    if precision == "bf16" and chosen.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise SdcliError("this GPU does not compute in bf16", hint="use --precision fp16 or --precision fp32")
    return Placement(chosen, DTYPES[precision], "no" if precision == "fp32" else precision)


def choose_device(device: str) -> torch.device:
    """Turn `--device` into a device of this machine.

    Raises:
        SdcliError: an unknown name, or a device that this machine lacks.
    """
    from accelerate.state import PartialState

    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
        raise SdcliError(f"--device knows no {device!r}", hint=did_you_mean(device, ("auto", "cpu", "cuda", "mps")))
    if device.startswith("cuda") and not torch.cuda.is_available():
        why = "this PyTorch is built without CUDA" if torch.version.cuda is None else "no GPU is visible"
        raise SdcliError(f"--device {device}: {why}", hint="use --device auto or --device cpu")
    if device == "mps" and not torch.backends.mps.is_available():
        raise SdcliError("--device mps: this machine has no Metal GPU", hint="use --device auto or --device cpu")
    _, _, index = device.partition(":")
    if index and int(index) >= torch.cuda.device_count():
        last = torch.cuda.device_count() - 1
        raise SdcliError(f"--device {device}: there is no such GPU", hint=f"cuda:0 to cuda:{last} exist")
    if index or device == "mps":
        return torch.device(device)
    # One process per GPU under `accelerate launch`: the state knows which one is ours.
    state = PartialState(cpu=device == "cpu" or not torch.cuda.is_available())
    return torch.device("cpu") if device == "cpu" else state.device


@contextlib.contextmanager
def explain_out_of_memory(doing: str, hint: str) -> Iterator[None]:
    """Turn every way in which memory runs out into the one error for it.

    Args:
        doing: what needed the memory, to follow "out of memory ".
        hint: what needs less.

    Raises:
        SdcliError: memory ran out; with its own exit code.
    """
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise SdcliError(f"out of memory {doing}", hint=hint, exit_code=EXIT_OUT_OF_MEMORY) from error
    except RuntimeError as error:  # the CPU's allocator has no class of its own
        if not re.search(r"can't allocate memory|not enough memory|out of memory", str(error)):
            raise
        raise SdcliError(f"out of memory {doing}", hint=hint, exit_code=EXIT_OUT_OF_MEMORY) from error
