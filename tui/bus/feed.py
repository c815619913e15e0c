"""Listening by patterns, as bytes. What actors get is mirrored to `tap.` only while somebody asks for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import msgspec

from ...runtime.client import TAP_LEASE_S
from ...runtime.errors import UsageError
from ...runtime.overhearing import overhear
from ...runtime.topics import check_subject
from ...schemas.runtime import TapRequest

if TYPE_CHECKING:
    from ...runtime.bus import Bus
    from ...runtime.links import Links
    from ..session import Session
    from .heard import Log

USUAL = ("topic.>", "tap.>", "dead.>", "nodes.*")


class CannotListen(UsageError):
    """A pattern that must not be listened to."""

    code = "tui.listen"


def checked_patterns(text: str) -> tuple[str, ...]:
    """The patterns of a line, with spaces or commas between them. Raises ConfigError, CannotListen."""
    patterns = tuple(dict.fromkeys(text.replace(",", " ").split())) or USUAL
    for pattern in patterns:
        check_subject(pattern, pattern=True)
        if pattern.partition(".")[0] in ("actor", "*", ">"):
            raise CannotListen(
                f"{pattern} takes in actor.>, and who listens there is taken for an actor",
                hint="tap.> shows what actors get, topic.> what is published freely",
            )
    return patterns


@asynccontextmanager
async def listening(session: Session, patterns: Sequence[str], log: Log) -> AsyncIterator[None]:
    """Everything on those patterns goes to the log. Raises Forbidden where this user may not listen."""
    links = session.client.node.require_links()

    def take(subject: str, reply: str, data: bytes) -> None:
        log.take(subject, data)

    tapped = [pattern.removeprefix("tap.") for pattern in patterns if pattern.startswith("tap.")]
    async with overhear(links, patterns, take, log.missed) as bus:
        renewing = asyncio.create_task(_renew(links, bus, tapped)) if tapped else None
        try:
            yield
        finally:
            if renewing is not None:
                renewing.cancel()


async def _renew(links: Links, bus: Bus, patterns: Sequence[str]) -> None:
    """Over the connection that listens: what it says itself it does not hear."""
    while True:
        for pattern in patterns:
            data = msgspec.msgpack.encode(TapRequest(pattern, TAP_LEASE_S))
            bus.send("nodes.tap", data)
            links.peers.receive("nodes.tap", "", data)
        await asyncio.sleep(TAP_LEASE_S / 3)  # within the lease
