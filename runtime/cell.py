"""One actor's life: its mailbox, the task that serves it, its crash, its restart, its end.

The loop below is the hot path. It uses a deque with one wake-up and the event loop's own futures: an anyio stream per
message costs seven times as much.
"""

from __future__ import annotations

import asyncio
import collections
import contextvars
import math
import os
import time
import traceback
from collections.abc import AsyncGenerator, Callable, Coroutine
from functools import partial
from types import CoroutineType
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from ..schemas.base import Message
from ..schemas.runtime import ActorInfo, Ended, Terminated
from .actor import Actor, HandlerSpec, Spec, kind_name, spec_of
from .context import current_place
from .deliveries import Delivery, LocalAsk, Told
from .errors import (
    ActorError,
    ActorStopped,
    CallboardError,
    Cancelled,
    ConfigError,
    Fenced,
    HandlerFailed,
    MailboxFull,
    NotUnderstood,
)
from .family import Child, Family
from .log import log
from .messages import answers, tag_of
from .meters import TIMED_EVERY, TIMED_FIRST, DurationMeter
from .supervision import Restart

if TYPE_CHECKING:
    from .node import Node
    from .placement import Where
    from .refs import Ref
    from .store import Snapshots

# After its time is up an actor is cancelled; one that swallows even that is left behind after so long.
CANCEL_GRACE_S = 2.0
# What the text of the last error may have for those who ask for statistics.
MAX_LAST_ERROR = 300


class _Finish(Message, frozen=True, tag="actor.finish"):
    """What `Cell.finish` puts at the head of a mailbox; it is never sent."""


_FINISH = Told(_Finish(), "", None)


class Cell(Child):
    """Hosts one actor of this process through all its incarnations.

    `put` never waits: it takes the delivery or raises `MailboxFull` or `ActorStopped`. The mailbox is bounded by the
    class's `mailbox_size`, which also counts concurrent handlers under way and room promised to senders on the bus
    (`held`). Messages wait out a restart.
    """

    # As a place (see `context`): what an actor does of itself is a part of no trace.
    trace: ClassVar[None] = None

    __slots__ = (
        "_background",
        "_crash",
        "_children",
        "_context",
        "_instance",
        "_limit",
        "_loop",
        "_room",
        "_running",
        "_snapshots",
        "_stop_by",
        "_task",
        "_waiter",
        "_watching",
        "capacity",
        "closed",
        "config",
        "current",
        "dropped",
        "durations",
        "errors",
        "held",
        "high",
        "inbox",
        "kind",
        "last_error",
        "node",
        "processed",
        "refused",
        "spec",
    )

    def __init__(
        self,
        node: Node,
        address: str,
        kind: type[Actor[Any]],
        config: msgspec.Struct,
        restart: Restart,
        family: Family,
    ) -> None:
        super().__init__(address, restart, family)
        self.node = node
        self.kind = kind
        self.config = config
        self.spec: Spec = spec_of(kind)
        self.inbox: collections.deque[Delivery] = collections.deque()
        self.capacity = kind.mailbox_size
        self.held = 0
        self.closed = False
        self.current: Delivery | None = None
        self.processed = 0
        self.errors = 0
        self.last_error = ""
        self.dropped = 0
        self.refused = 0
        self.high = 0
        self.durations: DurationMeter | None = None
        self._loop = node.loop
        self._instance: Actor[Any] | None = None
        # `put` asks `_rise` where it is reached: the most that was ever here, and nothing once the mailbox is closed.
        self._limit = 0
        self._task: asyncio.Task[None] | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._running: set[Delivery] | None = None
        self._background: set[asyncio.Task[Any]] | None = None
        self._children: Family | None = None
        self._crash: Exception | None = None
        self._room: collections.deque[asyncio.Future[None]] | None = None
        self._watching: set[str] | None = None
        self._stop_by = 0.0
        self._snapshots: Snapshots | None = None

    # The mailbox

    def put(self, delivery: Delivery) -> None:
        inbox = self.inbox
        if len(inbox) + self.held >= self._limit:
            self._rise()
        waiter = self._waiter
        if waiter is None:
            inbox.append(delivery)
        elif (beside := self.spec.beside.get(delivery.message.__class__)) is not None and not waiter.done():
            # The mailbox is empty and its task waits: it would do no more than this, a turn of the event loop later.
            actor = self._instance
            assert actor is not None, "it is what waits"
            self._start_concurrent(actor, beside, delivery)
        else:
            inbox.append(delivery)
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)
        taps = self.node.taps
        if taps is not None:
            taps.mirror(self.address, delivery)

    def _rise(self) -> None:
        """The mailbox is to hold more than ever before, if it may."""
        depth = len(self.inbox) + self.held
        if depth >= self.capacity or self.closed:
            self.refused += 1
            raise self.refusal()
        self.high = self._limit = depth + 1

    def _close(self) -> None:
        self.closed = True
        self._limit = 0

    def refusal(self) -> ActorError:
        """Why the mailbox takes nothing."""
        if self.closed:
            return ActorStopped(f"{self.address} is stopping and takes nothing new")
        return MailboxFull(f"the mailbox of {self.address} is full ({self.capacity} messages)")

    async def put_in_time(self, delivery: Delivery, timeout: float) -> None:
        """`put` as soon as there is room. Raises MailboxFull after `timeout` seconds, ActorStopped at once."""
        until = self._loop.time() + timeout
        while True:
            try:
                return self.put(delivery)
            except MailboxFull:
                left = until - self._loop.time()
                if left <= 0:
                    raise
            await self.room(left)

    async def room(self, seconds: float) -> None:
        """Wait until there may be room for one more, or the mailbox closes, or the time is over."""
        if self._room is None:
            self._room = collections.deque()
        waiter = self._loop.create_future()
        self._room.append(waiter)
        try:
            async with asyncio.timeout(None if seconds == math.inf else seconds):
                try:
                    await waiter
                except asyncio.CancelledError:
                    if not waiter.cancelled():
                        self.room_made()  # it was ours, and we go without it
                    raise
        except TimeoutError:
            return

    def room_made(self, count: int = 1) -> None:
        """Let so many of those who wait for room try again."""
        while self._room and count > 0:
            waiter = self._room.popleft()
            if not waiter.done():
                waiter.set_result(None)
                count -= 1
        if not self._room:
            self._room = None

    def put_system(self, delivery: Delivery) -> None:
        """Take a message of the runtime itself: room or not, since it must not be lost."""
        self.inbox.append(delivery)
        self._wake()

    def interrupt(self, delivery: Delivery) -> None:
        """Cancel the handler of an abandoned delivery, if it runs; one that waits is skipped when its turn comes."""
        if delivery.task is not None:
            delivery.task.cancel()
        elif self.current is delivery and self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()

    # The life

    async def start(self) -> None:
        """Begin an incarnation. Returns once `started` has run; raises what it raised."""
        actor = self.kind.__new__(self.kind)
        actor.config = self.config
        actor._cell = self
        actor.__init__()
        self._instance = actor
        self._crash = None
        self.state = "starting"
        self.since = time.time()
        if self.spec.has_started or self.spec.state is not None:
            ready: asyncio.Future[None] = self._loop.create_future()
            self._task = self._loop.create_task(self._live(actor, ready))
            try:
                await ready
            except asyncio.CancelledError:
                self._task.cancel()
                raise
        else:
            self.state = "running"
            self._task = self._loop.create_task(self._live(actor, None))

    async def _live(self, actor: Actor[Any], ready: asyncio.Future[None] | None) -> None:
        current_place.set(self)
        self._context = contextvars.copy_context()
        error: Exception | None = None
        try:
            if ready is not None:
                if self.spec.state is not None:
                    await self._recover(actor)
                await actor.started()
                self.state = "running"
                if not ready.done():
                    ready.set_result(None)
            await self._serve(actor)
            if (letting_go := actor.draining()) is not None:
                await letting_go
            await self._finish_running()
            if self._snapshots is not None:
                await self._snapshots.save(actor, if_changed=True)
        except asyncio.CancelledError:
            error = self._crash
        except Exception as raised:
            error = raised
        if self._instance is not actor:
            return
        failed_to_start = ready is not None and not ready.done()
        if error is not None and not failed_to_start:
            self._count(error)
            log.error("%s crashed: %s", self.address, error, exc_info=error)
        await self._wind_down(actor, error)
        if failed_to_start and ready is not None:
            ready.set_exception(error or ActorStopped(f"{self.address} was stopped while it started"))
            self.state = "failed"
        elif not self.closed:
            self.state = "crashed"
            self.family.child_ended(self, error)

    async def _serve(self, actor: Actor[Any]) -> None:
        inbox = self.inbox
        plain = self.spec.plain
        untimed = 0  # so many messages until the next that is timed
        while True:
            for _ in range(len(inbox)):
                delivery = inbox.popleft()
                if self._room is not None:
                    self.room_made()
                if delivery.abandoned:
                    continue
                message = delivery.message
                call = plain.get(message.__class__)
                if call is None:
                    if delivery is _FINISH:
                        return
                    call = self._other_call(actor, delivery)
                    if call is None:
                        continue
                self.current = delivery
                try:
                    if untimed and delivery.trace is None:
                        untimed -= 1
                        result = await call(actor, message)
                    else:
                        weight = 1 if untimed or self.processed < TIMED_FIRST else TIMED_EVERY
                        untimed = untimed or weight - 1
                        result = await self._watched(call, actor, delivery, weight)
                except CallboardError as error:
                    self._count(error)
                    delivery.fail(error)
                    if self._snapshots is not None and self._snapshots.fenced is not None:
                        raise
                except asyncio.CancelledError:
                    self._answer_cancelled(delivery)
                except Exception as error:
                    self._failed(delivery, error)
                    raise
                else:
                    if type(delivery) is LocalAsk:  # as its `resolve` does, without the call
                        future = delivery.future
                        if not future.done():
                            future.set_result(result)
                    else:
                        delivery.resolve(result)
                self.processed += 1
                if delivery.abandoned:
                    self.current = None
                    await self._absorb_cancel()
            self.current = None
            if self._instance is not actor:
                return  # it was left behind when it did not end in time
            if inbox:
                await asyncio.sleep(0)  # handlers that never wait must not keep the process from everybody else
                continue
            if self.closed:
                return
            self._waiter = self._loop.create_future()
            await self._waiter

    async def _watched(
        self, call: Callable[[Any, Any], Any], actor: Actor[Any], delivery: Delivery, weight: int
    ) -> Any:
        """Run a handler by the clock, and in a span if its message is traced. Its time stands for `weight` messages."""
        meter = self.durations
        if meter is None:
            meter = self.durations = DurationMeter()
        began = time.perf_counter()
        try:
            with self.node.tracer.handling(delivery, self.address):
                return await call(actor, delivery.message)
        finally:
            meter.add(time.perf_counter() - began, weight)

    def _other_call(self, actor: Actor[Any], delivery: Delivery) -> Callable[[Any, Any], Any] | None:
        """How to run what is no plain handler here and now; None for what runs beside, or is not understood."""
        handler = self.spec.handlers.get(type(delivery.message))
        if handler is None:
            self._not_understood(delivery)
            return None
        if handler.concurrent:
            self._start_concurrent(actor, handler, delivery)
            return None
        return partial(self._stream_call, handler, delivery)

    def _answer_cancelled(self, delivery: Delivery) -> None:
        """Go on after a cancel that was meant for this message; pass on one that was meant for the actor."""
        task = self._task
        if task is not None and not task.cancelling() and not delivery.abandoned:
            error = HandlerFailed(f"{self.address} failed: what its handler waited for was cancelled")
            delivery.fail(error)
            raise error
        if not delivery.abandoned or self._crash is not None or task is None or task.uncancel() > 0:
            delivery.fail(ActorStopped(f"{self.address} ended before it answered"))
            raise asyncio.CancelledError
        delivery.fail(Cancelled("the request was given up"))

    async def _absorb_cancel(self) -> None:
        """A cancel that came while the handler was finishing strikes at the next await: let it be this one."""
        task = self._task
        if task is not None and task.cancelling():
            task.uncancel()
            if not self._crash:
                try:
                    await asyncio.sleep(0)
                except asyncio.CancelledError:
                    if self._crash is not None or task.cancelling():
                        raise

    def _stream_call(
        self, handler: HandlerSpec, delivery: Delivery, actor: Actor[Any], message: Message
    ) -> Coroutine[Any, Any, Any]:
        items = handler.call(actor, message)
        return items if items.__class__ is CoroutineType else self._run_stream(items, delivery)

    async def _run_stream(self, items: AsyncGenerator[Any], delivery: Delivery) -> Any:
        """Drive a stream. What it yields of the result's type is the result, anything else an item."""
        result_type = answers(type(delivery.message)).result
        result = None
        try:
            async for item in items:
                if isinstance(item, result_type):
                    result = item
                elif delivery.wants_items:
                    await delivery.send(item)
        finally:
            await items.aclose()
        return result

    # Concurrent handlers and background tasks

    def _start_concurrent(self, actor: Actor[Any], handler: HandlerSpec, delivery: Delivery) -> None:
        self.held += 1
        if self._running is None:
            self._running = set()
        self._running.add(delivery)
        work = self._run_concurrent(actor, handler, delivery)
        delivery.task = self._loop.create_task(work, context=self._context.copy())
        delivery.task.add_done_callback(lambda task: self._concurrent_done(task, delivery))

    async def _run_concurrent(self, actor: Actor[Any], handler: HandlerSpec, delivery: Delivery) -> None:
        try:
            processed = self.processed
            if processed < TIMED_FIRST or processed % TIMED_EVERY == 0 or delivery.trace is not None:
                call = partial(self._stream_call, handler, delivery) if handler.streams else handler.call
                result = await self._watched(call, actor, delivery, 1 if processed < TIMED_FIRST else TIMED_EVERY)
            elif handler.streams:
                result = await self._stream_call(handler, delivery, actor, delivery.message)
            else:
                result = await handler.call(actor, delivery.message)
        except CallboardError as error:
            self._count(error)
            delivery.fail(error)
        except asyncio.CancelledError:
            if delivery.abandoned:
                delivery.fail(Cancelled("the request was given up"))
            elif delivery.task is not None and delivery.task.cancelling():
                delivery.fail(ActorStopped(f"{self.address} ended before it answered"))
            else:
                failure = HandlerFailed(f"{self.address} failed: what its handler waited for was cancelled")
                delivery.fail(failure)
                self.crash(failure)
        except Exception as error:
            self._failed(delivery, error)
            self.crash(error)
        else:
            delivery.resolve(result)
        finally:
            self._concurrent_over(delivery)

    def sender(self) -> str:
        """Who sent the message whose handler calls this, as it says of itself; empty where it says nothing."""
        task = asyncio.current_task()
        running = next((delivery for delivery in self._running or () if delivery.task is task), self.current)
        return running.sender if running is not None else ""

    def _concurrent_over(self, delivery: Delivery) -> None:
        self.processed += 1
        self.held -= 1
        if self._running is not None:
            self._running.discard(delivery)
        if self._room is not None:
            self.room_made()

    def _concurrent_done(self, task: asyncio.Task[None], delivery: Delivery) -> None:
        if task.cancelled():  # before its first step, so nothing of it ran
            delivery.fail(ActorStopped(f"{self.address} ended before it came to this message"))
            self._concurrent_over(delivery)

    # Durable state

    async def _recover(self, actor: Actor[Any]) -> None:
        from .store import Snapshots

        node = self.node
        self._snapshots = Snapshots(node.jetstream, self.address, self.kind, node.ask_timeout)
        await self._snapshots.recover(actor, self.spec.state)

    async def save(self) -> None:
        if self._snapshots is None or self._instance is None:
            raise ConfigError(f"{kind_name(self.kind)} has no `snapshot` and `restore`, so there is nothing to save")
        try:
            await self._snapshots.save(self._instance)
        except Fenced as error:
            self._loop.call_soon(self._end_fenced, error)
            raise

    def _end_fenced(self, error: Fenced) -> None:
        """Whoever caught the error: an actor that was taken over answers no more."""
        if self.state != "stopping":
            self.crash(error)

    def start_soon(self, work: Coroutine[Any, Any, Any]) -> None:
        if self._background is None:
            self._background = set()
        task = self._loop.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background_done)

    def _background_done(self, task: asyncio.Task[Any]) -> None:
        if self._background is not None:
            self._background.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.crash(error if isinstance(error, Exception) else ActorError(f"{self.address}: {error!r}"))

    def crash(self, error: Exception) -> None:
        """End this incarnation as if a handler had raised `error`."""
        if self.state == "stopping":
            log.error("%s failed while it was ending: %s", self.address, error, exc_info=error)
        elif self._crash is None and self._task is not None and not self._task.done():
            self._crash = error
            self._task.cancel()

    def finish(self) -> None:
        """End this incarnation, without an error, after the message in hand. Those that wait stay where they are."""
        self.inbox.appendleft(_FINISH)
        self._wake()

    # The end

    async def _finish_running(self) -> None:
        """Let concurrent handlers finish, as part of a drain."""
        tasks = [delivery.task for delivery in self._running or () if delivery.task is not None]
        if tasks:
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _wind_down(self, actor: Actor[Any], error: Exception | None) -> None:
        self.current = None
        self.state = "stopping"
        if self.inbox and self.inbox[0] is _FINISH:
            self.inbox.popleft()
        tasks: list[asyncio.Task[Any]] = [d.task for d in self._running or () if d.task is not None]
        tasks += self._background or ()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CANCEL_GRACE_S)
        if self._children is not None:
            # In a drain the children have what is left of its time to finish what they have in hand.
            await self._children.stop_all(max(CANCEL_GRACE_S, self._stop_by - self._loop.time()))
            self._children = None
        for target in self._watching or ():
            self.node.unwatch(self.address, target)
        self._watching = None
        if self.kind.stopped is not Actor.stopped:
            try:
                async with asyncio.timeout(CANCEL_GRACE_S):
                    await actor.stopped()
            except Exception as raised:
                log.error("%s: its stopped() hook failed: %s", self.address, raised, exc_info=raised)
        self._instance = None

    async def stop(self, timeout: float) -> None:
        """Take nothing new, finish what is there within `timeout` seconds, end. What did not run is handed back."""
        self._close()
        self._stop_by = self._loop.time() + timeout
        self._wake()
        self.room_made(self.capacity)
        await self._end_task(timeout)
        self.discard_mailbox()
        self.state = "stopped"

    async def pause(self, timeout: float) -> None:
        """End this incarnation only: the message in hand finishes within `timeout`, the others wait for the next."""
        if self._task is not None and not self._task.done():
            self.finish()
            await self._end_task(timeout)

    async def _end_task(self, timeout: float) -> None:
        task = self._task
        if task is None or task.done():
            return
        await asyncio.wait([task], timeout=timeout)
        if not task.done() and self.state != "stopping":
            task.cancel()
            await asyncio.wait([task], timeout=CANCEL_GRACE_S)
        if not task.done() and self.state == "stopping":
            await asyncio.wait([task])  # each part of winding down has a bound of its own
        if not task.done():
            log.error("%s does not react to being cancelled; it is left behind", self.address)
            left, self.inbox = self.inbox, collections.deque(d for d in self.inbox if d is not _FINISH)
            left.clear()

    def discard_mailbox(self) -> None:
        """Hand back what waits: nobody is going to handle it."""
        self._close()
        while self.inbox:
            self._hand_back(self.inbox.popleft(), ActorStopped(f"{self.address} ended before it came to this message"))
        self.room_made(self.capacity)

    def _hand_back(self, delivery: Delivery, error: ActorError | NotUnderstood) -> None:
        """A sender that waits gets the error; a plain message goes where those go that could not be delivered."""
        if type(delivery) is not Told:
            delivery.fail(error)
        elif delivery is not _FINISH and not isinstance(delivery.message, Terminated):
            self.drop(delivery.message)
            log.warning("%s was not handled: %s", tag_of(delivery.message), error)

    def drop(self, message: Message) -> None:
        """Count a message that nobody handles, and publish it for who wants to see it."""
        self.dropped += 1
        self.node.topics.deliver(f"dead.{self.address}", message)
        if self.node.links is not None:
            self.node.links.bus.send(f"dead.{self.address}", msgspec.msgpack.encode(message))

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # Failure

    def _count(self, error: Exception) -> None:
        self.errors += 1
        self.last_error = str(error)[:MAX_LAST_ERROR]

    def _failed(self, delivery: Delivery, error: Exception) -> None:
        detail = "".join(traceback.format_exception(error))
        delivery.fail(HandlerFailed(f"{self.address} failed: {type(error).__name__}: {error}", detail=detail))

    def _not_understood(self, delivery: Delivery) -> None:
        message = delivery.message
        if isinstance(message, Terminated):
            return
        self.errors += 1
        error = NotUnderstood(
            f"{self.address} ({kind_name(self.kind)}) takes no {tag_of(message)}",
            hint="it takes " + (", ".join(sorted(map(tag_of, self.spec.handlers))) or "nothing"),
        )
        self._hand_back(delivery, error)

    # Children and watching

    @property
    def children(self) -> Family:
        if self._children is None:
            policy = (self._instance or self.kind).supervision
            self._children = Family(self.node, policy, self.crash, self.address)
        return self._children

    async def spawn(
        self,
        kind: type[Actor[Any]] | str,
        config: msgspec.Struct | str | None,
        *,
        name: str,
        where: Where | None,
        restart: Restart,
    ) -> Ref:
        if self.state == "stopping":
            raise ActorStopped(f"{self.address} is ending and starts no children")
        return await self.node.spawn_in(self.children, self.address, kind, config, name, where, restart)

    def watch(self, target: str, *, link: bool) -> None:
        self.watching(target)
        self.node.watch(self.address, target, link=link)

    def watching(self, target: str) -> None:
        """This incarnation watches the target; its end is the end of that."""
        if self._watching is None:
            self._watching = set()
        self._watching.add(target)

    def unwatch(self, target: str) -> None:
        if self._watching is not None:
            self._watching.discard(target)
        self.node.unwatch(self.address, target)

    def terminated(self, event: Terminated, *, linked: bool) -> None:
        """A watched actor ended."""
        if self._watching is not None:
            self._watching.discard(event.address)
        if linked and event.reason is not Ended.STOPPED:
            self.crash(ActorError(f"{event.address}, which {self.address} is linked to, ended: {event.reason.value}"))
        else:
            self.put_system(Told(event, event.address, self))

    def info(self) -> ActorInfo:
        return ActorInfo(
            address=self.address,
            kind=kind_name(self.kind),
            state=self.state,
            node=self.node.name,
            pid=os.getpid(),
            mailbox=len(self.inbox) + self.held,
            processed=self.processed,
            errors=self.errors,
            restarts=self.restarts,
            dropped=self.dropped,
            since=self.since,
            supervisor=self.family.owner,
        )
