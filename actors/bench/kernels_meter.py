"""Times of calls that each take micro- to milliseconds, and what the machine itself can do: the ceilings.

A call is timed over memory that it has not just seen: a row of the table cycles over several copies of its operands,
more than any cache holds. On a card the cycle is one CUDA graph, so that what is timed is kernels and not launches.
"""

from __future__ import annotations

import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .errors import BenchFailed

Call = Callable[[], object]

# Cycles before anything is timed: kernels are compiled and tuned, allocators have what they need. Of what takes longer
# than a while, one is enough.
WARM_UP = 3
WARM_UP_SECONDS = 1.0
# A sample lasts at least so long, so that the clock and what else the machine does are small beside it.
LEAST_SECONDS = {"cuda": 0.02, "cpu": 0.05}
MAX_REPEATS = 1000


@dataclass(frozen=True)
class Ceilings:
    """Of this machine, in this run. `copy`: bytes/s read and written by a large copy. `matrix`: operations/s of a large
    bfloat16 product."""

    copy: float
    matrix: float


class Meter(ABC):
    """`rounds` samples of each figure."""

    def __init__(self, device: torch.device, rounds: int) -> None:
        self.device = device
        self.rounds = rounds

    def seconds(self, calls: Sequence[Call], *, graph: bool = True) -> list[float]:
        """Seconds of one call, a sample for each round: the mean over cycles of all `calls`.

        `graph`: on a card the calls are captured; they must not wait for it then. False for what allocates much or
        differentiates.
        """
        with torch.no_grad() if graph else contextlib.nullcontext():
            began = time.perf_counter()
            for _ in range(WARM_UP):
                for call in calls:
                    call()
                if time.perf_counter() - began > WARM_UP_SECONDS:
                    break
            cycle = self._cycle(calls, graph)
            once = self._time(cycle, 1)
            repeats = min(MAX_REPEATS, max(1, round(LEAST_SECONDS[self.device.type] / max(once, 1e-9))))
            return [self._time(cycle, repeats) / repeats / len(calls) for _ in range(self.rounds)]

    @abstractmethod
    def peak_bytes(self, call: Call) -> int:
        """The most memory that a call held beyond what there was."""

    @abstractmethod
    def _cycle(self, calls: Sequence[Call], graph: bool) -> Call: ...

    @abstractmethod
    def _time(self, cycle: Call, repeats: int) -> float: ...


class CudaMeter(Meter):
    def peak_bytes(self, call: Call) -> int:
        call()
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        call()
        torch.cuda.synchronize(self.device)
        return torch.cuda.max_memory_allocated(self.device) - before

    def _cycle(self, calls: Sequence[Call], graph: bool) -> Call:
        def all_of_them() -> None:
            for call in calls:
                call()

        if not graph:
            return all_of_them
        captured = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(self.device)
        try:
            with torch.cuda.graph(captured):
                all_of_them()
        except RuntimeError as error:
            raise BenchFailed(f"it cannot be captured in a CUDA graph: {str(error).splitlines()[0]}") from error
        return captured.replay

    def _time(self, cycle: Call, repeats: int) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(self.device)
        begin.record()
        for _ in range(repeats):
            cycle()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3


class CpuMeter(Meter):
    def peak_bytes(self, call: Call) -> int:
        call()
        with NewTensors() as tensors:
            call()
        return tensors.peak_bytes

    def _cycle(self, calls: Sequence[Call], graph: bool) -> Call:
        def all_of_them() -> None:
            for call in calls:
                call()

        return all_of_them

    def _time(self, cycle: Call, repeats: int) -> float:
        began = time.perf_counter()
        for _ in range(repeats):
            cycle()
        return time.perf_counter() - began


class NewTensors(TorchDispatchMode):
    """The most bytes that tensors made while it is entered held at once. What an operation needs within itself, and
    gives back, is not seen."""

    def __init__(self) -> None:
        super().__init__()
        self.peak_bytes = 0
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        given = {storage._cdata for storage in _storages((args, kwargs))}
        out = func(*args, **kwargs)
        self._live = {key: (ref, size) for key, (ref, size) in self._live.items() if not ref.expired()}
        for storage in _storages(out):
            if storage._cdata not in given and storage._cdata not in self._live:
                self._live[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.peak_bytes = max(self.peak_bytes, sum(size for _, size in self._live.values()))
        return out


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def meter_for(device: torch.device, rounds: int) -> Meter:
    return CudaMeter(device, rounds) if device.type == "cuda" else CpuMeter(device, rounds)


def copy_rate(meter: Meter, num_bytes: int) -> list[float]:
    """Bytes/s of a copy, read and written."""
    source = torch.ones(num_bytes, dtype=torch.uint8, device=meter.device)
    target = torch.empty_like(source)
    return [2 * num_bytes / seconds for seconds in meter.seconds([lambda: target.copy_(source)])]


def matrix_rate(meter: Meter, size: int, dtype: torch.dtype = torch.bfloat16) -> list[float]:
    """Operations/s of a product of two square matrices."""
    a, b = (torch.randn(size, size, device=meter.device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return [2 * size**3 / seconds for seconds in meter.seconds([lambda: torch.mm(a, b, out=out)])]
