"""The client for code that does not await, scripts and notebooks: `with callboard.connect_sync() as bus`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Any, Generic, TypeVar

import msgspec
from anyio.from_thread import BlockingPortal, start_blocking_portal

from ..schemas.base import Message, Request, StreamRequest
from ..schemas.runtime import ActorInfo, NodeInfo
from .actor import Actor
from .client import Client, connect
from .loops import backend_options
from .node import ASK_TIMEOUT_S
from .placement import OnNode, Ray
from .refs import Ref, Stream
from .supervision import Restart
from .tls import Tls
from .topics import Listener

R = TypeVar("R")
Item = TypeVar("Item")
T = TypeVar("T")


def _call(portal: BlockingPortal, function: Callable[..., Coroutine[Any, Any, T]], *args: Any, **kwargs: Any) -> T:
    """Run it in the event loop and wait. What interrupts the wait, Ctrl-C say, cancels it there too."""
    future = portal.start_task_soon(functools.partial(function, *args, **kwargs))
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


class SyncStream(Generic[Item, R]):
    """A stream for code that does not await: iterate it, then read `result`.

    Leaving the `for` loop early, or the `with` block, cancels the handler.
    """

    def __init__(self, portal: BlockingPortal, stream: Stream[Item, R]) -> None:
        self._portal = portal
        self._stream = stream

    def __iter__(self) -> Iterator[Item]:
        try:
            while True:
                try:
                    item = _call(self._portal, self._stream.__anext__)
                except StopAsyncIteration:
                    return
                yield item
        finally:
            self.close()

    def __enter__(self) -> SyncStream[Item, R]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def result(self) -> R:
        """The handler's result. Raises RuntimeError before the stream has ended."""
        return self._stream.result

    def close(self) -> None:
        """Stop reading; the handler is cancelled if it still runs. Safe to call twice, and when the connection is over:
        then so is the stream."""
        try:
            closing = self._portal.start_task_soon(self._stream.aclose)
        except RuntimeError:  # the event loop is gone
            return
        closing.result()


class SyncRef:
    """An actor, for code that does not await. The same calls as `Ref`, blocking; Ctrl-C cancels what is under way."""

    def __init__(self, portal: BlockingPortal, ref: Ref) -> None:
        self._portal = portal
        self._ref = ref
        self.address = ref.address

    def __str__(self) -> str:
        return self.address

    def __repr__(self) -> str:
        return f"SyncRef({self.address!r})"

    def ask(self, message: Request[R], timeout: float | None = None) -> R:
        return _call(self._portal, self._ref.ask, message, timeout)

    def tell(self, message: Message, timeout: float = 0.0) -> None:
        _call(self._portal, self._ref.tell, message, timeout)

    def stream(self, message: StreamRequest[Item, R], timeout: float | None = None) -> SyncStream[Item, R]:
        return SyncStream(self._portal, self._ref.stream(message, timeout))


class SyncListener:
    """Iterates `(subject, message)`, waiting for each. `dropped` counts what came faster than it was taken."""

    def __init__(self, portal: BlockingPortal, listener: Listener) -> None:
        self._portal = portal
        self._listener = listener

    @property
    def dropped(self) -> int:
        return self._listener.dropped

    def __iter__(self) -> SyncListener:
        return self

    def __next__(self) -> tuple[str, Any]:
        try:
            return _call(self._portal, self._listener.__anext__)
        except StopAsyncIteration:
            raise StopIteration from None


class SyncClient:
    """The client for scripts and notebooks: the same calls as `Client`, blocking. Made by `connect_sync`."""

    def __init__(self, portal: BlockingPortal, client: Client) -> None:
        self._portal = portal
        self._client = client

    def actor(self, address: str) -> SyncRef:
        return SyncRef(self._portal, self._client.actor(address))

    def publish(self, subject: str, message: Message) -> None:
        _call(self._portal, self._client.publish, subject, message)

    def listen(self, pattern: str, *types: type[Message], size: int = 1024) -> AbstractContextManager[SyncListener]:
        """`with bus.listen("topic.>") as messages: for subject, message in messages: ...`."""
        return self._listening(lambda: self._client.listen(pattern, *types, size=size))

    def tap(self, pattern: str = ">") -> AbstractContextManager[SyncListener]:
        return self._listening(lambda: self._client.tap(pattern))

    @contextmanager
    def trace(self, name: str = "client") -> Iterator[str]:
        """Trace what this thread does with the connection in the block; gives the identifier."""
        tracer = self._client.node.tracer
        with tracer.begin(name) as span:
            yield span.trace.trace_id
        _call(self._portal, self._hand_over)

    async def _hand_over(self) -> None:
        self._client.hand_over()

    @contextmanager
    def _listening(self, opened: Callable[[], Any]) -> Iterator[SyncListener]:
        with self._portal.wrap_async_context_manager(opened()) as listener:
            yield SyncListener(self._portal, listener)

    def spawn(
        self,
        kind: str,
        config: msgspec.Struct | str = "{}",
        *,
        name: str = "",
        process: bool = False,
        where: OnNode | Ray | None = None,
        restart: Restart = Restart.PERMANENT,
    ) -> SyncRef:
        spawn, options = self._client.spawn, {"name": name, "process": process, "where": where, "restart": restart}
        return SyncRef(self._portal, _call(self._portal, spawn, kind, config, **options))

    def host(
        self,
        kind: type[Actor[Any]],
        config: msgspec.Struct | None = None,
        *,
        name: str = "",
        restart: Restart = Restart.PERMANENT,
    ) -> SyncRef:
        """Run an actor in this process, in the event loop's thread, for as long as the connection is open."""
        return SyncRef(self._portal, _call(self._portal, self._client.host, kind, config, name=name, restart=restart))

    def stop(self, address: str, timeout: float = 10.0) -> None:
        _call(self._portal, self._client.stop, address, timeout)

    def nodes(self) -> tuple[NodeInfo, ...]:
        return _call(self._portal, self._client.nodes)

    def actors(self, prefix: str = "") -> list[ActorInfo]:
        return _call(self._portal, self._client.actors, prefix)


@contextmanager
def connect_sync(
    nats: str = "",
    creds: str = "",
    *,
    state_dir: str = "",
    name: str = "",
    ask_timeout: float = ASK_TIMEOUT_S,
    tls: Tls | None = None,
) -> Iterator[SyncClient]:
    """`with callboard.connect_sync() as bus: bus.actor("counter").ask(...)`. An event loop runs in a thread of its own.

    Raises NotReachable as `connect` does.
    """
    with start_blocking_portal(backend_options=backend_options()) as portal:
        context = connect(nats, creds, state_dir=state_dir, name=name, ask_timeout=ask_timeout, tls=tls)
        with portal.wrap_async_context_manager(context) as client:
            yield SyncClient(portal, client)
