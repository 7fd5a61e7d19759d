"""What networks cost on a device, without making or moving their weights: bytes at once, and seconds.

A network runs on tensors that have shapes and no content, and every operation is written down. The most that was alive
at one moment is its memory. For the time, a small network is called once in earnest, with weights that mean nothing. Of
a large one, each operation is done in earnest and counted as often as it came; what would take too long by itself is
taken to be as fast as a smaller one of its kind.

Reference: tensors without content are torch's `FakeTensorMode`.
"""

from __future__ import annotations

import math
import time
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

PATIENCE_S = 5.0  # for operations in earnest, in all
LARGEST_BYTES = 2**29  # of an operation in earnest
LONG_S = 0.1  # what takes less is done again, for the first time is no measure
REPEATS = 5
SMALL_SIZE = 2**28  # bytes of weights, and operations, of what is done in earnest as a whole
SMALL_FLOPS = 2e10


@dataclass(frozen=True)
class Cost:
    """What some work costs.

    Args:
        seconds: from beginning to end.
        size: bytes that are needed at one moment, beside weights.
    """

    seconds: float = 0.0
    size: int = 0

    def times(self, count: int) -> Cost:
        """The same work again and again."""
        return Cost(self.seconds * count, self.size)

    def then(self, other: Cost) -> Cost:
        """One after the other."""
        return Cost(self.seconds + other.seconds, max(self.size, other.size))


@dataclass(frozen=True)
class Shape:
    """A tensor without its content."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @property
    def places(self) -> int:
        """Numbers that it takes in memory."""
        return 1 + sum((size - 1) * stride for size, stride in zip(self.size, self.stride, strict=True))

    def filled(self) -> Tensor:
        """A tensor of this shape: normal numbers, or zeros where numbers have no fraction."""
        flat = torch.zeros(self.places, dtype=self.dtype, device=self.device)
        return (flat.normal_() if self.dtype.is_floating_point else flat).as_strided(self.size, self.stride)


@dataclass(frozen=True)
class Operation:
    """An operation of torch with what it is given, tensors as shapes."""

    name: Any
    args: tuple
    kwargs: tuple[tuple[str, Any], ...]

    @property
    def counted(self) -> bool:
        """Whether torch knows how many floating-point operations it has."""
        return self.name.overloadpacket in flop_registry

    def ready(self) -> Callable[[], Any]:
        """The operation on tensors that are made now."""
        args, kwargs = (_mapped(each, Shape, Shape.filled) for each in (self.args, self.kwargs))
        return lambda: self.name(*args, **dict(kwargs))


def _mapped(value: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """A value with everything of some kind in it changed, and lists as tuples."""
    if isinstance(value, kind):
        return change(value)
    return tuple(_mapped(each, kind, change) for each in value) if isinstance(value, (list, tuple)) else value


def _shape_of(tensor: Tensor) -> Shape:
    return Shape(tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device)


class Trace(TorchDispatchMode):
    """Writes down the operations of what runs inside it.

    `counts` says how often each came, `work` how much each has to do: floating-point operations where torch can count
    them, else numbers that are read and written. `peak` is the most bytes of new tensors that were alive at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[Operation] = Counter()
        self.work: dict[Operation, float] = {}
        self.peak = 0
        self._alive: Counter[int] = Counter()  # tensors of each storage
        self._now = 0

    @property
    def flops(self) -> float:
        """Floating-point operations."""
        return sum(count * self.work[each] for each, count in self.counts.items() if each.counted)

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        """Do one operation, and write it down."""
        kwargs = kwargs or {}
        result = operation(*args, **kwargs)
        if operation.namespace != "prim" and not operation.is_view:
            shapes = (_mapped(each, Tensor, _shape_of) for each in (args, sorted(kwargs.items())))
            seen = Operation(operation, *shapes)
            self.counts[seen] += 1
            if seen not in self.work:
                count = flop_registry.get(operation.overloadpacket)
                tensors = [each for each in tree_leaves((args, kwargs, result)) if isinstance(each, Tensor)]
                numbers = sum(each.numel() for each in tensors)
                self.work[seen] = count(*args, **kwargs, out_val=result) if count else numbers
        given = {each.untyped_storage()._cdata for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)}
        for each in tree_leaves(result):
            if isinstance(each, Tensor):
                self._add(each, given)
        return result

    def _add(self, tensor: Tensor, given: set[int]) -> None:
        """Count a result, unless it is a view of what was there before."""
        storage = tensor.untyped_storage()
        place, size = storage._cdata, storage.nbytes()
        if self._alive[place] == 0 and place in given:
            return
        if self._alive[place] == 0:
            self._now += size
            self.peak = max(self.peak, self._now)
        self._alive[place] += 1
        weakref.finalize(tensor, self._drop, place, size)

    def _drop(self, place: int, size: int) -> None:
        self._alive[place] -= 1
        if self._alive[place] == 0:
            self._now -= size


class Stopwatch:
    """Knows how long operations take on this machine, from doing them, as far as its patience lasts."""

    def __init__(self, patience_s: float = PATIENCE_S):
        self.left_s = patience_s
        self._known: dict[Operation, float] = {}
        self._pace: dict[Any, float] = {}  # seconds per unit of work, of the largest operation of each name so far

    def seconds(self, trace: Trace) -> float:
        """How long everything takes that a trace has written down."""
        by_work = sorted(trace.counts, key=trace.work.__getitem__)
        return sum(trace.counts[each] * self._seconds_of(each, trace.work[each]) for each in by_work)

    def _seconds_of(self, operation: Operation, work: float) -> float:
        if operation in self._known:
            return self._known[operation]
        pace = self._pace.get(operation.name, self._pace.get(operation.counted))
        size = sum(each.places * each.dtype.itemsize for each in tree_leaves(operation.args) if isinstance(each, Shape))
        if pace is not None and (pace * work > self.left_s or size > LARGEST_BYTES):
            return pace * work
        started_at = time.perf_counter()
        with torch.no_grad():
            elapsed_s = self._known[operation] = shortest_of(REPEATS, operation.ready())
        self.left_s -= time.perf_counter() - started_at
        self._pace[operation.name] = self._pace[operation.counted] = elapsed_s / max(work, 1)
        return elapsed_s


def shortest_of(times: int, do: Callable[[], Any]) -> float:
    """Seconds that something takes until its device is done with it, at best: other programs are at work too."""
    shortest = math.inf
    for _ in range(times):
        started_at = time.perf_counter()
        result = do()
        for device in {each.device for each in tree_leaves(result) if isinstance(each, Tensor)}:
            if device.type != "cpu":
                torch.accelerator.synchronize(device)
        shortest = min(shortest, time.perf_counter() - started_at)
        if shortest > LONG_S:
            break
    return shortest


class Rehearsal:
    """Networks without content, to see what they cost.

    Args:
        device: that they would work on.
        stopwatch: of that device.
    """

    def __init__(self, device: torch.device, stopwatch: Stopwatch):
        self.device, self.stopwatch = device, stopwatch
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._seen: dict[Any, Cost] = {}
        self._weights: list[tuple[dict[str, Any], str, Tensor]] = []  # of networks, by module and name
        self._size = 0

    def hollow(self, network: nn.Module, dtype: torch.dtype) -> int:
        """Take the weights out of a network, and give the bytes that they have on the device."""
        size = 0
        for module in network.modules():
            for holder in (module._parameters, module._buffers):
                for name, weight in holder.items():
                    if weight is not None:
                        kind = dtype if weight.is_floating_point() else weight.dtype
                        with self._fake:
                            holder[name] = torch.empty(weight.shape, dtype=kind, device=self.device)
                        self._weights.append((holder, name, holder[name]))
                        size += weight.numel() * kind.itemsize
        self._size += size
        return size

    def cost(self, what: Any, work: Callable[..., object], given: Callable[[], Sequence[Any]] = tuple) -> Cost:
        """What some work of hollow networks costs.

        Args:
            what: names the work; what has the same name is seen once.
            work: is called with what is given.
            given: makes it, which is not counted.
        """
        if what not in self._seen:
            with self._fake, torch.no_grad():
                arguments = given()
                with Trace() as trace:
                    work(*arguments)
                peak = trace.peak
            small = self._size <= SMALL_SIZE and trace.flops <= SMALL_FLOPS
            seconds = self._in_earnest(work, given) if small else self.stopwatch.seconds(trace)
            self._seen[what] = Cost(seconds, peak)
        return self._seen[what]

    def _in_earnest(self, work: Callable[..., object], given: Callable[[], Sequence[Any]]) -> float:
        """Seconds that some work takes: networks that are small are not worth guessing."""
        for holder, name, hollow in self._weights:
            holder[name] = torch.full(hollow.shape, 0.01, dtype=hollow.dtype, device=self.device)
        with torch.no_grad():
            arguments = given()
            seconds = shortest_of(REPEATS, lambda: work(*arguments))
        for holder, name, hollow in self._weights:
            holder[name] = hollow
        return seconds
