"""Messages that leave in the same turn of the event loop go out together.

An envelope's or frame's last field is an array, empty in the encoded head: its one byte is replaced by the array made
here from parts that are encoded already.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

# Enough to make the cost of a NATS message vanish; small enough that the receiver starts early.
MAX_PARTS = 128


class Batch:
    """Collects encoded values; `send(index of the first, MessagePack array)` gets them at the end of the loop's turn.

    Sooner when there are `MAX_PARTS` or `max_bytes` of them. Order is kept.
    """

    __slots__ = ("_first", "_loop", "_max_bytes", "_parts", "_scheduled", "_send", "_size")

    def __init__(self, loop: asyncio.AbstractEventLoop, send: Callable[[int, bytes], None], max_bytes: int) -> None:
        self._loop = loop
        self._send = send
        self._max_bytes = max_bytes
        self._parts: list[bytes] = []
        self._size = 0
        self._first = 0
        self._scheduled = False

    def add(self, part: bytes) -> None:
        if self._parts and self._size + len(part) > self._max_bytes:
            self.flush()
        self._parts.append(part)
        self._size += len(part)
        if len(self._parts) >= MAX_PARTS:
            self.flush()
        elif not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._turn)

    def pass_by(self) -> int:
        """One goes by another way: what came before it goes first. Returns its index."""
        self.flush()
        self._first += 1
        return self._first - 1

    def _turn(self) -> None:
        self._scheduled = False
        self.flush()

    def flush(self) -> None:
        parts = self._parts
        if parts:
            self._parts = []
            self._size = 0
            first = self._first
            self._first += len(parts)
            self._send(first, b"\xdc" + len(parts).to_bytes(2, "big") + b"".join(parts))
