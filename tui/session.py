"""The app's one connection to the bus. It comes back by itself, and says when it is lost and when it is back.

While the server is away, nats-py tries the same address again by itself, and its own events wake us. A daemon that was
stopped and started again is at another address with other keys, so meanwhile its file is looked at too, less and less
often.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from ..runtime.errors import CallboardError, NotReachable

if TYPE_CHECKING:
    from ..runtime.client import Client
    from ..runtime.refs import Stream
    from ..runtime.tls import Tls
    from ..runtime.topics import Listener
    from ..schemas.base import Message, Request, StreamRequest

R = TypeVar("R")
Item = TypeVar("Item")

FIRST_WAIT_S = 0.2
LONGEST_WAIT_S = 5.0


class NotConnected(NotReachable):
    """There is no connection to the bus at this moment. The session goes on trying."""

    code = "bus.not_connected"
    default_hint = "it is tried again by itself; `callboard status` says what runs"


@dataclass(frozen=True)
class Access:
    """Which bus: that of the daemon of a state folder, or a server of the user's own. As the flags of a command."""

    nats: str = ""
    creds: str = ""
    state_dir: str = ""
    tls: Tls | None = None


class Session:
    """The connection that all pages share. `run` keeps it, for as long as it is not cancelled.

    `on_change` are called when `connected` or `trouble` change: `trouble` is why there is no connection, `attempts` how
    often one was looked for since it was lost.
    """

    def __init__(self, access: Access) -> None:
        self.access = access
        self.connected = False
        self.trouble: CallboardError | None = None
        self.attempts = 0
        self.losses = 0
        self.on_change: list[Callable[[], None]] = []
        self._client: Client | None = None
        self._now = asyncio.Event()

    # What pages use

    @property
    def client(self) -> Client:
        """The client itself, for what has no shorter way here. Raises NotConnected while there is no connection."""
        if self._client is None or not self.connected:
            why = f": {self.trouble}" if self.trouble is not None else ""
            raise NotConnected(f"there is no connection to the bus{why}")
        return self._client

    async def ask(self, address: str, request: Request[R], timeout: float | None = None) -> R:
        """As `Ref.ask`. Raises NotConnected at once while there is no connection."""
        return await self.client.actor(address).ask(request, timeout)

    def stream(self, address: str, request: StreamRequest[Item, R], timeout: float | None = None) -> Stream[Item, R]:
        """As `Ref.stream`: `async with session.stream(...) as items: async for item in items`."""
        return self.client.actor(address).stream(request, timeout)

    async def tell(self, address: str, message: Message) -> None:
        """As `Ref.tell`."""
        await self.client.actor(address).tell(message)

    def listen(self, pattern: str, *types: type[Message], size: int = 1024) -> AbstractAsyncContextManager[Listener]:
        """As `Client.listen`."""
        return self.client.listen(pattern, *types, size=size)

    def try_now(self) -> None:
        """Do not wait for the next attempt."""
        self._now.set()

    # The connection

    async def run(self) -> None:
        """Connect, and connect again whenever the connection is lost."""
        from ..runtime.client import connect

        wait = FIRST_WAIT_S
        access = self.access
        while True:
            self.attempts += 1
            try:
                async with connect(access.nats, access.creds, state_dir=access.state_dir, tls=access.tls) as client:
                    await self._stay(client)
                    wait = FIRST_WAIT_S
            except CallboardError as error:
                self._change(False, error)
            finally:
                self._client = None
                self.connected = False
            await self._pause(wait)
            wait = min(wait * 2, LONGEST_WAIT_S)

    async def _stay(self, client: Client) -> None:
        """Returns when this connection will not come back, or another daemon is there."""
        bus = client.node.require_links().bus
        lost = asyncio.Event()
        bus.on_lost.append(lost.set)
        refused: list[CallboardError] = []

        def put_out(error: CallboardError) -> None:
            refused.append(error)
            lost.set()

        client.node.on_put_out = put_out
        self._client = client
        while True:
            if bus.is_up:
                lost.clear()
                self.attempts = 0
                self._change(True, None)
                await lost.wait()
                self.losses += 1
            if refused:
                raise refused[0]
            self._change(False, NotConnected("the connection to the bus was lost"))
            if not await self._is_back(client, lost, refused):
                return

    async def _is_back(self, client: Client, lost: asyncio.Event, refused: list[CallboardError]) -> bool:
        """Whether the same server is there again; False once the daemon is to be found elsewhere."""
        bus = client.node.require_links().bus
        wait = FIRST_WAIT_S
        up = asyncio.ensure_future(bus.up())
        try:
            while not refused:
                now = asyncio.ensure_future(self._pause(wait))
                await asyncio.wait((up, now), return_when=asyncio.FIRST_COMPLETED)
                now.cancel()
                if up.done():
                    return True
                self.attempts += 1
                if self._is_elsewhere(client):
                    return False
                self._change(False, self.trouble)
                wait = min(wait * 2, LONGEST_WAIT_S)
            return False
        finally:
            up.cancel()

    def _is_elsewhere(self, client: Client) -> bool:
        from ..runtime.daemon_info import find_daemon
        from ..runtime.folders import Paths

        if self.access.nats:
            return False
        daemon = find_daemon(Paths.find(self.access.state_dir))
        return daemon is not None and daemon.url != client.node.require_links().options.url

    async def _pause(self, seconds: float) -> None:
        """Until it is time for the next attempt, or somebody wants it now."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._now.wait()
        self._now.clear()

    def _change(self, connected: bool, trouble: CallboardError | None) -> None:
        self.connected = connected
        self.trouble = trouble
        for tell in tuple(self.on_change):
            tell()


def as_line(error: BaseException) -> str:
    """An error as one line for people: what is wrong, and what to do."""
    hint: Any = getattr(error, "hint", "")
    return f"{error} ({hint})" if hint else str(error)
