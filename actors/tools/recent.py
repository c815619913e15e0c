"""Calls by their keys: one that comes twice is run once.

An agent that died in mid-call asks again when it is back, with the same key. The first call may still be running, or
have ended with nobody to hear of it; the second gets what came of the first. Kept in memory, for a while, and only what
is small: a tool whose effects must never come twice keeps the keys itself (`context.key`).
"""

from __future__ import annotations

import asyncio
import collections
import time
from typing import NamedTuple

from ...schemas.tool import CallTool, ToolResult

KEEP_S = 600.0
MAX_KEPT = 256
# A larger result is not kept: who asks again has it computed again.
MAX_BYTES = 1 << 20


class _Key(NamedTuple):
    key: str
    session: str
    arguments: str


class Recent:
    """Of one tool. The oldest go first."""

    def __init__(self) -> None:
        self._calls: collections.OrderedDict[_Key, tuple[float, asyncio.Future[ToolResult]]] = collections.OrderedDict()

    async def result_of(self, message: CallTool) -> ToolResult | None:
        """What came of this very call, once it has ended; None where it is the caller's to run, after `begin`.

        Raises what a call that is still under way ends in.
        """
        key = _key(message)
        while (known := self._calls.get(key)) is not None:
            since, future = known
            if future.done() and (future.cancelled() or time.monotonic() - since > KEEP_S):
                del self._calls[key]
                return None
            try:
                return await asyncio.shield(future)
            except asyncio.CancelledError:
                if not future.cancelled():
                    raise  # it is this call that was given up
        return None

    def begin(self, message: CallTool) -> None:
        future: asyncio.Future[ToolResult] = asyncio.get_running_loop().create_future()
        future.add_done_callback(lambda done: done.cancelled() or done.exception())  # there may be nobody to hear of it
        self._calls[_key(message)] = (time.monotonic(), future)
        while len(self._calls) > MAX_KEPT:
            _, (_, oldest) = self._calls.popitem(last=False)
            oldest.cancel()

    def end(self, message: CallTool, result: ToolResult | None, error: BaseException | None) -> None:
        """It ended. What failed or was given up may be tried again; who waits for it hears how it failed."""
        key = _key(message)
        known = self._calls.get(key)
        if known is None or known[1].done():
            return
        if result is not None:
            known[1].set_result(result)
        elif isinstance(error, Exception):
            known[1].set_exception(error)
        else:
            known[1].cancel()
        if result is None or _size(result) > MAX_BYTES or any(media.blob.id for media in result.media):
            del self._calls[key]


def _key(message: CallTool) -> _Key:
    return _Key(message.key, message.session, message.arguments)


def _size(result: ToolResult) -> int:
    return len(result.value) + len(result.text) + sum(media.blob.size for media in result.media)
