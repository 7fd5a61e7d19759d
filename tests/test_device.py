"""Device and precision: auto, explicit, and what this machine cannot do."""

import pytest
import torch

from sdcli.device import choose_placement, explain_out_of_memory
from sdcli.errors import EXIT_OUT_OF_MEMORY, SdcliError

needs_no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA")


@needs_no_cuda
def test_auto_without_cuda_is_the_cpu_in_fp32():
    """No CUDA: fp32 on the CPU."""
    placement = choose_placement("auto", "auto")
    assert placement.device.type == "cpu"
    assert (placement.dtype, placement.precision, placement.mixed_precision) == (torch.float32, "fp32", "no")


@needs_cuda
def test_auto_with_cuda_is_cuda_in_fp16():
    """CUDA: fp16."""
    placement = choose_placement("auto", "auto")
    assert placement.device.type == "cuda"
    assert (placement.dtype, placement.precision, placement.mixed_precision) == (torch.float16, "fp16", "fp16")


def test_bf16_on_the_cpu_is_allowed():
    """The CPU computes in bf16, and training would be mixed."""
    placement = choose_placement("cpu", "bf16")
    assert (placement.device.type, placement.dtype, placement.mixed_precision) == ("cpu", torch.bfloat16, "bf16")


@pytest.mark.parametrize(
    ("device", "precision", "message", "hint"),
    [
        ("cpu", "fp16", "--precision fp16 does not work on the CPU", "use --precision fp32 or --precision bf16"),
        ("gpu", "auto", "--device knows no 'gpu'", "did you mean cpu"),
        ("cuda:x", "auto", "--device knows no 'cuda:x'", "did you mean cuda"),
        ("cpu", "fp8", "--precision knows no 'fp8'", "known: auto, fp32"),
    ],
)
def test_what_cannot_be_is_refused(device, precision, message, hint):
    """Unknown names, and a format that the device cannot compute in."""
    with pytest.raises(SdcliError, match=message) as raised:
        choose_placement(device, precision)
    assert hint in raised.value.hint


@needs_no_cuda
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_cuda_that_is_not_there_is_refused(device):
    """A GPU that was asked for is never replaced by the CPU."""
    with pytest.raises(SdcliError, match=f"--device {device}: ") as raised:
        choose_placement(device, "auto")
    assert "--device cpu" in raised.value.hint


@needs_cuda
def test_a_gpu_beyond_the_last_is_refused():
    """cuda:99 is named with the ones there are."""
    with pytest.raises(SdcliError, match="there is no such GPU"):
        choose_placement("cuda:99", "auto")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("MPS backend out of memory"),
    ],
)
def test_every_kind_of_memory_error_gets_its_exit_code(error):
    """Python's, CUDA's, the CPU allocator's and MPS's."""
    with pytest.raises(SdcliError, match="out of memory at 64x64") as raised, explain_out_of_memory("at 64x64", "less"):
        raise error
    assert (raised.value.exit_code, raised.value.hint) == (EXIT_OUT_OF_MEMORY, "less")


def test_a_tensor_that_does_not_fit_is_out_of_memory():
    """PyTorch's real error on this machine is recognised."""
    with pytest.raises(SdcliError, match="out of memory"), explain_out_of_memory("here", ""):
        torch.empty(10**15)


def test_other_errors_pass():
    """A bug stays a bug."""
    with pytest.raises(RuntimeError, match="shapes"), explain_out_of_memory("here", ""):
        raise RuntimeError("shapes do not fit")
