"""How much memory there is, under every limit that a process may have."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")
KINDS = (  # version 2, and 1: limit, what is used, and what of that the system gives up as soon as it is wanted
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def taken_by(device: torch.device) -> int:
    """Bytes that this process has on a device."""
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device)
    return psutil.Process().memory_info().rss


def free_on(device: torch.device) -> int:
    """Bytes more that this process may take on a device.

    On the CPU that is what the machine has left, or less where the process has a limit of address space (`ulimit -v`),
    or is in a control group that has one, as containers and jobs of a cluster are.
    """
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    rooms = [psutil.virtual_memory().available, *_left_in_cgroups()]
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        rooms.append(limit - psutil.Process().memory_info().vms)
    return max(0, min(rooms))


def _left_in_cgroups() -> Iterator[int]:
    """What each control group around this process leaves it."""
    try:
        lines = OWN_CGROUPS.read_text().splitlines()
    except OSError:  # no Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        root = CGROUPS / "memory" if controllers else CGROUPS
        folder = root / path.lstrip("/")
        for each in (folder, *folder.parents):
            if root not in (each, *each.parents):
                break
            for limit, usage, spare in KINDS:
                try:
                    room = int((each / limit).read_text()) - int((each / usage).read_text())
                    facts = dict(line.split() for line in (each / "memory.stat").read_text().splitlines())
                except (OSError, ValueError):  # there is none, or it is "max"
                    continue
                yield room + int(facts.get(spare, 0))
