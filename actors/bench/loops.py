"""The event loops that a measurement can run on; both sides of a ratio use the same one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

LOOPS = ("asyncio", "uvloop")


def new_event_loop(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    """The factory that `asyncio.Runner` takes."""
    if name == "uvloop":
        import uvloop

        return uvloop.new_event_loop
    return asyncio.SelectorEventLoop
