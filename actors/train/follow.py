"""Following a job: in the actor that is asked to, from the job's file; as a client, through whatever dies meanwhile."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from ...runtime.errors import (
    ActorStopped,
    Disconnected,
    HandlerFailed,
    NameTaken,
    NoSuchActor,
    SlowConsumer,
)
from ...schemas.train import FollowTraining, ListTraining, TrainEvent, TrainJob
from .events import EventReader, Once
from .job_folder import ACTIVE, JobFolder

if TYPE_CHECKING:
    from ...runtime.client import Client
    from ...runtime.node import Node
    from ...runtime.refs import Ref

KIND = "train.jobs"
# The root that keeps the jobs of a company.
JOBS = "train"

# Events are announced as they are published; what is announced while the bus is away is found by looking.
LOOK_EVERY_S = 1.0
# How long a client waits for the actor, or for the whole daemon, to come back.
AWAY_PATIENCE_S = 90.0
LOOK_AGAIN_S = 0.25

_AWAY = (ActorStopped, Disconnected, HandlerFailed, NoSuchActor, SlowConsumer)


def progress_subject(job: str) -> str:
    """Where a job's events are published, and last how it ended."""
    return f"topic.train.progress.{job}"


async def follow(node: Node, folder: JobFolder, after: int) -> AsyncGenerator[TrainEvent | TrainJob, None]:
    """The events after a step as they come, each once, and last how the job ended or stopped."""
    reader = EventReader(folder.events, after)
    async with node.listen(progress_subject(folder.name), size=1) as news:
        try:
            while True:
                status = await anyio.to_thread.run_sync(folder.status)
                for event in await anyio.to_thread.run_sync(reader.read):
                    yield event
                if status.state not in ACTIVE:
                    yield status
                    return
                with anyio.move_on_after(LOOK_EVERY_S):
                    await anext(news)
        finally:
            reader.close()


async def ensure_jobs(bus: Client) -> Ref:
    """The actor that keeps the company's jobs; the daemon starts one where there is none, and it then goes on with
    what is not finished. Raises NotReachable, and what its start raises."""
    jobs = bus.actor(JOBS)
    with anyio.fail_after(AWAY_PATIENCE_S):
        while True:
            try:
                await jobs.ask(ListTraining())
                return jobs
            except NoSuchActor:
                with contextlib.suppress(NameTaken):  # somebody was faster, and it is about to answer
                    await bus.spawn(KIND, name=JOBS)
                    continue
            await anyio.sleep(LOOK_AGAIN_S)


async def follow_job(
    bus: Client, job: str, hear: Callable[[TrainEvent], None], away: Callable[[], None] = lambda: None
) -> TrainJob:
    """Hear each event once, from the first on, until the job is over or paused, through the end and the return of the
    daemon and the bus. `away` is called when they are gone. Raises what the actor answers, and NoSuchActor or the like
    where it does not come back."""
    once, after = Once(), -1
    until = anyio.current_time() + AWAY_PATIENCE_S
    while True:
        try:
            async with aclosing(bus.actor(JOBS).stream(FollowTraining(job, after))) as events:
                async for event in events:
                    until = anyio.current_time() + AWAY_PATIENCE_S
                    after = max(after, event.step - 1)  # of its last step there may be more to say
                    if once.is_new(event):
                        hear(event)
                return events.result
        except _AWAY:
            if anyio.current_time() > until:
                raise
        away()
        await anyio.sleep(LOOK_AGAIN_S)  # nothing tells this process when it is back
