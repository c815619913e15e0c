"""Asking an engine for somebody who may go away at any moment."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.requests import Request

from ...runtime.errors import CallboardError
from ...runtime.refs import Ref
from ...schemas.serve import Completion, Generate, Token

T = TypeVar("T")


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


async def while_there(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What `work` gives; it is cancelled when the client goes away. The body must have been read. Raises ClientGone."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait([task, gone], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait([task])


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def pieces(scheduler: Ref, request: Generate, timeout: float) -> AsyncGenerator[Token | Completion, None]:
    """The pieces of an answer, and its completion last. Closing this stops the engine's work."""
    async with scheduler.stream(request, timeout=timeout) as tokens:
        async for token in tokens:
            yield token
        yield tokens.result


async def mixed(
    scheduler: Ref, requests: Sequence[Generate], timeout: float
) -> AsyncGenerator[tuple[int, Token | Completion], None]:
    """The pieces of several answers as they come, each with its request's number. One error ends them all."""
    queue: asyncio.Queue[tuple[int, Token | Completion | CallboardError]] = asyncio.Queue(maxsize=64)

    async def follow(number: int, request: Generate) -> None:
        try:
            async with aclosing(pieces(scheduler, request, timeout)) as answer:
                async for piece in answer:
                    await queue.put((number, piece))
        except CallboardError as error:
            await queue.put((number, error))

    tasks = [asyncio.ensure_future(follow(number, request)) for number, request in enumerate(requests)]
    try:
        left = len(tasks)
        while left:
            number, piece = await queue.get()
            if isinstance(piece, CallboardError):
                raise piece
            left -= isinstance(piece, Completion)
            yield number, piece
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def begun(items: AsyncGenerator[T, None], request: Request) -> AsyncGenerator[T, None]:
    """The same items, once the first is there: what goes wrong before it is an error with a status of its own."""
    try:
        first = await while_there(request, anext(items))  # pyright: ignore[reportArgumentType]
    except BaseException:
        await items.aclose()
        raise

    async def again() -> AsyncGenerator[T, None]:
        async with aclosing(items):
            yield first
            async for item in items:
                yield item

    return again()
