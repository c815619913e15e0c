"""Looking on: everything on some patterns, over a connection of its own that is read ten times a second."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from .bus import Bus, Events

if TYPE_CHECKING:
    from .bus import Receive
    from .links import Links

READ_EVERY_S = 0.1


@asynccontextmanager
async def overhear(
    links: Links, patterns: Sequence[str], take: Receive, missed: Callable[[], None]
) -> AsyncIterator[Bus]:
    """Calls `take(subject, reply, data)` for each message, in order, at most a tenth of a second late.

    Entering the block returns once the server knows the patterns. `missed` is called when the connection was lost: it
    comes back by itself, but what is said meanwhile is not heard. Raises Forbidden, and what `Bus.open` does.
    """
    refused: set[str] = set()
    events = Events(missed, _nothing, refused.add, _no_matter, _no_matter)
    bus = Bus(links.options, f"{links.node.name}.overhearing", events, bundled=True)
    await bus.open()
    try:
        for pattern in patterns:
            await bus.subscribe(pattern, take)
        await bus.flush()
        for pattern in patterns:
            if pattern.lower() in refused:
                raise links.forbidden(f"listen to {pattern}")
        bus.read_every(READ_EVERY_S)
        yield bus
    finally:
        bus.read_every(0.0)
        await bus.close()


def _nothing() -> None:
    pass


def _no_matter(_: object) -> None:
    """Nothing is asked here, and of a user that was put out the node's own connection hears."""
