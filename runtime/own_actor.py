"""An actor that a command starts for itself: it is there for one request, and ends with the command."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio

from .errors import CallboardError
from .supervision import Restart

if TYPE_CHECKING:
    from .client import Client
    from .refs import Ref

# What such an actor may take to end.
STOP_S = 10.0


@asynccontextmanager
async def own_actor(bus: Client, kind: str) -> AsyncIterator[Ref]:
    """In a process of its own. Its kind's configuration has a field `once`: a command that is killed cannot stop it, so
    it ends by itself with the first request, however that ends. Raises what `Client.spawn` does."""
    ref = await bus.spawn(kind, '{"once": true}', process=True, restart=Restart.TEMPORARY)
    try:
        yield ref
    finally:
        # Where it is gone, or the bus is, who asked it has heard so.
        with anyio.move_on_after(STOP_S), contextlib.suppress(CallboardError):
            await bus.stop(ref.address)
