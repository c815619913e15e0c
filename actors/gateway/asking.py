"""Asking an engine for somebody who may go away at any moment."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Generic, TypeVar

from starlette.requests import Request
from starlette.types import Receive

from ...runtime.errors import CallboardError
from ...runtime.refs import Ref
from ...schemas.serve import Completion, Generate, Token

T = TypeVar("T")

Pieces = list[Token | Completion]
"""What of an answer came together; its completion is the last of all."""


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


class Presence:
    """`async with Presence(receive):` is cancelled, and ends with ClientGone, when the client goes away. The request
    must have been read.

    The work is this task's own: a task for it would cost two more turns of the event loop, in which all others that
    have something to do come first.
    """

    __slots__ = ("_is_gone", "_receive", "_task", "_watching")

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._is_gone = False

    async def __aenter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._watching = asyncio.ensure_future(self._watch())

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._is_gone = True
        self._task.cancel()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watching.cancel()
        if self._is_gone and not self._task.uncancel() and isinstance(error, asyncio.CancelledError):
            raise ClientGone from None  # and nobody else wants this task to end


async def while_there(request: Request, work: Awaitable[T]) -> T:
    """What `work` gives; it is cancelled when the client goes away. The body must have been read. Raises ClientGone."""
    async with Presence(request.receive):
        return await work


async def pieces(scheduler: Ref, request: Generate, timeout: float) -> AsyncGenerator[Pieces, None]:
    """The pieces of an answer, those together that are there together, and its completion last. Closing this stops the
    engine's work."""
    async with scheduler.stream(request, timeout=timeout) as stream:
        while tokens := await stream.take():
            if stream.is_over:
                yield [*tokens, stream.result]
                return
            yield list[Token | Completion](tokens)
        yield [stream.result]


async def mixed(
    scheduler: Ref, requests: Sequence[Generate], timeout: float
) -> AsyncGenerator[list[tuple[int, Token | Completion]], None]:
    """The pieces of several answers as they come, each with its request's number. One error ends them all."""
    if len(requests) == 1:
        async with aclosing(pieces(scheduler, requests[0], timeout)) as answer:
            async for some in answer:
                yield [(0, piece) for piece in some]
        return
    queue: asyncio.Queue[tuple[int, Pieces | CallboardError]] = asyncio.Queue(maxsize=64)

    async def follow(number: int, request: Generate) -> None:
        try:
            async with aclosing(pieces(scheduler, request, timeout)) as answer:
                async for some in answer:
                    await queue.put((number, some))
        except CallboardError as error:
            await queue.put((number, error))

    tasks = [asyncio.ensure_future(follow(number, request)) for number, request in enumerate(requests)]
    try:
        left = len(tasks)
        while left:
            number, some = await queue.get()
            if isinstance(some, CallboardError):
                raise some
            left -= isinstance(some[-1], Completion)
            yield [(number, piece) for piece in some]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


class Begun(Generic[T]):
    """What `items` gives, once the first is there. To be closed."""

    __slots__ = ("_first", "_items")

    def __init__(self, first: T, items: AsyncGenerator[T, None]) -> None:
        self._first: list[T] = [first]
        self._items = items

    def __aiter__(self) -> Begun[T]:
        return self

    async def __anext__(self) -> T:
        return self._first.pop() if self._first else await anext(self._items)

    async def aclose(self) -> None:
        await self._items.aclose()


async def begun(items: AsyncGenerator[T, None], request: Request) -> Begun[T]:
    """The same items, once the first is there: what goes wrong before it is an error with a status of its own."""
    try:
        return Begun(await while_there(request, anext(items)), items)
    except BaseException:
        await items.aclose()
        raise
