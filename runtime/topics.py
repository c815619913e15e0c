"""Free publish and subscribe: who listens to what in this process."""

from __future__ import annotations

import asyncio
import collections
import functools
import re
from typing import Any

import msgspec

from ..schemas.base import Message
from .context import current_place, enter_trace
from .errors import CallboardError, ConfigError
from .messages import UNDECODABLE
from .tracing import OpenSpan, Trace, Tracer, mark_of

_encode = msgspec.msgpack.Encoder().encode
_SUBJECT = re.compile(r"[^\s.*>]+(\.[^\s.*>]+)*")
_PATTERN = re.compile(r"(([^\s.*>]+|\*)\.)*([^\s.*>]+|\*|>)")


class Listener:
    """Iterates `(subject, message)`. Bounded: what does not fit is dropped and counted in `dropped`.

    Bytes that do not decode as one of the wanted types are skipped and counted in `skipped`. Where no types were
    given, a message is a dictionary, and what is neither MessagePack nor JSON is given as bytes. With a `tracer`, what
    is done with a traced message until the next is asked for belongs to its trace.
    """

    def __init__(self, pattern: str, types: tuple[type[Message], ...], size: int, tracer: Tracer | None = None) -> None:
        self.pattern = pattern
        self.dropped = 0
        self.skipped = 0
        self.taken = 0
        self.subscription: Any = None
        self._tracer = tracer
        self._span: OpenSpan | None = None
        self._tokens = pattern.split(".")
        self._types = types
        self._size = size
        wanted: Any = Any
        if types:
            wanted = types[0]
            for option in types[1:]:
                wanted = wanted | option
        self._msgpack = msgspec.msgpack.Decoder(wanted)
        self._json = msgspec.json.Decoder(wanted)
        self._waiting: collections.deque[tuple[str, Any, Trace | None]] = collections.deque()
        self._waiter: asyncio.Future[None] | None = None
        self._closed = False
        self._error: CallboardError | None = None

    def matches(self, subject: str) -> bool:
        return matches(self._tokens, subject.split("."))

    def take(self, subject: str, message: Message, trace: Trace | None = None) -> None:
        """A message of this process. Raises what encoding it does."""
        if not self._types:  # what a listener of another process gets
            self._put(subject, self._msgpack.decode(_encode(message)), trace)
        elif isinstance(message, self._types):
            self._put(subject, message, trace)
        else:
            self.skipped += 1

    def take_bytes(self, subject: str, data: bytes) -> None:
        """A message off the bus: MessagePack, or JSON when it starts with `{`."""
        try:
            message = (self._json if data[:1] == b"{" else self._msgpack).decode(data)
        except UNDECODABLE:
            message = data
        if not self._types and not isinstance(message, dict):
            message = data  # no message of ours: somebody's text, which may decode as something by chance
        elif message is data:
            self.skipped += 1
            return
        self._put(subject, message, mark_of(data) if self._tracer is not None else None)

    def _put(self, subject: str, message: Any, trace: Trace | None) -> None:
        if len(self._waiting) >= self._size:
            self.dropped += 1
            return
        self.taken += 1
        self._waiting.append((subject, message, trace))
        self._wake()

    def close(self) -> None:
        """End the iteration after what waits."""
        self._end_span()
        self._closed = True
        self._wake()

    def fail(self, error: CallboardError) -> None:
        """End the iteration with an error, after what waits."""
        self._error = error
        self.close()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def __aiter__(self) -> Listener:
        return self

    async def __anext__(self) -> tuple[str, Any]:
        self._end_span()
        while not self._waiting:
            if self._error is not None:
                raise self._error
            if self._closed:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        subject, message, trace = self._waiting.popleft()
        if trace is not None and self._tracer is not None:
            self._span = self._tracer.receiving(trace, subject, self.pattern)
            enter_trace(self._span.trace)
        return subject, message

    def _end_span(self) -> None:
        span, self._span = self._span, None
        if span is not None:
            span.end()
            if current_place.get().trace is span.trace:
                enter_trace(None)


class Topics:
    """The listeners of one node."""

    def __init__(self) -> None:
        self.listeners: list[Listener] = []

    def add(self, listener: Listener) -> None:
        self.listeners.append(listener)

    def remove(self, listener: Listener) -> None:
        listener.close()
        self.listeners.remove(listener)

    def deliver(self, subject: str, message: Message, trace: Trace | None = None) -> None:
        """Hand a message of this process to its listeners."""
        for listener in self.listeners:
            if listener.matches(subject):
                listener.take(subject, message, trace)

    def deliver_bytes(self, subject: str, data: bytes) -> None:
        """The same for a message that came in bytes."""
        for listener in self.listeners:
            if listener.matches(subject):
                listener.take_bytes(subject, data)

    def close(self) -> None:
        for listener in self.listeners:
            listener.close()

    def fail(self, error: CallboardError) -> None:
        for listener in self.listeners:
            listener.fail(error)


def matches(pattern: list[str], subject: list[str]) -> bool:
    """Whether a subject's tokens match a NATS pattern's: `*` is one token, `>` one or more at the end."""
    for index, token in enumerate(pattern):
        if token == ">":
            return len(subject) > index
        if index >= len(subject) or (token != "*" and token != subject[index]):
            return False
    return len(pattern) == len(subject)


@functools.lru_cache(maxsize=4096)
def check_subject(subject: str, *, pattern: bool = False) -> None:
    """Raises ConfigError for what is no subject, or no pattern: the server would drop the connection that sent it."""
    if not (_PATTERN if pattern else _SUBJECT).fullmatch(subject):
        what = "pattern" if pattern else "subject"
        raise ConfigError(f"'{subject}' is no {what}: it is words joined by dots, 'topic.news' say")
