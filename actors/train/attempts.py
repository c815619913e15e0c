"""The beginning of a group of shards: from which checkpoint, under which number, and whether it is worth trying."""

from __future__ import annotations

import time
from dataclasses import dataclass

import msgspec

from ...schemas.base import ErrorInfo
from ...schemas.train import JobState, TrainNote
from .errors import GaveUp
from .events import EventWriter, cut, last_progress
from .job_folder import Checkpoint, JobFolder, Record

# Groups in a row that may end without getting further than any before.
MAX_STALLS = 10
BACKOFF_S = 0.5
MAX_BACKOFF_S = 30.0
# Beyond what a shard needs to see that its parent is gone, how long it may hold on to the job.
LOCK_PATIENCE_S = 60.0


@dataclass(frozen=True)
class Attempt:
    """`checkpoint`: None to begin with the first step."""

    record: Record
    checkpoint: Checkpoint | None
    notes: list[TrainNote]

    @property
    def step(self) -> int:
        return 0 if self.checkpoint is None else self.checkpoint.step


def begin(folder: JobFolder, *, notes: list[str], waited: bool = False, patience_s: float = LOCK_PATIENCE_S) -> Attempt:
    """Take the next number and cut the events back to the last checkpoint. No earlier group writes from here on.

    `waited`: the last attempt did not begin for want of nodes, which says nothing about the job. Blocks. Raises GaveUp
    after too many attempts that got no further, JobBusy where a process of an earlier group does not end, OSError.
    """
    with folder.lock(patience_s):
        record, checkpoint = folder.record(), folder.last_checkpoint()
        latest = last_progress(folder.events)
        step = 0 if checkpoint is None else checkpoint.step
        reached = max(step, 0 if latest is None else latest.step)
        if reached > record.furthest or record.attempt == 0 or waited:
            stalls = 0
        else:
            stalls = record.stalls + 1
        if stalls > MAX_STALLS:
            raise gave_up(record)
        record = msgspec.structs.replace(
            record,
            state=JobState.STARTING,
            attempt=record.attempt + 1,
            stalls=stalls,
            furthest=max(record.furthest, reached),
            started=record.started or time.time(),
        )
        said = [TrainNote(folder.name, step, text) for text in notes]
        cut(folder.events, None if checkpoint is None else folder.checkpointed(checkpoint), said)
        folder.write_record(record)
        return Attempt(record, checkpoint, said)


def note(folder: JobFolder, step: int, text: str) -> TrainNote:
    """Note something between `begin` and the group's start: then nobody else writes. Blocks. Raises OSError."""
    said = TrainNote(folder.name, step, text)
    with folder.lock(LOCK_PATIENCE_S):
        writer = EventWriter(folder.events)
        try:
            writer.write(said)
        finally:
            writer.close()
    return said


def backoff(stalls: int) -> float:
    """Seconds before the next attempt: none where the last one got further."""
    return min(BACKOFF_S * 2 ** (stalls - 1), MAX_BACKOFF_S) if stalls else 0.0


def gave_up(record: Record) -> GaveUp:
    cause = record.error or ErrorInfo("", "its processes were killed")
    return GaveUp(
        f"{record.stalls} attempts in a row got no further than step {record.furthest}; the last time: {cause.message}",
        hint=cause.hint or "mend that, then `callboard resume`",
        detail=cause.detail,
    )
