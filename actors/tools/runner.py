"""One call of a tool, from the message to the result: media in, checks, a slot, a time limit, pieces, media out."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from concurrent.futures import Future
from contextlib import AsyncExitStack, aclosing
from functools import partial
from typing import Any, TypeVar

from ...runtime.deadlines import TimeLimit
from ...runtime.errors import BlobGone, Cancelled
from ...runtime.node import Node
from ...schemas.base import Request
from ...schemas.blob import Blob
from ...schemas.tool import (
    CallTool,
    GetMedia,
    Media,
    MediaPart,
    MediaPut,
    MediaTaken,
    PutMedia,
    ToolPiece,
    ToolProgress,
    ToolResult,
)
from .carrying import Uploads, parts
from .context import ToolContext
from .errors import ToolTimeout
from .in_hand import InHand
from .media_blobs import media_in, media_out
from .outcome import Outcome
from .recent import Recent
from .running import run_tool
from .slots import Slots
from .threads import Threads, Worker
from .tool import Tool
from .values import File

R = TypeVar("R")
Item = ToolProgress | ToolPiece | ToolResult

# What a result's media stay for, unless somebody holds them: callers read them at once.
RESULT_TTL_S = 300.0
# And what callers elsewhere have sent before a call.
UPLOAD_TTL_S = 600.0
# Beyond its time limit, how long a function may take to see that its call is over before it counts as stuck; one with
# less time has no more than that.
STUCK_GRACE_S = 5.0
# Pieces that may wait for a caller before the tool waits too.
WINDOW = 64

_NO_MEDIA: dict[str, File] = {}
_NO_CONTEXT = ToolContext()


class ToolRunner:
    """Runs the calls of one tool. `stuck` is called when nothing of it answers any more (see `Slots`). `in_hand`: of
    all tools of its set."""

    def __init__(
        self, tool: Tool, name: str, node: Node, stuck: Callable[[], None], in_hand: InHand | None = None
    ) -> None:
        self.tool = tool
        self.name = name
        self._node = node
        self._timeout = tool.info.timeout
        self._slots = Slots(name, tool.info.concurrency, stuck)
        self._threads = Threads(name)
        self._uploads: Uploads | None = None
        self._sent: dict[str, tuple[Blob, float]] = {}
        self._recent = Recent()
        self._in_hand = in_hand if in_hand is not None else InHand()

    def is_plain(self, message: CallTool) -> bool:
        """Whether nothing but the result can come of the call, and no thread has a part in it: see `run_plain`."""
        return self.tool.is_plain and not message.media

    async def run_plain(self, message: CallTool) -> ToolResult:
        """`run` for such a call. What a tool costs beyond an ask is here, so nothing is made that it does not need."""
        began = time.perf_counter()
        tool = self.tool
        values = tool.accept(message.arguments, _NO_MEDIA)
        if not tool.once.is_ready:
            await tool.once.wait(self._threads.run)
        if not self._slots.take_now():
            await self._slots.take()
        is_over = False
        limit = TimeLimit(self._node.deadlines, self._timeout)
        in_hand = self._in_hand
        task = asyncio.current_task()
        assert task is not None
        in_hand.tasks.add(task)
        try:
            outcome = await run_tool(tool, values, _NO_CONTEXT)
        except asyncio.CancelledError as error:
            is_over = True
            if limit.end():
                raise self._too_late() from error
            if in_hand.verdict is not None:
                raise in_hand.ending() from error
            raise
        finally:
            in_hand.tasks.discard(task)
            if not is_over:
                limit.end()
            self._slots.give_back()
        sent = await self._send(outcome.media) if outcome.media else ()
        return ToolResult(outcome.value, outcome.text, sent, time.perf_counter() - began)

    def _too_late(self) -> ToolTimeout:
        return ToolTimeout(f"the tool {self.name} did not end within {self._timeout:g} s")

    async def run_once(self, message: CallTool) -> AsyncGenerator[Item]:
        """`run` for a call with a key: where the same one is under way or has just ended, what comes of that."""
        known = await self._recent.result_of(message)
        if known is not None:
            yield known
            return
        self._recent.begin(message)
        result: ToolResult | None = None
        error: BaseException | None = None
        try:
            async with aclosing(self.run(message)) as said:
                async for item in said:
                    if isinstance(item, ToolResult):
                        result = item
                        self._recent.end(message, result, None)  # before anybody may stop listening
                    yield item
        except BaseException as raised:
            error = raised
            raise
        finally:
            self._recent.end(message, result, error)

    async def run(self, message: CallTool) -> AsyncGenerator[Item]:
        """What the call streams, then its result. Closing it gives the call up."""
        began = time.perf_counter()
        call = _Call(self._node, self._threads, message)
        try:
            async with AsyncExitStack() as opened:
                media: dict[str, File] = {}
                if message.media:
                    media = await media_in(self._node, message.media, opened)
                values = self.tool.accept(message.arguments, media)
                if not self.tool.once.is_ready:
                    await self.tool.once.wait(self._threads.run)
                await self._slots.take()
                until = time.monotonic() + self._timeout + min(STUCK_GRACE_S, self._timeout)
                try:
                    if not self.tool.streams:
                        outcome = await self._finish(call, values)
                    else:
                        task = asyncio.get_running_loop().create_task(self._finish(call, values))
                        async with aclosing(self._watch(call, task)) as said:
                            async for item in said:
                                yield item
                        outcome = await task
                finally:
                    call.context.cancel()
                    self._leave(call, until)
                sent = await self._send(outcome.media) if outcome.media else ()
                yield ToolResult(outcome.value, outcome.text, sent, time.perf_counter() - began)
        finally:
            if call.context.has_scratch or self._uploads is not None:
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.shield(asyncio.create_task(self._tidy(call, message)))

    async def _tidy(self, call: _Call, message: CallTool) -> None:
        if call.context.has_scratch:
            await self._threads.run(call.context.close)
        if self._uploads is not None:
            for each in message.media:
                await self._uploads.let_go(each.blob.id)

    async def _finish(self, call: _Call, values: dict[str, Any]) -> Outcome:
        limit = asyncio.timeout(self._timeout)
        in_hand = self._in_hand
        task = asyncio.current_task()
        assert task is not None
        in_hand.tasks.add(task)
        try:
            async with limit:
                return await run_tool(self.tool, values, call.context)
        except asyncio.CancelledError as error:
            if in_hand.verdict is not None:
                raise in_hand.ending() from error
            raise
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise self._too_late() from error
        finally:
            in_hand.tasks.discard(task)
            call.end()

    async def _watch(self, call: _Call, task: asyncio.Task[Outcome]) -> AsyncGenerator[Item]:
        """What the tool says while it works. The task ends before this does."""
        try:
            async with aclosing(call.items()) as items:
                async for item in items:
                    yield item if isinstance(item, (ToolProgress, ToolPiece)) else await self._piece(item)
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait([task])
                if not task.cancelled():
                    task.exception()  # it was given up: nobody is to hear of it

    async def _piece(self, value: Any) -> ToolPiece:
        if isinstance(value, str):
            return ToolPiece(value)
        encoded, media = self.tool.piece(value)
        sent = await self._send(media) if media else ()
        return ToolPiece("" if isinstance(value, File) else encoded, sent)

    async def _send(self, media: Mapping[str, File]) -> tuple[Media, ...]:
        """Blobs of them, which stay until the caller has read them, or for their time."""
        now = time.monotonic()
        for blob_id in [known for known, (_, until) in self._sent.items() if until < now]:
            del self._sent[blob_id]
        sent = await media_out(self._node.blobs, media, RESULT_TTL_S)
        self._sent.update({each.blob.id: (each.blob, now + RESULT_TTL_S) for each in sent if each.blob.id})
        return sent

    async def taken(self, message: MediaTaken) -> None:
        for blob_id in message.ids:
            blob, _ = self._sent.pop(blob_id, (None, 0.0))
            if blob is not None:
                await self._node.blobs.release(blob)

    async def put(self, message: PutMedia) -> MediaPut:
        """Take a piece of a medium from a caller on another host."""
        if self._uploads is None:
            blobs = self._node.blobs
            self._uploads = Uploads(blobs, UPLOAD_TTL_S, blobs.settings.max_message)
        return await self._uploads.take(message)

    async def get(self, message: GetMedia) -> AsyncGenerator[MediaPart]:
        """The bytes of a result's medium for a caller on another host. Raises BlobGone."""
        blob, _ = self._sent.get(message.id, (None, 0.0))
        if blob is None:
            raise BlobGone(f"the tool {self.name} has no medium {message.id} any more")
        async with aclosing(parts(self._node.blobs, blob)) as found:
            async for part in found:
                yield part

    def _leave(self, call: _Call, until: float) -> None:
        """Give the slot back, or have it given back when the call's thread is free."""
        worker = call.worker
        if worker is not None and worker.busy:
            self._slots.give_back_after(worker, until - time.monotonic())
        else:
            self._slots.give_back()

    async def close(self) -> None:
        await self.tool.once.close(self._threads.run)
        self._threads.close()
        if self._uploads is not None:
            self._uploads.close()


class _Call:
    """What one call says while it runs, on its way from the tool's thread or task to the caller."""

    def __init__(self, node: Node, threads: Threads, message: CallTool) -> None:
        self._node = node
        self.worker: Worker | None = None
        self._loop = asyncio.get_running_loop()
        self._items: collections.deque[Any] = collections.deque()
        self._news: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None
        self._ended = False
        self.context = ToolContext(
            session=message.session,
            key=message.key,
            sink=self,
            in_thread=partial(threads.run, taken=self._taken),
            asker=self._ask,
        )

    def _ask(self, address: str, request: Request[R], seconds: float) -> Future[R]:
        """From the tool's thread."""
        return asyncio.run_coroutine_threadsafe(self._node.actor(address).ask(request, seconds), self._loop)

    def _taken(self, worker: Worker) -> None:
        self.worker = worker

    # The sink

    def progress(self, progress: ToolProgress) -> None:
        self._loop.call_soon_threadsafe(self._put_progress, progress)

    def _put_progress(self, progress: ToolProgress) -> None:
        # The last word on how far it is stands for those before it, so progress never makes a tool wait.
        if self._items and isinstance(self._items[-1], ToolProgress):
            self._items.pop()
        self._put(progress)

    def piece(self, piece: Any) -> None:
        """From the tool's thread: waits there for room."""
        future = asyncio.run_coroutine_threadsafe(self.piece_soon(piece), self._loop)
        try:
            future.result()
        except BaseException as error:
            raise Cancelled("the call was given up") from error

    async def piece_soon(self, piece: Any) -> None:
        while len(self._items) >= WINDOW and not self._ended:
            if self._room is None:
                self._room = self._loop.create_future()
            await asyncio.shield(self._room)
        if self._ended:
            raise Cancelled("the call was given up")
        self._put(piece)

    def _put(self, item: Any) -> None:
        self._items.append(item)
        self._wake()

    def _wake(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    def end(self) -> None:
        self._ended = True
        self._wake()
        self._make_room()

    def _make_room(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)
        self._room = None

    async def items(self) -> AsyncGenerator[Any]:
        """Until the call has ended and all that it said is told."""
        while True:
            while self._items:
                item = self._items.popleft()
                self._make_room()
                yield item
            if self._ended:
                return
            self._news = self._loop.create_future()
            await self._news
