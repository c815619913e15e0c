"""Streams through a gateway that others read while something is measured.

They are in a process of their own: a client that reads sixteen streams keeps whoever measures in it waiting, and that
is no part of the way.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager

import anyio
import anyio.to_thread

from . import processes
from .gateway_paths import Talk, ask_over_http, connection_to

LOAD = 16


@asynccontextmanager
async def load(url: str, tokens: int) -> AsyncIterator[None]:
    """`LOAD` streams while the block runs, each of so many tokens, and a new one for each that ends."""
    with ExitStack() as stack:
        side = processes.other_side("gateway-load", "uvloop", url, str(tokens))
        await anyio.to_thread.run_sync(stack.enter_context, side)
        yield


async def keep_streaming(url: str, tokens: int) -> None:
    """What the other process does: says "ready" once all streams have begun, and goes on until standard input ends."""

    async def stream(number: int, begun: asyncio.Event) -> None:
        talk = Talk(f"Tell story number {number}.", tokens)
        async with connection_to(url) as connection:
            while True:
                await ask_over_http(connection, talk)
                begun.set()

    async with anyio.create_task_group() as group:
        begun = [asyncio.Event() for _ in range(LOAD)]
        for number, event in enumerate(begun):
            group.start_soon(stream, number, event)
        for event in begun:
            await event.wait()
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)
        group.cancel_scope.cancel()
