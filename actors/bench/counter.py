"""The actor that the bus benchmark measures: it counts, notes, streams, and has children."""

from __future__ import annotations

import gc
import time
from collections.abc import AsyncIterator
from typing import TypeVar

import msgspec
import psutil

from ...runtime.actor import Actor, NoConfig, handler
from ...schemas.bench import Add, Arrivals, Count, Follow, Note, Piece, Populate, Population, Report

MESSAGE_BYTES = 128


M = TypeVar("M", bound=Add | Note | Piece)

encode = msgspec.msgpack.Encoder().encode


def padded(message: M, size: int = MESSAGE_BYTES) -> M:
    """`message`, with the padding that makes its MessagePack encoding `size` bytes long."""
    # The head of a string of 32 to 255 bytes is one byte longer than an empty string's.
    return msgspec.structs.replace(message, padding="x" * (size - len(encode(message)) - 1))


def resident_kb() -> float:
    """This process's resident memory (KiB), garbage collected."""
    gc.collect()
    return psutil.Process().memory_info().rss / 1024


class Counter(Actor[NoConfig]):
    """Answers with its total."""

    total = 0
    noted = 0

    @handler
    async def add(self, message: Add) -> Count:
        self.total += message.amount
        return Count(self.total)

    @handler
    async def note(self, message: Note) -> None:
        self.noted += message.amount

    @handler
    async def report(self, message: Report) -> Arrivals:
        count, self.noted = self.noted, 0
        return Arrivals(count, time.monotonic())

    @handler
    async def follow(self, message: Follow) -> AsyncIterator[Piece | Count]:
        piece = padded(Piece(0))
        for _ in range(message.count):
            yield piece
        yield Count(message.count)

    @handler
    async def populate(self, message: Populate) -> Population:
        before, began = resident_kb(), time.perf_counter()
        for number in range(message.count):
            await self.spawn(Counter, name=f"c{number}")
        seconds = time.perf_counter() - began
        return Population(seconds, (resident_kb() - before) / message.count)
