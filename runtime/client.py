"""The Python client: `async with callboard.connect() as bus`. Its blocking twin is in blocking.py."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import msgspec

from ..schemas.base import Message, Request
from ..schemas.runtime import ActorInfo, ListNodes, NodeInfo, RestartActor, Spawn, StopActor, Tapped, TapRequest
from .actor import Actor
from .census import actors_of, seen_by
from .context import current_place
from .errors import NoSuchActor, NotReachable
from .node import ASK_TIMEOUT_S, Node
from .placement import OnNode, Ray
from .refs import Ref
from .supervision import Restart
from .tls import Tls
from .topics import Listener
from .tracing import marked

if TYPE_CHECKING:
    from .blobs import Blobs
    from .publisher import Publisher

R = TypeVar("R")

MAIN = "node.main"
# How long an observer's request for mirrored messages holds; it is renewed at a third of that.
TAP_LEASE_S = 6.0
# Starting an actor may load a model.
SPAWN_TIMEOUT_S = 150.0


class Client:
    """A connection to the company: actors by address, free topics, and the daemon's control actor."""

    def __init__(self, node: Node) -> None:
        self.node = node

    @property
    def blobs(self) -> Blobs:
        """The way to large values: `blob = await bus.blobs.put(data)`, and send the blob in a message."""
        return self.node.blobs

    def actor(self, address: str) -> Ref:
        """The actor of that address, `engine.scheduler` say. Whether it is there shows when it is asked."""
        return self.node.actor(address)

    async def publish(self, subject: str, message: Message) -> None:
        """Publish on a free subject such as `topic.news`. Nobody need listen."""
        await self.node.publish(subject, message)

    @property
    def _publisher(self) -> Publisher:
        return self.node.require_links().publisher

    async def publish_raw(self, subject: str, data: bytes) -> None:
        """Publish bytes as they are, JSON for an actor say, and return once the server has them.

        Raises NoSuchActor for `actor.<address>` where nobody is, Forbidden, TooLarge, Disconnected.
        """
        await self._publisher.publish_raw(subject, marked(data, current_place.get().trace))

    async def request_raw(self, subject: str, data: bytes, timeout: float | None = None) -> bytes:
        """Send bytes as they are to `actor.<address>` and return its answer as it comes: JSON for JSON.

        An error is an answer too: JSON with the type `error`. Raises NoSuchActor, DeadlineExceeded.
        """
        return await self._publisher.request_raw(subject, marked(data, current_place.get().trace), timeout)

    def stream_raw(self, subject: str, data: bytes, timeout: float | None = None) -> AsyncIterator[bytes]:
        """The same for a request that several messages answer. `timeout` bounds the wait for each."""
        return self._publisher.stream_raw(subject, marked(data, current_place.get().trace), timeout)

    def listen(self, pattern: str, *types: type[Message], size: int = 1024) -> AbstractAsyncContextManager[Listener]:
        """`async with bus.listen("topic.>") as messages: async for subject, message in messages: ...`.

        With types, messages come decoded as one of them; with none, as plain dictionaries. Entering the block returns
        once the server knows; what is published from then on is heard. Raises Forbidden.
        """
        return self.node.listen(pattern, *types, size=size)

    def tap(self, pattern: str = ">") -> AbstractAsyncContextManager[Listener]:
        """See what actors whose address matches `pattern` get, inside a process too: `(subject, Tapped)` pairs."""
        return self._tap(pattern, Tapped)

    def tap_raw(self, pattern: str = ">") -> AbstractAsyncContextManager[Listener]:
        """The same, decoded to plain dictionaries: the messages' types need not be known here."""
        return self._tap(pattern)

    @contextmanager
    def trace(self, name: str = "client") -> Iterator[str]:
        """Trace what is asked, told, streamed and published in the block, wherever it leads; gives the identifier.

        `callboard trace ID` draws it. When the block ends, its own spans are left with the daemon, since this process
        may be about to go.
        """
        with self.node.tracer.begin(name) as span:
            yield span.trace.trace_id
        self.hand_over()

    def hand_over(self) -> None:
        """Leave the spans of this process with the daemon."""
        if self.node.links is not None:
            self.node.tracer.hand_over(self.node.links, MAIN)

    @asynccontextmanager
    async def _tap(self, pattern: str, *types: type[Message]) -> AsyncIterator[Listener]:
        request = TapRequest(pattern, TAP_LEASE_S)

        async def renew() -> None:
            while True:
                await asyncio.sleep(TAP_LEASE_S / 3)  # within the lease
                with contextlib.suppress(NotReachable):  # the server is away: asked again in a moment
                    await self.node.publish("nodes.tap", request)

        async with self.node.listen(f"tap.{pattern}", *types) as listener:
            await self.node.publish("nodes.tap", request)
            await self.node.require_links().bus.flush()
            renewing = asyncio.create_task(renew())
            try:
                yield listener
            finally:
                renewing.cancel()

    async def spawn(
        self,
        kind: str,
        config: msgspec.Struct | str = "{}",
        *,
        name: str = "",
        process: bool = False,
        where: OnNode | Ray | None = None,
        restart: Restart = Restart.PERMANENT,
        role: Literal["node", "tool"] = "node",
        asks: tuple[str, ...] = (),
    ) -> Ref:
        """Have the daemon start an actor of a registered kind: in the daemon, in a process of its own if `process`, or
        (`where`) on another node, which the daemon picks, or on a Ray cluster. A process of the `role` tool answers for
        its actor and asks nobody but the actors of `asks`.

        Returns once its `started` has run. A permanent one comes back after a crash of the daemon too. Raises
        NameTaken, UnknownKind, ConfigError, NoNodeFits, what its `started` raised (HandlerFailed if that was no
        CallboardError), NotReachable where no daemon is on the bus.
        """
        text = config if isinstance(config, str) else msgspec.json.encode(config).decode()
        timeout = SPAWN_TIMEOUT_S
        if where is None:
            request = Spawn(kind, name, text, process, restart.value, role=role, asks=asks)
        elif isinstance(where, Ray):
            request = Spawn(kind, name, text, restart=restart.value, ray=where.ordered())
            timeout = max(timeout, where.start_timeout)
        else:
            request = Spawn(
                *(kind, name, text, process or where.process, restart.value),
                *(where.labels, where.memory, where.cpus, True),
            )
        spawned = await self._ask_main(request, timeout=timeout)
        return self.actor(spawned.address)

    async def host(
        self,
        kind: type[Actor[Any]],
        config: msgspec.Struct | None = None,
        *,
        name: str = "",
        restart: Restart = Restart.PERMANENT,
    ) -> Ref:
        """Run an actor in this process, for as long as the connection is open; the whole bus can reach it."""
        return await self.node.spawn(kind, config, name=name, restart=restart)

    async def stop(self, address: str, timeout: float = 10.0) -> None:
        """End an actor, on whatever node it is, for good: its supervisor does not bring it back.

        It finishes what it has within `timeout` seconds. Raises NoSuchActor.
        """
        host = await self._supervising(address)
        request, patience = StopActor(address, timeout), timeout + 10.0
        if host is None:
            await self._ask_main(request, patience)
            return
        if host != MAIN:
            with contextlib.suppress(NoSuchActor):  # the daemon may be about to bring it back
                await self._ask_main(request, patience)
        await self.actor(host).ask(request, patience)

    async def restart(self, address: str, timeout: float = 10.0) -> int:
        """End an actor's present life, on whatever node it is, and begin the next; how often it was restarted by now.

        The message in hand finishes within `timeout` seconds. What waits is served by the new life; one in a process of
        its own gets a new process, and hands back what waits. Raises NoSuchActor, and what its start raised.
        """
        host = await self._supervising(address)
        if host is None:
            raise NoSuchActor(f"there is no actor {address}")
        patience = timeout + SPAWN_TIMEOUT_S
        return (await self.actor(host).ask(RestartActor(address, timeout), patience)).restarts

    async def _supervising(self, address: str) -> str | None:
        """The control actor of the node that supervises an actor; None where nobody has it."""
        hosts = {info.place: f"node.{info.node}" for info in await self._seen(address) if info.address == address}
        return hosts.get("remote") or hosts.get("process") or hosts.get("here")

    async def nodes(self) -> tuple[NodeInfo, ...]:
        """The nodes on the bus, as the daemon knows them. Raises NotReachable where there is no daemon."""
        return (await self._ask_main(ListNodes())).nodes

    async def actors(self, prefix: str = "") -> list[ActorInfo]:
        """Every actor on the bus, or those below `prefix`, by address. A node that does not answer is left out.

        An actor in a process of its own is there once: as its own node sees it, and with its supervisor's count of
        restarts.
        """
        return await actors_of(self.node, [info.node for info in await self.nodes()], prefix)

    async def _seen(self, prefix: str) -> list[ActorInfo]:
        return await seen_by(self.node, [info.node for info in await self.nodes()], prefix)

    async def _ask_main(self, request: Request[R], timeout: float | None = None) -> R:
        main = self.actor(MAIN)
        try:
            return await main.ask(request, timeout)
        except NoSuchActor as error:
            try:
                await main.ask(ListNodes())
            except NoSuchActor:
                url = self.node.require_links().options.url
                raise NotReachable(f"no daemon is on the bus at {url}") from error
            raise


@asynccontextmanager
async def connect(
    nats: str = "",
    creds: str = "",
    *,
    state_dir: str = "",
    name: str = "",
    ask_timeout: float = ASK_TIMEOUT_S,
    tls: Tls | None = None,
) -> AsyncIterator[Client]:
    """Join the bus of the running daemon (that of `state_dir`, if given), or of the server at `nats`.

    `creds` is a creds file for that server, `tls` whom to trust for it. `name` is this process's name on the bus.

    Raises NotReachable when no daemon runs or no server answers, CredentialsRefused when it does not let us in,
    ConfigError for a creds file that is damaged or open to others.
    """
    from .access import bus_access

    name = name or f"client-{uuid.uuid4().hex[:10]}"
    async with bus_access(name, nats=nats, creds=creds, state_dir=state_dir, tls=tls) as options:
        async with Node(name, bus=options, ask_timeout=ask_timeout) as node:
            yield Client(node)
