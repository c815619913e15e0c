"""A reference to an actor: ask, tell, stream. The same calls whether it lives in this process or across the bus."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ..schemas.base import Message, Request, StreamRequest
from ..schemas.trace import SpanKind
from .cell import Cell
from .context import current_place
from .deliveries import CheckedAsk, CheckedStream, LocalAsk, LocalStream, Told
from .errors import MailboxFull
from .messages import answers

if TYPE_CHECKING:
    from types import TracebackType

    from .links import RemoteStream
    from .node import Node
    from .tracing import OpenSpan

R = TypeVar("R")
Item = TypeVar("Item")

# How many stream items may wait between producer and reader.
STREAM_WINDOW = 256


class Ref:
    """An actor by its address. Cheap to make and to keep; it says nothing about whether the actor is there.

    Plain messages are delivered at most once. Errors of every call: NoSuchActor, MailboxFull, ActorStopped, and over
    the bus Disconnected, NotReachable, Forbidden, TooLarge.
    """

    __slots__ = ("_node", "address")

    def __init__(self, address: str, node: Node) -> None:
        self.address = address
        self._node = node

    def __str__(self) -> str:
        return self.address

    def __repr__(self) -> str:
        return f"Ref({self.address!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ref) and other.address == self.address

    def __hash__(self) -> int:
        return hash(self.address)

    async def ask(self, message: Request[R], timeout: float | None = None) -> R:
        """Send a request and wait for its answer.

        `timeout` is in seconds (default: the node's `ask_timeout`; `math.inf`: none) and travels with the request:
        when it passes, DeadlineExceeded is raised here and the handler is cancelled there. Cancelling this call
        cancels the handler too. Raises what the handler raised: a CallboardError as it is, else HandlerFailed.
        """
        node = self._node
        place = current_place.get()
        trace = place.trace
        if trace is not None and not trace.sending:
            with node.tracer.sending(trace, SpanKind.ASK, message, self.address):
                return await self.ask(message, timeout)
        cell: Any = node.actors.get(self.address)
        if cell.__class__ is not Cell:
            return await node.remote(self.address).ask(self.address, message, timeout)
        deadlines = node.deadlines
        slot = deadlines.usual if timeout is None or timeout == node.ask_timeout else None
        answer = node.loop.create_future()
        if node.round_trip is None:
            delivery = LocalAsk(message, place.address, answer, cell, slot, trace)
        else:
            checked = node.round_trip(message)
            delivery = CheckedAsk(checked, place.address, answer, cell, slot, trace, round_trip=node.round_trip)
        cell.put(delivery)
        if slot is not None:
            slot.add(delivery)
        else:
            deadlines.add(delivery, node.ask_timeout if timeout is None else timeout)
        try:
            return await answer
        except asyncio.CancelledError:
            delivery.abandon()
            raise
        finally:
            slot = delivery.slot
            if slot is not None:
                slot.discard(delivery)

    async def tell(self, message: Message, timeout: float = 0.0) -> None:
        """Send a message and go on. `timeout` is how long to wait for room in the mailbox before MailboxFull.

        Returning means that the mailbox has room kept for it, not that it was handled: at most once.
        """
        node = self._node
        place = current_place.get()
        trace = place.trace
        if trace is not None and not trace.sending:
            with node.tracer.sending(trace, SpanKind.TELL, message, self.address):
                return await self.tell(message, timeout)
        cell: Any = node.actors.get(self.address)
        if cell.__class__ is not Cell:
            return await node.remote(self.address).tell(self.address, message, timeout)
        if node.round_trip is not None:
            message = node.round_trip(message)
        delivery = Told(message, place.address, cell, trace)
        try:
            cell.put(delivery)
        except MailboxFull:
            if timeout <= 0:
                raise
            await cell.put_in_time(delivery, timeout)

    def stream(self, message: StreamRequest[Item, R], timeout: float | None = None) -> Stream[Item, R]:
        """Iterate what the handler yields: `async with ref.stream(request) as items: async for item in items: ...`.

        Leaving the block early cancels the handler. After the last item `items.result` holds the result. `timeout`
        bounds the whole stream (default: none).
        """
        return Stream(self._node, self.address, message, timeout)


class Stream(Generic[Item, R]):
    """An open stream. A reader that stands still holds back the handler, which waits for room (`STREAM_WINDOW`)."""

    def __init__(self, node: Node, address: str, message: StreamRequest[Item, R], timeout: float | None) -> None:
        self._node = node
        self._address = address
        self._message: Any = message
        self._timeout = timeout
        self._source: LocalStream | RemoteStream | None = None
        self._span: OpenSpan | None = None

    async def _open(self) -> LocalStream | RemoteStream:
        trace = current_place.get().trace
        if trace is None or trace.sending:
            return await self._open_here()
        self._span = self._node.tracer.sending(trace, SpanKind.STREAM, self._message, self._address)
        self._span.__enter__()
        try:
            return await self._open_here()
        except BaseException as error:
            self._span.end(error)
            raise
        finally:
            self._span.leave()

    async def _open_here(self) -> LocalStream | RemoteStream:
        node = self._node
        if answers(type(self._message)).item is None:
            raise TypeError(f"{type(self._message).__name__} does not stream: use ask")
        cell: Any = node.actors.get(self._address)
        if cell.__class__ is not Cell:
            return await node.remote(self._address).open_stream(self._address, self._message, self._timeout)
        place = current_place.get()
        if node.round_trip is None:
            source = LocalStream(self._message, place.address, node.loop, STREAM_WINDOW)
        else:
            checked = node.round_trip(self._message)
            source = CheckedStream(checked, place.address, node.loop, STREAM_WINDOW, node.round_trip)
        source.cell = cell
        source.trace = place.trace
        cell.put(source)
        if self._timeout is not None:
            node.deadlines.add(source, self._timeout)
        return source

    async def __aenter__(self) -> Stream[Item, R]:
        self._source = await self._open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __aiter__(self) -> Stream[Item, R]:
        return self

    async def __anext__(self) -> Item:
        if self._source is None:
            self._source = await self._open()
        try:
            return await self._source.receive_item()
        except StopAsyncIteration:
            self._over()
            raise
        except BaseException as error:
            self._failed(error)
            raise

    def _over(self) -> None:
        if self._source is not None:
            self._node.deadlines.discard(self._source)
        if self._span is not None:
            self._span.end()

    def _failed(self, error: BaseException) -> None:
        if self._span is not None:
            self._span.end(error)
        self._release()

    async def take(self) -> list[Item]:
        """The items that are there, at least one; none at the end. What a reader does for all of them at once it need
        not do for each."""
        if self._source is None:
            self._source = await self._open()
        try:
            items = await self._source.receive_items()
        except BaseException as error:
            self._failed(error)
            raise
        if not items or self._source.is_over:
            self._over()
        return items

    @property
    def is_over(self) -> bool:
        """Whether all items are taken and the result is there, so that nothing more is to be waited for."""
        return self._source is not None and self._source.is_over

    @property
    def result(self) -> R:
        """The handler's result. Raises RuntimeError before the stream has ended."""
        if self._source is None or not self._source.ended:
            raise RuntimeError("the stream has not ended: its result comes after the last item")
        return self._source.result

    async def aclose(self) -> None:
        """Stop reading; the handler is cancelled if it still runs. Safe to call twice."""
        self._release()

    def _release(self) -> None:
        if self._source is not None:
            self._node.deadlines.discard(self._source)
            self._source.close()
        if self._span is not None:  # and it has not come to its end
            self._span.end(asyncio.CancelledError())
