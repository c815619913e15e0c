"""The actor `train`: keeps the company's training jobs, each a folder on the disk, with a coordinator while it runs.

It knows nothing that the folders do not say. Started again, after a `kill -9` of the daemon say, it finds the jobs that
are not over and starts a coordinator for each.
"""

from __future__ import annotations

import asyncio
import collections
import re
import shutil
import threading
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec

from ...runtime.actor import Actor, handler
from ...runtime.errors import (
    ActorStopped,
    BusError,
    CallboardError,
    DeadlineExceeded,
    NameTaken,
    NoSuchActor,
    UsageError,
)
from ...runtime.files import private_folder
from ...runtime.log import log
from ...runtime.placement import Process
from ...runtime.supervision import Restart, Supervision
from ...schemas.base import ErrorInfo
from ...schemas.runtime import Terminated
from ...schemas.train import (
    AskTraining,
    CancelTraining,
    CheckData,
    DataChecked,
    DrawTraining,
    FollowTraining,
    JobState,
    ListTraining,
    PauseTraining,
    ResumeTraining,
    RunTraining,
    TrainConfig,
    TrainDrawing,
    TrainEvent,
    TrainJob,
    TrainJobs,
)
from .config_checks import check_config
from .coordinator import CoordinatorConfig
from .curves import svg_curves
from .data_look import look_at_data
from .errors import NoSuchJob, WrongState, as_error, passes, typed
from .follow import follow
from .history import JobHistory, read_history
from .job_folder import ACTIVE, JobFolder, Wish, all_jobs, checked_job_name, jobs_folder

# A coordinator of an earlier life sees that its parent is gone, ends its shards, and then its name is free.
START_AGAIN_S = 0.25
# How long a coordinator may take to say that it was told.
TELL_TIMEOUT_S = 5.0


class JobsConfig(msgspec.Struct, frozen=True):
    """`folder`: where jobs are kept, "" for `train` in the data folder. The others as in `CoordinatorConfig`."""

    folder: str = ""
    shard: str = "train.shard"
    node_patience_s: float = 30.0


class Jobs(Actor[JobsConfig]):
    """All of its handlers run beside each other; those that change a job take turns for that job."""

    # Coordinators are started again as often as it takes: how often one may fail without getting further is theirs.
    supervision = Supervision(max_restarts=1000, period_s=600.0, backoff_s=0.1, backoff_max_s=5.0)

    async def started(self) -> None:
        self._root = Path(self.config.folder) if self.config.folder else jobs_folder()
        self._changes: dict[str, anyio.Event] = collections.defaultdict(anyio.Event)
        self._locks: dict[str, asyncio.Lock] = collections.defaultdict(asyncio.Lock)
        self._at_work: set[str] = set()
        self._look = asyncio.Lock()
        for name in await anyio.to_thread.run_sync(self._unfinished):
            self._start(name)

    def _unfinished(self) -> list[str]:
        private_folder(self._root)
        for left in self._root.glob(".*.new"):
            shutil.rmtree(left, ignore_errors=True)
        return [folder.name for folder in all_jobs(self._root) if folder.record().state in ACTIVE]

    # Asking

    @handler(concurrent=True)
    async def run(self, message: RunTraining) -> TrainJob:
        """Raises ConfigError, NoRoom."""
        check_config(message.config)
        with typed():
            folder, new = await anyio.to_thread.run_sync(self._create, message.config, message.job)
        if new:
            self._start(folder.name)
        return await anyio.to_thread.run_sync(folder.status)

    def _create(self, config: TrainConfig, name: str) -> tuple[JobFolder, bool]:
        """The job's folder, and whether it is new."""
        if name:
            path = self._root / checked_job_name(name)
            try:
                return JobFolder.create(path, config), True
            except NameTaken:
                return JobFolder(path), False
        base = re.sub(r"[^a-z0-9]+", "-", Path(config.model).stem.lower()).strip("-")[:30] or "job"
        number = 1
        while True:
            try:
                return JobFolder.create(self._root / f"{base}-{number}", config), True
            except NameTaken:
                number += 1

    @handler(concurrent=True)
    async def check_data(self, message: CheckData) -> DataChecked:
        """Raises NoSuchData, UsageError, ModelError. One look at a time, the last that was asked for next: a form asks
        again with each change, and what it asked before is then of no more use to it."""
        given_up = threading.Event()
        try:
            async with self._look:
                return await anyio.to_thread.run_sync(look_at_data, message, given_up, abandon_on_cancel=True)
        finally:
            given_up.set()

    @handler(concurrent=True)
    async def list_all(self, message: ListTraining) -> TrainJobs:
        def look() -> TrainJobs:
            return TrainJobs(tuple(folder.status() for folder in all_jobs(self._root)))

        return await anyio.to_thread.run_sync(look)

    @handler(concurrent=True)
    async def ask_one(self, message: AskTraining) -> TrainJob:
        return await anyio.to_thread.run_sync(self._folder(message.job).status)

    @handler(concurrent=True)
    async def draw(self, message: DrawTraining) -> TrainDrawing:
        """Raises NoSuchJob, UsageError for a smoothing that is none."""
        folders = [self._folder(job) for job in dict.fromkeys(message.jobs)]

        def look() -> TrainDrawing:
            histories = [_history(folder) for folder in folders]
            if not any(history.names for history in histories):
                return TrainDrawing()
            return TrainDrawing(svg_curves(histories, smoothing=message.smoothing, log=message.log))

        return await anyio.to_thread.run_sync(look)

    @handler(concurrent=True)
    async def follow(self, message: FollowTraining) -> AsyncIterator[TrainEvent | TrainJob]:
        async with aclosing(follow(self.node, self._folder(message.job), message.after)) as events:
            async for event in events:
                yield event

    def _folder(self, job: str) -> JobFolder:
        try:
            return JobFolder(self._root / checked_job_name(job))
        except UsageError:
            raise NoSuchJob(f"there is no job {job}") from None

    # Changing

    @handler(concurrent=True)
    async def pause(self, message: PauseTraining) -> TrainJob:
        """Raises WrongState for a job that is over."""
        folder = self._folder(message.job)
        async with self._locks[message.job]:
            status = await anyio.to_thread.run_sync(folder.status)
            if status.state is JobState.PAUSED:
                return status
            if status.state not in ACTIVE:
                raise WrongState(f"job {message.job} is {status.state} already")
            await self._carry_out(folder, Wish.PAUSE, message)
            return await anyio.to_thread.run_sync(folder.status)

    @handler(concurrent=True)
    async def cancel(self, message: CancelTraining) -> TrainJob:
        """Raises WrongState for a job that is finished."""
        folder = self._folder(message.job)
        async with self._locks[message.job]:
            status = await anyio.to_thread.run_sync(folder.status)
            if status.state is JobState.FINISHED:
                raise WrongState(f"job {message.job} is finished already")
            if status.state in ACTIVE:
                await self._carry_out(folder, Wish.CANCEL, message)
            elif status.state is not JobState.CANCELLED:
                await anyio.to_thread.run_sync(self._write_state, folder, JobState.CANCELLED)
            return await anyio.to_thread.run_sync(folder.status)

    @handler(concurrent=True)
    async def resume(self, message: ResumeTraining) -> TrainJob:
        """Raises WrongState for a job that is finished."""
        folder = self._folder(message.job)
        async with self._locks[message.job]:
            status = await anyio.to_thread.run_sync(folder.status)
            if status.state is JobState.FINISHED:
                raise WrongState(f"job {message.job} is finished already")
            with typed():
                await anyio.to_thread.run_sync(folder.write_wish, Wish.RUN)
            if status.state not in ACTIVE:
                with typed():
                    await anyio.to_thread.run_sync(self._write_state, folder, JobState.STARTING)
                self._start(folder.name)
            return await anyio.to_thread.run_sync(folder.status)

    def _write_state(self, folder: JobFolder, state: JobState, error: ErrorInfo | None = None) -> None:
        """Of a job that has no coordinator, which would do it."""
        folder.write_record(msgspec.structs.replace(folder.record(), state=state, stalls=0, error=error))

    async def _carry_out(self, folder: JobFolder, wish: Wish, message: PauseTraining | CancelTraining) -> None:
        """Have the coordinator do it, the one that there is or the next. Returns when it has ended."""
        with typed():
            await anyio.to_thread.run_sync(folder.write_wish, wish)
        coordinator = self.actor(self._address(folder.name))
        told = False
        while folder.name in self._at_work:
            change = self._changes[folder.name]
            if not told:
                try:
                    await coordinator.ask(message, timeout=TELL_TIMEOUT_S)
                    told = True  # one that is started after this reads it
                except (NoSuchActor, ActorStopped, BusError, DeadlineExceeded) as error:
                    log.debug("%s is not told yet: %s", coordinator, error)
            with anyio.move_on_after(None if told else START_AGAIN_S):
                await change.wait()

    # The coordinators

    def _address(self, job: str) -> str:
        # A process is a root of the bus, so its name says whose it is.
        return f"{self.address.replace('.', '-')}-{job}"

    def _start(self, job: str) -> None:
        if job not in self._at_work:
            self._at_work.add(job)
            self.start_soon(self._start_coordinator, job)

    async def _start_coordinator(self, job: str) -> None:
        folder, address = self._root / job, self._address(job)
        config = CoordinatorConfig(str(folder), self.config.shard, self.config.node_patience_s)
        while True:
            try:
                await self.spawn("train.coordinator", config, name=address, where=Process(), restart=Restart.TRANSIENT)
                await self.watch(address)
                return
            except (CallboardError, OSError) as raised:
                error = as_error(raised)
                if not passes(error, has_checkpoint=True):
                    return await self._cannot_start(job, error)
                log.info("job %s is not started yet: %s", job, error)
            await anyio.sleep(START_AGAIN_S)  # nothing tells when a process of an earlier life has gone

    async def _cannot_start(self, job: str, error: CallboardError) -> None:
        log.error("job %s cannot be started: %s", job, error)
        folder = self._folder(job)
        try:
            await anyio.to_thread.run_sync(self._write_state, folder, JobState.FAILED, error.to_info())
        except (NoSuchJob, OSError) as failure:
            log.error("the state of job %s cannot be written: %s", job, failure)
        self._over(job)

    @handler
    async def terminated(self, event: Terminated) -> None:
        job = event.address.removeprefix(self._address(""))
        if event.restarting:
            await self.watch(event.address)
            return
        self._over(job)
        folder = self._folder(job)
        try:
            record = await anyio.to_thread.run_sync(folder.record)
            wish = await anyio.to_thread.run_sync(folder.wish)
        except NoSuchJob as error:
            log.info("a coordinator ended whose job is gone: %s", error)
            return
        resumed = wish is Wish.RUN and record.state in (JobState.PAUSED, JobState.CANCELLED)
        if resumed:  # while it was about to stop
            await anyio.to_thread.run_sync(self._write_state, folder, JobState.STARTING)
        if resumed or record.state in ACTIVE:
            self._start(job)

    def _over(self, job: str) -> None:
        self._at_work.discard(job)
        self._changes.pop(job, anyio.Event()).set()


def _history(folder: JobFolder) -> JobHistory:
    """Raises NoSuchJob. Of a job that has not begun, an empty one."""
    folder.record()
    return read_history(folder.name, folder.events) if folder.events.exists() else JobHistory(folder.name)
