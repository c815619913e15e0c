"""The base of every actor, and what the runtime reads off a class: its handlers, their messages, their decoder."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar, overload

import msgspec

from ..schemas.base import Message, StreamRequest
from ..schemas.wire import Envelope
from .messages import tag_of
from .supervision import Restart, Supervision

if TYPE_CHECKING:
    from .blobs import Blobs
    from .cell import Cell
    from .node import Node
    from .placement import Where
    from .refs import Ref

C = TypeVar("C", bound=msgspec.Struct)
F = TypeVar("F", bound=Callable[..., Any])

_MARK = "__callboard_handler__"


class NoConfig(msgspec.Struct, frozen=True):
    """The configuration of an actor that needs none."""


@overload
def handler(method: F) -> F: ...
@overload
def handler(*, concurrent: bool = False) -> Callable[[F], F]: ...
def handler(method: Any = None, *, concurrent: bool = False) -> Any:
    """Mark `async def name(self, message: SomeMessage)` as what handles `SomeMessage` and its subclasses' tags.

    Handlers run one at a time, in the order of arrival. One marked `concurrent` runs as a task of its own beside
    others, so it must not count on the actor standing still across an `await`. A handler of a `StreamRequest` is an
    async generator: it yields items and, last, the result. It may also be a plain method that returns such a generator,
    or a coroutine of the result alone where there will be no items.

    A `CallboardError` that a handler raises is its answer. Any other exception is a crash: the sender gets
    `HandlerFailed`, and the actor's supervisor decides what becomes of the actor.
    """

    def mark(method: Any) -> Any:
        setattr(method, _MARK, concurrent)
        return method

    return mark if method is None else mark(method)


class HandlerSpec(NamedTuple):
    """How one message type is handled. `call` takes the actor and the message."""

    call: Callable[[Any, Any], Any]
    concurrent: bool
    streams: bool


class Spec(NamedTuple):
    """What the runtime knows of an actor class. `plain` has the calls that neither stream nor run beside others,
    `beside` the handlers that run beside others."""

    handlers: dict[type[Message], HandlerSpec]
    plain: dict[type[Message], Callable[[Any, Any], Any]]
    beside: dict[type[Message], HandlerSpec]
    decoder: msgspec.msgpack.Decoder[Envelope[Any]]
    json_decoder: msgspec.json.Decoder[Any]
    config: type[msgspec.Struct]
    has_started: bool
    state: Any


class Actor(Generic[C]):
    """One mailbox, one message at a time, and a state that nobody else touches.

    Derive from `Actor[Config]`, where `Config` is a frozen msgspec Struct that arrives as `self.config`, and mark the
    methods that take messages with `@handler`. Hooks: `started` runs before the first message (an error there is the
    spawner's), `draining` when its last was taken, `stopped` on the way out, also after a crash.

    A class that defines `snapshot` and `restore` gets its state back when it is started again under its address, also
    in another process: `restore` is called before `started`. State is written by `await self.save()` and by a clean
    stop. It needs a bus with JetStream (else NoStore when it starts).
    """

    config: C
    supervision: Supervision = Supervision()
    mailbox_size: int = 4096
    _cell: Cell

    async def started(self) -> None: ...

    async def stopped(self) -> None: ...

    def draining(self) -> Awaitable[None] | None:
        """Called when the actor is to end and handles no further message: let go of what only waits for news.

        It may be a coroutine: for work that came by another way than messages. That, and then the concurrent handlers
        under way, have what is left of the drain time to finish.
        """

    def snapshot(self) -> Any:
        """What `restore` needs to know: a Struct whose new fields have defaults, or bytes."""
        raise NotImplementedError

    def restore(self, state: Any) -> None:
        """Become what `snapshot` described. The annotation of `state` says what it is decoded as."""
        raise NotImplementedError

    async def save(self) -> None:
        """Take a snapshot and return when it is on the server's disk, so that an answer given then outlives anything.

        Raises Fenced where another process has taken over this address: then this actor ends, whatever it does with
        the error, and is not restarted. StoreFull: nothing was written; StoreUnavailable: it may have been.
        """
        await self._cell.save()

    @property
    def address(self) -> str:
        return self._cell.address

    @property
    def node(self) -> Node:
        return self._cell.node

    @property
    def ref(self) -> Ref:
        return self._cell.node.actor(self._cell.address)

    @property
    def blobs(self) -> Blobs:
        """The way to large values. What is held belongs to the node: it outlives a crash of the actor."""
        return self._cell.node.blobs

    def actor(self, address: str) -> Ref:
        """A reference to any actor on the bus. Whether it is there shows when it is asked."""
        return self._cell.node.actor(address)

    async def spawn(
        self,
        kind: type[Actor[Any]] | str,
        config: msgspec.Struct | str | None = None,
        *,
        name: str = "",
        where: Where | None = None,
        restart: Restart = Restart.PERMANENT,
    ) -> Ref:
        """Start a child that this actor supervises, and return once its `started` has run.

        Here, its address is `<my address>.<name>`; in a process of its own (`where=Process()`), it is `name`.
        Raises what `started` raised, NameTaken, UnknownKind, ConfigError.
        """
        return await self._cell.spawn(kind, config, name=name, where=where, restart=restart)

    async def watch(self, target: Ref | str) -> None:
        """Get one `Terminated` when the target's present life ends, at once if it is not there."""
        self._cell.watch(str(target), link=False)

    async def unwatch(self, target: Ref | str) -> None:
        self._cell.unwatch(str(target))

    async def link(self, target: Ref | str) -> None:
        """Share fate: when either crashes, so does the other."""
        self._cell.watch(str(target), link=True)

    def start_soon(self, function: Callable[..., Coroutine[Any, Any, Any]], *args: Any) -> None:
        """Run a coroutine beside the handlers until the actor ends. If it raises, the actor crashes."""
        self._cell.start_soon(function(*args))

    def finish(self) -> None:
        """End after the message in hand, as a success: only a `PERMANENT` actor is started again."""
        self._cell.finish()

    async def publish(self, subject: str, message: Message) -> None:
        await self._cell.node.publish(subject, message)


@functools.cache
def spec_of(kind: type[Actor[Any]]) -> Spec:
    """Read a class once. Raises TypeError where a handler does not name the message it takes."""
    handlers: dict[type[Message], HandlerSpec] = {}
    for name, method in inspect.getmembers(kind, inspect.isfunction):
        if not hasattr(method, _MARK):
            continue
        parameters = list(inspect.signature(method).parameters)
        hints = typing.get_type_hints(method)
        message = hints.get(parameters[1]) if len(parameters) == 2 else None
        for option in typing.get_args(message) or (message,):
            if not (isinstance(option, type) and issubclass(option, Message)):
                raise TypeError(
                    f"{kind.__name__}.{name}: a handler takes self and one message, annotated with its type"
                )
            handlers[option] = HandlerSpec(method, getattr(method, _MARK), _streams(method, option))
    tags = {tag_of(message) for message in handlers}
    if len(tags) != len(handlers):
        raise TypeError(f"{kind.__name__}: two of its messages have the same tag")
    accepted: Any = typing.Union[tuple(handlers)] if handlers else Nothing  # noqa: UP007
    plain = {message: spec.call for message, spec in handlers.items() if not (spec.concurrent or spec.streams)}
    return Spec(
        handlers,
        plain,
        {message: spec for message, spec in handlers.items() if spec.concurrent},
        msgspec.msgpack.Decoder(Envelope[accepted]),
        msgspec.json.Decoder(accepted),
        config_type(kind),
        kind.started is not Actor.started,
        _state_type(kind),
    )


def _streams(method: Callable[..., Any], message: type[Message]) -> bool:
    if inspect.isasyncgenfunction(method):
        return True
    return issubclass(message, StreamRequest) and not inspect.iscoroutinefunction(method)


def _state_type(kind: type[Actor[Any]]) -> Any:
    if kind.snapshot is Actor.snapshot and kind.restore is Actor.restore:
        return None
    from .store import state_type

    return state_type(kind)


class Nothing(Message, frozen=True, tag="actor.nothing"):
    """The message that an actor without handlers understands; nobody sends it."""


def config_type(kind: type[Actor[Any]]) -> type[msgspec.Struct]:
    for base in kind.__mro__:
        for generic in base.__dict__.get("__orig_bases__", ()):
            if typing.get_origin(generic) is Actor and isinstance(typing.get_args(generic)[0], type):
                return typing.get_args(generic)[0]
    return NoConfig


@functools.cache
def kind_name(kind: type[Actor[Any]]) -> str:
    """The name an actor class goes by: its registered one if it has one, else `module:Class`."""
    from .kinds import known_kinds

    value = f"{kind.__module__}:{kind.__qualname__}"
    return next((name for name, entry in known_kinds().items() if entry.value == value), value)
