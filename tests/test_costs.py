"""What networks cost, seen without making their weights, and how much memory there is."""

import math
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from sdcli import costs, memory
from sdcli.components.attention import SpatialAttention
from sdcli.costs import Cost, Rehearsal, Stopwatch

CPU = torch.device("cpu")


@pytest.fixture
def one_second(monkeypatch) -> list:
    """Every operation that is done in earnest takes a second; what was done."""
    done = []

    def shortest_of(times: int, do) -> float:
        done.append(do())
        return 1.0

    monkeypatch.setattr(costs, "shortest_of", shortest_of)
    return done


def rehearsal(*networks: nn.Module, patience_s: float = math.inf) -> Rehearsal:
    made = Rehearsal(CPU, Stopwatch(patience_s))
    for network in networks:
        made.hollow(network, torch.float32)
    return made


def test_memory_is_what_is_alive_at_once():
    """Of a chain: what goes into a layer and what comes out of it, and not what is gone by then."""
    chain = nn.Sequential(nn.Linear(4, 1000), nn.Linear(1000, 3000), nn.Linear(3000, 10), nn.Linear(10, 2000))
    made = rehearsal(chain)
    cost = made.cost("chain", chain, lambda: (torch.empty(8, 4),))
    assert cost.size == 8 * (1000 + 3000) * 4
    kept = made.cost("kept", lambda x: [chain[0](x), chain[0](x), chain[0](x)], lambda: (torch.empty(8, 4),))
    assert kept.size == 3 * 8 * 1000 * 4


def test_views_take_no_memory():
    """And a tensor is gone only when its last view is."""

    def work(x):
        view = (x + 1).flatten()[3:]
        del x
        return view * 2

    assert rehearsal().cost("views", work, lambda: (torch.empty(10, 10),)).size == 100 * 4 + 97 * 4


def test_weights_are_counted_and_not_made():
    """A network of 4 TB is no trouble, in any number format."""
    with torch.device("meta"):
        network = nn.Sequential(nn.Linear(4, 10**6, bias=False), nn.Linear(10**6, 10**6, bias=False))
    made = Rehearsal(CPU, Stopwatch())
    assert made.hollow(network, torch.float16) == 2 * (4 * 10**6 + 10**12)
    cost = made.cost("large", network, lambda: (torch.empty(1, 4, dtype=torch.float16),))
    assert cost.size == 2 * 2 * 10**6 and cost.seconds > 1


def test_operations_are_counted_as_often_as_they_come(one_second, monkeypatch):
    """Three equal layers are measured once and count three times."""
    monkeypatch.setattr(costs, "SMALL_SIZE", 0)
    network = nn.Sequential(*[nn.Conv2d(8, 8, 3, padding=1) for _ in range(3)])
    cost = rehearsal(network).cost("network", network, lambda: (torch.empty(1, 8, 16, 16),))
    assert cost.seconds == 3 and len(one_second) == 1
    assert one_second[0].shape == (1, 8, 16, 16)
    assert Cost(2.0, 5).times(3).then(Cost(1.0, 9)) == Cost(7.0, 9)


def test_what_takes_too_long_is_as_fast_as_a_smaller_one(one_second, monkeypatch):
    """A convolution of nine times as many pixels takes nine times as long."""
    monkeypatch.setattr(costs, "SMALL_SIZE", 0)
    network = nn.Conv2d(8, 8, 3, padding=1)
    made = rehearsal(network, patience_s=5.0)
    assert made.cost("small", network, lambda: (torch.empty(1, 8, 16, 16),)).seconds == 1
    assert made.cost("large", network, lambda: (torch.empty(1, 8, 48, 48),)).seconds == pytest.approx(9)
    assert len(one_second) == 1


def test_a_small_network_is_called_as_a_whole(one_second):
    """With weights that it does not keep; the answer has no content again afterwards."""
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    made = rehearsal(network)
    assert made.cost("network", network, lambda: (torch.ones(2, 4),)).seconds == 1
    assert len(one_second) == 1 and one_second[0].isfinite().all() and type(one_second[0]) is torch.Tensor
    assert type(network[0].weight) is not torch.Tensor
    assert made.cost("network", network) and len(one_second) == 1  # seen once


def test_attention_among_pixels_holds_no_scores():
    """There are L x L of them, 64 MB here; what it needs grows with the picture."""
    attention = SpatialAttention(channels=32, heads=1, groups=8, eps=1e-6)
    cost = rehearsal(attention).cost("attention", attention, lambda: (torch.empty(1, 32, 64, 64),))
    assert cost.size < 10 * 32 * 64 * 64 * 4


@pytest.mark.parametrize(
    ("lines", "files", "expected"),
    [
        ("0::/job\n", {"job": ("memory.max", "memory.current", "inactive_file", "1000")}, 1000 - 300 + 50),
        ("0::/a/b\n", {"a": ("memory.max", "memory.current", "inactive_file", "1000")}, 1000 - 300 + 50),
        ("0::/job\n", {"job": ("memory.max", "memory.current", "inactive_file", "max")}, 10**6),
        (
            "4:memory:/x\n3:cpu:/\n",
            {"memory/x": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file", "900")},
            900 - 300 + 50,
        ),
    ],
)
def test_memory_has_the_limits_of_control_groups(lines, files, expected, tmp_path, monkeypatch):
    """Of both versions, of the group itself and of those around it; what only caches files can be had."""
    monkeypatch.setattr(memory, "CGROUPS", tmp_path)
    monkeypatch.setattr(memory, "OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=10**6))
    (tmp_path / "own").write_text(lines)
    for folder, (limit, usage, spare, most) in files.items():
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / limit).write_text(f"{most}\n")
        (tmp_path / folder / usage).write_text("300\n")
        (tmp_path / folder / "memory.stat").write_text(f"anon 7\n{spare} 50\n")
    assert memory.free_on(CPU) == expected


def test_memory_has_the_limit_of_the_process():
    """As `ulimit -v` sets it."""
    code = """
import psutil, resource, torch
from sdcli.memory import free_on
used = psutil.Process().memory_info().vms
resource.setrlimit(resource.RLIMIT_AS, (used + 2**27,) * 2)
print(free_on(torch.device("cpu")))
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0 < int(ended.stdout) <= 2**27
