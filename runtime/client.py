"""The Python client: `async with callboard.connect() as bus`, and its blocking twin for scripts and notebooks."""

from __future__ import annotations

import contextlib
import functools
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from types import TracebackType
from typing import Any, Generic, TypeVar

import anyio
import msgspec
from anyio.from_thread import BlockingPortal, start_blocking_portal

from ..schemas.base import Message, Request, StreamRequest
from ..schemas.runtime import ActorInfo, ListActors, ListNodes, NodeInfo, Spawn, StopActor, Tapped, TapRequest
from .actor import Actor
from .errors import ActorStopped, DeadlineExceeded, NoSuchActor
from .node import ASK_TIMEOUT_S, Node
from .refs import Ref, Stream
from .supervision import Restart
from .topics import Listener

R = TypeVar("R")
Item = TypeVar("Item")
T = TypeVar("T")

MAIN = "node.main"
# How long an observer's request for mirrored messages holds; it is renewed at a third of that.
TAP_LEASE_S = 6.0
# A node that does not list its actors by then is left out.
LIST_TIMEOUT_S = 3.0


class Client:
    """A connection to the company: actors by address, free topics, and the daemon's control actor."""

    def __init__(self, node: Node) -> None:
        self.node = node

    def actor(self, address: str) -> Ref:
        """The actor of that address, `engine.scheduler` say. Whether it is there shows when it is asked."""
        return self.node.actor(address)

    async def publish(self, subject: str, message: Message) -> None:
        """Publish on a free subject such as `topic.news`. Nobody need listen."""
        await self.node.publish(subject, message)

    async def publish_raw(self, subject: str, data: bytes) -> None:
        """Publish bytes as they are, JSON for an actor say, and return once the server has them.

        Raises NoSuchActor for `actor.<address>` where nobody is, Forbidden, TooLarge, Disconnected.
        """
        await self.node.require_links().publish_raw(subject, data)

    async def request_raw(self, subject: str, data: bytes, timeout: float | None = None) -> bytes:
        """Send bytes as they are to `actor.<address>` and return its answer as it comes: JSON for JSON.

        An error is an answer too: JSON with the type `error`. Raises NoSuchActor, DeadlineExceeded.
        """
        return await self.node.require_links().request_raw(subject, data, timeout)

    def listen(self, pattern: str, *types: type[Message], size: int = 1024) -> AbstractAsyncContextManager[Listener]:
        """`async with bus.listen("topic.>") as messages: async for subject, message in messages: ...`."""
        return self.node.listen(pattern, *types, size=size)

    def tap(self, pattern: str = ">") -> AbstractAsyncContextManager[Listener]:
        """See what actors whose address matches `pattern` get, inside a process too: `(subject, Tapped)` pairs."""
        return self._tap(pattern, Tapped)

    def tap_raw(self, pattern: str = ">") -> AbstractAsyncContextManager[Listener]:
        """The same, decoded to plain dictionaries: the messages' types need not be known here."""
        return self._tap(pattern)

    @asynccontextmanager
    async def _tap(self, pattern: str, *types: type[Message]) -> AsyncIterator[Listener]:
        request = TapRequest(pattern, TAP_LEASE_S)

        async def renew() -> None:
            while True:
                await self.node.publish("nodes.tap", request)
                await anyio.sleep(TAP_LEASE_S / 3)  # the period of the lease

        async with self.node.listen(f"tap.{pattern}", *types) as listener, anyio.create_task_group() as group:
            group.start_soon(renew)
            yield listener
            group.cancel_scope.cancel()

    async def spawn(
        self,
        kind: str,
        config: msgspec.Struct | str = "{}",
        *,
        name: str = "",
        process: bool = False,
        restart: Restart = Restart.PERMANENT,
    ) -> Ref:
        """Have the daemon start an actor of a registered kind, in its own process if `process`."""
        text = config if isinstance(config, str) else msgspec.json.encode(config).decode()
        spawned = await self.actor(MAIN).ask(Spawn(kind, name, text, process, restart.value), timeout=150.0)
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
        """End an actor, on whatever node it is, for good: its supervisor does not bring it back. Raises NoSuchActor."""
        hosts = {info.place: f"node.{info.node}" for info in await self._list(address) if info.address == address}
        host = hosts.get("process") or hosts.get("here") or MAIN
        await self.actor(host).ask(StopActor(address, timeout), timeout=timeout + 10.0)

    async def nodes(self) -> tuple[NodeInfo, ...]:
        """The nodes on the bus, as the daemon knows them."""
        return (await self.actor(MAIN).ask(ListNodes())).nodes

    async def actors(self, prefix: str = "") -> list[ActorInfo]:
        """Every actor on the bus, or those below `prefix`. A node that does not answer is left out."""
        found: dict[str, ActorInfo] = {}
        for info in await self._list(prefix):
            if info.address not in found or info.place == "here":
                found[info.address] = info
        return sorted(found.values(), key=lambda info: info.address)

    async def _list(self, prefix: str) -> list[ActorInfo]:
        """What each node says it has. A node that left meanwhile, or is stuck, says nothing."""
        found: list[ActorInfo] = []

        async def ask(name: str) -> None:
            with contextlib.suppress(NoSuchActor, ActorStopped, DeadlineExceeded):
                listed = await self.actor(f"node.{name}").ask(ListActors(prefix), timeout=LIST_TIMEOUT_S)
                found.extend(listed.actors)

        async with anyio.create_task_group() as group:
            for node in await self.nodes():
                group.start_soon(ask, node.node)
        return found


@asynccontextmanager
async def connect(
    nats: str = "", creds: str = "", *, state_dir: str = "", name: str = "", ask_timeout: float = ASK_TIMEOUT_S
) -> AsyncIterator[Client]:
    """Join the bus of the running daemon (that of `state_dir`, if given), or of the server at `nats`.

    `creds` is a creds file for that server. `name` is this process's name on the bus.

    Raises NotReachable when no daemon runs or no server answers.
    """
    from .access import bus_access

    name = name or f"client-{uuid.uuid4().hex[:10]}"
    async with bus_access(name, nats=nats, creds=creds, state_dir=state_dir) as options:
        async with Node(name, bus=options, ask_timeout=ask_timeout) as node:
            yield Client(node)


class SyncStream(Generic[Item, R]):
    """A stream for code that does not await: iterate it, then read `result`."""

    def __init__(self, portal: BlockingPortal, stream: Stream[Item, R]) -> None:
        self._portal = portal
        self._stream = stream

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        try:
            return self._portal.call(self._stream.__anext__)
        except StopAsyncIteration:
            raise StopIteration from None

    def __enter__(self) -> SyncStream[Item, R]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def result(self) -> R:
        return self._stream.result

    def close(self) -> None:
        self._portal.call(self._stream.aclose)


class SyncRef:
    """An actor, for code that does not await. The same calls as `Ref`, blocking."""

    def __init__(self, portal: BlockingPortal, ref: Ref) -> None:
        self._portal = portal
        self._ref = ref
        self.address = ref.address

    def ask(self, message: Request[R], timeout: float | None = None) -> R:
        return self._portal.call(functools.partial(self._ref.ask, message, timeout))

    def tell(self, message: Message, timeout: float = 0.0) -> None:
        self._portal.call(functools.partial(self._ref.tell, message, timeout))

    def stream(self, message: StreamRequest[Item, R], timeout: float | None = None) -> SyncStream[Item, R]:
        return SyncStream(self._portal, self._ref.stream(message, timeout))


class SyncClient:
    """The client for scripts and notebooks: the same calls, blocking. Made by `connect_sync`."""

    def __init__(self, portal: BlockingPortal, client: Client) -> None:
        self._portal = portal
        self._client = client

    def _call(self, function: Callable[..., Coroutine[Any, Any, T]], *args: Any, **kwargs: Any) -> T:
        return self._portal.call(functools.partial(function, *args, **kwargs))

    def actor(self, address: str) -> SyncRef:
        return SyncRef(self._portal, self._client.actor(address))

    def publish(self, subject: str, message: Message) -> None:
        self._call(self._client.publish, subject, message)

    @contextmanager
    def listen(self, pattern: str, *types: type[Message], size: int = 1024) -> Iterator[Iterator[tuple[str, Any]]]:
        with self._portal.wrap_async_context_manager(self._client.listen(pattern, *types, size=size)) as listener:

            def messages() -> Iterator[tuple[str, Any]]:
                while True:
                    try:
                        yield self._portal.call(listener.__anext__)
                    except StopAsyncIteration:
                        return

            yield messages()

    def spawn(
        self,
        kind: str,
        config: msgspec.Struct | str = "{}",
        *,
        name: str = "",
        process: bool = False,
        restart: Restart = Restart.PERMANENT,
    ) -> SyncRef:
        ref = self._call(self._client.spawn, kind, config, name=name, process=process, restart=restart)
        return SyncRef(self._portal, ref)

    def stop(self, address: str, timeout: float = 10.0) -> None:
        self._call(self._client.stop, address, timeout)

    def nodes(self) -> tuple[NodeInfo, ...]:
        return self._call(self._client.nodes)

    def actors(self, prefix: str = "") -> list[ActorInfo]:
        return self._call(self._client.actors, prefix)


@contextmanager
def connect_sync(
    nats: str = "", creds: str = "", *, state_dir: str = "", name: str = "", ask_timeout: float = ASK_TIMEOUT_S
) -> Iterator[SyncClient]:
    """`with callboard.connect_sync() as bus: bus.actor("counter").ask(...)`. An event loop runs in a thread of its own.

    Raises NotReachable as `connect` does.
    """
    with start_blocking_portal() as portal:
        context = connect(nats, creds, state_dir=state_dir, name=name, ask_timeout=ask_timeout)
        with portal.wrap_async_context_manager(context) as client:
            yield SyncClient(portal, client)
