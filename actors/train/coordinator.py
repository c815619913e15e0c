"""The coordinator of one job, in a process of its own: it makes groups of shards until one has trained to the end.

All that it knows is in the job's folder, so that another one goes on where it was killed. It ends when the job is
finished, failed, paused or cancelled; whatever else ends it, its supervisor starts it again.
"""

from __future__ import annotations

import asyncio
import enum
import math
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec

from ...runtime.actor import Actor, handler
from ...runtime.errors import BusError, CallboardError, NoNodeFits
from ...runtime.log import log
from ...schemas.base import ErrorInfo, Message, Request
from ...schemas.train import (
    CancelTraining,
    JobState,
    PauseTraining,
    ShardEnd,
    TrainCheckpointed,
    TrainEvent,
    TrainJob,
)
from ..data import errors as _data_errors  # noqa: F401  (so that what a shard raises arrives with its type)
from ..models import errors as _model_errors  # noqa: F401
from .attempts import Attempt, backoff, begin, note
from .errors import CheckpointDamaged, GaveUp, as_error, passes
from .follow import progress_subject
from .job_folder import JobFile, JobFolder, Wish
from .shard_group import ShardGroup, free_places

# How long a group may take to end after its step with a checkpoint.
STOP_PATIENCE_S = 600.0
TELL_AGAIN_S = 5.0
# Of the time that this process has to drain, what is kept for ending the shards.
END_RESERVE_S = 3.0
# How often a state is written again that the disk had no room for.
WRITE_AGAIN_S = 5.0
# A larger group that nodes seemed to have room for, and that did not come about, is not tried again sooner.
REGROUP_EVERY_S = 600.0


class CoordinatorConfig(msgspec.Struct, frozen=True):
    """`shard`: the kind of its shards. `node_patience_s`: how long a shard that is to go to a node waits for one; the
    group then begins with those that found a place, if they are enough."""

    folder: str
    shard: str = "train.shard"
    node_patience_s: float = 30.0


class _Coordinate(Request[None], frozen=True, tag="train.coordinate"):
    """What the coordinator asks of itself: a handler may finish its work while the actor drains."""


class _Told(enum.Enum):
    """Why a group is to end before its time."""

    PAUSE = enum.auto()
    CANCEL = enum.auto()
    DRAIN = enum.auto()
    REGROUP = enum.auto()


class Coordinator(Actor[CoordinatorConfig]):
    """Start raises NoSuchJob."""

    async def started(self) -> None:
        self._folder = JobFolder(Path(self.config.folder))
        self._told: _Told | None = None
        self._news = anyio.Event()
        self._notes: list[str] = []
        self._waited = False
        self._no_regroup_until = 0.0
        self._job: JobFile = await anyio.to_thread.run_sync(self._folder.job)
        await anyio.to_thread.run_sync(self._folder.record)
        self.start_soon(self._begin)

    async def _begin(self) -> None:
        await self.ref.ask(_Coordinate(), timeout=math.inf)
        self.finish()

    # What it is told on the way. Who asks has written the wish down before.

    @handler(concurrent=True)
    async def pause(self, message: PauseTraining) -> TrainJob:
        """Answered with how things stand now: who waits for the end watches this actor."""
        return await self._look()

    @handler(concurrent=True)
    async def cancel(self, message: CancelTraining) -> TrainJob:
        return await self._look()

    async def _look(self) -> TrainJob:
        wish = await anyio.to_thread.run_sync(self._folder.wish)
        if wish is not Wish.RUN:
            self._tell(_Told.PAUSE if wish is Wish.PAUSE else _Told.CANCEL)
        return await anyio.to_thread.run_sync(self._folder.status)

    def draining(self) -> None:
        self._tell(_Told.DRAIN)

    def _tell(self, what: _Told) -> None:
        if self._told in (None, _Told.REGROUP) or what in (_Told.CANCEL, _Told.DRAIN):
            self._told = what
        news, self._news = self._news, anyio.Event()
        news.set()

    # One attempt after the other

    @handler(concurrent=True)
    async def coordinate(self, message: _Coordinate) -> None:
        while self._told is not _Told.DRAIN:
            self._told = None  # before the wish is read: what is told from here on was written after
            match await anyio.to_thread.run_sync(self._folder.wish):
                case Wish.PAUSE:
                    return await self._settle(JobState.PAUSED)
                case Wish.CANCEL:
                    return await self._settle(JobState.CANCELLED)
                case Wish.RUN:
                    if await self._try():
                        return

    async def _try(self) -> bool:
        """Whether the job is over."""
        stalls = 1
        try:
            attempt = await anyio.to_thread.run_sync(self._prepare)
            stalls = attempt.record.stalls
            self._notes, self._waited = [], False
            end = await self._attempt(attempt)
        except GaveUp as error:
            await self._settle(JobState.FAILED, error.to_info())
            return True
        except (CallboardError, OSError) as error:
            return await self._failed(as_error(error), stalls)
        if end is ShardEnd.FINISHED:
            await self._settle(JobState.FINISHED)
            return True
        return False

    def _prepare(self) -> Attempt:
        return begin(self._folder, notes=self._notes, waited=self._waited)

    async def _failed(self, error: CallboardError, stalls: int) -> bool:
        goes_on = False
        if isinstance(error, CheckpointDamaged):
            goes_on = await anyio.to_thread.run_sync(self._folder.set_aside_damaged) is not None
        checkpoint = await anyio.to_thread.run_sync(self._folder.last_checkpoint)
        if not goes_on and not passes(error, has_checkpoint=checkpoint is not None):
            await self._settle(JobState.FAILED, error.to_info())
            return True
        log.warning("job %s: its group of shards ended: %s", self._job.job, error)
        said, *_ = str(error).splitlines() or [type(error).__name__]  # all of it is in the job's state
        self._notes = [f"{said}; going on from step {checkpoint.step if checkpoint else 0}"]
        self._waited = isinstance(error, NoNodeFits)
        await self._write(JobState.STARTING, error.to_info(), patient=False)
        with anyio.move_on_after(backoff(max(1, stalls) if self._waited else stalls)):
            while self._told is None:
                await self._news.wait()
        return False

    async def _attempt(self, attempt: Attempt) -> ShardEnd:
        """Returns how the group ended: STOPPED too where it was ended because something was told. Raises what ended it
        otherwise. None of its shards is left."""
        job = self._job
        group = ShardGroup(self, self.config.shard, job.job, job.config, self.config.node_patience_s)
        work = asyncio.ensure_future(self._work(group, attempt))
        try:
            await self._until_told(work)
            if not work.done():
                await self._stop(group, work)
            return work.result() if work.done() else ShardEnd.STOPPED
        finally:
            with anyio.CancelScope(shield=True):
                work.cancel()
                await asyncio.wait([work])
                await group.end()

    async def _until_told(self, work: asyncio.Future[ShardEnd], *what: _Told) -> None:
        """Wait for the end of `work`, or for a word: any, or one of those given."""
        while not work.done() and (self._told is None or (what and self._told not in what)):
            news = asyncio.ensure_future(self._news.wait())
            try:
                await asyncio.wait([work, news], return_when=asyncio.FIRST_COMPLETED)
            finally:
                news.cancel()

    async def _stop(self, group: ShardGroup, work: asyncio.Future[ShardEnd]) -> None:
        """Give a group that trains the time to end with a checkpoint."""
        if self._told is _Told.CANCEL or not group.is_running:
            return
        drain = self._told is _Told.DRAIN
        patience = max(0.0, self.node.drain_timeout - END_RESERVE_S) if drain else STOP_PATIENCE_S
        with anyio.move_on_after(patience) as waiting:
            while not work.done() and self._told is not _Told.CANCEL and (drain or self._told is not _Told.DRAIN):
                with anyio.move_on_after(TELL_AGAIN_S):  # what is told may be lost with the bus
                    await group.stop(checkpoint=True)
                    await self._until_told(work, _Told.CANCEL, *(() if drain else (_Told.DRAIN,)))
        if waiting.cancelled_caught:
            log.error("the shards of job %s did not end within %g s and are killed", self._job.job, patience)

    async def _work(self, group: ShardGroup, attempt: Attempt) -> ShardEnd:
        wanted = self._job.config.shards.count
        await group.gather()
        heard = list[Message](attempt.notes)
        if len(group) < wanted:
            said = f"{len(group)} shards go on, not {wanted}: no node was found for the others"
            heard.append(await anyio.to_thread.run_sync(note, self._folder, attempt.step, said))
        checkpoint = attempt.checkpoint and attempt.checkpoint.path
        ready = await group.start(self._folder.path, attempt.record.attempt, checkpoint)
        record = msgspec.structs.replace(
            attempt.record,
            state=JobState.RUNNING,
            num_steps=ready.num_steps,
            num_shards=len(group),
            error=None,
        )
        await anyio.to_thread.run_sync(self._folder.write_record, record)
        for event in heard:
            await self._publish(event)

        async def hear(event: TrainEvent) -> None:
            await self._publish(event)
            if isinstance(event, TrainCheckpointed) and len(group) < wanted:
                self._regroup(wanted - len(group))

        return (await group.run(hear)).how

    def _regroup(self, missing: int) -> None:
        """At a checkpoint, see whether the nodes have room for all shards again."""
        now = self.node.loop.time()
        if now >= self._no_regroup_until and free_places(self, self._job.config) >= missing:
            self._no_regroup_until = now + REGROUP_EVERY_S
            self._notes = ["there is room for more shards: a larger group goes on"]
            self._tell(_Told.REGROUP)

    async def _publish(self, message: Message) -> None:
        """For those who listen; nothing depends on it."""
        try:
            await self.publish(progress_subject(self._job.job), message)
        except BusError as error:
            log.debug("not published: %s", error)

    async def _settle(self, state: JobState, error: ErrorInfo | None = None) -> None:
        """The job is over, or stands still: written down before this actor ends."""
        await self._write(state, error, patient=True)
        await self._publish(await anyio.to_thread.run_sync(self._folder.status))

    async def _write(self, state: JobState, error: ErrorInfo | None, *, patient: bool) -> None:
        """`patient`: however long it takes until the disk has room for it."""

        def write() -> None:
            record = self._folder.record()
            self._folder.write_record(msgspec.structs.replace(record, state=state, error=error))

        while True:
            try:
                return await anyio.to_thread.run_sync(write)
            except OSError as failure:
                log.error("the state of job %s cannot be written: %s", self._job.job, failure)
                if not patient:
                    return
            await anyio.sleep(WRITE_AGAIN_S)  # nothing tells when a disk has room
