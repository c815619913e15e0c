"""The ends of actors, as watchers elsewhere are told of them.

Nobody answers such a message, so one that the NATS server takes with it when it dies, or that goes out before the
watcher's node is back on the bus, would be lost: its node would then find nobody there, and never learn why. What was
told lately is therefore told again for a while after the bus was away. A node takes the end of a watch once.
"""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING

import msgspec

from ..schemas.runtime import Terminated
from ..schemas.wire import Frame, Mark

if TYPE_CHECKING:
    import asyncio

    from .links import Links

# An older message has arrived, or its watcher's node was gone already.
KEPT_S = 10.0
# While the server is away, nothing gets old.
MOST_KEPT = 10_000
# Told again first so long after the return, then after twice that, and so on while nodes may still be on their way.
AGAIN_AFTER_S = 0.1

_encode = msgspec.msgpack.Encoder().encode


class Endings:
    """Of the actors of one node. `_told` holds when, to which watcher, and in which words."""

    def __init__(self, links: Links) -> None:
        self._links = links
        self._told: collections.deque[tuple[float, str, bytes]] = collections.deque(maxlen=MOST_KEPT)
        self._timer: asyncio.TimerHandle | None = None

    def tell(self, watcher: str, event: Terminated) -> None:
        frame = _encode(Frame(int(Mark.END), 0, event))
        self._told.append((self._links.node.loop.time(), watcher, frame))
        self._links.bus.send(watcher, frame)

    def back(self) -> None:
        """The bus is there again."""
        if self._timer is not None:
            self._timer.cancel()
        self._tell_again_in(AGAIN_AFTER_S)

    def tidy(self, now: float) -> None:
        """Called now and then while the bus is there and nobody is on the way back."""
        while self._told and now - self._told[0][0] > KEPT_S:
            self._told.popleft()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _tell_again_in(self, seconds: float) -> None:
        self._timer = self._links.node.loop.call_later(seconds, self._tell_again, seconds)

    def _tell_again(self, waited: float) -> None:
        if not self._links.bus.is_up:
            return  # its next return begins anew
        for _, watcher, frame in self._told:
            self._links.bus.send(watcher, frame)
        if self._links.is_gathering:
            self._tell_again_in(2 * waited)
