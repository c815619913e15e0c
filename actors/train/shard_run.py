"""What a shard does, without actor and bus: all of it in one thread, which torch's settings belong to."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ...kernels.freed_memory import keep_freed_memory
from ...kernels.threads import prepare_process
from ...schemas.train import ComputeSettings, ShardEnd, ShardReady, StartShard, StopShard, TrainEvent
from .attempts import LOCK_PATIENCE_S
from .errors import GroupReplaced, typed
from .events import EventWriter
from .job_folder import JobFolder

if TYPE_CHECKING:
    import torch

Report = Callable[[TrainEvent], None]
Stop = Callable[[], StopShard | None]


class TrainLoop(Protocol):
    """What is asked of `Trainer`."""

    step: int
    num_steps: int

    def load(self, checkpoint: Path) -> None: ...

    def run(self, report: Report, stop: Stop) -> ShardEnd:
        """Train to the end, or until `stop` says so after a step; rank 0's word counts for the group."""
        ...


Build = Callable[[StartShard], TrainLoop]


class ShardRun:
    """One rank's part in one group. Of a job's events and checkpoints rank 0 is the only writer while this is open."""

    def __init__(self, order: StartShard, build: Build) -> None:
        self._order = order
        self._build = build
        self._folder = JobFolder(Path(order.folder))
        self._open = ExitStack()
        self._loop: TrainLoop | None = None

    @property
    def step(self) -> int:
        return 0 if self._loop is None else self._loop.step

    def start(self) -> ShardReady:
        """Raises GroupReplaced where a later group has begun, JobBusy where an earlier one does not end, ShardFailed,
        and what the training loop raises for data and settings."""
        with typed():
            order = self._order
            if order.rank == 0:
                self._open.enter_context(self._folder.lock(LOCK_PATIENCE_S))
            self._folder.check_attempt(order.attempt)
            prepare_to_compute(order.config.compute, order.local_count)
            self._loop = self._build(order)
            if order.checkpoint:
                self._loop.load(Path(order.checkpoint))
            return ShardReady(self._loop.step, self._loop.num_steps)

    def run(self, report: Report, stop: Stop) -> ShardEnd:
        """Raises as `start` does, and NoRoom."""
        assert self._loop is not None
        with typed():
            if self._order.rank != 0:
                return self._loop.run(report, lambda: None)
            writer = EventWriter(self._folder.events)
            try:
                return self._loop.run(self._written(writer, report), self._fenced(stop))
            finally:
                writer.close()

    def close(self) -> None:
        self._open.close()

    def _written(self, writer: EventWriter, report: Report) -> Report:
        def write(event: TrainEvent) -> None:
            writer.write(event)
            report(event)

        return write

    def _fenced(self, stop: Stop) -> Stop:
        """Where the folder is on a file system that locks nothing, the number of the group still tells."""

        def ask() -> StopShard | None:
            try:
                self._folder.check_attempt(self._order.attempt)
            except GroupReplaced:
                return StopShard(checkpoint=False)
            return stop()

        return ask


def build_trainer(order: StartShard) -> TrainLoop:
    """Join the group and build the model, the data and the optimizer."""
    from .group import join
    from .trainer import Trainer

    device = device_of(order.config.compute, order.local_rank)
    group = join(order.rank, order.world_size, order.host, order.port, device)
    return Trainer.build(order.config, order.job, Path(order.folder), group)


def device_of(compute: ComputeSettings, local_rank: int) -> torch.device:
    """The card of a shard: those of one machine take them in turns."""
    import torch

    if compute.device == "cpu" or (compute.device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if ":" in compute.device:
        return torch.device(compute.device)
    return torch.device("cuda", local_rank % max(1, torch.cuda.device_count()))


def prepare_to_compute(compute: ComputeSettings, local_count: int) -> None:
    """This process computes with as many threads as are set, or with its share of the machine's cores, and keeps the
    memory of one step for the next."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = compute.threads or max(1, cores // local_count)
    # What is imported later reads these; what torch brings along is told.
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if compute.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    prepare_process()
    keep_freed_memory()
    import torch

    torch.set_num_threads(threads)
