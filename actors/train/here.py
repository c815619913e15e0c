"""A run in this process, without a bus: one shard, whose job lies beside the folder that it makes.

Interrupted or killed, the same command goes on from its last checkpoint.
"""

from __future__ import annotations

import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from ...runtime.errors import NameTaken, UsageError
from ...schemas.train import JobState, ShardEnd, StartShard, StopShard, TrainConfig, TrainEvent, TrainJob
from .attempts import begin
from .job_folder import JobFolder
from .shard_run import Build, ShardRun, build_trainer

# Nothing of this kind ends by itself soon: somebody trains this very model in another terminal.
LOCK_PATIENCE_S = 2.0


def folder_here(out: Path) -> Path:
    """Where the job for `out` is kept until it is finished."""
    return out.parent / f".{out.name}.train"


def run_here(config: TrainConfig, hear: Callable[[TrainEvent], None], build: Build = build_trainer) -> TrainJob:
    """Train to the end, or until Ctrl-C: then with a checkpoint, as PAUSED. A second Ctrl-C is a KeyboardInterrupt.

    Raises UsageError where the folder holds other work or `shards.count` is more than 1, JobBusy where it is under way,
    and what training raises.
    """
    if config.shards.count != 1:
        raise UsageError(f"in this process trains one shard, not {config.shards.count}", hint="leave out --here")
    folder = _folder(config)
    attempt = begin(folder, notes=[], patience_s=LOCK_PATIENCE_S)
    order = StartShard(
        config=config,
        job=folder.job().job,
        folder=str(folder.path),
        rank=0,
        world_size=1,
        host="127.0.0.1",
        port=0,
        checkpoint="" if attempt.checkpoint is None else str(attempt.checkpoint.path),
        attempt=attempt.record.attempt,
    )
    run = ShardRun(order, build)
    try:
        ready = run.start()
        record = msgspec.structs.replace(attempt.record, state=JobState.RUNNING, num_steps=ready.num_steps, stalls=0)
        folder.write_record(record)
        with _stopping() as stop:
            end = run.run(hear, stop)
        state = JobState.FINISHED if end is ShardEnd.FINISHED else JobState.PAUSED
        folder.write_record(msgspec.structs.replace(record, state=state))
        status = folder.status()
    finally:
        run.close()
    if state is JobState.FINISHED:
        shutil.rmtree(folder.path)
    return status


def _folder(config: TrainConfig) -> JobFolder:
    out = Path(config.out)
    if not out.parent.is_dir():
        raise UsageError(f"there is no folder {out.parent}", hint="make it first")
    path = folder_here(out)
    try:
        return JobFolder.create(path, config, job=out.name)
    except NameTaken:
        folder = JobFolder(path)
        if folder.job().config != config:
            raise UsageError(
                f"{path} holds unfinished work of other settings", hint="finish that, or remove the folder"
            ) from None
        return folder


@contextmanager
def _stopping() -> Iterator[Callable[[], StopShard | None]]:
    """The first Ctrl-C asks for a checkpoint and the end; it is what it always is from the second on."""
    asked: list[StopShard] = []
    if threading.current_thread() is not threading.main_thread():  # where no signal arrives
        yield lambda: None
        return
    before = signal.getsignal(signal.SIGINT)

    def ask(number: int, frame: object) -> None:
        asked.append(StopShard())
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: asked[0] if asked else None
    finally:
        signal.signal(signal.SIGINT, before)
